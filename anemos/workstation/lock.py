"""One task at a time works for a host: a lock that ends with its process in every case."""

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO

from anemos import files
from anemos.log import die
from anemos.workstation import places

NAME = ".locks"  # in the memory directory; `clean` leaves it alone
held: dict[str, IO[str]] = {}  # by this process


def take(name: str) -> None:
    """Take the lock of the host NAME, until this process ends. Raises Failure (status 2)."""
    if other := tried(name):
        die(f"{name}: another task works on it: {other}")


def tried(name: str) -> str:
    """The same; who has it already, or "" when it is ours now."""
    if name in held:
        return ""
    file = Path(places.memory(NAME), name).open("a+")  # noqa: SIM115 (it stays open)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock(2)
    except BlockingIOError:
        with file:
            file.seek(0)
            return file.read() or "it has just begun"
    held[name] = file
    with files.named(Path(file.name)):
        file.truncate(0)
        file.write(f"./inv {' '.join(sys.argv[1:2])}, process {os.getpid()}, since {time.ctime()}")
        file.flush()
    return ""
