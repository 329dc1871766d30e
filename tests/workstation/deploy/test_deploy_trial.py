"""A slot's system on trial, as the workstation sees it: a jump, and the way back."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anemos.border.requests import Try, Withdraw
from anemos.log import FAILED, UNVERIFIED, Failure
from anemos.run import CommandFailed
from anemos.workstation.deploy import (
    consent,
    default,
    facts,
    phases,
    reach,
    staged,
    status,
    trial,
    ways,
    word,
)
from anemos.workstation.deploy import verify as proof
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import State, load_state
from anemos.workstation.deploy.status import SlotSeen, Status
from anemos.workstation.hosts import After, Host
from anemos.workstation.ssh import ConnectionLost

HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "ssh-ed25519 AAAA", 2222)
OLD, NEW = Identity("b-1", False, "d-1", 1.0), Identity("b-2", False, "d-2", 2.0)
BACK = Identity("b-3", False, "d-1", 3.0)


@dataclass
class Server:
    """RUNS: what answers, one after the other; the last one stays."""

    runs: list[Identity]
    done: list[object] = field(default_factory=list)

    @contextmanager
    def connect(self, *_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(endpoint="where", sh=self.sh)

    def identify(self, _: object) -> Identity:
        return self.runs[0]

    def script(self, _: object, name: str, *_words: str, timeout: float = 0) -> str:
        self.done.append(name)
        if name in ("jump.sh", "reboot.sh") and len(self.runs) > 1:
            self.runs.pop(0)
            raise ConnectionLost("lost", status=FAILED)
        return "a unit failed\n" if name == "trialed.sh" else ""

    def sh(self, argv: list[str]) -> str:
        self.done.append(" ".join(argv))
        return ""

    def answer(self, _remote: object, base: str, request: object, *_: object) -> dict[str, str]:
        self.done.append((base, request))
        return {}

    def await_boot(self, *words: Any, **_: Any) -> Identity:
        if words[2](self.runs[0]):
            return self.runs[0]
        raise Failure("no answer", status=FAILED)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server([OLD, NEW, BACK])
    State("mx", "d-2", root="UUID", way="slot").save()
    for module in (trial, phases):
        monkeypatch.setattr(module, "connect", made.connect)
    for name in ("script", "answer", "await_boot"):
        monkeypatch.setattr(reach, name, getattr(made, name))
    monkeypatch.setattr(facts, "identify", made.identify)
    monkeypatch.setattr(reach, "await_end", lambda *_: None)
    monkeypatch.setattr(status, "ask", lambda _: SimpleNamespace(boot_id="b-1"))
    monkeypatch.setattr(default, "own_base", lambda *_: "/base")
    monkeypatch.setattr(consent, "check", lambda *_: None)
    monkeypatch.setattr(staged, "undone", lambda _: nullcontext())
    return made


def test_start(server: Server) -> None:
    assert trial.start(HOST) == {"host": "mx", "boot_id": "b-2"}
    assert server.done == [("/base", Try("d-2", HOST.timeouts.trial)), "jump.sh"]
    assert load_state(HOST).old_boot_id == "b-1"


def test_start_by_grub(server: Server) -> None:
    State("mx", "d-2", root="UUID", way=ways.SLOT_ONCE).save()
    trial.start(HOST)
    assert server.done == [("/base", Try("d-2", HOST.timeouts.trial, once=True)), "reboot.sh"]


def test_start_that_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left for a later boot; nobody waits for one."""

    def script(*_words: object, **_: object) -> str:
        raise Failure("no jump", status=FAILED)

    monkeypatch.setattr(reach, "script", script)
    with pytest.raises(Failure, match="no jump"):
        trial.start(HOST)
    assert server.done[-1] == ("/base", Withdraw("b-1"))


HELD = replace(HOST, hold_ports=True, after=After(port=2022))


def test_held_ports(server: Server) -> None:
    trial.start(HELD)
    asked, jump, look = server.done
    assert (asked, jump) == (("/base", Try("d-2", HOST.timeouts.trial, port=2022)), "jump.sh")
    assert "nft list table inet anemos_trial" in str(look)


