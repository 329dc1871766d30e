"""What one phase leaves for the next, and the waits between the systems. Glue only."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from anemos import log
from anemos.border import payload as border
from anemos.border import records
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed
from anemos.border.requests import Bootstrap, Built, Keys, Load, Logins
from anemos.disks import Fingerprint
from anemos.files import sha256
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, Failure
from anemos.run import CommandFailed
from anemos.system import imgbuild
from anemos.workstation import places
from anemos.workstation.deploy import (
    clean,
    consent,
    facts,
    hostkeys,
    payload,
    phases,
    reach,
    staged,
    ways,
)
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.sizes import Sizes, size
from anemos.workstation.deploy.state import (
    WORD,
    State,
    expected_downtime,
    load_state,
    payload_file,
    remember_downtime,
)
from anemos.workstation.hosts import After, Host, Timeouts, VmSettings
from anemos.workstation.ssh import (
    ConnectionLost,
    Endpoint,
    LoginRefused,
    Remote,
    TimedOut,
    Unreachable,
    WrongHostKey,
)
from anemos.workstation.values import values
from anemos.workstation.vm import vm
from tests.sshd import make_key
from tests.whole.test_network import NETWORK

HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "ssh-ed25519 AAAA", 2222)
AWAY = Unreachable("no answer", status=FAILED)
LOST = ConnectionLost("lost", status=FAILED)
KILLED = CommandFailed(["sh"], -15, "")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(reach, "POLL_S", 0)


# State


def test_state_is_read_back() -> None:
    state = State(
        "mx",
        deployment="d-1",
        base="/cache/base-d2b1.squashfs",
        last_answer=1.25,
        kept=[Fingerprint("data", "S", 512, "d1g35t", ((0, "", ""),))],
        sent={"base": 0},
    )

    state.save()

    assert load_state(HOST) == state


def test_downtime() -> None:
    """Who takes an installation up from elsewhere does not know when the old system went."""
    remember_downtime(HOST, State("mx", first_answer=9.0))
    assert expected_downtime(HOST) == "unknown yet"
    remember_downtime(HOST, State("mx", first_answer=9.0, last_answer=2.0))
    assert expected_downtime(HOST) == "7 s, as the last time"


def test_state_is_ours_alone() -> None:
    """It outlives the workstation's memory."""
    State("mx").save()

    (file,) = Path.home().rglob("state.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.parent == places.state("mx")
    assert list(file.parent.iterdir()) == [file]


def test_hosts_have_states_of_their_own() -> None:
    State("mx", deployment="d-1").save()

    assert load_state(replace(HOST, name="other")) == State("other")


def test_state_of_another_version() -> None:
    """An update of Anemos in the middle of a deployment loses nothing that both versions know."""
    text = '{"host": "mx", "deployment": "d-1", "colour": 1}'
    (places.state("mx") / "state.json").write_text(text)

    assert load_state(HOST) == State("mx", deployment="d-1")


@pytest.mark.parametrize("text", ["{}", "[]", "{", "\0"])
def test_state_that_is_damaged(text: str) -> None:
    (places.state("mx") / "state.json").write_text(text)

    with pytest.raises(Failure, match=r"state\.json: cannot be read") as caught:
        load_state(HOST)
    assert caught.value.status == BAD_INPUT


def test_state_that_was_not_written_whole() -> None:
    """It is replaced, never rewritten."""
    State("mx", deployment="old").save()
    (places.state("mx") / "state.new").write_text('{"host": "m')

    assert load_state(HOST).deployment == "old"
    State("mx", deployment="new").save()
    assert load_state(HOST).deployment == "new"


@pytest.mark.parametrize(
    ("state", "needs", "before"),
    [
        (None, "deployment", "pack"),
        (State("mx"), "deployment", "pack"),
        (State("mx", deployment="d"), "remote_base", "upload"),
        (State("mx", deployment="d", remote_base="/x"), "old_boot_id", "kexec"),
    ],
)
def test_phase_that_comes_too_early(state: State | None, needs: str, before: str) -> None:
    if state:
        state.save()

    with pytest.raises(Failure, match="mx: not ready for this phase") as caught:
        load_state(HOST, needs, before)

    assert (caught.value.hint, caught.value.status) == (f"./inv {before} --host mx", BAD_INPUT)


def test_forget() -> None:
    (places.memory("mx") / "secrets").mkdir()
    (places.memory("mx") / "secrets/key").touch()
    State("mx").save()
    State("other").save()

    phases.forget(HOST)

    assert not list(places.memory("mx").iterdir())
    assert load_state(HOST) == State("mx")


def test_deployment_ids() -> None:
    made = {phases.new_deployment() for _ in range(20)}

    assert len(made) == 20
    assert all(len(each) == len("20250101T120000Z-a1b2c3") for each in made)


# Where the host answers


def test_endpoint(tmp_path: Path) -> None:
    assert reach.endpoint(HOST) == Endpoint("192.0.2.1", 2222, HOST.host_key, None)
    assert reach.endpoint(replace(HOST, identity=f"{tmp_path}/id")).identity == tmp_path / "id"


def test_places_of_the_three_systems() -> None:
    """The initramfs has the old one's."""
    host = replace(HOST, proxy_jump="a,b", after=After("198.51.100.1", 22))
    found = reach.endpoint(host).logins
    old, new = ("192.0.2.1", 2222), ("198.51.100.1", 22)
    assert [(each.address, each.port) for each in found] == [old, old, new]
    assert {each.jumps for each in found} == {("a", "b")}


@pytest.mark.parametrize(
    ("user", "after", "logins"),
    [
        ("debian", "", ["debian", "root", "debian"]),
        ("debian", "root", ["debian", "root", "root"]),
        ("debian", "alice", ["debian", "root", "alice"]),
        ("root", "alice", ["root", "root", "alice"]),
    ],
)
def test_users_of_the_three_systems(user: str, after: str, logins: list[str]) -> None:
    found = reach.endpoint(replace(HOST, user=user, after=After(user=after))).logins
    assert [each.user for each in found] == logins
    assert all(each.sudo == (each.user != "root") for each in found)


def test_vm_that_does_not_run() -> None:
    """Nothing is made for it just to say so: no key, no secret. An older port does not count."""
    host = Host("demo", Path("hosts/demo"), vm=VmSettings("stock"))
    (places.state("demo") / "vm").mkdir()
    (places.state("demo") / "vm/port-22").write_text("2222")

    with pytest.raises(Failure, match="the VM of demo is not running") as caught:
        reach.endpoint(vm.at_home(host))

    assert (caught.value.hint, caught.value.status) == ("./inv demo --host demo", BAD_INPUT)
    assert sorted(each.name for each in places.state("demo").iterdir()) == ["vm"]


@pytest.mark.parametrize(
    ("base", "expected"), [("", ""), ("/cache/base-d2b1e2.squashfs", "d2b1e2")]
)
def test_base_hash(base: str, expected: str) -> None:
    assert State("mx", base=base).base_hash == expected


def test_sizes_of_what_is_not_made_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5))

    assert [size(each) for each in ("", tmp_path / "none", tmp_path / "file")] == [0, 0, 5]


