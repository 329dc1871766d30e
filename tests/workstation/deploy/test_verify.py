"""The verdict on a new system: evidence for every check, status 4 when one fails."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from anemos.border import records
from anemos.disks import Fingerprint
from anemos.log import FAILED, UNVERIFIED, Failure
from anemos.run import run
from anemos.workstation import places, report
from anemos.workstation.deploy import facts, reach, verify
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import DONE, WORD, State
from anemos.workstation.deploy.verify import Check
from anemos.workstation.hosts import Host, Timeouts
from anemos.workstation.ssh import ConnectionLost, Endpoint, TimedOut, pinned_key
from tests.tree import HOST_KEY, ROOT

FACTS = replace(facts.parse((ROOT / "tests/data/facts-scsi-nvme").read_text()), boot_id="new")
HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", HOST_KEY, ports=[22, 443])
WHERE = Endpoint("192.0.2.1", 22, HOST_KEY, None)
STATE = State(
    "mx",
    deployment=FACTS.deployment,
    old_boot_id="old",
    last_answer=100.0,
    first_answer=142.34,
    sent={"base": 0, "layer": 5, "payload": 7},
)
GOOD = [Check("port 22", True, "listens"), Check("kept disk S", True, "same")]


def test_examine() -> None:
    checks = list(verify.examine(HOST, STATE, FACTS, WHERE))

    assert [each.name for each in checks] == [
        "boot id",
        "deployment",
        "host key",
        "port 22",
        "port 443",
    ]
    assert all(each.passed for each in checks)
    assert checks[0].evidence == "old -> new"
    assert pinned_key(WHERE).fingerprint in checks[2].evidence


@pytest.mark.parametrize(
    ("host", "state", "wrong"),
    [
        (HOST, replace(STATE, old_boot_id="new"), "boot id"),
        (HOST, replace(STATE, deployment="d-0"), "deployment"),
        (replace(HOST, ports=[22, 80]), STATE, "port 80"),
    ],
)
def test_examine_finds(host: Host, state: State, wrong: str) -> None:
    checks = list(verify.examine(host, state, FACTS, WHERE))

    assert [each.name for each in checks if not each.passed] == [wrong]


def test_conclude() -> None:
    result = verify.conclude(HOST, STATE, FACTS, GOOD)

    assert result == {
        "host": "mx",
        "deployment": FACTS.deployment,
        "verified": True,
        "kernel": "6.1.0-28-amd64",
        "boot_id": {"old": "old", "new": "new"},
        "downtime_s": 42.3,
        "bytes_sent": {"base": 0, "layer": 5, "payload": 7},
        "kept_disks": [{"serial": "S", "unchanged": True}],
        "checks": [
            {"name": "port 22", "passed": True, "evidence": "listens"},
            {"name": "kept disk S", "passed": True, "evidence": "same"},
        ],
    }


def test_report_tells_everything(capsys: pytest.CaptureFixture[str]) -> None:
    result = verify.conclude(HOST, STATE, FACTS, GOOD)

    report.show(
        result | {"phases": [{"name": "plan", "seconds": 1.5}]}, "mx is deployed and verified"
    )

    said = capsys.readouterr()
    assert said.out == ""
    for word in ("mx is deployed and verified", "42.3 s", "plan 1.5 s", "kept disk S", "listens"):
        assert word in said.err


def test_report_shows_what_others_say_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither rich's markup nor a terminal's orders."""
    odd = [Check("[b]mine", True, "ok [/srv/www] [red]x \x1b[2J\x9b")]
    result = verify.conclude(replace(HOST, name="[/x]"), STATE, FACTS, odd)

    report.show(result | {"phases": []}, "[/x] is deployed and verified")

    said = capsys.readouterr().err
    for words in ("[/x] is deployed", "[b]mine", "ok: ok [/srv/www] [red]x \\x1b[2J\\x9b"):
        assert words in said


def test_conclude_names_what_fails() -> None:
    checks = [Check("units", False, "degraded"), *GOOD, Check("verify()", False, "no")]

    with pytest.raises(Failure) as caught:
        verify.conclude(HOST, STATE, FACTS, checks)

    assert caught.value.message == "mx was deployed, but fails: units (degraded), verify() (no)"
    assert caught.value.status == UNVERIFIED


# Checks on the server


