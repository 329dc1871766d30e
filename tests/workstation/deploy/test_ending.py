"""What each end of a deployment leaves: a line of history, a report, and what a hook is told."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anemos.border.deployment import Revision
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure, die
from anemos.system import imgbuild
from anemos.workstation import places
from anemos.workstation.deploy import chain, ending, history, payload, recovery, staged
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host, Timeouts
from anemos.workstation.ssh import Endpoint, Unreachable
from tests.tree import HOST_KEY, IMGBUILD

pytestmark = pytest.mark.real("run")

VERIFIED = {"verified": True, "kernel": "6.1", "checks": []}
STATE = State("mx", "d-1", commit=Revision("c" * 40), sent={"base": 0}, way="once")
TELL = 'echo "$0 $ANEMOS_HOST $ANEMOS_ADDRESS $ANEMOS_DEPLOYMENT $ANEMOS_STATUS" >>told\n'


class Server:
    """Stands for the machine: what was put there."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers = True

    @contextmanager
    def connect(self, where: Endpoint, *, status: int = BAD_INPUT) -> Iterator["Server"]:
        if not self.answers:
            raise Unreachable("no route", status=status)
        yield self

    def put(self, data: bytes, path: str, *, mode: int) -> None:
        self.files[path] = data


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    directory = tmp_path / "hosts/mx"
    (directory / "hooks").mkdir(parents=True)
    (directory / "IMGBUILD").write_text(IMGBUILD)
    return Host("mx", directory, address="192.0.2.1", host_key=HOST_KEY)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(history, "connect", server.connect)
    return server


def hook(host: Host, name: str, script: str = TELL) -> Path:
    file = host.directory / "hooks" / name
    file.write_text(f"#!/bin/sh\n{script}")
    file.chmod(0o755)
    return file


def told(host: Host) -> list[str]:
    file = host.directory.parents[1] / "told"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.rpartition("/hooks/")[2] for line in lines]


def run(host: Host, task: str, result: dict[str, Any] | Failure, state: State = STATE) -> None:
    """TASK, which ends with RESULT and leaves STATE."""
    with ending.recorded(host, task) as going:
        state.save()
        if isinstance(result, Failure):
            raise result
        going.result = result


def ends(host: Host) -> list[tuple[str, str, int, str]]:
    known = history.read(host.name)
    return [(each.task, each.deployment, each.status, each.end) for each in known]


def test_line(host: Host, server: Server) -> None:
    """Here, and on the new system."""
    run(host, "deploy", VERIFIED, replace(STATE, last_answer=10.0, first_answer=52.5))

    (line,) = history.read("mx")
    assert (line.task, line.deployment, line.way) == ("deploy", "d-1", "once")
    assert (line.commit, line.downtime) == (STATE.commit, 42.5)
    assert (line.status, line.end, line.short) == (0, "verified", "verified")
    assert line.who == places.who().partition(":")[0]
    assert server.files == {history.THERE: history.file("mx").read_bytes()}


def test_failure_before_it_has_an_id(host: Host, server: Server) -> None:
    """What is known of the deployment before is not told of this one."""
    STATE.save()
    with pytest.raises(Failure, match="no such disk"):
        run(host, "deploy", Failure("no such disk\n  | detail", hint="look", status=FAILED))

    (line,) = history.read("mx")
    assert (line.deployment, line.commit, line.way, line.downtime) == ("", Revision(), "", None)
    assert (line.status, line.end) == (FAILED, "no such disk")
    assert server.files == {}


def test_nothing_was_started(host: Host) -> None:
    """That is no deployment."""
    with pytest.raises(Failure):
        run(host, "deploy", Failure("no such host.toml"))
    assert history.read("mx") == []
    assert list(places.state("mx").iterdir()) == [places.state("mx") / "state.json"]