def test_values_for_templates(tmp_path: Path) -> None:
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me\n")
    always = {"deployment": "d-1", "host": "mx", "NAME": "value"}

    for nothing in (None, tmp_path / "other"):
        assert values("mx", "d-1", nothing, {"NAME": "value"}) == always
    known = {**always, "operator_key": "ssh-ed25519 AAAA me"}
    assert values("mx", "d-1", tmp_path / "id", {"NAME": "value"}) == known


@pytest.mark.parametrize("name", ["d 1", "d\n1", "d=1", "d'1", "é", "d" * 65])
def test_no_id(name: str) -> None:
    with pytest.raises(Failure, match="no id: at most 64 letters") as caught:
        phases.pack(HOST, name)
    assert caught.value.status == BAD_INPUT


@pytest.mark.real("run")
def test_pack_before_reveal(tmp_path: Path) -> None:
    (tmp_path / "IMGBUILD").write_text("target=debian\n")

    with pytest.raises(Failure, match="the secrets of mx are not revealed") as caught:
        phases.pack(replace(HOST, directory=tmp_path))

    assert caught.value.hint == "./inv reveal-secrets --host mx"


def test_refusal_of_the_server_is_a_precondition() -> None:
    with pytest.raises(Failure, match="needs 5 bytes") as caught, phases.bad_input():
        raise Failure("needs 5 bytes of memory, has 4", hint="hm", status=FAILED)

    assert (caught.value.status, caught.value.hint) == (BAD_INPUT, "hm")


