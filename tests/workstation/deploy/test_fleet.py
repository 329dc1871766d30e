"""All servers at a glance: real ones, and those that hang, refuse or are described wrongly."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from anemos.border.boot import Seen
from anemos.border.deployment import Revision
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure
from anemos.run import run
from anemos.server.drift import Drift
from anemos.system.changes import Change
from anemos.workstation import hosts, places, ssh
from anemos.workstation.deploy import drift, fleet, reach, status
from anemos.workstation.deploy.fleet import Row, Updates
from anemos.workstation.deploy.history import Line
from anemos.workstation.deploy.state import DONE, PASSED, WORD, State
from anemos.workstation.deploy.status import Status
from anemos.workstation.hosts import Host
from tests import sshd
from tests.tree import TOML, Tree

DEPLOYMENT = "20261128T120000Z-abcdef"
STAMP = Seen(DEPLOYMENT, "mx", commit=Revision("0123456789abcdef", changed=True))
SEEN = Status(status.DEPLOYED, DEPLOYMENT, "b-1", "6.1", stamp=STAMP)
LINE = Line(0.0, "me@here", "deploy", DEPLOYMENT, Revision(), "kexec", UNVERIFIED, "units", 1.0)


# Many at once


def asked(*names: str) -> dict[str, Host]:
    return {name: Host(name, Path(name)) for name in names}


def test_no_more_at_once() -> None:
    """All are asked, and no more than two at the same time."""
    lock, now, most = threading.Lock(), 0, 0

    def ask(host: Host) -> Row:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return Row(host.name, status.DEPLOYED, 0)

    names = [f"h{number}" for number in range(20)]
    rows = fleet.gather(asked(*names), ask, at_once=2)
    assert sorted(each.host for each in rows) == sorted(names)
    assert most == 2


def test_one_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those behind it are asked; what it says later is too late."""
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    late = threading.Event()

    def ask(host: Host) -> Row:
        if host.name == "hangs":
            late.wait(300)
        return Row(host.name, status.DEPLOYED, 0)

    rows = fleet.gather(asked("hangs", "a", "b"), ask, at_once=1, limit=2)
    late.set()
    assert [(each.host, each.status) for each in rows] == [("hangs", BAD_INPUT), ("a", 0), ("b", 0)]
    assert rows[0].message == "no answer within 2 s"


# What a state counts


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (status.DEPLOYED, 0),
        (status.SYSTEM, FAILED),
        (status.HELD, FAILED),
        (status.FAILING, FAILED),
        (status.GOING, FAILED),
        (status.INSTALLING, IN_INITRAMFS),
        (status.FAILED_THERE, IN_INITRAMFS),
    ],
)
def test_state(state: str, code: int) -> None:
    assert (
        fleet.judged("mx", replace(SEEN, state=state), Updates(), status.Known(), None).status
        == code
    )


def test_every_state_counts() -> None:
    """Those that a machine can be in, see status.py."""
    source = Path(status.__file__).read_text().partition("UNREACHABLE =")[0]
    assert source.count(' = "') == len(fleet.COUNTS)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (LINE, UNVERIFIED),
        (replace(LINE, status=0), 0),
        (replace(LINE, status=FAILED), 0),
        (replace(LINE, deployment="another"), 0),
    ],
)
def test_verification_that_failed(line: Line, code: int) -> None:
    """It counts for the system that it was about."""
    row = fleet.judged("mx", SEEN, Updates(3, 86400.0), status.Known(), line)
    assert row.status == code
    assert (row.commit, row.deployed) == (STAMP.commit, 1795867200.0)


@pytest.mark.parametrize(
    ("reached", "code"),
    [("", BAD_INPUT), (WORD, IN_INITRAMFS), (PASSED, IN_INITRAMFS), (DONE, BAD_INPUT)],
)
def test_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reached: str, code: int) -> None:
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    (tmp_path / "mx").mkdir()
    State("mx", "d-1", old_boot_id="b", reached=reached).save()
    row = fleet.silent("mx", "no route")
    assert (row.status, row.last_known.deployment) == (code, "d-1")


