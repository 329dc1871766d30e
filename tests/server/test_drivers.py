"""What the initramfs's kernel would not drive, asked before the jump."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from anemos import disks
from anemos.border.deployment import Agreed, Deployment
from anemos.border.network import Network
from anemos.disks import Device, Wanted
from anemos.log import Failure
from anemos.run import CommandFailed
from anemos.server import drivers
from tests.whole.test_network import NETWORK

DISK = Device("sda", "S", "", 512)
MODULES = {"pci:nic": "e1000e", "pci:old": "bnx2", "virtio:nic": "virtio_net", "scsi:t-0x00": "sd"}
MODULES |= {"pci:virtio": "virtio_pci"}


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of devices, and modprobe of a base image that has MODULES."""

    def run(argv: Sequence[str]) -> str:
        assert argv[:4] == ["modprobe", "--set-version", "6.1.0", "--show-depends"]
        if argv[4] not in MODULES:
            raise CommandFailed(argv, 1, "not found in directory")
        return f"builtin usbcore\ninsmod /lib/modules/{MODULES[argv[4]]}.ko \n"

    monkeypatch.setattr(drivers, "run", run)
    monkeypatch.setattr(drivers, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(drivers, "NETWORK", tmp_path / "net")
    monkeypatch.setattr(drivers, "BLOCK", tmp_path / "block")
    monkeypatch.setattr(disks, "devices", lambda: [DISK])
    (tmp_path / "modules/6.1.0").mkdir(parents=True)
    return tmp_path


def attach(sys: Path, kind: str, name: str, *aliases: str) -> None:
    """The device KIND/NAME, on what has ALIASES, the topmost first."""
    place = sys / "devices/pci0000:00"
    for number, alias in enumerate(aliases):
        place = place / f"{name}-{number}"
        (place / "driver").mkdir(parents=True)
        (place / "modalias").write_text(f"{alias}\n")
    link = sys / kind / (f"{name}/device" if kind == "net" else name)
    link.parent.mkdir(parents=True, exist_ok=True)
    if kind == "block":
        place = place / "block" / name
        place.mkdir(parents=True)
    link.symlink_to(place)


def ether(name: str, **more: Any) -> Any:
    return {"name": name, "kind": "ether", "needed": False, **more}


def network(*interfaces: Any, left: Sequence[str] = ()) -> Network:
    return {**NETWORK, "interfaces": [*interfaces], "left": [*left]}


def test_what_lies_between(sys: Path) -> None:
    """All on the way to the device counts, but for bridges."""
    attach(sys, "net", "good", "pci:v8086bc06sc04", "pci:virtio", "virtio:nic")
    attach(sys, "net", "bad", "pci:v8086bc06sc04", "pci:unknown", "virtio:nic")
    attach(sys, "net", "old", "pci:old")

    assert drivers.problem(sys / "net/good/device") == ""
    assert drivers.problem(sys / "net/bad/device") == "no driver for it (pci:unknown)"
    assert drivers.problem(sys / "net/old/device") == "no firmware for its driver bnx2"
    assert drivers.problem(sys / "net/gone/device") == ""


def test_card_that_the_operator_needs(sys: Path) -> None:
    attach(sys, "net", "eth0", "pci:nic")
    attach(sys, "net", "usb0", "usb:r8152")
    found = network(ether("eth0", needed=True), ether("usb0"), left=["wg0"])

    drivers.check_network(found)

    assert [each["name"] for each in found["interfaces"]] == ["eth0"]
    assert found["left"] == ["wg0", "usb0: it has no driver for it (usb:r8152)"]
    with pytest.raises(Failure, match="you came in by usb0; the initramfs has no driver for it"):
        drivers.check_network(network(ether("usb0", needed=True)))


def test_bond_needs_one_of_its_members(sys: Path) -> None:
    attach(sys, "net", "eth0", "pci:nic")
    attach(sys, "net", "usb0", "usb:r8152")
    bond = ether("bond0", kind="bond", needed=True, members=["usb0", "eth0"])
    found = network(ether("usb0"), ether("eth0"), bond)

    drivers.check_network(found)

    assert [each["name"] for each in found["interfaces"]] == ["eth0", "bond0"]
    with pytest.raises(Failure, match="you came in by bond0"):
        drivers.check_network(network(ether("usb0"), bond | {"members": ["usb0"]}))


@pytest.mark.parametrize("role", ["erase", "keep"])
def test_disks(sys: Path, role: str) -> None:
    attach(sys, "block", "sda", "pci:fibre", "scsi:t-0x00")
    given = Deployment("d", "mx", [], Agreed("x", {"system": DISK}))
    if role == "keep":
        given = Deployment("d", "mx", [Wanted("data", {"serial": "S"})], Agreed())

    with pytest.raises(Failure, match=r"sda \(.*: the initramfs has no driver for it"):
        drivers.check_disks(given)
    (sys / "devices/pci0000:00/sda-0/modalias").write_text("pci:nic\n")
    drivers.check_disks(given)


@pytest.mark.parametrize(
    ("nowayout", "identity", "alias", "why"),
    [
        ("0", "iTCO_wdt", "pci:none", ""),
        ("1", "iTCO_wdt", "pci:nic", ""),
        ("1", "iTCO_wdt", "pci:none", "the initramfs has no driver for it .pci:none."),
        (
            "1",
            "iTCO_wdt",
            "",
            "watchdog1 .iTCO_wdt. cannot be stopped: the initramfs has no driver",
        ),
        ("1", "Software Watchdog", "", ""),
    ],
)
def test_watchdog_that_nothing_stops(
    sys: Path, monkeypatch: pytest.MonkeyPatch, nowayout: str, identity: str, alias: str, why: str
) -> None:
    monkeypatch.setattr(drivers, "WATCHDOGS", sys / "watchdog")
    if alias:
        attach(sys, "net", "watchdog1", alias)
        (sys / "net").rename(sys / "watchdog")
    (sys / "watchdog/watchdog1").mkdir(parents=True, exist_ok=True)
    (sys / "watchdog/watchdog1/nowayout").write_text(f"{nowayout}\n")
    (sys / "watchdog/watchdog1/identity").write_text(f"{identity}\n")
    with pytest.raises(Failure, match=why) if why else nullcontext():
        drivers.check_watchdogs()