# Waiting


class Machine:
    """What answers, connection by connection: a Failure, or the boot id of a system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.answers, self.statuses = list(answers), set[int]()
        self.keys: list[str] = []
        monkeypatch.setattr(reach, "connect", self.connect)
        monkeypatch.setattr(facts, "identify", self.identify)

    @contextmanager
    def connect(self, endpoint: Endpoint, *, status: int) -> Iterator[None]:
        self.statuses.add(status)
        self.keys.append(endpoint.host_key)
        if isinstance(self.answers[0], Failure) and not isinstance(self.answers[0], CommandFailed):
            raise self.answers.pop(0)
        yield

    def identify(self, remote: object) -> Identity:
        answer = self.answers.pop(0)
        if isinstance(answer, Failure):
            raise answer
        return Identity(answer, answer == "initramfs", "d-1", float(len(self.answers)))


def await_boot(host: Host = HOST) -> Identity:
    return reach.await_boot(
        host, reach.endpoint(host), reach.rebooted_from("old"), host.timeouts.up, "new system"
    )


def test_await_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on its way down or up hangs up, refuses, kills: none of it is an answer."""
    machine = Machine(monkeypatch, "old", KILLED, AWAY, LOST, "old", AWAY, "new", "never asked")

    assert await_boot().boot_id == "new"
    assert machine.answers == ["never asked"]
    assert machine.statuses == {FAILED}


@pytest.mark.parametrize("kind", [WrongHostKey, LoginRefused])
def test_await_boot_of_somebody_else(monkeypatch: pytest.MonkeyPatch, kind: type[Failure]) -> None:
    """A system that comes up may refuse at first; then it is said long before the last deadline."""
    refusal = kind("not ours", status=FAILED)
    Machine(monkeypatch, AWAY, refusal, "old", refusal, "new")
    assert await_boot().boot_id == "new"

    monkeypatch.setattr(reach, "REFUSED_S", 0)
    Machine(monkeypatch, AWAY, refusal)
    with pytest.raises(kind, match="not ours"):
        await_boot()


