"""The brain of the initramfs on loop devices, in namespaces of its own: python -m tests.brain.

The first argument is the directory that test_nth.py has made, the others are the loop devices of
the system disk and of the kept one. What the brain would do to this machine, it does not do here.
"""

import sys
from pathlib import Path

from anemos import disks, run
from anemos.disks import Device
from anemos.initramfs import (
    __main__ as brain,
)
from anemos.initramfs import (
    daemons,
    events,
    firmware,
    hardware,
    install,
    leftovers,
    network,
)
from tests import nth

PORT = 2222


def stand_in(top: Path, system: str, data: str) -> None:
    """Nothing but two loop devices and the namespaces is within reach."""
    found = [device(system, "SYSTEM"), device(data, "DATA")]
    disks.devices = lambda *_: found
    network.name_of = lambda interface: "lo" if interface["mac"] else ""
    for module, name, value in (
        (install, "TARGET", top / "target"),
        (events, "PANICS", []),
        (firmware, "FIRMWARE", Path("/nonexistent")),
        (daemons, "OUTSIDE", "/dev/null"),
        (hardware, "modaliases", lambda: {"none"}),
        (leftovers, "forget", lambda dev: None),
        (brain, "GRACE_S", 0),
        (brain, "OPERATOR_S", 1.0),
        (run, "_follow", nth.impatient(nth.Commands(top))),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
    hardware.wait_for.__defaults__ = (5.0,)  # of 30 s, for partitions that nobody has told of


def device(node: str, serial: str) -> Device:
    name = Path(node).name
    size = int((disks.SYS_BLOCK / name / "size").read_text()) * disks.SECTOR
    return Device(name, serial, "", size)


if __name__ == "__main__":
    stand_in(Path(sys.argv[1]), *sys.argv[2:])
    sys.exit(brain.report())
