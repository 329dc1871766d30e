"""What the operator has agreed to: what `plan` has shown last, by content, not by name.

It goes with the payload to the preflight.
"""

from anemos import disks, files
from anemos.border import records
from anemos.border.deployment import Agreed
from anemos.log import BAD_INPUT, die
from anemos.system import layout
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places
from anemos.workstation.deploy import ways
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host

FILE = "agreed.json"


def remember(host: Host, spec: Imgbuild, facts: Facts) -> None:
    """What the plan for SPEC shows. Only for facts without problems."""
    found = {
        disk.name: disks.resolve(disk.name, disk.match, facts.disks) for disk in spec.layout.disks
    }
    slot = ways.slot(host, spec, facts).other
    agreed = Agreed(layout.digest(spec.layout, spec.keep), found, slot)
    files.replace(places.state(host.name) / FILE, records.text(agreed), 0o600)


def recall(host: Host) -> Agreed:
    """What `remember` has left. Raises Failure."""
    file = places.state(host.name) / FILE
    if not file.exists():
        return Agreed()
    hint = "./inv plan writes it anew"
    return records.load(Agreed, file.read_bytes(), f"{file}", hint, BAD_INPUT)


def withdraw(host: Host) -> None:
    """For a machine that no plan has seen."""
    (places.state(host.name) / FILE).unlink(missing_ok=True)


def to_pack(host: Host, spec: Imgbuild) -> Agreed:
    """What goes with SPEC's payload. Raises Failure when layout or keep are not the plan's."""
    agreed = recall(host)
    if agreed.layout and agreed.layout != layout.digest(spec.layout, spec.keep):
        die(
            f"{host.name}: layout or keep has changed since the plan",
            hint="./inv plan shows it anew",
        )
    return agreed


def check(host: Host, state: State) -> None:
    """Raises Failure when what STATE's deployment erases was not planned, or not planned last."""
    if not state.agreed.layout:
        die(
            f"{host.name}: packed without a plan of what is erased",
            hint="./inv plan, then ./inv pack",
        )
    if state.agreed != recall(host):
        die(f"{host.name}: packed by another plan than the last one", hint="./inv pack again")


def check_slot(host: Host, state: State, slot: str) -> None:
    """Raises Failure unless it is SLOT that the plan has shown."""
    if state.agreed.slot != slot:
        die(f"{host.name}: the plan has not shown slot {slot}", hint="./inv plan, then ./inv pack")


def check_disks(host: Host, state: State, facts: Facts) -> None:
    """Raises Failure unless the server still has the disks that the plan has shown."""
    for name, shown in state.agreed.erase.items():
        if not any(shown.same(device) for device in facts.disks):
            die(
                f"{host.name}: disk {name!r}, {shown.describe()}, is not there any more",
                hint="./inv plan",
            )
