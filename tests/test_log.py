"""anemos.log: progress and failures."""

import re
import sys

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


def test_progress_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    info("progress")
    assert capfd.readouterr() == ("", "progress\n")


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
