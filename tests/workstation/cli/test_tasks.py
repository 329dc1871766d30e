"""The tasks as a user calls them: `inv` in a process of its own, in a copy of the project."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from anemos.log import BAD_INPUT
from tests import tree
from tests.tree import Tree

pytestmark = pytest.mark.real("run")

OF_A_HOST = [
    "plan",
    "reveal-secrets",
    "pack",
    "upload",
    "build-initramfs",
    "fill",
    "kexec",
    "watch",
    "commit",
    "verify",
    "deploy",
    "diff",
    "build",
    "demo",
    "report",
    "rescue",
    "resume",
    "abort",
    "rollback",
    "test",
    "export",
    "go",
    "support",
]
OTHERS = ["adopt", "check", "clean", "history", "inventory", "new", "status"]
ERASING = ["fill", "kexec", "deploy"]


@pytest.fixture
def project(module_tree: Tree) -> Tree:
    module_tree.host("mx")
    module_tree.host("demo", toml='[vm]\nstock = "stock"\n')
    return module_tree


def test_list(project: Tree) -> None:
    listed = json.loads(project.inv("--list", "-F", "json").out)

    names = {task["name"] for task in listed["tasks"]}
    assert names == {*OF_A_HOST, *OTHERS}
    assert all(task["help"] for task in listed["tasks"])
    assert [each["name"] for each in listed["collections"]] == ["secrets"]


@pytest.mark.parametrize("name", [*OF_A_HOST, *OTHERS])
def test_help_runs_nothing(project: Tree, name: str) -> None:
    before = project.files()

    for words in ([name, "--help"], ["--help", name]):
        done = project.inv(*words)
        assert done.status == 0
        assert done.out.startswith(f"Usage: inv [--core-opts] {name} [--options]")
        assert done.err == ""

    assert project.files() == before


@pytest.mark.parametrize("name", ERASING)
@pytest.mark.parametrize(
    "words",
    [
        ["--host", "mx", "--help"],
        ["--host", "mx", "--yes", "mx", "--help"],
        ["--host=mx", "--yes=mx", "-h"],
        ["--host", "--help"],
        ["--yes", "--help"],
        ["--host", "mx", "--yes"],
        ["--host", "mx", "--yes", "--help"],
        ["mx"],
        ["-y", "mx"],
        ["--force", "--host", "mx"],
    ],
    ids=" ".join,
)
def test_misunderstandings_erase_nothing(project: Tree, name: str, words: list[str]) -> None:
    """What a user may type on the way to it. Nobody answers a `deploy`."""
    before = project.files()

    done = project.inv(name, *words)

    assert done.status != 0 or "Usage:" in done.out
    assert project.files() == before


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_the_tasks(project: Tree, word: str) -> None:
    done = project.inv(word)

    assert (done.status, done.err) == (0, "")
    assert "--hide=STRING" in done.out
    assert "Replace the running system of HOST" in done.out


@pytest.mark.parametrize(
    ("words", "status"), [(["--list"], 141), (["plan", "--host", "nope", "--json"], BAD_INPUT)]
)
def test_reader_that_ends_early(project: Tree, words: list[str], status: int) -> None:
    """As head(1) does: no traceback; a shell's status, but a failed task's own is kept."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "anemos.workstation.cli.program", *words],
        cwd=project.directory,
        env=tree.environment(project.home),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)

    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_unknown_host(project: Tree) -> None:
    done = project.inv("plan", "--host", "nope")

    assert (done.status, done.out) == (BAD_INPUT, "")
    assert done.err == (
        "error: unknown host 'nope': no such directory in hosts/\n  (known: demo, mx)\n"
    )


@pytest.mark.parametrize("name", OF_A_HOST)
def test_errors_as_json(project: Tree, name: str) -> None:
    done = project.inv(name, "--host", "../hosts/mx", "--json")

    assert done.status == BAD_INPUT
    assert json.loads(done.out) == {
        "error": "unknown host '../hosts/mx': no such directory in hosts/",
        "status": 2,
    }
    assert done.out.count("\n") == 1
    assert done.err.startswith("error: unknown host")


@pytest.mark.parametrize("name", [name for name in OF_A_HOST if name not in ("demo", "test")])
def test_no_host_named(project: Tree, name: str) -> None:
    """`demo` has a host of its own, and `test` takes each."""
    done = project.inv(name)

    assert done.status == BAD_INPUT
    assert "which host? --host NAME" in done.err


