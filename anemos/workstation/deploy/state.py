"""What one phase of a deployment leaves for the next: JSON on the disk, without any secret.

`watch` and `verify` need it, perhaps after a reboot of the workstation.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from anemos import files
from anemos.border import records
from anemos.border.boot import base_hash
from anemos.border.deployment import Agreed, Revision
from anemos.border.network import Network
from anemos.disks import Fingerprint
from anemos.log import IN_INITRAMFS, UNVERIFIED, Failure, die
from anemos.workstation import places
from anemos.workstation.deploy.facts import Entry
from anemos.workstation.hosts import Host

# How far a deployment is known to have come, and the least status of what fails then.
WORD = "word"  # the operator's word to erase was given, or may have been
PASSED = "passed"  # the point of no return
DONE = "done"  # installed: the initramfs said so, or the new system has answered
LEAST = {"": 0, WORD: IN_INITRAMFS, PASSED: IN_INITRAMFS, DONE: UNVERIFIED}


@dataclass
class State:
    """A deployment as far as it has come."""

    host: str
    deployment: str = ""
    payload: str = ""  # SHA-256, as it was packed
    base: str = ""  # file on the workstation
    layer: str = ""  # the same; "" when server or initramfs bootstrap
    server_layer: str = ""  # SHA-256 of the one that the server made
    remote_base: str = ""  # file on the server
    way: str = "kexec"  # into the initramfs: one of ways.WAYS; or into a slot: Beside.way
    root: str = ""  # into a slot: UUID of the root file system that was filled
    place: Entry | None = None  # way "once": where the entry is put
    once_key: str = ""  # way "once": the initramfs's host key until it has the old system's
    old_boot_id: str = ""
    last_answer: float = 0.0  # of the old system: seconds since the epoch
    first_answer: float = 0.0  # of the new system
    kept: list[Fingerprint] = field(default_factory=list)  # as the old system had it
    stays: bool = False  # started by hand: there is no old system that the initramfs goes back to
    agreed: Agreed = field(default_factory=Agreed)
    commit: Revision = field(default_factory=Revision)  # that it was packed from
    sent: dict[str, int] = field(default_factory=dict)  # bytes: base, layer, payload
    reached: str = ""  # one of LEAST

    @property
    def base_hash(self) -> str:
        """SHA-256 of the base image, "" when there is none yet."""
        return base_hash(self.base) if self.base else ""

    @property
    def downtime(self) -> float | None:
        """Seconds; None when it was not from here that the old system was seen last."""
        return round(self.first_answer - self.last_answer, 1) if self.last_answer else None

    def reach(self, how_far: str) -> None:
        """Remember that it has come so far, at least."""
        order = list(LEAST)
        if order.index(how_far) > order.index(self.reached):
            self.reached = how_far
            self.save()

    def save(self) -> None:
        files.replace(state_file(self.host), records.text(self), 0o600)


def state_file(name: str) -> Path:
    return places.state(name) / "state.json"


def load_state(host: Host, needs: str = "", hint: str = "") -> State:
    """The state of HOST's deployment. Raises Failure when the field NEEDS is still empty."""
    file = state_file(host.name)
    state = read(file) if file.exists() else State(host.name)
    if needs and not getattr(state, needs):
        die(f"{host.name}: not ready for this phase", hint=f"./inv {hint} --host {host.name}")
    return state


def known(host: Host) -> State:
    """The state of HOST's deployment; an empty one if it cannot be read: others are to say so."""
    with suppress(Failure, OSError):
        return load_state(host)
    return State(host.name)


def read(file: Path) -> State:
    """What another version of Anemos has written, too: fields that both know."""
    try:
        found = records.parse(State, file.read_bytes())
        if found.reached not in LEAST:
            raise ValueError("reached makes no sense")
        return found
    except ValueError as error:
        hint = "remove it; what it knew of the deployment is lost"
        die(f"{file}: cannot be read: {error}", hint=hint)


@dataclass(frozen=True)
class Captured:
    """What the old system said last, for `export`: it may be gone by then."""

    network: Network
    kept: list[Fingerprint]


def captured_file(host: Host) -> Path:
    return places.state(host.name) / "captured.json"


def payload_file(host: Host) -> Path:
    return places.memory(host.name) / "payload"


def remember_downtime(host: Host, state: State) -> None:
    """For the next plan."""
    if state.downtime is not None:
        (places.state(host.name) / "downtime").write_text(f"{state.downtime:.0f}")


def expected_downtime(host: Host) -> str:
    file = places.state(host.name) / "downtime"
    return f"{file.read_text()} s, as the last time" if file.exists() else "unknown yet"