def test_await_boot_of_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the one-shot entry is taken or not: both keys are tried in turn."""
    wrong = WrongHostKey("not ours", status=FAILED)
    machine = Machine(monkeypatch, wrong, "old", AWAY, wrong, wrong, "again")
    where = reach.endpoint(HOST)

    seen = reach.await_boot(
        HOST, where, reach.rebooted_from("old"), 60, "initramfs", other_key="ssh-ed25519 B"
    )

    assert seen.boot_id == "again"
    assert machine.keys == ["ssh-ed25519 B", HOST.host_key] * 3


def test_await_boot_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    time = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None)
    monkeypatch.setattr("anemos.workstation.deploy.reach.time", time)
    Machine(monkeypatch, *[AWAY, "old"] * 50)
    host = replace(HOST, timeouts=Timeouts(up=9))

    with pytest.raises(Failure, match="mx: no answer from the new system within 9 s") as caught:
        await_boot(host)

    assert caught.value.status == FAILED
    assert caught.value.hint == "the last try: no answer"


def test_a_long_wait_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reach, "QUIET_S", 0)
    Machine(monkeypatch, AWAY, "old", "new")

    await_boot()

    assert (
        "Still waiting for the new system, 0 s of at most 600: no answer\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("end", [AWAY, LOST, KILLED, "new"])
def test_await_end(monkeypatch: pytest.MonkeyPatch, end: object) -> None:
    """The last answer of the old system is where its downtime begins."""
    machine = Machine(monkeypatch, "old", "old", end, "never asked")
    state = State("mx", old_boot_id="old", last_answer=9.0)

    reach.await_end(HOST, reach.endpoint(HOST), state)

    assert machine.answers == ["never asked"]
    assert state.last_answer == 2.0


def test_old_system_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    time = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None)
    monkeypatch.setattr("anemos.workstation.deploy.reach.time", time)
    Machine(monkeypatch, *["old"] * 50)
    host = replace(HOST, timeouts=Timeouts(down=9))

    with pytest.raises(Failure, match="mx: the old system still runs 9 s after kexec") as caught:
        reach.await_end(host, reach.endpoint(host), State("mx", old_boot_id="old"))

    assert caught.value.status == FAILED


# The jump


class Server:
    """A Remote that only notes what it is to do; the connection may die of the jump."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, lost: bool = False) -> None:
        self.done: list[str] = []
        self.lost = lost
        for module in (phases, reach, staged, ways):
            monkeypatch.setattr(module, "connect", self.connect)
        monkeypatch.setattr(reach, "script", self.script)
        monkeypatch.setattr(reach, "await_end", lambda *_: self.done.append("await end"))

    @contextmanager
    def connect(self, endpoint: Endpoint, *, status: int = BAD_INPUT) -> Iterator["Server"]:
        if endpoint.host_key != HOST.host_key:
            self.done.append(f"as {endpoint.host_key}")
        yield self

    def put(self, source: bytes | Path, path: str, **_options: object) -> int:
        data = source if isinstance(source, bytes) else source.read_bytes()
        self.done.append(f"{path}: {data.decode()}")
        return len(data)

    def sh(self, argv: list[str]) -> None:
        self.done.append(" ".join(argv))
        if self.lost:
            raise LOST

    def script(
        self, remote: "Server", name: str, *words: str, data: bytes = b"", **_options: object
    ) -> str:
        asked = json.loads(data or "{}").values()
        self.done.append(" ".join([name, *words, *map(str, asked)]))
        saved = json.loads((places.state("mx") / "state.json").read_text())
        assert name != "jump.sh" or saved["old_boot_id"] == "old"
        if name == "jump.sh" and self.lost:
            raise LOST
        if name == "ended.sh":
            return "systemd-shutdown[1]: Failed to switch root\n"
        keys = '{"ssh_host_rsa_key": "private"}' if b"Arm" in data else "{}"
        return keys if data else ""


GRUB = facts.Entry("grub", "/boot/grub", "vda2", "ext4", 2**30)
AGREED = Agreed("digest")


@pytest.fixture
def agreed() -> None:
    """What the last plan has shown."""
    (places.state("mx") / consent.FILE).write_text(records.text(AGREED))


@pytest.mark.parametrize(
    ("packed", "hint"),
    [(Agreed(), "./inv plan, then ./inv pack"), (Agreed("x"), "./inv pack again")],
)
def test_jump_without_consent(
    monkeypatch: pytest.MonkeyPatch, agreed: None, packed: Agreed, hint: str
) -> None:
    """Before a word is said to the server."""
    monkeypatch.setattr(staged, "PATIENCE_S", 0)
    State("mx", deployment="d-1", remote_base="/base", agreed=packed).save()

    with pytest.raises(Failure, match="mx: packed") as caught:
        phases.kexec(HOST)
    assert (caught.value.status, caught.value.hint) == (BAD_INPUT, hint)


def jump(
    monkeypatch: pytest.MonkeyPatch, seen: Identity, *, hold: bool = False, **state: Any
) -> dict[str, Any]:
    State("mx", deployment="d-1", remote_base="/base", agreed=AGREED, **state).save()
    monkeypatch.setattr(facts, "identify", lambda remote: Identity("old", False, "", 1.0))
    monkeypatch.setattr(reach, "await_boot", lambda *_, **__: seen)
    return phases.kexec(HOST, hold)


@pytest.mark.parametrize("lost", [False, True])
def test_jump(monkeypatch: pytest.MonkeyPatch, agreed: None, lost: bool) -> None:
    """A connection that ends with the jump or the word to go on is no failure: events tell."""
    server = Server(monkeypatch, lost=lost)

    assert jump(monkeypatch, Identity("new", True, "d-1", 2.0))["boot_id"] == "new"

    assert server.done == [
        "enter.sh /base Load 0 False",
        "jump.sh /base",
        "await end",
        "touch /run/anemos/go",
    ]
    state = load_state(HOST)
    assert state.old_boot_id == "old"
    assert state.last_answer > 0


