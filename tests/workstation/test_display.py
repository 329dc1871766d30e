"""What is on a terminal: a real one, as a pair (pty(7)), and what it shows, line by line."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from anemos.log import IN_INITRAMFS
from tests.tree import ROOT

pytestmark = pytest.mark.real("run")

# A task with steps, waits and bars; it waits for a line on its standard input where it says so.
TASK = """
import sys, time
from invoke.context import Context
from anemos import log
from anemos.log import Step, die
from anemos.workstation.cli.command import command
from anemos.workstation.cli.program import flushed

@command
def task(c, json=False):
    "Do it."
    with log.step("plan mx"):
        log.info("ERASE  [bold]vda[/bold] :smile: " + "long " * 60)
    with log.step("reveal-secrets mx", asks=True):
        print("PIN?", file=sys.stderr, flush=True)
    with log.step("upload mx"), log.step("Sending layer (62.0 MiB)"):
        log.reached(31 << 20, 62 << 20)
        sys.stdin.readline()
        log.info("sent")
    with log.step("in RAM mx"):
        with log.step("Waiting for the initramfs", limit=300):
            log.noted("no SSH connection:\\x1b[2J Connection refused")
            sys.stdin.readline()
        there = Step("Package layer", time.time(), there=True)
        log.began(there)
        for number in range(30):
            log.info(f"| {number}")
        sys.stdin.readline()
        log.ended(there, time.time(), True)
        END
    return {"host": "mx"}

try:
    task.body(Context(), json=JSON)
finally:
    flushed(sys.stderr)
