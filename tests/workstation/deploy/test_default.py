"""The word for a slot on trial, and the way back to the other one: what the operator sees."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anemos import files, mounts
from anemos.border.requests import Commit, Request, Return
from anemos.log import BAD_INPUT, FAILED, UNVERIFIED, Failure
from anemos.run import run
from anemos.system import slots
from anemos.system.layout import MIB, SHARED, identity
from anemos.system.slots import Record, Slot
from anemos.workstation.deploy import default, facts, reach, status
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import ConnectionLost, TimedOut
from tests.imaging import attached

STAMP = json.dumps({"deployment": "d-1", "host": "mx", "base": "d1g35t"})
KNOWN = Record("b", {"a": Slot("good", "A", "d-0", 1_700_000_000), "b": Slot("good", "B", "d-1")})
IMGBUILD = """
target=debian
layout='
disk system serial=S
part boot fs=ext4 size=64M
part root fs=ext4 size=1G mount=/ slots=2
part srv  fs=ext4 mount=/srv
'
keep='
disk data serial=D part=1 mount=/home
'
"""


def said(record: Record | None = KNOWN, root: str = "B") -> str:
    """What status.sh prints."""
    text = f"boot_id=b-1\nkernel=6.1\nplace=system\nstamp={STAMP}\nroot={root}\n"
    words = slots.encoded(record).decode().replace("\n", " ") if record else ""
    return f"{text}record={words}\nend=end\n" if record else f"{text}end=end\n"


@dataclass
class Server:
    """What is answered, and what it was asked."""

    says: str = field(default_factory=said)
    base: str = "/var/lib/anemos/base-d1g35t.squashfs"
    trouble: Failure | None = None
    then: str = "d-0"
    asked: list[Request | str] = field(default_factory=list)

    @contextmanager
    def connect(self, where: object, **_options: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(endpoint=where, sh=lambda *_, **__: self.says)

    def script(self, remote: object, name: str, *_words: str) -> str:
        self.asked.append(name)
        raise ConnectionLost("lost", status=FAILED)

    def answer(self, remote: object, base: str, request: Request, kind: type[Record]) -> Record:
        assert base == self.base
        self.asked.append(request)
        if self.trouble:
            raise self.trouble
        return KNOWN

    def await_boot(self, *words: Any, code: int) -> Identity:
        ready = words[2]
        assert not ready(Identity("b-1", False, "d-1", 0))
        assert code == UNVERIFIED
        return Identity("b-2", False, self.then, 0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(default, "connect", made.connect)
    for name in ("script", "answer", "await_boot"):
        monkeypatch.setattr(reach, name, getattr(made, name))
    monkeypatch.setattr(reach, "present", lambda _, *files: {made.base} & {*files})
    return made


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "mx").mkdir()
    (tmp_path / "mx/IMGBUILD").write_text(IMGBUILD)
    State("mx", deployment="d-1").save()
    return Host("mx", tmp_path / "mx", "192.0.2.1", "ssh-ed25519 AAAA")


@pytest.mark.real("run")
def test_commit(host: Host, server: Server) -> None:
    assert default.commit(host) == {"host": "mx", "deployment": "d-1", "default": "b"}
    assert server.asked == [Commit("d-1")]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (Failure("slot b is bad", status=FAILED), FAILED),
        (ConnectionLost("lost", status=FAILED), UNVERIFIED),
        (TimedOut("no answer", status=FAILED), UNVERIFIED),
    ],
)
def test_commit_fails(host: Host, server: Server, trouble: Failure, code: int) -> None:
    """Where the answer is lost, nobody knows."""
    server.trouble = trouble
    with pytest.raises(Failure, match=trouble.message) as caught:
        default.commit(host)
    assert caught.value.status == code
    assert ("./inv status --host mx" in caught.value.hint) == (code == UNVERIFIED)


def test_commit_without_a_base_image(host: Host, server: Server) -> None:
    server.base = ""
    with pytest.raises(Failure, match="the base image of its deployment is not there") as caught:
        default.commit(host)
    assert (caught.value.status, server.asked) == (FAILED, [])


@pytest.mark.real("run")
def test_rollback(host: Host, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it means for the data; what answers then is the other slot's system."""
    result = default.rollback(host, "mx")

    assert (result["slot"], result["deployment"], result["boot_id"]) == ("a", "d-0", "b-2")
    assert server.asked == [Return("d-0"), "reboot.sh"]
    told = capsys.readouterr().err
    assert "What was written to / since is not there" in told
    assert "What was written to /home, /srv stays" in told


