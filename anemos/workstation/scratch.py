"""A directory for secrets in clear: in memory, ours alone, gone with the work that needs it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from anemos.log import FAILED, die
from anemos.workstation import places
from anemos.workstation.secrets import remove, require_memory

# What ends a process without a finally: closed terminals, kill(1). SIGINT is among them because
# a second one, too, must not interrupt the removal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def directory() -> Iterator[Path]:
    """Yield an empty directory in memory, mode 0700, and remove it whatever happens.

    SIGTERM and SIGHUP raise Failure meanwhile. What a SIGKILL left behind, the next call removes.
    Raises Failure where there is no memory-backed storage.
    """
    top = places.memory(".scratch")
    require_memory(top)
    for old in top.iterdir():
        if not Path("/proc", old.name).exists():
            remove(old)
    mine = top / str(os.getpid())
    with ending():
        try:
            remove(mine)
            mine.mkdir(mode=0o700)
            yield mine
        finally:
            remove(mine)


@contextmanager
def ending() -> Iterator[None]:
    """Let the first signal raise, and ignore all that follow."""
    before = {number: signal.signal(number, end) for number in SIGNALS}
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
    die(f"ended by {signal.Signals(number).name}", status=FAILED)