def test_worst_is_not_the_highest() -> None:
    assert max([UNVERIFIED, 0, IN_INITRAMFS, FAILED], key=fleet.WORST.index) == IN_INITRAMFS
    assert set(fleet.WORST) == {0, FAILED, BAD_INPUT, IN_INITRAMFS, UNVERIFIED}


def test_deployment_by_another_name() -> None:
    assert fleet.deployed("my-own") is None
    assert fleet.deployed("20269928T120000Z-abcdef") is None


# Security updates

SIMULATED = """\
Reading package lists...
Inst libc6 [2.36-9] (2.36-9+deb12u9 Debian-Security:12/stable-security [amd64]) []
Inst mod-security [1] (2 Debian:12.5/stable [amd64])
Inst linux-image-6.1 (6.1 Debian:12.5/stable, Debian-Security:12/stable-security [amd64])
Inst curl [1] (2 Ubuntu:22.04/jammy-updates, Ubuntu:22.04/jammy-security [amd64])
Conf libc6 (2.36-9+deb12u9 Debian-Security:12/stable-security [amd64])
"""


@pytest.fixture
def updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """The script, with an apt-get that says SIMULATED and lists of its own."""
    script = (reach.SERVER / "updates.sh").read_text()
    assert "/var/lib/apt/lists" in script
    (tmp_path / "lists/partial").mkdir(parents=True)
    (tmp_path / "said").write_text(SIMULATED)
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    script = script.replace("/var/lib/apt/lists", os.fspath(tmp_path / "lists"))
    return lambda: run(["sh", "-c", script])


@pytest.mark.real("run")
def test_security_updates(updates: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "lists/deb.debian.org_debian-security_dists_trixie-security_InRelease").touch()
    for each in [*tmp_path.glob("lists/*"), tmp_path / "lists"]:
        os.utime(each, (1000, 1000))
    assert updates() == "security=3\nlists=1000\n"


@pytest.mark.real("run")
def test_updates_that_nobody_knows(updates: Callable[[], str], tmp_path: Path) -> None:
    """No lists, or none of security updates: no answer is not none pending."""
    (tmp_path / "lists/deb.debian.org_debian_dists_trixie_InRelease").touch()
    assert updates() == ""


# Real servers


@pytest.fixture(scope="module")
def server() -> Iterator[sshd.Server]:
    with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
        yield server