def test_one_shot_boot(monkeypatch: pytest.MonkeyPatch, agreed: None) -> None:
    """Secrets and host keys go to the initramfs alone, which is met under the key of this boot."""
    server = Server(monkeypatch)
    (places.memory("mx") / "payload").write_text("payload")
    state = State("mx", "d-1", remote_base="/base", way="once", place=GRUB)
    state.once_key, state.agreed = "ssh-ed25519 B", AGREED
    state.save()
    monkeypatch.setattr(facts, "identify", lambda remote: Identity("old", False, "", 1.0))
    keys: list[str] = []

    def await_boot(*_: object, other_key: str) -> Identity:
        keys.append(other_key)
        return Identity("new", True, "d-1", 2.0)

    monkeypatch.setattr(reach, "await_boot", await_boot)
    phases.kexec(HOST)

    assert server.done == [
        "enter.sh /base Arm grub /boot/grub vda2 0",
        "reboot.sh",
        "await end",
        "as ssh-ed25519 B",
        "touch /run/anemos/coming",
        "/run/anemos/ssh/ssh_host_rsa_key: private",
        "/run/anemos/payload: payload",
        "touch /run/anemos/delivered",
        "sh -c while [ -e /run/anemos/delivered ]; do sleep 0.2; done",
        "touch /run/anemos/go",
    ]
    assert keys == ["ssh-ed25519 B"]
    assert load_state(HOST).sent == {"payload": 7}