def test_fault_of_ours_and_interruption(host: Host) -> None:
    for end, status in ((ZeroDivisionError("x"), FAILED), (KeyboardInterrupt(), 130)):
        with pytest.raises(Failure) as caught, ending.recorded(host, "deploy"):
            raise end
        assert caught.value.status == status
    assert [each[2] for each in ends(host)] == [FAILED, 130]


def test_rest_of_a_deployment(host: Host) -> None:
    run(host, "deploy", {"held": True})
    run(host, "abort", {"aborted": True})
    for status in (BAD_INPUT, IN_INITRAMFS):
        with pytest.raises(Failure):
            run(host, "resume", Failure("no", status=status))
    run(host, "resume", {"host": "mx"})  # the preflight runs again: that is no end
    assert ends(host) == [
        ("deploy", "d-1", 0, "held"),
        ("abort", "d-1", FAILED, "aborted"),  # the old system runs
        ("resume", "d-1", IN_INITRAMFS, "no"),
    ]


def test_phases_run_alone(host: Host, server: Server) -> None:
    """They are told when the deployment ends with them, and once."""
    run(host, "kexec", {"boot_id": "b"})
    for status in (BAD_INPUT, 130, UNVERIFIED, UNVERIFIED):
        with pytest.raises(Failure):
            run(host, "verify", Failure("units", status=status))
    server.files.clear()
    run(host, "verify", VERIFIED)
    run(host, "verify", VERIFIED)
    assert ends(host) == [
        ("verify", "d-1", UNVERIFIED, "units"),
        ("verify", "d-1", 0, "verified"),
    ]
    assert history.THERE in server.files


def test_report(host: Host) -> None:
    """What --json prints."""
    run(host, "deploy", VERIFIED)
    assert json.loads((places.state("mx") / "report.json").read_text()) == VERIFIED
    with pytest.raises(Failure):
        run(host, "deploy", Failure("why", status=FAILED))
    told = json.loads((places.state("mx") / "report.json").read_text())
    assert told == {"error": "why", "status": FAILED}