@pytest.mark.parametrize("words", [["nope"], ["plan", "--nope"], ["plan", "--host"]], ids=" ".join)
def test_words_that_inv_does_not_know(project: Tree, words: list[str]) -> None:
    before = project.files()

    done = project.inv(*words)

    assert done.status == BAD_INPUT
    assert done.err.startswith("error: ")

    assert project.files() == before


def test_result_as_json(project: Tree) -> None:
    done = project.inv("reveal-secrets", "--host", "mx", "--json")

    assert done.status == 0, done.err
    assert json.loads(done.out) == {"host": "mx", "files": [], "values": []}
    assert done.out.count("\n") == 1


def test_result_without_json(project: Tree) -> None:
    done = project.inv("reveal-secrets", "--host", "mx")

    assert (done.status, done.out) == (0, "")
    assert done.err == "Revealed 0 files, 0 values\n"


# Confirmation


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "mx: not confirmed\n  (This erases the system disks of mx; --yes NAME)"),
        (["--yes", "MX"], "--yes MX does not name the host mx"),
        (["--yes", "yes"], "--yes yes does not name the host mx"),
        (["--yes", "demo"], "--yes demo does not name the host mx"),
    ],
)
def test_not_confirmed(project: Tree, words: list[str], message: str) -> None:
    before = project.files()

    done = project.inv("kexec", "--host", "mx", *words)

    assert (done.status, done.err) == (BAD_INPUT, f"error: {message}\n")
    assert project.files() == before


@pytest.mark.parametrize("answer", [b"no\n", b"\n", b"MX\n", b"\x04", b"mx2\n"])
def test_wrong_answer_on_a_terminal(project: Tree, answer: bytes) -> None:
    with typed(answer) as terminal:
        done = project.inv("kexec", "--host", "mx", stdin=terminal)

    assert done.status == BAD_INPUT
    assert "This erases the system disks of mx. Type mx to go on:" in done.err
    assert done.err.endswith("error: not confirmed; nothing was done\n")


@contextmanager
def typed(answer: bytes) -> Iterator[int]:
    """A terminal on which somebody has typed ANSWER."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    yield theirs
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("words", [[], ["--yes", "mx"]], ids=["typed", "yes"])
def test_confirmed_but_nothing_is_prepared(project: Tree, words: list[str]) -> None:
    with typed(b"mx\n") as terminal:
        done = project.inv("kexec", "--host", "mx", *words, stdin=terminal)

    assert done.status == BAD_INPUT
    assert ("Type mx" in done.err) is (not words)
    assert "error: mx: not ready for this phase\n  (./inv upload --host mx)" in done.err


# One phase after the other


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("pack", "reveal-secrets"),
        ("upload", "pack"),
        ("build-initramfs", "upload"),
        ("verify", "kexec"),
        ("go", "export"),
    ],
)
def test_phase_that_comes_too_early(project: Tree, name: str, before: str) -> None:
    project.host("fresh")

    done = project.inv(name, "--host", "fresh", "--json")

    assert done.status == BAD_INPUT
    assert f"(./inv {before} --host fresh)" in done.err
    assert json.loads(done.out)["status"] == BAD_INPUT


# Machines of our own


@pytest.mark.parametrize("words", [["demo", "--host", "mx"], ["demo", "--host", "mx", "--stop"]])
def test_demo_of_a_real_machine(project: Tree, words: list[str]) -> None:
    done = project.inv(*words)

    assert done.status == BAD_INPUT
    assert "hosts/mx/host.toml has no stock in [vm]: mx is a real machine" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch", "riscv64"], "--arch riscv64: not one of amd64, arm64"),
        (["--host", "demo", "--arch", "arm64"], "--host or --arch, not both"),
        (["--arch", "arm64"], "unknown host 'demo-arm64'"),
    ],
)
def test_demo_of_an_architecture(project: Tree, words: list[str], message: str) -> None:
    done = project.inv("demo", *words)

    assert done.status == BAD_INPUT
    assert message in done.err


@pytest.mark.parametrize("name", ["plan", "deploy"])
def test_vm_that_does_not_run(project: Tree, name: str) -> None:
    done = project.inv(name, "--host", "demo")

    assert done.status == BAD_INPUT
    assert "the VM of demo is not running\n  (./inv demo --host demo)" in done.err


def test_stopping_what_does_not_run(project: Tree) -> None:
    assert project.inv("demo", "--stop", "--json").out == '{"host": "demo"}\n'
