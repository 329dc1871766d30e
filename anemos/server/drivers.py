"""Whether the initramfs's kernel drives what a deployment needs.

The base image's modules are asked on the machine itself, before the jump.
"""

import re
from pathlib import Path

from anemos import disks
from anemos.border.deployment import Deployment
from anemos.border.network import Network
from anemos.log import die
from anemos.run import CommandFailed, run

NETWORK, BLOCK = Path("/sys/class/net"), Path("/sys/class/block")
WATCHDOGS = Path("/sys/class/watchdog")
SOFTWARE = "Software Watchdog"  # it ends with its kernel
MODULES = Path("/lib/modules")
NEED_FIRMWARE = {"bnx2", "bnx2x"}  # of which the base image has none
BRIDGE = re.compile("pci:.*bc06")  # every kernel has that driver, and it names no device


def check_network(found: Network) -> None:
    """Move what has no driver from FOUND["interfaces"] to FOUND["left"] (see network.capture).

    Raises Failure when the operator came by it.
    """
    lame = {
        each["name"]: why
        for each in found["interfaces"]
        if each["kind"] == "ether" and (why := problem(NETWORK / each["name"] / "device"))
    }
    for each in found["interfaces"]:
        cards = each["members"] if each["kind"] == "bond" else [each["name"]]
        if each["needed"] and all(name in lame for name in cards):
            die(f"you came in by {each['name']}; the initramfs has {lame[cards[0]]}")
    found["left"] += [f"{name}: it has {why}" for name, why in lame.items()]
    found["interfaces"] = [each for each in found["interfaces"] if each["name"] not in lame]


def check_disks(given: Deployment) -> None:
    """Raises Failure for a disk to be erased or kept that would not appear."""
    there = disks.devices()
    named = [each for disk in given.agreed.erase.values() for each in there if disk.same(each)]
    named += [disks.resolve(each.name, each.match, there) for each in given.keep if not each.kind]
    for each in named:
        if why := problem(BLOCK / each.name):
            die(f"{each.describe()}: the initramfs has {why}")


def check_watchdogs() -> None:
    """Raises Failure for one that nothing stops, and that the initramfs would not pet."""
    for each in sorted(WATCHDOGS.glob("*")):
        known = {name: disks.attribute(each, [name]) for name in ("nowayout", "identity")}
        if known["nowayout"] != "1" or known["identity"] == SOFTWARE:
            continue
        driven = (each / "device").exists()
        if why := problem(each / "device") if driven else "no driver for it":
            die(
                f"{each.name} ({known['identity']}) cannot be stopped: the initramfs has {why}",
                hint="load its driver without nowayout, or not at all",
            )


def problem(device: Path) -> str:
    """What DEVICE (in sysfs), or what it is attached to, would lack; "" for nothing."""
    place = device.resolve()
    for part in (place, *place.parents):
        if (part / "driver").exists() and (part / "modalias").is_file():
            alias = (part / "modalias").read_text().strip()
            if alias and not BRIDGE.match(alias) and (why := lacks(alias)):
                return why
    return ""


def lacks(alias: str) -> str:
    """The modules for ALIAS, as modprobe(8) would load them, have to be there."""
    (version,) = (each.name for each in MODULES.iterdir())
    try:
        said = run(["modprobe", "--set-version", version, "--show-depends", alias])
    except CommandFailed:
        return f"no driver for it ({alias})"
    names = {Path(line.split()[1]).stem for line in said.splitlines() if line.startswith("insmod")}
    insist = sorted(names & NEED_FIRMWARE)
    return f"no firmware for its driver {insist[0]}" if insist else ""