def test_package_layer_that_follows(
    agreed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It goes to the initramfs, which has all else and answers under the pinned key."""
    server = Server(monkeypatch)
    (places.memory("mx") / "payload").write_text("payload")
    (tmp_path / "layer").write_text("layer")

    jump(monkeypatch, Identity("new", True, "d-1", 2.0), way="late", layer=f"{tmp_path}/layer")

    assert server.done == [
        "enter.sh /base Load 0 True",
        "jump.sh /base",
        "await end",
        "touch /run/anemos/coming",
        "/run/anemos/layer: layer",
        "touch /run/anemos/delivered",
        "sh -c while [ -e /run/anemos/delivered ]; do sleep 0.2; done",
        "touch /run/anemos/go",
    ]
    assert load_state(HOST).sent == {"layer": 5}


def test_one_shot_boot_that_was_not_built() -> None:
    """The firmware would find no kernel behind its entry."""
    State("mx", "d-1", remote_base="/base", way="once", place=GRUB).save()

    with pytest.raises(Failure, match="mx: not ready for this phase") as caught:
        phases.kexec(HOST)
    assert caught.value.hint == "./inv build-initramfs --host mx"


@pytest.mark.parametrize("answer", [LOST, TimedOut("no end after 60 s", status=FAILED)])
def test_word_without_an_answer(monkeypatch: pytest.MonkeyPatch, answer: Failure) -> None:
    """It may have arrived: that is remembered before it is sent."""
    reached: list[str] = []

    class Silent(Server):
        def sh(self, argv: list[str]) -> None:
            reached.append(load_state(HOST).reached)
            raise answer

    Silent(monkeypatch)
    reach.give_word(reach.endpoint(HOST), State("mx", deployment="d-1"))

    assert reached == [WORD]


def test_jump_from_the_initramfs(monkeypatch: pytest.MonkeyPatch, agreed: None) -> None:
    """It is no old system that could still be there."""
    Server(monkeypatch)
    state = State("mx", deployment="d-1", remote_base="/base", reached=WORD, agreed=AGREED)
    state.save()
    monkeypatch.setattr(facts, "identify", lambda remote: Identity("b", True, "d-1", 1.0))

    with pytest.raises(Failure, match="mx is in the initramfs already") as caught:
        phases.kexec(HOST)

    assert caught.value.status == IN_INITRAMFS


def test_payload_that_is_gone() -> None:
    """Memory was cleaned, the cache pruned, the workstation restarted: the state knows nothing."""
    (places.memory("mx") / "payload").touch()
    State("mx", deployment="d-1", base="/cache/base-1.squashfs").save()

    with pytest.raises(Failure, match=r"base-1\.squashfs is not there any more") as caught:
        phases.upload(HOST)
    assert (caught.value.status, caught.value.hint) == (BAD_INPUT, "./inv pack --host mx")
    clean.clean()
    with pytest.raises(Failure, match="payload is not there any more"):
        phases.upload(HOST)


def test_jump_that_is_held(monkeypatch: pytest.MonkeyPatch, agreed: None) -> None:
    """The initramfs waits longer, and gets no word."""
    server = Server(monkeypatch)

    assert jump(monkeypatch, Identity("new", True, "d-1", 2.0), hold=True)["held"]
    assert server.done == ["enter.sh /base Load 3600 False", "jump.sh /base", "await end"]


@pytest.mark.parametrize(
    "seen", [Identity("new", False, "d-1", 2.0), Identity("new", True, "d-0", 2.0)]
)
def test_jump_into_something_else(
    monkeypatch: pytest.MonkeyPatch, agreed: None, seen: Identity
) -> None:
    """It does not get the word to go on, and tells how the old system ended."""
    server = Server(monkeypatch)
    said: list[str] = []
    monkeypatch.setattr(log, "info", said.append)

    with pytest.raises(Failure, match="mx rebooted into the old system") as caught:
        jump(monkeypatch, seen)

    assert caught.value.status == FAILED
    assert server.done[-4:-2] == ["await end", "ended.sh"]
    assert server.done[-1] == "disarm.sh"
    assert said[-2] == "Before the jump: systemd-shutdown[1]: Failed to switch root"


def test_secrets_that_vanish_while_they_are_packed(tmp_path: Path) -> None:
    (tmp_path / "IMGBUILD").write_text("target=debian\n")
    spec = imgbuild.interpret(tmp_path, {"target": "debian"})
    payload.write(payload_file(HOST), spec, "d-1", {}, tmp_path / "none")

    with pytest.raises(Failure, match=r"changed while they were packed: etc/key") as caught:
        phases.check_secrets(HOST, ["etc/key"])
    assert caught.value.hint == "./inv reveal-secrets --host mx"
    (tmp_path / "revealed/etc").mkdir(parents=True)
    (tmp_path / "revealed/etc/key").touch()
    payload.write(payload_file(HOST), spec, "d-1", {}, tmp_path / "revealed")
    phases.check_secrets(HOST, ["etc/key"])


@pytest.mark.parametrize("entry", [None, GRUB], ids=["kexec", "once"])
def test_no_digest_of_a_secret_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: facts.Entry | None
) -> None:
    """All users of the server see arguments, and a PIN's digest is as good as the PIN."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/pin").write_text("1234")
    (tmp_path / "IMGBUILD").write_text("target=debian\n")
    spec = imgbuild.interpret(tmp_path, {"target": "debian"})
    payload.write(payload_file(HOST), spec, "d-1", {}, tmp_path / "secrets")
    way = "once" if entry else "kexec"
    State("mx", "d-1", remote_base="/base", way=way, place=entry).save()
    seen: list[str] = []
    given: list[Any] = []

    def sh(argv: list[str], *, data: bytes, shown: list[str], **_options: object) -> str:
        seen.extend([*argv, *shown])
        given.extend(json.loads(data).values())
        boot = Boot("d-1", "mx", "b", "p", "", 22, NETWORK, [])
        return records.text(Built(boot, Logins([], []), "K"))

    @contextmanager
    def connected(_endpoint: Endpoint) -> Iterator[Any]:
        yield SimpleNamespace(sh=sh)

    monkeypatch.setattr(phases, "connect", connected)
    monkeypatch.setattr(phases, "check_logins", lambda remote, there: None)
    phases.build_initramfs(HOST)

    files = border.manifest(payload_file(HOST)).files
    digests = [sha256(payload_file(HOST)), *files.values()]
    assert not [each for each in digests if each in " ".join(seen)]
    assert files["secrets/pin"] not in json.dumps(given)
    assert digests[0] in given


@pytest.mark.parametrize(
    ("host", "state", "digest"),
    [
        (HOST, State("mx"), ""),
        (HOST, State("mx", layer="layer"), "of layer"),
        (replace(HOST, build_on="server"), State("mx"), "made"),
        (replace(HOST, build_on="server"), State("mx", server_layer="there"), "there"),
    ],
)
def test_layer(monkeypatch: pytest.MonkeyPatch, host: Host, state: State, digest: str) -> None:
    """Sent, made there once, or none."""
    asked: list[object] = []
    required: list[Sizes] = []

    def enter(_remote: object, _base: str, request: object, *_options: object) -> str:
        asked.append(request)
        return 'Bootstrapping ...\n{"layer": "made", "size": 5}\n'

    monkeypatch.setattr(phases, "sha256", lambda file: f"of {file.name}")
    monkeypatch.setattr(reach, "enter", enter)
    monkeypatch.setattr(facts, "gather", lambda *_: None)
    monkeypatch.setattr(Host, "imgbuild", lambda _: None)
    monkeypatch.setattr(phases, "require", lambda *words: required.append(words[-1]))

    for _ in range(2):
        assert phases.layer_digest(host, state, cast(Remote, None)) == digest

    assert asked == ([Bootstrap("of payload")] if digest == "made" else [])
    assert [sizes.layer for sizes in required] == [5] * len(asked)


@pytest.mark.real("run")
def test_host_key_among_the_secrets(tmp_path: Path) -> None:
    """It must be the pinned one, or nobody could prove who answers after the deployment."""
    pinned, other = make_key(tmp_path / "pinned"), make_key(tmp_path / "other")
    name = "etc/ssh/ssh_host_ed25519_key"
    keys = {name: (tmp_path / "other").read_bytes()}

    assert hostkeys.among([name, f"{name}.pub", "etc/ssh/sshd_config", "X"]) == [name]
    assert hostkeys.problem(replace(HOST, host_key=pinned), {}) == ""
    assert hostkeys.problem(replace(HOST, host_key=other), keys) == ""
    wrong = hostkeys.problem(replace(HOST, host_key=pinned), keys)
    assert wrong == f"the pinned host key is none of those among the secrets: {name}"


def test_command_without_an_answer_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that reboots while it is asked leaves a connection that nobody ends."""
    silent = TimedOut("no end after 10 s", status=FAILED)
    answers: Iterator[Failure | Identity]
    answers = iter([silent, Identity("new", False, "d-1", 1.0)])

    def identify(remote: object) -> Identity:
        answer = next(answers)
        if isinstance(answer, Failure):
            raise answer
        return answer

    Server(monkeypatch)
    monkeypatch.setattr(facts, "identify", identify)
    where = reach.endpoint(HOST)

    seen = reach.await_boot(HOST, where, reach.rebooted_from("old"), 5, "new system")
    assert seen.boot_id == "new"


@pytest.mark.parametrize("said", ["", "\n", "Traceback\n", '{"kept": [\n', "PRIVATE KEY\n"])
def test_answer_that_is_none(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """What was said instead may be a secret."""
    monkeypatch.setattr(reach, "enter", lambda *_, **__: said)

    with pytest.raises(Failure, match="Load: the server's answer: no JSON") as caught:
        reach.answer(cast(Remote, None), "/base", Load(0, late=False), Keys)

    assert caught.value.status == FAILED
    assert "PRIVATE" not in caught.value.message


def test_who_may_log_in_to_the_initramfs() -> None:
    """Nobody finds out after the jump that the pinned key, or one's own, is not there."""
    where = Endpoint("192.0.2.1", 22, "ssh-ed25519 PINNED comment", None)
    remote: Any = SimpleNamespace(endpoint=where, login_key="ssh-ed25519 AAAA")
    there = Logins(["ssh-rsa A", "ssh-ed25519 PINNED"], ["ssh-ed25519 AAAA"])

    phases.check_logins(remote, there)
    with pytest.raises(Failure, match="the initramfs would not have the pinned host key"):
        phases.check_logins(remote, replace(there, host_keys=["ssh-rsa PINNED"]))
    with pytest.raises(Failure, match="the initramfs would not let you in by the key SHA256:"):
        phases.check_logins(remote, replace(there, authorized=["ssh-ed25519 BBBB"]))