class Server:
    """Answers by the first word of a command."""

    def __init__(self, **answers: str | Failure) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def sh(self, argv: list[str], **_options: object) -> str:
        self.asked.append(argv)
        answer = self.answers[argv[0]]
        if isinstance(answer, Failure):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"sh": "running\n"}, Check("units", True, "running")),
        (
            {"sh": "degraded\nnginx.service loaded failed failed x\n"},
            Check("units", False, "degraded; nginx.service loaded failed failed x"),
        ),
        ({"sh": f"{verify.ALONE}\n"}, Check("units", True, "neither systemd nor OpenRC")),
        ({"sh": ""}, Check("units", False, "systemd says nothing")),
        ({"sh": "running\nx failed\n"}, Check("units", False, "running; x failed")),
    ],
)
def test_units(answers: dict[str, Any], expected: Check) -> None:
    server: Any = Server(**answers)

    assert verify.check_units(HOST, server) == expected


SYSTEMCTL = """#!/bin/sh
case $1 in
    is-system-running) {}; echo running ;;
    list-jobs) echo '7 unbound.service start running' ;;
esac
"""


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("does", "says"),
    [
        (":", ["running"]),
        ("sleep 60", ["still starting after 1 s", "7 unbound.service start running"]),
    ],
)
def test_what_still_starts_is_named(tmp_path: Path, does: str, says: list[str]) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(does))
    program.chmod(0o755)

    argv = ["env", f"PATH={tmp_path}:/usr/bin:/bin", "sh", "-c", verify.SYSTEMD, "1"]
    assert run(argv).splitlines() == says


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "IMGBUILD").write_text(
        "target=debian\nkeep='disk data serial=S'\nverify() { nginx -t; }\n"
    )
    return replace(HOST, directory=tmp_path)


class Here(Server):
    """Runs it on this machine."""

    def sh(self, argv: list[str], **options: Any) -> str:
        assert max(map(len, argv)) < 2**11  # what the operator writes has no limit
        return run(argv, data=options["data"], env={"LC_ALL": "C"})


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("body", "passed", "evidence"),
    [
        ("echo one\n    echo two", True, "two"),
        (":", True, "succeeded"),
        ('[ "$imgname" = mx ]', True, "succeeded"),
        (
            "echo bad\n    test a = b\n    :",
            False,
            "IMGBUILD: line 5: in verify(): `test a = b`: exit status 1 bad",
        ),
        ("exit 3", False, "IMGBUILD: in verify(): exit status 3"),
    ],
)
def test_own(host: Host, body: str, passed: bool, evidence: str) -> None:
    file = host.directory / "IMGBUILD"
    file.write_text(f"imgname=mx\ntarget=debian\nverify() {{\n    {body}\n}}\n")
    server: Any = Here()
    (check,) = verify.check_own(host, server)
    shown = evidence if passed else f"{host.directory}/{evidence}"
    assert check == Check("verify()", passed, shown)


@pytest.mark.real("run")
def test_own_without_an_answer(host: Host) -> None:
    server: Any = Server(sh=Failure("no end after 3 s"))
    assert list(verify.check_own(host, server)) == [Check("verify()", False, "no end after 3 s")]


MOUNTS = """\
target=debian
layout='
disk system serial=S
part root fs=ext4 mount=/
part home fs=ext4 mount=/home size=1G
part old fs=ext4 mount=/old options=noauto size=1G
part swap fs=swap size=1G
'
keep='
disk data serial=D part=1 mount=/srv options=nofail
disk rest serial=R
part pv disk=system number=9
vg v on=pv
lv mail on=v mount=/mail options=nofail
'
"""
OWN = ("/dev/sda1 / ext4", "/dev/sda2 /home ext4")


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("mounts", "missing"),
    [
        ((*OWN, "/dev/sdb1 /srv ext4", "/dev/dm-0 /mail ext4"), []),
        (OWN, ["mount /srv", "mount /mail"]),
    ],
)
def test_mounts(host: Host, mounts: tuple[str, ...], missing: list[str]) -> None:
    """A kept disk or volume with nofail that is not there is no failed unit."""
    (host.directory / "IMGBUILD").write_text(MOUNTS)

    checks = list(verify.check_mounts(host, replace(FACTS, mounts=mounts)))

    names = ["mount /", "mount /home", "mount /srv", "mount /mail"]
    assert [each.name for each in checks] == names
    assert [each.name for each in checks if not each.passed] == missing


BEFORE = Fingerprint("data", "S", 512, "a" * 64, ((0, "U", "ext4"),))


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("after", "passed"),
    [
        (BEFORE, True),
        (replace(BEFORE, digest="b" * 64), False),
        (replace(BEFORE, filesystems=()), False),
    ],
)
def test_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch, after: Fingerprint, passed: bool
) -> None:
    server: Any = object()
    monkeypatch.setattr(reach, "enter", lambda *_, **__: f"noise\n{records.text([after])}\n")

    (check,) = verify.check_kept(host, replace(STATE, kept=[BEFORE]), server, FACTS)

    assert (check.name, check.passed) == ("kept disk S", passed)