@pytest.mark.real("run")
def test_rollback_that_leads_elsewhere(host: Host, server: Server) -> None:
    server.then = "d-1"
    with pytest.raises(Failure, match="mx runs deployment d-1, not d-0") as caught:
        default.rollback(host, "mx")
    assert caught.value.status == UNVERIFIED


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("says", "yes", "message"),
    [
        (said(None), "mx", "mx has no slots"),
        (said(root=""), "mx", "mx cannot tell which slot runs"),
        (said(Record("b", {**KNOWN.slots, "a": Slot("empty")})), "mx", "no way back to slot a: em"),
        (said(Record("b", {**KNOWN.slots, "a": Slot("trial", "A", "d-2")})), "mx", "slot a: bad"),
        (said(Record("b", {**KNOWN.slots, "a": Slot("good", "A")})), "mx", "no way back to slot a"),
        (said(), "other", "--yes other does not name the host mx"),
        (said(), "", "mx: not confirmed"),
    ],
)
def test_no_rollback(host: Host, server: Server, says: str, yes: str, message: str) -> None:
    server.says = says
    with pytest.raises(Failure, match=message) as caught:
        default.rollback(host, yes)
    assert (caught.value.status, server.asked) == (BAD_INPUT, [])


def test_status() -> None:
    seen = status.parse(said())
    lines = dict(status.describe(seen, "d-1", status.Known()))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(1_700_000_000))
    assert lines["slot a"] == f"good, deployment d-0, filled {when}"
    assert lines["slot b"] == "good, deployment d-1, it runs, the default"
    assert not [
        line
        for line in status.describe(status.parse(said(None)), "", status.Known())
        if "slot" in line
    ]


@pytest.mark.parametrize(("root", "state"), [("A", "bad"), ("B", "trial"), ("", "trial")])
def test_trial_that_has_ended(root: str, state: str) -> None:
    """It is over where the other slot runs; where nobody knows what runs, nothing is said."""
    record = Record("a", {**KNOWN.slots, "b": Slot("trial", "B", "d-1")})
    (slot,) = [each for each in status.parse(said(record, root)).slots if each.name == "b"]
    assert (slot.state, slot.runs) == (state, root == "B")


# $0: fstab. $1: the script's text. Only in here: empty /var/lib, /etc of a deployed system.
VISIT = f"""
mount -t tmpfs x /var/lib >/dev/null
mkdir -p {SHARED}
mount -t tmpfs x /etc >/dev/null
mkdir /etc/anemos
echo '{{}}' >/etc/anemos/deployment.json
cat $0 >/etc/fstab
sh -c "$1"
mount
"""


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("kind", "record"),
    [("ext4", slots.FILE), ("vfat", slots.FILE), ("vfat", slots.LOADER_CONF)],
)
@pytest.mark.parametrize("name", ["facts.sh", "status.sh"])
def test_the_record_is_found(tmp_path: Path, kind: str, record: str, name: str) -> None:
    """Where fstab says, mounted already or not; nothing is left behind. The EFI system partition
    before it has none, and what mount(8) says on standard output is none."""
    file, fstab, point = tmp_path / "disk", tmp_path / "fstab", tmp_path / "point"
    file.write_bytes(bytes(16 * MIB))
    uuid = identity(f"{tmp_path}", "boot")
    run(["mkfs.ext4", "-q", "-U", uuid, file])
    point.mkdir()
    where = SHARED if kind == "ext4" else f"{point}"
    fstab.write_text(f"# c\nUUID=0 /nowhere vfat x 0 2\nUUID={uuid} {where} {kind} noauto 0 2\n")
    (tmp_path / "mount").write_text('#!/bin/sh\necho "mount warning:"\nexec /usr/bin/mount "$@"\n')
    (tmp_path / "mount").chmod(0o755)
    with attached(file) as node:
        with mounts.mounted(node, at=point):
            (point / "loader").mkdir()
            (point / record).write_bytes(slots.encoded(KNOWN, record) + b"timeout 1\n")
            files.sync(point / record)
            assert visit(fstab, name) == KNOWN
        assert kind == "vfat" or visit(fstab, name) == KNOWN


def visit(fstab: Path, name: str) -> Record:
    argv = ["unshare", "--mount", "sh", "-e", "-c", VISIT, f"{fstab}", facts.probe(name)]
    path = {"PATH": f"{fstab.parent}:{os.environ['PATH']}"}
    text, _, mounted = run(argv, env=path).partition("\nend=end\n")
    assert f"on {SHARED} " not in mounted
    return slots.decoded(facts.record_of(dict(line.split("=", 1) for line in text.splitlines())))
