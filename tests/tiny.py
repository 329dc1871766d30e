"""A root file system that is as small as commands in it allow: a few of this machine's programs."""

import re
import shutil
from pathlib import Path

from anemos.run import run

PROGRAMS = (
    "sh",
    "bash",
    "blockdev",
    "cat",
    "chmod",
    "chown",
    "dd",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mv",
    "readlink",
    "rm",
    "sleep",
)
DIRECTORIES = ("dev", "etc", "home", "proc", "run", "sys", "tmp", "var/tmp")


def make(root: Path, *more: str) -> Path:
    """Make it at ROOT, laid out as Debian does: /bin, /lib and so on lead to /usr.

    MORE: programs of this machine.
    """
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    files = {program: Path(shutil.which(program) or program) for program in (*PROGRAMS, *more)}
    libraries = set(re.findall(r"/\S+", run(["ldd", *files.values()]).replace(":\n", "\n")))
    for program, file in files.items():
        shutil.copy2(file, root / "usr/bin" / program)
    for library in libraries - {str(file) for file in files.values()}:
        target = root / library.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return root
