"""Progress and failures, the same in every place that Anemos runs in.

Progress goes to standard error: standard output belongs to results (`--json`).
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# The exit statuses of every task (docs/recovery.md).
FAILED = 1  # the server runs the old system, unchanged, or goes back to it
BAD_INPUT = 2  # bad input or unmet precondition; nothing was started
IN_INITRAMFS = 3  # failed after the word to erase: the machine waits, installs, or is silent
UNVERIFIED = 4  # deployed, but verification failed, or was cut short

Sink = Callable[[str], None]
_depth = 0


class Failure(SystemExit):
    """What `die` raises. As a SystemExit it never becomes a traceback, wherever it ends up."""

    def __init__(self, message: str, *, hint: str = "", status: int = BAD_INPUT) -> None:
        super().__init__(status)
        self.message, self.hint, self.status = message, hint, status

    def __str__(self) -> str:
        return f"{self.message}\n  ({self.hint})" if self.hint else self.message


def die(message: str, *, hint: str = "", status: int = BAD_INPUT) -> NoReturn:
    """End the task with MESSAGE: what failed, with the object's name. HINT: what to do next."""
    raise Failure(message, hint=hint, status=status)


def printable(text: str) -> str:
    """TEXT, which may be somebody else's, without what would move a terminal's cursor, colour it or
    turn its letters round: such characters stand there as Python writes them, `\\x1b`."""
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else ascii(c)[1:-1] for c in text)


def to_stderr(text: str) -> None:
    """Raises nothing: that nobody reads any more (a pipe, a terminal that is gone, a file that was
    closed) is no reason to end a deployment, and must not stand in a failure's place."""
    if sys.stderr is not None:  # it was closed from the start: print() would take standard output
        with suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


# Where lines go. The initramfs puts its own sink here: console and log file.
sink: Sink = to_stderr


def info(line: str) -> None:
    sink("  " * _depth + printable(line.rstrip("\r")))


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce NAME, indent what happens inside, tell the seconds that it took.

    While an exception passes, the closing line stands in parentheses: the eye finds where it began.
    """
    global _depth  # noqa: PLW0603 (one progress tree a process)
    info(f"{name} ...")
    _depth += 1
    start = time.monotonic()
    ended = "({} failed after {:.1f} s)"
    try:
        yield
        ended = "{}: done in {:.1f} s"
    finally:
        _depth -= 1
        info(ended.format(name, time.monotonic() - start))
