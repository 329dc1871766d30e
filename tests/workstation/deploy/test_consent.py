"""What was agreed to is what is erased: from the plan through the payload to the last moment."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anemos import disks
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed
from anemos.disks import Device
from anemos.initramfs import __main__ as brain
from anemos.initramfs import events, install, kept, progress
from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places
from anemos.workstation.deploy import consent, facts, payload, phases
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host
from tests.tree import ROOT
from tests.whole.test_network import NETWORK

FACTS = facts.parse((ROOT / "tests/data/facts-virtio").read_text())
HOST = Host("mx", Path("hosts/mx"))
LAYOUT = "disk system serial=demo-system\npart root fs=ext4 mount=/ size=1G\n"
KEEP = "disk data serial=demo-data part=1 mount=/home options=nofail\n"
SYSTEM = Device("vda", "demo-system", "", 6 * 2**30)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)


def spec(layout: str = LAYOUT, keep: str = KEEP) -> Imgbuild:
    words = {"target": "debian", "layout": layout, "keep": keep}
    return imgbuild.interpret(Path("hosts/mx"), words)


def test_what_was_planned_is_packed() -> None:
    consent.remember(HOST, spec(), FACTS, "")

    agreed = consent.to_pack(HOST, spec())

    assert agreed == consent.recall(HOST)
    assert agreed.erase == {"system": SYSTEM}
    assert consent.to_pack(replace(HOST, name="other"), spec()) == Agreed()


@pytest.mark.parametrize(
    "changed",
    [
        spec(LAYOUT.replace("demo-system", "demo-data"), ""),
        spec(LAYOUT.replace("1G", "2G")),
        spec(LAYOUT.replace("serial", "wwn")),
        spec(f"{LAYOUT}disk more serial=X\n"),
        spec(keep=""),
        spec(keep=KEEP.replace("part=1", "part=2")),
        spec(keep=KEEP.replace("/home", "/srv")),
    ],
)
def test_layout_that_changed_since_the_plan(changed: Imgbuild) -> None:
    consent.remember(HOST, spec(), FACTS, "")

    with pytest.raises(Failure, match="mx: layout or keep has changed since the plan") as caught:
        consent.to_pack(HOST, changed)
    assert caught.value.status == BAD_INPUT


LINES = [
    ["server", "mx, kernel 6.1"],
    ["ERASE", "vda"],
    ["network", "default via fe80::1 dev eth0 proto ra metric 1024 expires 1790sec pref medium"],
    ["send", "base image: to be made"],
]
NOW = {  # what of it changes: what is said
    "nothing": "",
    "cache": "",
    "lease": "",
    "file": "the definition",
    "mode": "the definition",
    "link": "the definition",
    "secret": "the definition",
    "disk": "the server",
    "both": "the definition and the server",
}


def change(top: Path, what: str) -> list[list[str]]:
    """Change WHAT in the repository TOP, or in the lines of the plan."""
    more: dict[str, tuple[int, str]] = {
        "cache": (3, "base image: is there"),
        "lease": (2, LINES[2][1].replace("1790", "1800")),
        "disk": (1, "vdb"),
        "both": (1, "vdb"),
    }
    lines = [[*each] for each in LINES]
    if what in more:
        lines[more[what][0]][1] = more[what][1]
    if what in ("file", "both"):
        (top / "hosts/mx/files/motd").write_text("other")
    if what == "mode":
        (top / "hosts/mx/files/motd").chmod(0o600)
    if what == "secret":
        (top / "secrets/mx/key.gpg").write_text("other")
    if what == "link":
        (top / "hosts/mx/files/link").unlink()
        (top / "hosts/mx/files/link").symlink_to("b")
    return lines


@pytest.mark.parametrize("what", NOW)
def test_plan_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(places, "SECRETS", tmp_path / "secrets")
    host = replace(HOST, directory=tmp_path / "hosts/mx")
    for name in ("hosts/mx/files/motd", "secrets/mx/key.gpg", "hosts/mx/__pycache__/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "hosts/mx/files/link").symlink_to("a")
    shown = consent.identity(host, LINES)
    (tmp_path / "hosts/mx/__pycache__/x").write_text("y")
    now = change(tmp_path, what)
    if not NOW[what]:
        consent.require_same(host, shown, now)
        return
    with pytest.raises(Failure, match=f"mx: {NOW[what]} changed since plan {shown}") as caught:
        consent.require_same(host, shown, now)
    assert caught.value.status == BAD_INPUT
    assert caught.value.hint == f"this is plan {consent.identity(host, now)}"


@pytest.mark.parametrize("shown", ["x", "mx", "0123456789ab", "-"])
def test_what_is_no_id(shown: str) -> None:
    with pytest.raises(Failure, match=f"--plan {shown}: no id of a plan"):
        consent.require_same(HOST, shown, LINES)


@pytest.mark.real("run")
def test_pack_after_a_change(tmp_path: Path) -> None:
    """An editor's save, or `git pull`, between the plan and the rest."""
    host = replace(HOST, directory=tmp_path)
    (tmp_path / "IMGBUILD").write_text(f"target=debian\nlayout='{LAYOUT}'\n")
    consent.remember(host, host.imgbuild(), FACTS, "")
    (tmp_path / "IMGBUILD").write_text(f"target=debian\nlayout='{LAYOUT.replace('1G', '2G')}'\n")

    with pytest.raises(Failure, match="has changed since the plan"):
        phases.pack(host)


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        (FACTS.disks, False),
        ([replace(SYSTEM, name="sdx")], False),  # the kernel's names come and go
        ([replace(SYSTEM, wwn="naa.1")], False),  # another driver tells more, or less
        ([replace(SYSTEM, serial="")], False),
        ([replace(SYSTEM, serial="other")], True),
        ([replace(SYSTEM, size=2**30)], True),
        ([], True),
    ],
)
def test_disk_that_was_shown(there: list[Device], gone: bool) -> None:
    consent.remember(HOST, spec(), FACTS, "")
    state = State("mx", agreed=consent.recall(HOST))
    seen: Facts = replace(FACTS, disks=tuple(there))

    if not gone:
        return consent.check_disks(HOST, state, seen)
    with pytest.raises(Failure, match=r"mx: disk 'system', vda .*, is not there any more"):
        consent.check_disks(HOST, state, seen)


