"""What is mounted, and mounts that last for a block of code."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anemos.run import run

MOUNTINFO = Path("/proc/self/mountinfo")


@contextmanager
def mounted(*words: str | Path, at: Path) -> Iterator[None]:
    """mount(8) WORDS on the directory AT meanwhile. Raises CommandFailed."""
    run(["mount", *words, at])
    try:
        yield
    finally:
        run(["umount", at])


def listed() -> list[tuple[Path, Path]]:
    """Source and mount point of all that is mounted, in order (proc_pid_mountinfo(5))."""
    found = []
    for line in os.fsdecode(MOUNTINFO.read_bytes()).splitlines():
        left, right = line.split(" - ")
        found.append((Path(unescaped(right.split()[1])), Path(unescaped(left.split()[4]))))
    return found


def unescaped(word: str) -> str:
    """The kernel writes white space and backslashes as \\040 and so on."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), word)
