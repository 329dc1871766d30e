"""anemos.log: progress and failures."""

import errno
import io
import os
import re
import sys
from contextlib import suppress

import pytest

from anemos import log
from anemos.log import BAD_INPUT, FAILED, Failure, die, info, step
from anemos.run import run


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(log, "sink", lambda line: seen.append(re.sub(r"\d+\.\d s", "N s", line)))
    return seen


def test_steps_nest_and_tell_their_time(lines: list[str]) -> None:
    with step("outer"):
        info("one")
        with step("inner"):
            info("two")
    info("three")
    assert lines == [
        "outer ...",
        "  one",
        "  inner ...",
        "    two",
        "  inner: done in N s",
        "outer: done in N s",
        "three",
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Failure])
def test_failed_step_stands_in_parentheses(lines: list[str], error: type[BaseException]) -> None:
    with pytest.raises(error), step("outer"), step("inner"):
        raise error("reason")
    info("after")
    assert lines[2:] == ["  (inner failed after N s)", "(outer failed after N s)", "after"]


class Seen(log.Observer):
    """Ends and begins of steps, as text."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def began(self, step: log.Step) -> None:
        self.told.append(f"{step.name} {step.limit:g}")

    def ended(self, step: log.Step, end: float, done: bool) -> None:
        assert end >= step.start
        self.told.append(f"{step.name} {'done' if done else 'failed'}")


def test_observers_see_steps(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    seen = Seen()
    monkeypatch.setattr(log, "observers", [seen])
    with suppress(ValueError), step("outer"):
        with step("wait", limit=60):
            log.reached(1, 2)
            log.noted("why")
        raise ValueError
    assert seen.told == ["outer 0", "wait 60", "wait done", "outer failed"]
    assert lines[-1] == "(outer failed after N s)"


def test_progress_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    info("progress")
    assert capfd.readouterr() == ("", "progress\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Änderung\t✓\n[red]x[/red]", "Änderung\t✓\n[red]x[/red]"),
        ("\x1b]0;mine\x07\x9b2J", "\\x1b]0;mine\\x07\\x9b2J"),
        ("a\rb\x00\u202ec\udc80", "a\\rb\\x00\\u202ec\\udc80"),
    ],
)
def test_what_others_say_gives_a_terminal_no_orders(
    capfd: pytest.CaptureFixture[str], text: str, shown: str
) -> None:
    log.to_stderr(text)
    info(f"{text}\r")

    assert capfd.readouterr().err == f"{shown}\n" * 2


class Dead(io.StringIO):
    """A terminal that is gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Dead(), closed()])
def test_nobody_reads_any_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stream: io.StringIO | None
) -> None:
    """What failed is told, not that nobody reads of it; standard output has no lines of ours."""
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(Failure, match="the reason"), step("outer"):
        die("the reason")

    assert capfd.readouterr().out == ""


def test_die() -> None:
    with pytest.raises(Failure) as caught:
        die("mx: no disk", hint="name one", status=FAILED)
    assert str(caught.value) == "mx: no disk\n  (name one)"
    assert (caught.value.status, caught.value.code) == (FAILED, FAILED)
    assert str(Failure("mx: no disk")) == "mx: no disk"
    assert Failure("mx: no disk").status == BAD_INPUT


@pytest.mark.real("run")
def test_failure_sets_the_exit_status_and_is_no_traceback() -> None:
    code = "from anemos.log import *; die('x', status=IN_INITRAMFS)"
    script = 'cd "$1"; "$2" -c "$3"; echo "$?"'
    root = log.__file__.removesuffix("/anemos/log.py")
    seen: list[str] = []
    run(["sh", "-c", script, "sh", root, sys.executable, code], log=seen.append)
    assert seen == ["3"]
