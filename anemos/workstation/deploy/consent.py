"""What the operator has agreed to: what `plan` has shown last, by content, not by name.

It goes with the payload to the preflight (initramfs/boot.py): {"layout": digest of layout and keep,
"erase": {name in the layout: the disk, as disks.Device}}.
"""

import json
from dataclasses import asdict
from typing import Any

from anemos import disks, files
from anemos.disks import Device
from anemos.log import die
from anemos.system import layout
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host

FILE = "agreed.json"
Agreed = dict[str, Any]


def remember(host: Host, spec: Imgbuild, facts: Facts) -> None:
    """What the plan for SPEC shows. Only for facts without problems."""
    found = {
        disk.name: disks.resolve(disk.name, disk.match, facts.disks) for disk in spec.layout.disks
    }
    agreed = {
        "layout": layout.digest(spec.layout, spec.keep),
        "erase": {name: asdict(device) for name, device in found.items()},
    }
    files.replace(places.state(host.name) / FILE, json.dumps(agreed), 0o600)


def recall(host: Host) -> Agreed:
    """What `remember` has left, {} when nothing was planned."""
    file = places.state(host.name) / FILE
    return dict(json.loads(file.read_text())) if file.exists() else {}


def withdraw(host: Host) -> None:
    """For a machine that no plan has seen."""
    (places.state(host.name) / FILE).unlink(missing_ok=True)


def to_pack(host: Host, spec: Imgbuild) -> Agreed:
    """What goes with SPEC's payload. Raises Failure when layout or keep are not the plan's."""
    agreed = recall(host)
    if agreed and agreed["layout"] != layout.digest(spec.layout, spec.keep):
        die(
            f"{host.name}: layout or keep has changed since the plan",
            hint="./inv plan shows it anew",
        )
    return agreed


def check(host: Host, state: State) -> None:
    """Raises Failure when what STATE's deployment erases was not planned, or not planned last."""
    if not state.agreed:
        die(
            f"{host.name}: packed without a plan of what is erased",
            hint="./inv plan, then ./inv pack",
        )
    if state.agreed != recall(host):
        die(f"{host.name}: packed by another plan than the last one", hint="./inv pack again")


def check_disks(host: Host, state: State, facts: Facts) -> None:
    """Raises Failure unless the server still has the disks that the plan has shown."""
    for name, shown in state.agreed.get("erase", {}).items():
        if not any(Device(**shown).same(device) for device in facts.disks):
            die(
                f"{host.name}: disk {name!r}, {Device(**shown).describe()}, is not there any more",
                hint="./inv plan",
            )
