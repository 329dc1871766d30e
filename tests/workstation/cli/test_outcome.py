"""How tasks end: one message, a status, and JSON when it was asked for, whatever was raised."""

import errno
import json
import os
import pty
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import pytest
from invoke.context import Context

from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, Failure
from anemos.workstation.cli.command import command
from anemos.workstation.deploy import outcome
from tests import tree
from tests.tree import TOML, Tree
from tests.waiting import until

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/x")


@pytest.mark.parametrize(
    ("end", "message", "status"),
    [
        (Failure("mx: why", status=IN_INITRAMFS), "mx: why", IN_INITRAMFS),
        (KeyboardInterrupt(), "interrupted", 130),
        (FULL, "/dev/shm/x: No space left on device", FAILED),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe", FAILED),
        (OSError("no errno"), "no errno", FAILED),
        (KeyError("boot_id"), "KeyError: 'boot_id'", FAILED),
        (SystemExit(7), "SystemExit: 7", FAILED),
    ],
    ids=repr,
)
def test_every_end_is_one_message(
    capsys: pytest.CaptureFixture[str], end: BaseException, message: str, status: int
) -> None:
    def body(c: Context, json: bool = False) -> Any:
        """Fail."""
        raise end

    with pytest.raises(Failure) as caught:
        command(body)(Context(), json=True)

    said = capsys.readouterr()
    assert caught.value.status == caught.value.code == status
    assert json.loads(said.out) == {"error": message, "status": status}
    assert f"error: {message}\n" in said.err
    fault = not isinstance(end, Failure | KeyboardInterrupt | OSError)
    assert ("Traceback" in said.err) is fault
    assert ("fault of Anemos" in said.err) is fault


def test_explained_once() -> None:
    failure = Failure("x")
    assert outcome.explained(failure) is failure


# As a user runs it


@pytest.fixture
def project(module_tree: Tree) -> Tree:
    module_tree.host("mx")
    return module_tree


@contextmanager
def started(
    project: Tree, *words: str, before: str = "exec", **streams: Any
) -> Iterator[Popen[str]]:
    """`inv WORDS` that waits for its host: an IMGBUILD that says so and sleeps."""
    loaded = project.home / "loaded"
    waits = f"target=debian; format=dir; : >{loaded}; sleep 60"
    (project.host("mx") / "IMGBUILD").write_text(waits)
    loaded.unlink(missing_ok=True)
    argv = ["sh", "-c", f'{before} "$PYTHON" -m anemos.workstation.cli.program "$@"', "sh", *words]
    env = tree.environment(project.home) | {"PYTHON": sys.executable}
    with Popen(argv, cwd=project.directory, env=env, text=True, **streams) as process:
        try:
            until(lambda: loaded.exists() or process.poll() is not None)
            assert process.poll() is None
            yield process
        finally:
            process.kill()


@pytest.mark.real("run")
def test_unknown_words_with_json(project: Tree) -> None:
    done = project.inv("plan", "--hots", "mx", "--json")

    assert json.loads(done.out)["status"] == done.status == BAD_INPUT


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("task", "variable"),
    [("status", "XDG_STATE_HOME"), ("plan", "XDG_CACHE_HOME"), ("status", "HOME")],
)
def test_home_that_cannot_be_used(project: Tree, task: str, variable: str) -> None:
    nowhere: Any = {variable: "/proc/none"}
    done = project.inv(task, "--host", "mx", "--json", **nowhere)

    assert json.loads(done.out)["status"] == done.status == BAD_INPUT
    assert done.err.startswith("error: /proc/none")
    assert "No such file or directory" in done.err


IMPATIENT = f"{TOML}[timeouts]\nup = 1\ninstall = 1\ninitramfs = 1\n"


@pytest.mark.real("run")
@pytest.mark.parametrize("task", ["watch", "verify", "resume", "abort", "rescue", "go"])
def test_no_task_takes_the_word_back(project: Tree, task: str) -> None:
    """Nobody answers, and the word was given: that the old system still runs is not known."""
    project.host("mx", IMPATIENT)
    state = tree.where("state('mx')", project.directory, project.home) / "state.json"
    known = {"host": "mx", "deployment": "d-1", "old_boot_id": "b", "stays": True}
    state.write_text(json.dumps({**known, "reached": "word"}))
    words = ["--yes", "mx"] if task == "go" else []

    done = project.inv(task, "--host", "mx", "--json", *words)

    assert json.loads(done.out)["status"] == done.status == IN_INITRAMFS
    assert "the word to erase was given" in done.err
    told = json.loads(project.inv("status", "--host", "mx", "--json").out)["last_known"]
    assert (told["state"], told["deployment"]) == ("told to install", "d-1")
    state.unlink()


@pytest.mark.real("run")
def test_file_that_cannot_be_written(project: Tree) -> None:
    """As on a full disk: write(2) does not say what it was that could not be written."""
    assert project.inv("reveal-secrets", "--host", "mx").status == 0
    task = 'ulimit -f 0; exec "$PYTHON" -m anemos.workstation.cli.program pack --host mx --json'
    env = tree.environment(project.home) | {"PYTHON": sys.executable}
    with Popen(["sh", "-c", task], cwd=project.directory, env=env, stdout=PIPE, text=True) as pack:
        said = json.loads(pack.communicate()[0])

    # The lock, which comes first; `payload` is written the same way.
    assert said["error"] == f"{project.memory}/.locks/mx: File too large"
    assert said["status"] == pack.returncode == FAILED


@pytest.mark.real("run")
@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_json_without_standard_error(project: Tree, streams: str) -> None:
    argv = ["sh", "-c", f'"$PYTHON" -m anemos.workstation.cli.program plan --json {streams}']
    env = tree.environment(project.home) | {"PYTHON": sys.executable}
    with Popen(argv, cwd=project.directory, env=env, stdout=PIPE, text=True) as process:
        out = process.communicate()[0]

    assert json.loads(out)["status"] == process.returncode == BAD_INPUT


@pytest.mark.real("run")
@pytest.mark.parametrize("streams", [">&-", ">/dev/full"])
def test_nobody_takes_the_result(project: Tree, streams: str) -> None:
    """The task did what it should: that the result was lost is no failure of the server's."""
    task = "reveal-secrets --host mx --json"
    argv = ["sh", "-c", f'"$PYTHON" -m anemos.workstation.cli.program {task} {streams}']
    env = tree.environment(project.home) | {"PYTHON": sys.executable}
    with Popen(argv, cwd=project.directory, env=env, stderr=PIPE, text=True) as process:
        said = process.communicate()[1]

    assert process.returncode == (141 if "full" in streams else 0)
    assert said == "Revealed 0 files, 0 values\n"


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signals_keep_their_status(project: Tree, number: int, status: int) -> None:
    """On a terminal that is gone, too: its EIO is not what is told."""
    ours, theirs = pty.openpty()
    words = ("plan", "--host", "mx", "--json")
    with started(project, *words, stdin=theirs, stderr=theirs, stdout=PIPE) as process:
        os.close(theirs)
        os.close(ours)
        process.send_signal(number)
        assert json.loads(process.communicate()[0])["status"] == status

    assert process.returncode == status


@pytest.mark.real("run")
def test_nohup(project: Tree) -> None:
    words = ("plan", "--host", "mx", "--json")
    with started(project, *words, before="exec nohup", stdin=DEVNULL, stdout=PIPE) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.communicate()[0])["status"] == 143
