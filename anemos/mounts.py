"""What is mounted, and mounts that last for a block of code."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from anemos.run import CommandFailed, run

POLL_S = 0.2
MOUNTINFO = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    source: Path
    point: Path
    kind: str


@contextmanager
def mounted(*words: str | Path, at: Path, patience_s: float = 0.0) -> Iterator[None]:
    """mount(8) WORDS on the directory AT meanwhile. Raises CommandFailed, after PATIENCE_S: nobody
    may write to what another one has mounted read-only, or the other way round."""
    end = time.monotonic() + patience_s
    while True:
        try:
            run(["mount", *words, at])
            break
        except CommandFailed:
            if time.monotonic() > end:
                raise
        time.sleep(POLL_S)
    try:
        yield
    finally:
        run(["umount", at])


def listed() -> list[Mount]:
    """All that is mounted, in order (proc_pid_mountinfo(5))."""
    found = []
    for line in os.fsdecode(MOUNTINFO.read_bytes()).splitlines():
        left, right = line.split(" - ")
        kind, source = right.split(" ")[:2]
        found.append(Mount(Path(unescaped(source)), Path(unescaped(left.split()[4])), kind))
    return found


def kind(path: Path) -> str:
    """The type of the file system that PATH lies on: the longest mount point above it counts, of
    several mounts on that the last."""
    real = path.resolve()
    above = [each for each in listed() if real.is_relative_to(each.point)]
    above.sort(key=lambda each: len(each.point.parts))
    return above[-1].kind if above else "an unknown file system"


def privileged() -> bool:
    """Whether this is the root outside of any user namespace, who may mount everything."""
    outside = ["0", "0", str(2**32 - 1)]  # user_namespaces(7)
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == outside


def unescaped(word: str) -> str:
    """White space and backslashes stand as \\040 and so on, as in fstab(5)."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), word)
