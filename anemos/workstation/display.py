"""What a person sees on a terminal: below the log, which scrolls as it does everywhere, a line for
each phase, with bars and waits.

Nothing here raises: a terminal that is gone, or too small, ends no deployment.
"""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from anemos import log
from anemos.log import Observer, Step

ROOM = 8  # lines of the terminal that the log has at least
SMALL = 12  # lower terminals get the log alone
BAR = 20  # characters
FULL, EMPTY = "━", "·"
MIB = 2**20


class Steady(io.StringIO):
    """Standard error, as log.to_stderr writes to it: it raises nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


class Screen(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """It stays: a process that is killed could not bring it back."""
        return False


@dataclass
class Open:
    """A step that goes on."""

    step: Step
    since: float  # time.monotonic()
    done: int = 0
    total: int = 0
    note: str = ""


class Display(Observer):
    def __init__(self) -> None:
        # Its width is asked for each time: a window that changes its size needs no signal.
        self.console = Screen(
            file=Steady(), force_terminal=True, highlight=False, markup=False, emoji=False
        )
        self.past: list[tuple[str, float, bool]] = []
        self.open: list[Open] = []
        self.live: Live | None = None

    # What log.py tells

    def line(self, text: str) -> None:
        """Above the rest, whole; where that fails, as everywhere."""
        if self.live:
            try:
                self.console.print(Text(text), soft_wrap=True)
                return
            except Exception:  # of rich
                self.stop()
        log.to_stderr(text)

    def began(self, step: Step) -> None:
        self.open.append(Open(step, time.monotonic()))
        if step.asks or self.console.height < SMALL:
            self.stop()
        elif not self.live and not any(each.step.asks for each in self.open):
            self.start()

    def ended(self, step: Step, end: float, done: bool) -> None:
        for each in [each for each in self.open if each.step is step]:
            self.open.remove(each)
            if not self.open:
                self.past.append((step.name, time.monotonic() - each.since, done))
        if not self.open:
            self.stop()

    def reached(self, done: int, total: int) -> None:
        if self.open:
            self.open[-1].done, self.open[-1].total = done, total

    def noted(self, text: str) -> None:
        if self.open:
            self.open[-1].note = log.printable(text).partition("\n")[0]

    # What is drawn

    def start(self) -> None:
        with suppress(Exception):
            live = Live(
                console=self.console,
                get_renderable=self.draw,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            live.start(refresh=True)
            self.live = live

    def stop(self) -> None:
        live, self.live = self.live, None
        if live:
            with suppress(Exception):
                live.stop()

    def draw(self) -> Group:
        """Called by a thread of rich's, too."""
        going = list(self.open)
        room = max(self.console.height - ROOM - len(going), 0)
        past = self.past[len(self.past) - min(room, len(self.past)) :]
        rows = [(name, clock(seconds), "" if done else "failed") for name, seconds, done in past]
        rows += [(f"{'  ' * i}{e.step.name}", waited(e), detail(e)) for i, e in enumerate(going)]
        wide, long = (max((len(each[i]) for each in rows), default=0) for i in (0, 1))
        lines = [
            Text(f"{name:{wide}}  {time:{long}}  {more}", no_wrap=True, overflow="ellipsis")
            for name, time, more in rows
        ]
        for number, line in enumerate(lines):
            line.stylize("dim" if number < len(past) else "bold", 0, wide)
        return Group(*lines)


def waited(each: Open) -> str:
    now = clock(time.monotonic() - each.since)
    return f"{now} of at most {clock(each.step.limit)}" if each.step.limit else now


def detail(each: Open) -> str:
    if not each.total:
        return each.note
    full = min(BAR * each.done // each.total, BAR)
    return (
        f"{FULL * full}{EMPTY * (BAR - full)} {each.done / MIB:.1f} of {each.total / MIB:.1f} MiB"
    )


def clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return (f"{hours}:" if hours else "") + f"{rest // 60:02}:{rest % 60:02}"


@contextmanager
def shown() -> Iterator[None]:
    """Show steps on the terminal meanwhile."""
    display, before = Display(), log.sink
    log.sink = display.line
    log.observers.append(display)
    try:
        yield
    finally:
        display.stop()
        log.observers.remove(display)
        log.sink = before
