"""What a machine that waits in the initramfs says, and what it is told."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anemos.border import boot, resuming, stage
from anemos.border import payload as border
from anemos.border.boot import Seen
from anemos.border.resuming import Request
from anemos.disks import Fingerprint
from anemos.initramfs import __main__ as brain
from anemos.initramfs import events, hardware, install, progress
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, Failure
from anemos.system import bootstrap, imgbuild
from anemos.system.layout import Mounted
from anemos.workstation import places
from anemos.workstation.deploy import facts, payload, reach, recovery, status
from anemos.workstation.deploy.outcome import Witnessed
from anemos.workstation.deploy.state import DONE, PASSED, WORD, State
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Endpoint, Unreachable
from tests.whole.test_network import NETWORK

MANIFEST = {"deployment": "d", "host": "mx", "keep": [], "agreed": {}, "finish": "reboot"}
HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "key", 2222)
BOOT = json.dumps({"deployment": "d-1", "host": "mx", "ssh_port": 22})
STAMP = json.dumps({"deployment": "d-0", "host": "mx"})
IN_RAM = {"place": "initramfs", "stamp": BOOT, "left": "300", "line": "  Preflight ..."}


def event(name: str, **fields: str) -> str:
    return json.dumps({"time": 1, "event": name, **fields})


def said(**changed: str) -> str:
    one = {"boot_id": "b-1", "kernel": "6.1", "place": "system", "stamp": "", "end": "end"}
    return "".join(f"{key}={value}\n" for key, value in (one | changed).items())


@pytest.mark.parametrize(
    ("changed", "state", "shown"),
    [
        ({}, status.SYSTEM, "not deployed by Anemos"),
        ({"stamp": STAMP}, status.DEPLOYED, "the system of deployment d-0"),
        ({"staged": "d-2 me 12:00"}, status.SYSTEM, "d-2 of me is staged there since 12:00"),
        (IN_RAM, status.GOING, "before the point of no return; 300 s"),
        (IN_RAM | {"line": "what it prints:\u2028passed=yes"}, status.GOING, "before the point"),
        (IN_RAM | {"event": event("held")}, status.HELD, "./inv resume or ./inv abort; 300 s"),
        (IN_RAM | {"event": event("released")}, status.GOING, "300 s"),
        (IN_RAM | {"event": event("failed", message="why")}, status.FAILING, "of no return: why"),
        (
            IN_RAM | {"passed": "yes", "event": event("point-of-no-return")},
            status.INSTALLING,
            "past the point",
        ),
        (
            IN_RAM | {"passed": "yes", "event": event("failed", message="a=b")},
            status.FAILED_THERE,
            "./inv resume: a=b",
        ),
    ],
)
def test_status(changed: Mapping[str, str], state: str, shown: str) -> None:
    seen = status.parse(said(**changed))

    assert seen.state == state
    text = "\n".join(which for _, which in status.describe(seen, "d-1", status.Known()))
    assert shown in text
    assert ("this workstation's last" in text) == (seen.deployment == "d-1")


@pytest.mark.parametrize(
    "text", ["", "boot_id=x\n", said(stamp="{"), said(stamp="[]"), said(left="soon")]
)
def test_status_that_makes_no_sense(text: str) -> None:
    with pytest.raises(Failure, match="makes no sense") as caught:
        status.parse(text)

    assert caught.value.status == FAILED


@pytest.mark.real("run")
def test_status_script() -> None:
    """On this machine, which is none of ours."""
    argv = ["sh", "-c", facts.probe("status.sh")]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    assert status.parse(out).state == status.SYSTEM


@pytest.fixture(autouse=True)
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("memory", "state"):
        monkeypatch.setattr(places, name, lambda host: tmp_path)


def test_unreachable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No failure: it says so, with what was last known."""

    def refuse(endpoint: Endpoint, *, status: int) -> None:
        raise Unreachable("no route", status=status)

    monkeypatch.setattr(status, "connect", refuse)
    first = status.status(HOST)
    status.remember(HOST, status.parse(said(stamp=STAMP)))
    second = status.status(HOST)

    assert (first["state"], first["message"], first["last_known"]) == (
        "unreachable",
        "no route",
        {},
    )
    assert second["last_known"]["deployment"] == "d-0"
    assert "deployed d-0 at 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reached", "shown"),
    [("", "left for"), (WORD, "told to install"), (PASSED, "installing"), (DONE, "deployed")],
)
def test_unreachable_since_this_deployment(reached: str, shown: str) -> None:
    """What was once seen of an earlier deployment is not what is known of this one."""
    status.remember(HOST, status.parse(said(stamp=STAMP)))
    before = status.last_known(HOST)
    State("mx", deployment="d-1", old_boot_id="b", reached=reached).save()
    later = before.time + 10
    os.utime(places.state("mx") / "state.json", (later, later))

    seen = status.last_known(HOST)
    assert before.deployment == "d-0"
    assert (seen.deployment, seen.state[: len(shown)]) == ("d-1", shown)


