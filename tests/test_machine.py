"""A host's own tests: a real pytest runs them, and ssh(1) is played by a shell."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from anemos.log import UNVERIFIED, Failure
from anemos.run import CommandFailed
from anemos.workstation import machine
from anemos.workstation.machine import Machine

pytestmark = pytest.mark.real("run")

HERE = Machine("192.0.2.1", ["sh", "-c"], {"443": 40443}, "notes.json")
GOOD = """
def test_machine(machine):
    assert (machine.address, machine.port(443), machine.port(25)) == ("192.0.2.1", 40443, 25)
    assert machine.run("echo", "two words") == "two words\\n"
"""


def write(tmp_path: Path, text: str) -> Path:
    directory = tmp_path / "hosts/mx"
    directory.mkdir(parents=True)
    (directory / "test_mx.py").write_text(text)
    return directory


def test_tests_that_pass(tmp_path: Path) -> None:
    said: list[str] = []

    assert machine.check(write(tmp_path, GOOD), HERE, said.append) == 1
    assert any("1 passed" in line for line in said)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("two words\\n", "other"), "1 failed"),
        ("import nothing_like_it\n", "1 error"),
        ("", "no tests ran"),
    ],
)
def test_tests_that_fail(tmp_path: Path, text: str, reason: str) -> None:
    said: list[str] = []

    with pytest.raises(Failure, match="mx: its own tests fail") as caught:
        machine.check(write(tmp_path, text), HERE, said.append)

    assert caught.value.status == UNVERIFIED
    assert any(reason in line for line in said)


def test_noise_of_the_login_shell(tmp_path: Path) -> None:
    """An answer is what the command says, a failure names it."""
    (tmp_path / "ssh").write_text('echo Welcome; eval "$1"; status=$?; echo Bye; exit $status')
    noisy = replace(HERE, login=["sh", f"{tmp_path}/ssh"])

    assert noisy.run("echo", "two  words") == "two  words\n"
    assert noisy.run("printf", "half") == "half"
    with pytest.raises(
        CommandFailed, match=r"^sh -c 'echo why; exit 3': exit status 3\n"
    ) as caught:
        noisy.run("sh", "-c", "echo why; exit 3")
    assert "why" in caught.value.output


def test_host_without_tests(tmp_path: Path) -> None:
    assert machine.check(tmp_path, HERE, print) == 0


def test_notes_last(tmp_path: Path) -> None:
    """The tests of the second deployment see what those of the first wrote down."""
    file = tmp_path / "notes.json"
    test = "def test_notes(notes):\n    assert notes.setdefault('seen', '{0}') == 'first'\n"
    here = replace(HERE, notes=str(file))
    first, second = (write(tmp_path / each, test.format(each)) for each in ("first", "second"))
    assert machine.check(first, here, print) == 1
    assert machine.check(second, here, print) == 1

    file.unlink()
    with pytest.raises(Failure, match="its own tests fail"):
        machine.check(second, here, print)


def test_warnings(tmp_path: Path) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text("#!/bin/sh\nprintf '%s\\n' 'a slow start' 'a wrong owner'\n")
    journal.chmod(0o755)
    here = replace(HERE, login=["env", f"PATH={tmp_path}:{os.environ['PATH']}", "sh", "-c"])

    assert here.warnings(["slow", "nothing like it"]) == ["a wrong owner"]
    assert here.warnings([]) == ["a slow start", "a wrong owner"]