def test_history_that_cannot_be_written(
    host: Host, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The deployment's own end counts."""
    server.answers = False
    run(host, "deploy", VERIFIED)
    history.file("mx").unlink()
    history.file("mx").mkdir()
    run(host, "deploy", VERIFIED)
    said = capsys.readouterr().err
    assert "could not be written on mx: no route" in said
    assert "could not be written: " in said


def test_show(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert history.show("mx")["history"] == []
    run(host, "deploy", VERIFIED)
    with history.file("mx").open("a") as file:
        file.write('{"time": 1.0, "wh')  # a power cut
    shown = history.show("mx")
    assert [each["deployment"] for each in shown["history"]] == ["d-1"]
    assert "verified" in capsys.readouterr().err


# Hooks


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that were run."""
    done: list[str] = []

    def work(name: str) -> Callable[[Host], dict[str, Any]]:
        def phase(host: Host) -> dict[str, Any]:
            done.append(name)
            if name == "pack":
                STATE.save()
            return VERIFIED if name == "verify" else {}

        return phase

    monkeypatch.setattr(chain, "PHASES", {name: work(name) for name in chain.PHASES})
    monkeypatch.setattr(staged, "leave_nothing", lambda host: done.append("unstage"))
    return done


def test_hooks(host: Host, phases: list[str]) -> None:
    hook(host, "before-deploy", TELL + 'test -z "$ANEMOS_STATUS"')
    hook(host, "after-deploy", TELL + 'grep verified "$ANEMOS_REPORT" && pwd >>told')
    chain.deploy(host, yes="mx")
    root = os.fspath(places.ROOT)
    assert told(host) == [
        "before-deploy mx 192.0.2.1 d-1 ",
        "after-deploy mx 192.0.2.1 d-1 0",
        root,
    ]


def test_failing_before_hook(host: Host, phases: list[str]) -> None:
    """Nothing has happened to the server, and nothing of the deployment is left there."""
    hook(host, "before-deploy", TELL + "exit 4")
    hook(host, "after-deploy")
    with pytest.raises(Failure, match=r"before-deploy failed: .*: exit status 4") as caught:
        chain.deploy(host, yes="mx")
    assert caught.value.status == FAILED
    assert phases[-2:] == ["build-initramfs", "unstage"]
    assert told(host) == ["before-deploy mx 192.0.2.1 d-1 ", "after-deploy mx 192.0.2.1 d-1 1"]


def test_failing_after_hook(
    host: Host, phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It was deployed; what the hook prints is shown as text."""
    hook(host, "after-deploy", "printf '\\033[31mred\\n'; exit 3")
    chain.deploy(host, yes="mx")
    said = capsys.readouterr().err
    assert r"\x1b[31mred" in said
    assert "after-deploy failed, which changes nothing on mx" in said
    assert "\x1b" not in said


def test_hook_without_end(host: Host, phases: list[str]) -> None:
    hook(host, "before-deploy", "sleep 600")
    with pytest.raises(Failure, match="no end after 1 s"):
        chain.deploy(replace(host, timeouts=Timeouts(hooks=1)), yes="mx")
    assert "kexec" not in phases


def test_no_hook_without_need(host: Host, phases: list[str]) -> None:
    """The second one follows the first one, and the end of what was held."""
    hook(host, "after-deploy")
    with pytest.raises(Failure, match="does not name"):
        chain.deploy(host, yes="other")
    run(host, "deploy", {"held": True})
    with pytest.raises(Failure):
        run(host, "resume", Failure("it does not wait"))
    assert told(host) == []
    run(host, "abort", {"aborted": True})
    assert told(host) == ["after-deploy mx 192.0.2.1 d-1 1"]


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("before-deploy", 0o644, "before-deploy cannot be executed"),
        ("before_deploy", 0o755, "before_deploy: no hook is called so"),
    ],
)
def test_hook_that_would_never_run(
    host: Host, phases: list[str], name: str, mode: int, message: str
) -> None:
    hook(host, name).chmod(mode)
    with pytest.raises(Failure, match=f"hosts/mx/hooks/{message}"):
        chain.deploy(host, yes="mx")
    assert phases == []


def test_other_files_are_no_hooks(host: Host, phases: list[str]) -> None:
    hook(host, "lib.sh").chmod(0o644)
    chain.deploy(host, yes="mx")
    assert phases[-1] == "verify"


def test_hooks_are_not_sent(host: Host, tmp_path: Path) -> None:
    hook(host, "before-deploy")
    spec = imgbuild.load(host.directory)
    payload.write(tmp_path / "payload", spec, "d-1", {}, tmp_path / "none")
    assert b"before-deploy" not in (tmp_path / "payload").read_bytes()


def test_resume_and_abort_are_recorded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    STATE.save()
    monkeypatch.setattr(recovery, "proceed", lambda *_: VERIFIED)
    monkeypatch.setattr(recovery, "go_back", lambda _: die("gone", status=FAILED))
    assert recovery.resume(host) == VERIFIED
    with pytest.raises(Failure, match="gone"):
        recovery.abort(host)
    assert ends(host) == [("resume", "d-1", 0, "verified"), ("abort", "d-1", FAILED, "gone")]


def test_refused_at_the_jump(
    host: Host, phases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What before-deploy has done is undone; the report is this one's."""
    hook(host, "after-deploy", TELL + 'grep -q "another plan" "$ANEMOS_REPORT" && pwd >>told')
    refused = {"kexec": lambda _: die("another plan")}
    monkeypatch.setattr(chain, "PHASES", chain.PHASES | refused)
    with pytest.raises(Failure, match="another plan"):
        chain.deploy(host, yes="mx")
    assert told(host) == ["after-deploy mx 192.0.2.1 d-1 2", os.fspath(places.ROOT)]
