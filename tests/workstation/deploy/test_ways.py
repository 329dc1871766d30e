"""Whether a slot can be filled, which one, and what the operator is told and asked."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anemos.border.boot import Seen
from anemos.border.deployment import Agreed
from anemos.border.requests import Fill, Filled
from anemos.log import BAD_INPUT, Failure
from anemos.system import imgbuild, layout, slots
from anemos.system.imgbuild import Imgbuild
from anemos.system.slots import Record, Slot
from anemos.workstation import images, places
from anemos.workstation.deploy import (
    chain,
    consent,
    facts,
    phases,
    plan,
    reach,
    sending,
    staged,
    ways,
)
from anemos.workstation.deploy.facts import Facts, Partition
from anemos.workstation.deploy.sizes import MIB, Sizes
from anemos.workstation.deploy.state import State, load_state
from anemos.workstation.deploy.ways import Beside
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway, trove
from tests.tree import ROOT

HOST = Host("demo", Path("hosts/demo"), start="kexec")
LAYOUT = """
disk system serial=demo-system
part bios type=bios size=1M
part boot fs=ext4 size=64M
part root fs=ext4 size=1G mount=/ slots=2
part srv  fs=ext4 size=1G mount=/srv
"""
KEEP = "disk data serial=demo-data part=1 mount=/home options=nofail\n"
RECORD = Record("a", {"a": Slot("good", "UUID-A"), "b": Slot("bad", "UUID-B")})
NO_KEXEC = "the kernel has no kexec, or it is disabled: /proc/sys/kernel/kexec_load_disabled"
SIZES = Sizes(base=60 * MIB, layer=20 * MIB, payload=MIB, base_is_there=True)


def spec(**changed: str) -> Imgbuild:
    words = {"target": "debian", "format": "disk", "layout": LAYOUT, "keep": KEEP}
    words |= {"bootloader": "grub", "packages": "linux-image-amd64 grub-pc"} | changed
    return imgbuild.interpret(Path("hosts/demo"), words)


STAMP = Seen("d", "demo", layout=layout.elements(spec().layout, spec().keep))
FACTS = replace(
    facts.parse((ROOT / "tests/data/facts-virtio").read_text()),
    mounts=("/dev/vda3 / ext4",),
    identities=(("vda3", "ext4 UUID-A"), ("vda4", "ext4 UUID-B")),
    parts=tuple(Partition("vda", f"vda{n}", n, n * MIB, MIB) for n in range(1, 6)),
    record=slots.encoded(RECORD)[: slots.SECTOR],
    stamp=STAMP,
)


def test_slot() -> None:
    assert ways.slot(HOST, spec(), FACTS) == Beside("", "a", "b")
    other = replace(
        FACTS,
        record=slots.encoded(replace(RECORD, default="b"))[: slots.SECTOR],
        mounts=("/dev/vda4 / ext4",),
    )
    assert ways.slot(HOST, spec(), other) == Beside("", "b", "a")


@pytest.mark.parametrize(
    ("given", "text", "why"),
    [
        ({}, LAYOUT.replace(" slots=2", ""), "the layout has none"),
        ({"stamp": Seen("d", "demo")}, LAYOUT, "the running system does not tell its layout"),
        (
            {},
            LAYOUT.replace("/srv", "/var/mail"),
            "the layout differs from the running one in system/srv",
        ),
        ({"record": b""}, LAYOUT, "no record of slots: it has no slot"),
        ({"mounts": ("/dev/vda4 / ext4",)}, LAYOUT, "/ is not slot a, which starts by default"),
        ({"mounts": ()}, LAYOUT, "/ is not slot a, which starts by default"),
        ({"identities": ()}, LAYOUT, "/ is not slot a, which starts by default"),
    ],
)
def test_no_slot(given: dict[str, Any], text: str, why: str) -> None:
    assert ways.slot(HOST, spec(layout=text), replace(FACTS, **given)) == Beside(why)


def test_slot_by_systemd_boot() -> None:
    """By kexec alone; where it is what starts the running system, and nobody else says what."""
    esp = "part esp type=esp size=600M fs=vfat mount=/efi"
    text = LAYOUT.replace("part bios type=bios size=1M\n", "").replace(
        "part boot fs=ext4 size=64M", esp
    )
    wanted = spec(bootloader="systemd-boot", layout=text, packages="linux-image-amd64 systemd-boot")
    stamp = Seen("d", "demo", layout=layout.elements(wanted.layout, wanted.kept))
    record = slots.encoded(RECORD, slots.LOADER_CONF).replace(b" ", b"\n")
    seen = replace(FACTS, stamp=stamp, record=record)
    assert ways.slot(HOST, wanted, seen) == Beside("", "a", "b")
    named = ways.slot(HOST, wanted, replace(seen, loader_default=True))
    assert named.why.startswith("the firmware names the entry that starts: bootctl set-default")
    other = ways.slot(HOST, wanted, replace(seen, record=FACTS.record))
    assert other.why == "grub starts what runs, not systemd-boot"
    none = ways.slot(HOST, wanted, replace(seen, kexec=False))
    assert none.why == f"no kexec: {NO_KEXEC}; and bootloader=systemd-boot starts none for one boot"


def test_slot_by_grub() -> None:
    """Where there is no kexec, or as host.toml says; where GRUB can write and comes first."""
    seen = replace(FACTS, kexec=False)
    assert ways.slot(HOST, spec(), seen) == Beside("", "a", "b", NO_KEXEC)
    assert ways.slot(HOST, spec(), seen).way == ways.SLOT_ONCE
    asked = replace(HOST, start="once")
    assert ways.slot(asked, spec(), FACTS).once == "as host.toml says"
    told = dict(plan.describe_slot(asked, spec(), FACTS, SIZES))
    assert told["boot"].startswith("by GRUB, once (as host.toml says), on trial for 600 s")
    first = replace(seen, boot_current="0001", boot_first="0002")
    assert "the firmware starts entry 0002 first" in ways.slot(HOST, spec(), first).why


@pytest.mark.parametrize(
    ("build_on", "target", "beside", "room", "sent"),
    [
        ("auto", "debian", False, True, True),
        ("auto", "debian", True, True, False),
        ("auto", "debian", True, False, True),
        ("auto", "arch", True, True, True),
        ("workstation", "debian", True, True, True),
        ("server", "debian", True, False, False),
        ("initramfs", "debian", False, True, False),
    ],
)
def test_who_makes_the_package_layer(
    build_on: Any, target: str, beside: bool, room: bool, sent: bool
) -> None:
    host = replace(HOST, build_on=build_on)
    assert ways.sends_layer(host, spec(target=target), beside, room) == sent


def test_slot_of_arch() -> None:
    arch = spec(target="arch")
    assert ways.slot(HOST, arch, FACTS).why == ""
    assert (
        'build_on = "workstation"' in ways.slot(replace(HOST, build_on="server"), arch, FACTS).why
    )


def lines(given: Facts, **changed: str) -> dict[str, str]:
    return dict(plan.describe(HOST, spec(**changed), given, SIZES))


def test_plan() -> None:
    told = dict(plan.describe_slot(HOST, spec(), FACTS, SIZES))
    assert told["OVERWRITE"] == "slot b (running: a; it is bad): /dev/vda4"
    assert told["shared"] == "/srv: both slots use it"
    assert "carry" not in told
    assert "both slots use it" in told["keep"]
    assert told["memory"] == "66 of 841 MiB"
    assert lines(FACTS)["slot"] == "none is filled beside the running system: as --whole asks"
    told = dict(plan.describe_slot(HOST, spec(carry="/opt/x"), FACTS, SIZES))
    assert told["carry"] == "/opt/x: copied from the running slot"
    assert lines(FACTS, carry="opt/x")["carry"] == "/opt/x: not carried, as whole disks are erased"
    assert "ports" not in told
    told = dict(plan.describe_slot(replace(HOST, hold_ports=True), spec(), FACTS, SIZES))
    assert told["ports"] == "nothing but SSH is let in until then"
    why = "no record of slots: it has no slot"
    assert lines(replace(FACTS, record=b""))["slot"].endswith(why)
    assert "slot" not in lines(FACTS, layout=LAYOUT.replace(" slots=2", ""))


def test_what_stands_in_the_way() -> None:
    """The network of an initramfs does not count; only little memory is needed."""
    small = replace(FACTS, memory_available=SIZES.beside)
    assert plan.beside(HOST, spec(), small, SIZES) == []
    smaller = replace(small, memory_available=SIZES.beside - 1, user="1000", record=b"")
    assert plan.beside(HOST, spec(), smaller, SIZES) == [
        "commands do not run as root there",
        "no slot can be filled: no record of slots: it has no slot",
        "memory: 66 MiB needed, 65 MiB available",
    ]
    there = replace(SIZES, by_server=True)
    assert plan.beside(HOST, spec(), small, there) == [
        'memory: 258 MiB needed, 66 MiB available; build_on = "workstation" needs less'
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What is asked of it: it fills slot b."""
    asked: list[object] = []
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    sent: list[tuple[Any, str, Any]] = [
        (phases, "connect", "connected"),
        (reach, "endpoint", "where"),
    ]
    for module, name, word in sent:
        monkeypatch.setattr(module, name, lambda *_, word=word: Quiet(word))
    monkeypatch.setattr(facts, "gather", lambda *_: replace(FACTS, base="/base-0.squashfs"))
    monkeypatch.setattr(phases, "measure", lambda *_: SIZES)
    monkeypatch.setattr(Host, "imgbuild", lambda _: spec())
    monkeypatch.setattr(phases, "stage", lambda *words: asked.append(words[-1]))
    monkeypatch.setattr(sending, "payload", lambda *_: asked.append("sent"))
    monkeypatch.setattr(sending, "packed", lambda host, *_: load_state(host))
    monkeypatch.setattr(staged, "unstage", lambda *_: asked.append("unstaged"))
    monkeypatch.setattr(staged, "leave_nothing", lambda _: asked.append("undone"))

    def answer(*words: Any) -> Filled:
        asked.extend((words[2], *filter(None, [words[6]])))
        return Filled("b", "UUID", "6.1")

    monkeypatch.setattr(reach, "answer", answer)
    return asked


