"""What the operator has agreed to: what `plan` has shown last, by content, not by name.

It goes with the payload to the preflight. By its id `deploy --plan` knows a plan again.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from anemos import disks, files
from anemos.border import records
from anemos.border.deployment import Agreed
from anemos.log import BAD_INPUT, die
from anemos.system import layout, tree
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places, report
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host

FILE = "agreed.json"
# What a plan's lines tell of the server, and not of this workstation's cache or of free memory.
OF_SERVER = ("server", "ERASE", "OVERWRITE", "keep", "shared", "untouched", "warning", "network")
LEASE = re.compile(r" expires \S+")  # of a route that a router announces again and again
ID = re.compile("[0-9a-f]{12}-[0-9a-f]{12}")
Lines = Iterable[Sequence[str]]  # (what, which)


def remember(host: Host, spec: Imgbuild, facts: Facts, slot: str, by_server: bool = False) -> None:
    """What the plan for SPEC shows. SLOT: the one that it fills, "" when it erases disks. FETCHED:
    the server makes its package layer. Only for facts without problems."""
    erased = () if slot else spec.layout.disks
    found = {disk.name: disks.resolve(disk.name, disk.match, facts.disks) for disk in erased}
    agreed = Agreed(layout.digest(spec.layout, spec.kept), found, slot, by_server)
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


def confirm(host: Host, yes: str, slot: str = "") -> None:
    """As typed(), for a deployment: it erases disks, or overwrites SLOT. Raises Failure."""
    what = f"overwrites slot {slot}" if slot else "erases the system disks"
    typed(host, yes, f"This {what} of {host.name}")


def typed(host: Host, yes: str, what: str) -> None:
    """Have the operator type the host's name, unless the machine is a throw-away one. WHAT is done.
    Raises Failure."""
    if not host.throwaway and not named(host, yes):
        report.typed(host.name, what, "--yes NAME")


def named(host: Host, yes: str) -> bool:
    """Whether YES, a script's word, is given for HOST. Raises Failure when it is for another."""
    if yes not in ("", host.name):
        die(f"--yes {yes} does not name the host {host.name}")
    return bool(yes)


def identity(host: Host, lines: Lines) -> str:
    """The id of the plan for HOST that shows LINES: of the definition, and of the server."""
    shown = [LEASE.sub("", which) for what, which in lines if what in OF_SERVER]
    digests = sha256(b"".join(definition(host))), sha256("\n".join(shown).encode())
    return "-".join(each.hexdigest()[:12] for each in digests)


def definition(host: Host) -> Iterator[bytes]:
    """All files of HOST, and its secrets as they lie there encrypted: names, modes, contents."""
    tops = [host.directory, places.SECRETS / host.directory.name]
    for top in filter(Path.is_dir, tops):
        for path, status in tree.walk(top):
            if stat.S_ISREG(status.st_mode) and "__pycache__" not in path:
                yield os.fsencode(f"{path}\0{status.st_mode:o}\0{files.sha256(top / path)}\0")
            elif stat.S_ISLNK(status.st_mode):
                yield os.fsencode(f"{path}\0{(top / path).readlink()}\0")


def require_same(host: Host, shown: str, lines: Lines) -> None:
    """Raises Failure unless a plan that shows LINES has the id SHOWN, by what there is now."""
    if not ID.fullmatch(shown):
        die(f"--plan {shown}: no id of a plan", hint="./inv plan prints it")
    now = identity(host, lines)
    pairs = zip(("definition", "server"), shown.split("-"), now.split("-"), strict=True)
    if changed := [what for what, before, after in pairs if before != after]:
        what = " and ".join(f"the {each}" for each in changed)
        die(f"{host.name}: {what} changed since plan {shown}", hint=f"this is plan {now}")


def to_pack(host: Host, spec: Imgbuild) -> Agreed:
    """What goes with SPEC's payload. Raises Failure when layout or keep are not the plan's."""
    agreed = recall(host)
    if agreed.layout and agreed.layout != layout.digest(spec.layout, spec.kept):
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
    """Raises Failure unless it is SLOT, or "" for whole disks, that the plan has shown."""
    if state.agreed.slot != slot:
        what = f"slot {slot}" if slot else "that disks are erased"
        hint = "./inv plan, perhaps with --whole; then ./inv pack"
        die(f"{host.name}: the plan has not shown {what}", hint=hint)


def check_disks(host: Host, state: State, facts: Facts) -> None:
    """Raises Failure unless the server still has the disks that the plan has shown."""
    for name, shown in state.agreed.erase.items():
        if not any(shown.same(device) for device in facts.disks):
            die(
                f"{host.name}: disk {name!r}, {shown.describe()}, is not there any more",
                hint="./inv plan",
            )