def test_ports_that_are_open(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has filled the slot did not know of that."""

    def fail(*_: object) -> str:
        raise Failure("nft: No such file or directory", status=FAILED)

    monkeypatch.setattr(server, "sh", fail)
    with pytest.raises(Failure, match="No such file or directory\nThe old system runs again"):
        trial.start(HELD)
    assert "reboot.sh" in server.done


@pytest.mark.parametrize(("default", "told"), [(True, ""), (False, "No such file or directory")])
def test_ports_that_a_word_has_opened(
    server: Server, monkeypatch: pytest.MonkeyPatch, default: bool, told: str
) -> None:
    """A system that commits itself may be quicker than we are."""

    def fail(*_: object) -> str:
        raise CommandFailed(["nft"], 1, "No such file or directory")

    slot = replace(RUNNING, default=default)
    monkeypatch.setattr(server, "sh", fail)
    monkeypatch.setattr(
        status, "ask", lambda _: Status(status.DEPLOYED, "d-2", "b-1", slots=[slot])
    )
    monkeypatch.setattr(word, "script", lambda *_: "#!/bin/sh")
    monkeypatch.setattr(Host, "imgbuild", lambda _: None)
    with pytest.raises(Failure, match=told) if told else nullcontext():
        trial.start(replace(HELD, confirm="self"))


def test_trial_that_never_answers(server: Server) -> None:
    """Its guard has brought the old system back: nothing is left to do."""
    server.runs = [OLD, BACK]
    with pytest.raises(Failure, match="did not answer\nThe old system runs again") as caught:
        trial.start(HOST)
    assert caught.value.status == FAILED
    assert "reboot.sh" not in server.done


def test_verification_that_fails(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the new system reboot; what that said is shown."""

    def verify(_: Host) -> dict[str, Any]:
        raise Failure("mx was deployed, but fails: verify()", status=UNVERIFIED)

    server.runs = [NEW, BACK]
    monkeypatch.setattr(proof, "verify", verify)
    with pytest.raises(Failure, match=r"fails: verify\(\)\nThe old system runs again") as caught:
        trial.verify(HOST)
    assert caught.value.status == FAILED
    assert server.done[0] == "reboot.sh"
    assert "On trial: a unit failed" in capsys.readouterr().err


ALONE = replace(HOST, confirm="self")
RUNNING = SlotSeen("b", "trial", "d-2", 2, default=False, runs=True)


def test_start_that_leaves_the_word_to_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word, "script", lambda *_: "#!/bin/sh")
    monkeypatch.setattr(Host, "imgbuild", lambda _: None)
    trial.start(ALONE)
    asked = Try("d-2", HOST.timeouts.trial, confirm="#!/bin/sh")
    assert server.done == [("/base", asked), "jump.sh"]


@pytest.fixture
def seen(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Status]:
    """What the server tells, one after the other."""
    told = [Status(status.DEPLOYED, "d-2", slots=[RUNNING])]
    monkeypatch.setattr(word, "connect", server.connect)
    monkeypatch.setattr(status, "ask", lambda _: told.pop(0))
    monkeypatch.setattr(reach, "POLL_S", 0)
    return told


def test_word_of_the_server(
    server: Server, seen: list[Status], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that fails after it leads nowhere: the status is a deployed system's."""

    def verify(_: Host) -> dict[str, Any]:
        raise Failure("fails: port 80", status=UNVERIFIED)

    seen.append(Status(status.DEPLOYED, "d-2", slots=[replace(RUNNING, default=True)]))
    monkeypatch.setattr(proof, "verify", verify)
    with pytest.raises(Failure, match="fails: port 80") as caught:
        trial.verify(ALONE)
    assert (caught.value.status, server.done, seen) == (UNVERIFIED, [], [])


def test_server_that_gives_itself_no_word(server: Server, seen: list[Status]) -> None:
    seen.append(Status(status.DEPLOYED, "d-1"))
    server.runs = [BACK]
    told = "did not give itself the word\nThe old system runs again"
    with pytest.raises(Failure, match=told) as caught:
        trial.verify(ALONE)
    assert (caught.value.status, "reboot.sh" in server.done) == (FAILED, False)


def test_old_system_that_is_not_seen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says more than is known."""

    def verify(_: Host) -> dict[str, Any]:
        raise Failure("lost", status=UNVERIFIED)

    server.runs = [NEW]
    monkeypatch.setattr(proof, "verify", verify)
    with pytest.raises(Failure, match="lost") as caught:
        trial.verify(HOST)
    assert caught.value.status == UNVERIFIED
    assert "it should start again by itself: no answer" in caught.value.hint