@pytest.mark.parametrize(("mib", "by_server"), [(300, True), (200, False)])
def test_little_memory_for_packages(
    monkeypatch: pytest.MonkeyPatch, mib: int, by_server: bool
) -> None:
    """Then they are sent, and the plan is none the worse."""
    monkeypatch.setattr(images, "cached_layer", lambda _: "")
    seen = replace(FACTS, memory_available=mib * MIB, base="/base")
    sizes = phases.foresee_sizes(HOST, spec(), State("demo"), seen, "b")
    assert sizes.by_server == by_server
    assert plan.beside(HOST, spec(), seen, sizes) == []
    whole = phases.foresee_sizes(HOST, spec(), State("demo"), seen, "")
    assert not whole.by_server


class Quiet(str):
    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def agree(layer: str = "") -> None:
    consent.remember(HOST, spec(), FACTS, "b")
    State("demo", "d-2", payload="SHA", layer=layer, agreed=consent.recall(HOST)).save()


def test_fill(server: list[object]) -> None:
    agree()
    assert phases.fill(HOST) == {
        "host": "demo",
        "deployment": "d-2",
        "slot": "b",
        "root": "UUID",
        "kernel": "6.1",
    }
    needed = replace(SIZES, by_server=True).beside
    assert server == [needed, "sent", Fill("/base-0.squashfs", "SHA", ""), "unstaged"]
    assert (load_state(HOST).remote_base, load_state(HOST).way) == ("", "slot")


