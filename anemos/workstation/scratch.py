"""A directory for secrets in clear: in memory, ours alone, gone with the work that needs it."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from secrets import token_hex
from types import FrameType
from typing import NoReturn

from anemos import files, mounts
from anemos.log import die
from anemos.workstation import places

NAME = ".scratch"  # in the memory directory: a directory for each process
# What ends a process without a finally: closed terminals, kill(1). SIGINT is among them because
# a second one, too, must not interrupt the removal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def directory() -> Iterator[Path]:
    """Yield an empty directory in memory, mode 0700, and remove it in every case.

    SIGTERM and SIGHUP raise Failure meanwhile. What a SIGKILL left behind, the next call removes.
    Raises Failure where there is no memory-backed storage.
    """
    top = places.memory(NAME)
    require_memory(top)
    for old in top.iterdir():
        if not in_use(old):
            remove(old)
    mine = top / f"{os.getpid()}.{token_hex(4)}"  # one may need another one meanwhile
    with ending():
        try:
            mine.mkdir(mode=0o700)
            yield mine
        finally:
            remove(mine)


def in_use(directory: Path) -> bool:
    """Whether the process that made DIRECTORY still runs."""
    return Path("/proc", directory.name.partition(".")[0]).exists()


@contextmanager
def ending() -> Iterator[None]:
    """Let the first signal raise, and ignore all that follow: what is in clear is removed first.

    Inside of another one it is that one's business. One that is ignored stays so: nohup(1).
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) not in (end, signal.SIG_IGN)]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(number: int, _frame: FrameType | None) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    # As a shell tells it: nothing is said about the server.
    die(f"ended by {signal.Signals(number).name}", status=128 + number)


def write_private(top: Path, name: str, data: bytes) -> None:
    """Write DATA to the new file TOP/NAME, without a moment in which others can read it."""
    for parent in reversed(PurePath(name).parents):
        (top / parent).mkdir(mode=0o700, exist_ok=True)
    with files.private(top / name) as file:
        file.write(data)


def remove(path: Path) -> None:
    """Remove PATH, although gpg-agent may remove its sockets from it at the same time."""
    while os.path.lexists(path):
        with suppress(FileNotFoundError):  # before Python 3.13: a file in it is gone already
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def require_memory(path: Path) -> None:
    """Die unless PATH, which need not exist, lies on a file system that lives in memory."""
    kind = mounts.kind(path)
    if kind not in ("tmpfs", "ramfs"):
        die(f"{path} lies on {kind}, not in memory: no place for secrets in clear")
