"""A package layer that comes while it is unpacked: neither memory nor a disk has to hold it."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from anemos import namespaces

PIECE = 1 << 16


@contextmanager
def arriving(source: BinaryIO, digest: str, at: Path) -> Iterator[None]:
    """Meanwhile AT is a named pipe, from which one reader gets SOURCE: a compressed file whose
    SHA-256 is DIGEST, or else what is cut off.

    A process of its own writes to it: beside a thread nobody may enter namespaces (setns(2)).
    """
    at.unlink(missing_ok=True)
    os.mkfifo(at, 0o600)
    child = os.fork()
    if not child:
        end_with(source, digest, at)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        at.unlink(missing_ok=True)


def end_with(source: BinaryIO, digest: str, at: Path) -> NoReturn:
    """This process does that alone; nothing of the one that it is a copy of is its to close."""
    try:
        namespaces.die_with_parent()
        pass_on(source, digest, at)
    finally:
        os._exit(0)


def pass_on(source: BinaryIO, digest: str, at: Path) -> None:
    """The last piece comes only if the whole is what it should be: so no compressed file comes to
    its end that is not."""
    whole, held = hashlib.sha256(), b""
    with at.open("wb", buffering=0) as pipe:
        while piece := source.read(PIECE):
            pipe.write(held)
            whole.update(piece)
            held = piece
        if whole.hexdigest() == digest:
            pipe.write(held)