def test_machine_that_does_not_wait() -> None:
    """The machine itself says what it does: so does the status."""
    refusals = {said(stamp=STAMP): BAD_INPUT, said(**IN_RAM): BAD_INPUT}
    refusals[said(**IN_RAM, passed="yes", event=event("point-of-no-return"))] = IN_INITRAMFS
    for text, code in refusals.items():
        seen = status.parse(text)
        with pytest.raises(Witnessed) as caught:
            recovery.refuse(seen, f"mx does not wait: {seen.state}")
        assert caught.value.status == code


@pytest.mark.parametrize("reached", [WORD, PASSED])
def test_resuming_in_vain(monkeypatch: pytest.MonkeyPatch, reached: str) -> None:
    State("mx", deployment="d-1", reached=reached).save()

    def refuse(endpoint: Endpoint) -> None:
        raise Unreachable("no route")

    monkeypatch.setattr(recovery, "connect", refuse)
    for task in (recovery.resume, recovery.abort):
        with pytest.raises(Failure, match="no route") as caught:
            task(HOST)
        assert caught.value.status == IN_INITRAMFS


def test_another_workstation(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever did not start the deployment learns from the machine what `verify` needs."""
    kept = [Fingerprint("data", "S", 512, "d1g35t", ())]
    stamp = Seen("d-1", base="abc", kept=kept)
    seen = replace(status.parse(said(**IN_RAM)), stamp=stamp)

    state = status.known(HOST, seen)

    assert (state.deployment, state.base_hash, state.old_boot_id) == ("d-1", "abc", "b-1")
    assert state.kept == kept
    assert status.known(HOST, seen) == state


@pytest.mark.parametrize(
    ("state", "words"), [(status.HELD, {"repack": True}), (status.HELD, {"step": "definition"})]
)
def test_held_machine_has_nothing_to_repeat(state: str, words: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="nothing has failed yet"):
        recovery.go_on(HOST, State("mx"), **{"repack": False, "step": "", **words})


def test_unknown_step() -> None:
    with pytest.raises(Failure, match="--step bootloader: unknown") as caught:
        recovery.resume(HOST, step="bootloader")

    assert caught.value.hint == f"one of: {', '.join(resuming.STEPS)}"


def test_ssh(tmp_path: Path) -> None:
    """The operator's own client gets the pinned key and nothing else to believe in."""
    where = Endpoint("192.0.2.1", 2222, "ssh-ed25519 AAAA", Path("/id"))
    argv = reach.login(where, tmp_path / "known_hosts")

    assert argv[:3] == ["ssh", "-F", "none"]
    assert "StrictHostKeyChecking=yes" in argv
    assert f"UserKnownHostsFile={tmp_path}/known_hosts" in argv
    assert argv[-5:] == ["-i", "/id", "-p", "2222", "root@192.0.2.1"]
    assert (tmp_path / "known_hosts").read_text() == "[192.0.2.1]:2222 ssh-ed25519 AAAA\n"


def test_ssh_has_the_policy_of_our_own_client(tmp_path: Path) -> None:
    """With an identity it alone is offered: an agent may hold more keys than sshd looks at."""
    for identity, only in ((Path("/id"), "yes"), (None, "no")):
        where = Endpoint("192.0.2.1", 22, "ssh-ed25519 AAAA", identity)
        argv = reach.login(where, tmp_path / "known_hosts")

        assert f"IdentitiesOnly={only}" in argv
        assert "PreferredAuthentications=publickey" in argv


# In the initramfs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EVENTS", "LOG", "PASSED", "ABORT", "GO"):
        monkeypatch.setattr(stage, name, tmp_path / name)
    monkeypatch.setattr(events, "PANICS", [tmp_path / "panic"])
    monkeypatch.setattr(stage, "PROGRESS", tmp_path / "progress.json")
    return tmp_path


def test_abort_wins(here: Path) -> None:
    """init's guard writes why; whoever has passed by then takes it back."""
    stage.ABORT.write_text("no point of no return within 900 s\n")

    with pytest.raises(Failure, match=r"^no point of no return within 900 s$"):
        events.point_of_no_return()
    with pytest.raises(Failure, match=r"^no point of no return within 900 s$"):
        events.await_word(10)
    assert not stage.PASSED.exists()
    assert not (here / "panic").exists()


def test_console_that_is_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there memory for the log: the installation goes on, and its end is told."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(events, "CONSOLE", full.fileno())
        events.tell("one")
        events.done()
        monkeypatch.setattr(stage, "LOG", Path("/dev/full"))
        events.tell("two")

    told = [json.loads(line) for line in stage.EVENTS.read_text().splitlines()]
    assert [each["event"] for each in told] == ["log", "done", "log"]


def test_console(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events.tell("one")

    assert capfd.readouterr().out == stage.LOG.read_text() == "one\n"


def test_point_that_cannot_be_passed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the old system, and nobody was told otherwise."""
    monkeypatch.setattr(events, "PANICS", [here])  # no file

    with pytest.raises(IsADirectoryError):
        events.point_of_no_return()
    assert not stage.PASSED.exists()
    assert not stage.EVENTS.exists()


def test_word(here: Path) -> None:
    with pytest.raises(Failure, match="no word from the operator after 0 s"):
        events.await_word(0)
    stage.GO.touch()
    events.await_word(0)
    events.point_of_no_return()

    assert (here / "panic").read_text() == "0"


KEEP = "disk data serial=D\npart p disk=system number=3\nvg v on=p\nlv mail on=v\n"


def spec(tmp_path: Path, **words: str) -> imgbuild.Imgbuild:
    layout = "disk system serial=S\npart root fs=ext4 mount=/\n"
    given = {"target": "debian", "format": "disk", "layout": layout, "keep": KEEP}
    return imgbuild.interpret(tmp_path, given | words)


def test_progress(here: Path) -> None:
    begun = progress.begin(spec(here), [Mounted("/home", "uuid", "ext4")])

    assert begun.first_step("sha") == "partitions"
    assert begun.first_step("sha", "definition") == "definition"
    begun.applied = "sha"
    begun.save()
    assert progress.load(spec(here)).first_step("sha") == "boot-loader"
    assert progress.load(spec(here)).first_step("corrected") == "partitions"
    assert progress.load(spec(here)).mounts == begun.mounts
    assert begun.packages != bootstrap.key(spec(here, packages="other"))


@pytest.mark.parametrize(
    "words",
    [
        {"keep": KEEP[:19]},
        {"keep": KEEP.replace("=D", "=E")},
        {"keep": KEEP.replace("mail", "web")},
    ],
)
def test_other_disks_need_another_deployment(here: Path, words: dict[str, str]) -> None:
    progress.begin(spec(here), [])

    with pytest.raises(Failure, match="names other disks"):
        progress.load(spec(here, **words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", Request()), ("{}", Request()), ('{"step": "definition"}', Request(step="definition"))],
)
def test_request(here: Path, text: str, expected: Request) -> None:
    """An empty file, as somebody in the rescue shell would make it, will do."""
    (here / "resuming").write_text(text)

    assert progress.request(here / "resuming") == expected


def test_boot_json_is_written_again(tmp_path: Path) -> None:
    given = boot.Boot("d", "mx", "b", "p", "l", 22, NETWORK, [], 1.5)
    boot.save(given, tmp_path / "boot.json")

    assert boot.load(tmp_path / "boot.json") == given


@pytest.mark.parametrize(
    ("line", "expected"), [("console=ttyS0", 0), ("a anemos.hold=60 anemos.deadline=960\n", 60)]
)
def test_hold(tmp_path: Path, line: str, expected: float) -> None:
    (tmp_path / "cmdline").write_text(line)

    assert boot.held(tmp_path / "cmdline") == expected


@pytest.mark.parametrize(
    ("now", "told", "expected"), [(1e9, 0, []), (1e9, 1e9 + 500, []), (1e9, 1e9 + 700, [1e9 + 700])]
)
def test_clock(
    monkeypatch: pytest.MonkeyPatch, now: float, told: float, expected: list[float]
) -> None:
    changed: list[float] = []
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "clock_settime", lambda clock, to: changed.append(to))

    brain.set_clock(told)

    assert changed == expected


def test_mirror_that_does_not_answer(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(hardware, "coldplug", lambda: None)
    monkeypatch.setattr(hardware.wait_for, "__defaults__", (0.0,))
    brain.check_mirror(spec(here, mirror="copy:/var/cache"))

    with pytest.raises(
        Failure, match=r"no answer from the mirror: http://127.0.0.1:9/d/dists/sid/"
    ):
        brain.check_mirror(spec(here, mirror="http://127.0.0.1:9/d/", debian_suite="sid"))
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.real("run")
def test_what_was_fetched_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there is another payload."""
    monkeypatch.setattr(stage, "PAYLOAD", here / "payload")
    monkeypatch.setattr(stage, "UNPACKED", here / "unpacked")
    given = boot.Boot("d", "mx", "b", packed(here, "# one"), "", 22, NETWORK, [])

    assert brain.definition(given).name == "mx"  # as on the workstation
    (here / "unpacked/secrets").mkdir()
    (here / "unpacked/secrets/fetched").touch()
    brain.definition(given)
    assert (here / "unpacked/secrets/fetched").exists()
    with pytest.raises(Failure, match="payload: damaged on the way"):
        brain.definition(replace(given, payload="other"))
    brain.definition(replace(given, payload=packed(here, "# two")))
    assert not (here / "unpacked/secrets/fetched").exists()


def packed(here: Path, text: str) -> str:
    """A payload that says TEXT; its SHA-256."""
    file = here / "payload"
    (here / "IMGBUILD").write_text(f"target=debian\n{text}\n")
    payload.write(file, imgbuild.load(here), "d", {}, here / "none")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.real("run")
def test_resuming_with_another_layer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used again when the run is taken up once more; what it is for is kept in mind."""
    other = spec(here, packages="other")
    monkeypatch.setattr(boot.load, "__defaults__", (here / "boot.json",))
    monkeypatch.setattr(boot.save, "__defaults__", (here / "boot.json",))
    monkeypatch.setattr(brain, "definition", lambda given: other)
    monkeypatch.setattr(brain, "resolve", lambda spec, agreed: {})
    monkeypatch.setattr(brain, "planned", lambda spec, keep, erase: spec)
    monkeypatch.setattr(stage, "PASSED", here)
    layers: list[str] = []
    monkeypatch.setattr(install, "install", lambda given, *_: layers.append(given.layer))
    progress.begin(spec(here), [])
    boot.save(boot.Boot("d", "mx", "b", "p", "first", 22, NETWORK, []))

    for asked in (Request(layer="second"), Request(), Request(payload="q")):
        monkeypatch.setattr(progress, "request", lambda asked=asked: asked)
        brain.resume()
    monkeypatch.setattr(brain, "definition", lambda given: spec(here, packages="third"))
    brain.resume()

    assert layers == ["second", "second", "second", ""]
    assert boot.load().payload == "q"


def test_incomplete_payload(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_text("secret")
    files = {"secrets/key": hashlib.sha256(b"secret").hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"files": files}))
    border.check(tmp_path)
    (tmp_path / "secrets/key").write_text("secre")

    with pytest.raises(Failure, match="secrets/key is not what was packed"):
        border.check(tmp_path)
