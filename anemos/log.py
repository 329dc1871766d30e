"""Progress and failures, the same in every place that Anemos runs in.

Progress goes to standard error: standard output belongs to results, and to what a person asks for.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn, TextIO

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


def write(text: str, stream: TextIO | None) -> None:
    """Raises nothing: that nobody reads any more (a pipe, a terminal that is gone, a file that was
    closed) is no reason to end a deployment, and must not stand in a failure's place."""
    if stream is not None:  # it was closed from the start: print() would take standard output
        with suppress(OSError, ValueError):
            print(printable(text), file=stream, flush=True)


def to_stderr(text: str) -> None:
    write(text, sys.stderr)


def to_stdout(text: str) -> None:
    write(text, sys.stdout)


# Where lines go. The initramfs puts its own sink here: console and log file.
sink: Sink = to_stderr
answers: Sink = to_stderr  # where the lines of an answer go


def info(line: str) -> None:
    sink("  " * _depth + printable(line.rstrip("\r")))


def tell(line: str) -> None:
    """A line of the answer to what a person has asked for; of a step's, it is progress."""
    if _depth:
        info(line)
    else:
        answers(printable(line.rstrip("\r")))


@dataclass(frozen=True)
class Step:
    """START: seconds since the epoch, by the clock of the machine that it runs on.

    LIMIT: how long a wait may take, in seconds. ASKS: somebody may be asked on the terminal
    meanwhile. THERE: it runs on the server, whose events tell of it.
    """

    name: str
    start: float
    limit: float = 0.0
    asks: bool = False
    there: bool = False


class Observer:
    """Who wants to know of the steps themselves, not of the lines about them. Raises nothing."""

    def began(self, step: Step) -> None: ...

    def ended(self, step: Step, end: float, done: bool) -> None:
        """END: as STEP's start. DONE: without a failure."""

    def reached(self, done: int, total: int) -> None:
        """So many bytes of the innermost step."""

    def noted(self, text: str) -> None:
        """What the innermost step, a wait, has met last."""


observers: list[Observer] = []


def began(step: Step) -> None:
    for each in observers:
        each.began(step)


def ended(step: Step, end: float, done: bool) -> None:
    for each in observers:
        each.ended(step, end, done)


def reached(done: int, total: int) -> None:
    for each in observers:
        each.reached(done, total)


def noted(text: str) -> None:
    for each in observers:
        each.noted(text)


@contextmanager
def step(name: str, limit: float = 0.0, asks: bool = False) -> Iterator[None]:
    """Announce NAME, indent what happens inside, tell the seconds that it took. See Step.

    While an exception passes, the closing line stands in parentheses: the eye finds where it began.
    """
    global _depth  # noqa: PLW0603 (one progress tree a process)
    info(f"{name} ...")
    _depth += 1
    start, begun, done = time.monotonic(), Step(name, time.time(), limit, asks), False
    try:
        began(begun)
        yield
        done = True
    finally:
        _depth -= 1
        took = f"{time.monotonic() - start:.1f} s"
        info(f"{name}: done in {took}" if done else f"({name} failed after {took})")
        ended(begun, time.time(), done)