# In RAM.


class Machine:
    """The brain's last minutes before the point of no return; disks come and go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given: Imgbuild) -> None:
        self.disks = [SYSTEM, Device("vdb", "demo-data", "", 2**30)]
        self.sequence: dict[str, str] = {}
        self.erased: list[Mapping[str, Device]] = []
        self.meanwhile: Callable[[], object] = lambda: None  # while the word is awaited
        monkeypatch.setattr(disks, "devices", lambda: list(self.disks))
        monkeypatch.setattr(disks, "attribute", lambda entry, _: self.sequence.get(entry.name, ""))
        monkeypatch.setattr(brain, "definition", lambda _: given)
        monkeypatch.setattr(brain, "planned", lambda it, *_: it)
        monkeypatch.setattr(kept, "secure", self.secure)
        monkeypatch.setattr(events, "await_word", lambda _: self.meanwhile())
        monkeypatch.setattr(events, "point_of_no_return", lambda: None)
        monkeypatch.setattr(progress, "begin", lambda *_: None)
        monkeypatch.setattr(install, "install", lambda *words: self.erased.append(words[2]))

    def secure(self, *_: object) -> list[object]:
        del self.disks[1]
        return []

    def begin(self, agreed: Agreed = payload.NOTHING) -> None:
        brain.begin(Boot("d", "mx", "b", "p", "l", 22, NETWORK, [], agreed=agreed))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, spec())


def shown(**changed: Any) -> Agreed:
    consent.remember(HOST, spec(), FACTS, "")
    return replace(consent.recall(HOST), **changed)


@pytest.mark.parametrize("agreed", [True, False])
def test_nothing_changed(machine: Machine, agreed: bool) -> None:
    """A machine that was started by hand has no plan."""
    machine.begin(shown() if agreed else Agreed())

    assert machine.erased == [{"system": SYSTEM}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": "x"}, "layout or keep is not what the plan has shown"),
        (
            {"erase": {"system": replace(SYSTEM, serial="old")}},
            r"disk 'system' is vda .*, the plan has shown vda ",
        ),
        ({"erase": {"system": replace(SYSTEM, size=1)}}, "disk 'system' is vda"),
    ],
)
def test_not_what_was_shown(machine: Machine, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure, match=message) as caught:
        machine.begin(shown(**changed))
    assert (caught.value.status, machine.erased) == (FAILED, [])


def test_disk_exchanged_while_the_word_is_awaited(machine: Machine) -> None:
    """Whoever started the machine by hand has all the time."""

    def another() -> None:
        machine.disks[0] = replace(SYSTEM, serial="other")

    def put_back() -> None:
        machine.sequence["vda"] = "9"

    def twin() -> None:
        machine.disks.append(replace(SYSTEM, name="vdc"))

    def kept_one() -> None:
        machine.disks.append(Device("vdb", "demo-data", "", 2**30))

    for meanwhile in (another, put_back, twin, kept_one):
        machine.disks = [SYSTEM, Device("vdb", "demo-data", "", 2**30)]
        machine.sequence = {"vda": "1"}
        machine.meanwhile = meanwhile
        with pytest.raises(Failure, match="a disk came or went while the word was awaited"):
            machine.begin()
    assert machine.erased == []


def test_disk_exchanged_during_the_preflight(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that is slow to answer makes it long."""

    def planned(given: Imgbuild, *_: object) -> Imgbuild:
        machine.disks[0] = replace(SYSTEM, size=1)
        return given

    monkeypatch.setattr(brain, "planned", planned)
    with pytest.raises(Failure, match="a disk came or went"):
        machine.begin()
    assert machine.erased == []


def test_stick_taken_out_while_the_word_is_awaited(machine: Machine) -> None:
    """What nobody names may go: the machine was started from it, perhaps."""
    machine.disks.append(Device("sda", "stick", "", 2**30))
    machine.meanwhile = machine.disks.pop

    machine.begin()

    assert machine.erased == [{"system": SYSTEM}]