@pytest.mark.real("run")
@pytest.mark.parametrize(("kept", "passed"), [([BEFORE], True), (None, False), ([], False)])
def test_kept_by_what_the_initramfs_saw(
    host: Host, monkeypatch: pytest.MonkeyPatch, kept: Any, passed: bool
) -> None:
    """Started by hand, or verified from elsewhere: this workstation knows no fingerprint."""
    server: Any = object()
    monkeypatch.setattr(reach, "enter", lambda *_, **__: records.text([BEFORE]))
    seen = replace(FACTS, stamp=replace(FACTS.stamp, kept=kept))

    (check,) = verify.check_kept(host, replace(STATE, kept=[]), server, seen)

    assert (check.name, check.passed) == ("kept disk S", passed)


@pytest.mark.real("run")
def test_kept_volume(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group has no fingerprint of its own: it is in those of its volumes."""
    layout = "target=debian\nformat=disk\nlayout='disk a serial=X\npart r fs=ext4 mount=/'\n"
    keep = "keep='part p disk=a number=3\nvg v on=p\nlv mail on=v'\n"
    (host.directory / "IMGBUILD").write_text(layout + keep)
    found = [replace(BEFORE, name="p", serial="X"), replace(BEFORE, name="mail", serial="v/mail")]
    monkeypatch.setattr(reach, "enter", lambda *_, **__: records.text(found))
    server: Any = object()

    checks = verify.check_kept(host, replace(STATE, kept=found[:1]), server, FACTS)

    assert [(check.name, check.passed) for check in checks] == [
        ("kept disk X", True),
        ("kept volume v/mail", False),
    ]


@pytest.mark.real("run")
def test_kept_without_base_image(host: Host) -> None:
    server: Any = object()

    (check,) = verify.check_kept(host, STATE, server, replace(FACTS, base=""))

    assert not check.passed


@pytest.mark.real("run")
def test_nothing_kept_nothing_of_its_own(host: Host) -> None:
    server: Any = object()
    (host.directory / "IMGBUILD").write_text("target=debian\n")

    assert list(verify.check_kept(host, STATE, server, FACTS)) == []
    assert list(verify.check_own(host, server)) == []


# Which system answers


def test_fresh() -> None:
    ready = verify.fresh(State("mx", old_boot_id="old"))

    assert [
        ready(each)
        for each in (
            Identity("old", False, "", 0),
            Identity("new", True, "d", 0),
            Identity("new", False, "", 0),
        )
    ] == [False, False, True]


def test_old_system_came_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    STATE.save()
    monkeypatch.setattr(reach, "await_boot", lambda *_: Identity("new", False, "d-0", 1.0))

    with pytest.raises(Failure, match="mx runs the old system: nothing was deployed") as caught:
        verify.verify(HOST)

    assert caught.value.status == FAILED


def test_too_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)

    with pytest.raises(Failure, match="mx: not ready for this phase"):
        verify.verify(HOST)


# What is said when nothing can be proven


@pytest.mark.parametrize(("reached", "status"), [("", FAILED), (WORD, 3), (DONE, UNVERIFIED)])
def test_no_answer(monkeypatch: pytest.MonkeyPatch, reached: str, status: int) -> None:
    replace(STATE, reached=reached).save()
    host = replace(HOST, timeouts=Timeouts(up=0))

    with pytest.raises(Failure, match="no answer from the new system") as caught:
        verify.verify(host)

    assert caught.value.status == status


@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionLost("facts.sh: the connection was lost", status=FAILED),
        TimedOut("facts.sh: no end after 60 s", status=FAILED),
        Failure("the facts of the server make no sense", status=FAILED),
        OSError(28, "No space left on device"),
        KeyError("end"),
    ],
    ids=repr,
)
def test_trouble_after_the_first_answer(
    monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    """The new system is there: nobody may read that the old one is."""

    def connect(where: Endpoint, *, status: int) -> NoReturn:
        raise trouble

    STATE.save()
    up = Identity("new", False, STATE.deployment, 1.0)
    monkeypatch.setattr(reach, "await_boot", lambda *_: up)
    monkeypatch.setattr(verify, "connect", connect)

    with pytest.raises(Failure) as caught:
        verify.verify(HOST)

    assert caught.value.status == UNVERIFIED
    assert "./inv verify --host mx" in caught.value.hint


def test_another_system_than_the_one_that_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(STATE, reached=DONE).save()
    monkeypatch.setattr(reach, "await_boot", lambda *_: Identity("new", False, "d-0", 1.0))

    with pytest.raises(Failure, match="a system answers that is not the new one") as caught:
        verify.verify(HOST)

    assert caught.value.status == UNVERIFIED