@pytest.mark.root  # the login is root's, always
@pytest.mark.real("run", "ssh")
def test_all_at_a_glance(
    server: sshd.Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that answers, one that refuses, one that accepts and says nothing, one with another key,
    and one whose host.toml is wrong."""
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    monkeypatch.setattr(ssh, "ANSWER_S", 1)
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path))
    where = server.endpoint
    key = sshd.make_key(tmp_path / "other")
    server.program("apt-get", "exit 100")  # whatever this machine has
    with socket.create_server(("127.0.0.1", 0)) as mute:
        entries = {
            "fine": (where.port, where.host_key),
            "mute": (mute.getsockname()[1], where.host_key),
            "other": (where.port, key),
            "refuses": (sshd.free_port(), where.host_key),
        }
        for name, (port, host_key) in entries.items():
            host(tmp_path, name, port, host_key, where.identity)
        host(tmp_path, "wrong", 0, key, where.identity)
        (tmp_path / "hosts/paper").mkdir()
        (tmp_path / "hosts/paper/host.toml").touch()
        result = fleet.show(hosts.load, "", exit_status=True)

    rows = {each["host"]: each for each in result["hosts"]}
    assert {name: (row["state"], row["status"]) for name, row in rows.items()} == {
        "fine": (status.SYSTEM, FAILED),
        "mute": (status.UNREACHABLE, BAD_INPUT),
        "other": (status.UNREACHABLE, BAD_INPUT),
        "refuses": (status.UNREACHABLE, BAD_INPUT),
        "wrong": (fleet.UNASKED, BAD_INPUT),
    }
    assert rows["fine"]["kernel"] == os.uname().release
    assert rows["fine"]["updates"]["security"] is None
    assert "wrong host key" in rows["other"]["message"]
    assert (result["worst"], result["exit_status"]) == (BAD_INPUT, BAD_INPUT)
    said = capsys.readouterr().err
    assert "paper is not asked: no address" in said
    assert "mute: root@127.0.0.1" in said


def host(top: Path, name: str, port: int, key: str, identity: Path | None) -> None:
    directory = top / "hosts" / name
    directory.mkdir(parents=True)
    toml = f'address = "127.0.0.1"\nport = {port}\nhost_key = "{key}"\nidentity = "{identity}"\n'
    (directory / "host.toml").write_text(toml)


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That is not all good."""
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/host.toml").touch()
    with pytest.raises(Failure, match="nobody to ask") as caught:
        fleet.show(hosts.load, "", exit_status=True)
    assert caught.value.status == BAD_INPUT


def test_fault_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It hides no other host, either."""
    monkeypatch.setattr(places, "HOSTS", tmp_path)

    def broken(where: ssh.Endpoint, *, status: int) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(fleet, "connect", broken)
    row = fleet.look(Host("mx", tmp_path, "192.0.2.1", "key"))
    assert (row.state, row.status) == (status.UNREACHABLE, BAD_INPUT)
    assert "ZeroDivisionError: x" in row.message


def test_updates_that_fail_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise Failure("no end after 60 s", status=FAILED)

    monkeypatch.setattr(reach, "script", fail)
    assert fleet.pending(ssh.Remote.__new__(ssh.Remote)) == Updates()


def test_cells() -> None:
    line = replace(LINE, status=0, end="verified")
    row = fleet.judged("mx", SEEN, Updates(3, 86400.0), status.Known(), line)
    _, runs, _, commit, kernel, updates, last, drifted = fleet.cells(row)
    assert drifted == "unknown"
    changed = replace(row, drift=[Change("file", "/x", "content")])
    assert fleet.cells(changed)[-1] == "1 file"
    assert (runs, commit) == (f"deployed\n{DEPLOYMENT}", "0123456789ab and changes")
    assert (kernel, updates, last) == ("6.1", "3, lists of 1970-01-02", "verified, 1970-01-01")


@pytest.mark.real("run")
def test_drift_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host without manifest, or with a wrong IMGBUILD, hides no other."""
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for name, text in {"mx": "volatile=/opt\n", "old": "", "wrong": "("}.items():
        host(tmp_path, name, 1, sshd.make_key(tmp_path / name), None)
        (tmp_path / "hosts" / name / "IMGBUILD").write_text(f"target=debian\n{text}")

    def find(host: Host, volatile: list[str], *_: object) -> Drift:
        if host.name == "old":
            raise Failure("old lacks a manifest")
        return Drift([Change("file", each, "content") for each in volatile], [])

    monkeypatch.setattr(fleet, "connect", MagicMock())
    monkeypatch.setattr(status, "ask", lambda _: SEEN)
    monkeypatch.setattr(reach, "script", lambda *_, **__: "")
    monkeypatch.setattr(drift, "find", find)
    rows = fleet.show(hosts.load, "", exit_status=False, drifts=True)["hosts"]
    assert [each["drift"] and each["drift"][0]["name"] for each in rows] == ["/opt", None, None]
    said = capsys.readouterr().err
    assert "1 file" in said
    assert "old: old lacks a manifest" in said
    assert "wrong: " in said
    monkeypatch.setattr(drift, "find", None)
    rows = fleet.show(hosts.load, "mx", exit_status=False)["hosts"]
    assert rows[0]["drift"] is None
    assert "drift" not in capsys.readouterr().err


@pytest.mark.real("run")
def test_tasks(module_tree: Tree) -> None:
    """The document, and the status that was asked for."""
    module_tree.host("mx", TOML.replace("port = 1", f"port = {sshd.free_port()}"))
    for words, code in (
        ([], 0),
        (["--drift"], 0),
        (["--exit-status"], 2),
        (["--host", "mx", "--exit-status"], 2),
    ):
        done = module_tree.inv("status", "--json", *words)
        assert done.status == code, done.err
        (row,) = json.loads(done.out)["hosts"]
        assert (row["host"], row["state"]) == ("mx", "unreachable")
    done = module_tree.inv("history", "--host", "mx", "--json")
    assert (done.status, json.loads(done.out)) == (0, {"host": "mx", "history": []})
    assert module_tree.inv("history", "--host", "no").status == BAD_INPUT