"""
DIE = 'die("mx: the reason", hint="what to do", status=log.IN_INITRAMFS)'
LINES = [
    "plan mx ...",
    "  ERASE  [bold]vda[/bold] :smile: " + "long " * 60,
    "plan mx: done in N s",
    "reveal-secrets mx ...",
    "PIN?",
    "reveal-secrets mx: done in N s",
    "upload mx ...",
    "  Sending layer (62.0 MiB) ...",
    "    sent",
    "  Sending layer (62.0 MiB): done in N s",
    "upload mx: done in N s",
    "in RAM mx ...",
    "  Waiting for the initramfs ...",
    "  Waiting for the initramfs: done in N s",
    *(f"  | {number}" for number in range(30)),
    "in RAM mx: done in N s",
]
FAILED = [*LINES[:-1], "(in RAM mx failed after N s)", "error: mx: the reason", "  (what to do)"]
ORDERS = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])")


class Terminal:
    """What was written to a terminal that is as wide as can be, with all that has scrolled away.

    SEEN: every picture that it has shown.
    """

    def __init__(self) -> None:
        self.lines = [""]
        self.at = self.column = 0
        self.orders: set[tuple[str, str]] = set()

    def write(self, text: str) -> None:
        for part in re.split(r"(\x1b\[[\d;?]*[A-Za-z]|[\r\n])", text):
            if found := ORDERS.fullmatch(part):
                self.obey(found[1], found[2])
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self.at += 1
                self.lines += [""] * (self.at + 1 - len(self.lines))
            else:
                line = self.lines[self.at].ljust(self.column)
                self.lines[self.at] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)

    def obey(self, number: str, order: str) -> None:
        self.orders.add((number, order))
        if (number, order) == ("2", "K"):
            self.lines[self.at] = ""
        elif order == "A":
            self.at -= int(number or 1)
            assert self.at >= 0
        else:
            assert order == "m", (number, order)

    @property
    def shown(self) -> list[str]:
        """Without the lines that are empty at the end."""
        text = re.sub(r"\d+\.\d s", "N s", "\n".join(self.lines)).rstrip()
        return text.split("\n")


class Session:
    """A task on a terminal of its own, its controlling one."""

    def __init__(self, process: Popen[str], terminal: int) -> None:
        self.process, self.terminal, self.text = process, terminal, ""
        self.more, self.gone = threading.Condition(), threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        with suppress(OSError):  # EIO: the other side is closed
            while not self.gone.is_set():
                if select.select([self.terminal], [], [], 0.1)[0]:
                    data = os.read(self.terminal, 65536)
                    with self.more:
                        self.text += data.decode(errors="replace")
                        self.more.notify_all()

    def close(self) -> None:
        self.gone.set()
        self.reader.join()
        with suppress(OSError):
            os.close(self.terminal)

    def see(self, *words: str) -> None:
        """Wait until WORDS have come, in this order."""
        pattern = re.compile(".*".join(map(re.escape, words)), re.S)
        with self.more:
            assert self.more.wait_for(lambda: pattern.search(self.text), 60), self.text[-2000:]

    def type(self, text: str = "\n") -> None:
        os.write(self.terminal, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def finish(self) -> list[str]:
        """Let it go on to its end; what the terminal shows then."""
        self.see("MiB")
        self.type()
        self.see("of at most", "Connection refused")
        self.type()
        self.see("| 29", "Package layer")
        self.type()
        self.process.wait(60)
        return self.end()

    def end(self) -> list[str]:
        shows = Terminal()
        self.reader.join()
        shows.write(self.text)
        self.orders = shows.orders
        return shows.shown


@contextmanager
def session(
    end: str = "pass", json: bool = False, rows: int = 40, columns: int = 400, **variables: str
) -> Iterator[Session]:
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    program = TASK.replace("END", end).replace("JSON", str(json))
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    argv = ["setsid", "--ctty", sys.executable, "-c", program]
    streams = theirs, PIPE, theirs
    settings = env | variables
    with Popen(argv, -1, None, *streams, env=settings, cwd=ROOT, text=True) as process:
        os.close(theirs)
        task = Session(process, ours)
        try:
            yield task
        finally:
            process.kill()
            task.close()


def test_steps_below_the_log() -> None:
    with session() as task:
        task.see("plan mx", "upload mx", "━" * 10 + "·" * 10 + " 31.0 of 62.0 MiB")
        task.see("00:01")  # by itself: nothing is logged meanwhile
        shown = task.finish()
        assert "of at most 05:00  no SSH connection:\\x1b[2J Connection refused" in task.text
        assert re.search(r"in RAM mx.*Package layer", task.text, re.S)
        # While gpg's pinentry asks, say, nothing is painted over it.
        before = task.text.partition("PIN?")[0]
        assert before.endswith("reveal-secrets mx ...\r\n")

    assert task.process.returncode == 0
    assert shown == LINES
    assert {number for number, order in task.orders if order == "m"} <= {"0", "1", "2"}


@pytest.mark.parametrize(("json", "terminal"), [(True, "xterm"), (False, "dumb"), (False, "")])
def test_plain_lines(json: bool, terminal: str) -> None:
    with session(json=json, TERM=terminal) as task:
        task.see("Sending layer")
        task.type("\n\n\n")
        task.process.wait(60)
        assert task.end() == LINES
        assert task.orders == set()
        assert task.process.stdout
        assert task.process.stdout.read() == ('{"host": "mx"}\n' if json else "")


def test_last_error_in_a_window_that_changes_its_size() -> None:
    with session(end=DIE) as task:
        task.see("MiB")
        task.resize(5, 400)
        task.type()
        task.see("Waiting for the initramfs ...")
        task.type()
        task.see("| 29")
        task.resize(40, 400)
        task.type()
        task.process.wait(60)
        assert task.end() == FAILED
        assert task.process.returncode == IN_INITRAMFS


@pytest.mark.parametrize(
    ("end", "status"), [(Session.close, 129), (lambda task: task.type("\x03"), 130)]
)
def test_status_of_what_ends_it(end: Callable[[Session], None], status: int) -> None:
    """A closed terminal, Ctrl-C."""
    with session() as task:
        task.see("MiB")
        end(task)
        assert task.process.wait(60) == status
        if status == 130:
            assert task.end()[-2:] == [
                "error: interrupted",
                "  (./inv status tells what runs there)",
            ]


@pytest.mark.parametrize("stream", ["/dev/full", "closed"])
def test_terminal_that_takes_nothing(tmp_path: Path, stream: str) -> None:
    """The display is there, and all that it writes is lost: the task goes on."""
    program = """
import os, sys, time
from anemos import log
from anemos.workstation import display
sys.stderr = open("/dev/full", "w")
if sys.argv[1] == "closed":
    sys.stderr.close()
with display.shown(), log.step("one"), log.step("two", limit=5):
    log.info("line")
    time.sleep(0.6)
print("the end")
"""
    argv = [sys.executable, "-c", program, stream]
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with Popen(argv, env=env, cwd=tmp_path, text=True, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate()
    assert out == "the end\n"
    assert "Traceback" not in err