def test_fill_from_a_layer(server: list[object], tmp_path: Path) -> None:
    """It follows the request."""
    (layer := tmp_path / "layer").write_bytes(b"packages")
    agree(f"{layer}")
    phases.fill(HOST)
    digest = hashlib.sha256(b"packages").hexdigest()
    assert server[2:4] == [Fill("/base-0.squashfs", "SHA", digest), layer]
    assert load_state(HOST).sent["layer"] == 8


def test_fill_without_consent(server: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    State("demo", "d-2").save()
    with pytest.raises(Failure, match="packed without a plan"):
        phases.fill(HOST)
    agree()
    agreed = replace(consent.recall(HOST), slot="a")
    monkeypatch.setattr(consent, "recall", lambda _: agreed)
    State("demo", "d-2", agreed=agreed).save()
    with pytest.raises(Failure, match="demo: the plan has not shown slot b") as told:
        phases.fill(HOST)
    assert (told.value.status, server) == (BAD_INPUT, [])


def test_fill_that_fails(server: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was staged stays."""

    def answer(*_: object) -> Filled:
        raise Failure("no")

    agree()
    monkeypatch.setattr(reach, "answer", answer)
    with pytest.raises(Failure, match="no"):
        phases.fill(HOST)
    assert server[-1] == "undone"


def test_confirmation(server: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    agree()
    monkeypatch.setattr(phases, "require_access", lambda _: None)
    with pytest.raises(Failure, match="--yes other does not name the host demo"):
        chain.fill(HOST, "other")
    assert server == []
    assert chain.fill(HOST, "demo")["slot"] == "b"


def test_what_plan_and_pack_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    held = replace(HOST, hold_ports=True)
    missing = "hold_ports in host.toml: the package nftables has to be among `packages`"
    assert [*plan.trying(HOST, spec())] == []
    assert [*plan.trying(held, spec())] == [missing]
    assert [*plan.trying(held, spec(packages="nftables=1.0 linux-image-amd64"))] == []
    alone = replace(HOST, confirm="self")
    (lacking,) = plan.trying(alone, spec())
    assert lacking == 'confirm = "self" in host.toml: the IMGBUILD has no verify()'
    able = replace(spec(), functions=frozenset({"verify"}))
    assert [*plan.trying(alone, able)] == []
    secrets = SimpleNamespace(names=lambda _: ["etc/app/key"])
    monkeypatch.setattr(throwaway, "secrets_of", lambda _: secrets)
    carried = "`carry` names what the definition has, too: /etc/app/key"
    assert {missing, carried} <= {*phases.foresee(held, spec(carry="etc/app"))}
    revealed = SimpleNamespace(files=["etc/app/key"], values={})
    monkeypatch.setattr(trove, "load", lambda *_: revealed)
    with pytest.raises(Failure) as told:
        phases.write_payload(held, spec(carry="etc/app"), State("demo"))
    assert missing in told.value.message
    assert carried in told.value.message


def test_agreed_slot() -> None:
    consent.remember(HOST, spec(), FACTS, "b")
    assert consent.recall(HOST).slot == "b"
    assert not consent.recall(HOST).erase
    consent.remember(HOST, spec(), FACTS, "")
    assert consent.recall(HOST).erase.keys() == {"system"}
    assert Agreed().slot == ""
