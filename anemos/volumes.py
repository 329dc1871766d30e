"""Volumes that are kept: md arrays and LVM's, found by the kept partitions that they lie on.

Names are the kernel's, without /dev/: sda3, md127, dm-0.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from anemos import disks
from anemos.disks import SECTOR, Fingerprint, Wanted
from anemos.log import die
from anemos.run import CommandFailed, run

DEGRADED = "is degraded or does not run"
REPAIR = "mdadm --detail tells which member is missing; it is kept when it is whole again"


class Stack(NamedTuple):
    """What lies on what."""

    slaves: Sequence[tuple[str, str]]  # (dm-0, sda3): the first lies on the second
    mapped: Mapping[str, str]  # device-mapper's names: dm-0 -> vg0-root
    groups: Sequence[tuple[str, str]]  # (md127, vg0): a physical volume and its group


def stack() -> Stack:
    """As this kernel and LVM show it (kernel: ABI/testing/sysfs-block-dm, sysfs-block)."""
    slaves = disks.SYS_BLOCK.glob("*/slaves/*")
    return Stack(
        [(slave.parts[-3], slave.name) for slave in slaves],
        mapped(),
        [(node.resolve().name, group.split(" ")[0]) for node, group in groups().items()],
    )


def mapped() -> dict[str, str]:
    """Device-mapper's names: dm-0 -> vg0-root (kernel: ABI/testing/sysfs-block-dm)."""
    files = disks.SYS_BLOCK.glob("dm-*/dm/name")
    return {file.parts[-3]: file.read_text().strip() for file in files}


def groups() -> dict[Path, str]:
    """The volume group of each physical volume that LVM reads (pvs(8)): node -> "NAME UUID".

    "" for a volume that is in none. No lock is taken, and nothing is repaired.
    """
    argv = ["pvs", "--readonly", "--reportformat=json", "--options=pv_name,vg_name,vg_uuid"]
    try:
        (report,) = json.loads(run(argv))["report"]
    except CommandFailed:  # status 5: of one of them, something is missing
        return {}
    return {
        Path(each["pv_name"]): f"{each['vg_name']} {each['vg_uuid']}".strip()
        for each in report["pv"]
    }


def located(wanted: Sequence[Wanted], parts: Mapping[str, str], seen: Stack) -> dict[str, str]:
    """What each array and logical volume of WANTED is to the kernel.

    PARTS: the kept partitions, by their names in WANTED. Raises ValueError for what is not there,
    or lies on anything else than WANTED says.
    """
    members = {name: {node} for name, node in parts.items()}
    for each in (each for each in wanted if each.kind):
        below = set().union(*(members[name] for name in each.on))
        members[each.name] = FINDERS[each.kind](each, below, seen)
    ends = [each.name for each in wanted if each.kind in ("raid", "lv")]
    return {name: kernel for name in ends for kernel in members[name]}


def array(wanted: Wanted, below: set[str], seen: Stack) -> set[str]:
    for upper, its in lying(seen).items():
        if upper.startswith("md") and its & below:
            if its != below:
                raise misplaced(wanted, its, below)
            return {upper}
    raise ValueError(f"{called(wanted)}: no array runs on {words(below)}: mdadm --assemble --scan")


def vg(wanted: Wanted, below: set[str], seen: Stack) -> set[str]:
    """All of it: a group that loses a member with an erased disk is no group any more."""
    its = {node for node, group in seen.groups if group == wanted.name}
    if not its:
        raise ValueError(f"{called(wanted)}: LVM does not show it: pvs")
    if its != below:
        raise misplaced(wanted, its, below)
    return below


def lv(wanted: Wanted, below: set[str], seen: Stack) -> set[str]:
    """Only what lies on its group's members itself: thin ones, caches and LVM's own RAID do not."""
    (group,) = wanted.on
    name = "-".join(word.replace("-", "--") for word in (group, wanted.name))
    kernel = next((kernel for kernel, its in seen.mapped.items() if its == name), "")
    its = lying(seen)[kernel]
    if not its:
        raise ValueError(f"{called(wanted)}: it is not active: vgchange --activate y {group}")
    if not its <= below:
        raise misplaced(wanted, its, below)
    return {kernel}


FINDERS = {"raid": array, "vg": vg, "lv": lv}


def lying(seen: Stack) -> dict[str, set[str]]:
    """On what each device lies."""
    found: dict[str, set[str]] = defaultdict(set)
    for upper, lower in seen.slaves:
        found[upper].add(lower)
    return found


def misplaced(wanted: Wanted, its: set[str], below: set[str]) -> ValueError:
    thin = ", and only plain logical volumes are kept" if wanted.kind == "lv" else ""
    why = f"it lies on {words(its)}, `keep` says {words(below)}{thin}"
    return ValueError(f"{called(wanted)}: {why}")


def words(names: set[str]) -> str:
    return ", ".join(sorted(names))


def called(wanted: Wanted) -> str:
    return f"kept {wanted.kind} {wanted.name!r}"


def fingerprints(wanted: Sequence[Wanted]) -> list[Fingerprint]:
    """Of all that is kept: disks, partitions, and volumes that are put together now.

    Raises Failure for what is missing, ambiguous or degraded.
    """
    whole = disks.fingerprints(each for each in wanted if not each.kind)
    return [*whole, *of_volumes(wanted, nodes(wanted))]


def nodes(wanted: Sequence[Wanted]) -> dict[str, Path]:
    """The kept partitions, by their names in WANTED."""
    there = disks.devices()
    parts = [each for each in wanted if each.only]
    return {e.name: disks.resolve(e.name, e.match, there).part(e.only) for e in parts}


def of_volumes(wanted: Sequence[Wanted], parts: Mapping[str, Path]) -> list[Fingerprint]:
    """PARTS: what the volumes lie on, by the names of the kept partitions."""
    if not any(each.kind for each in wanted):
        return []
    try:
        found = located(wanted, {name: node.name for name, node in parts.items()}, stack())
    except ValueError as error:
        die(str(error))
    return [fingerprint(each, found[each.name]) for each in wanted if each.name in found]


def fingerprint(wanted: Wanted, name: str) -> Fingerprint:
    """Of the volume that is NAME to the kernel. LVM's UUIDs stand in its own."""
    entry = disks.SYS_BLOCK / name
    size, uuid = int((entry / "size").read_text()) * SECTOR, disks.attribute(entry, ["dm/uuid"])
    if not size or disks.attribute(entry, ["md/degraded"]) not in ("", "0"):
        die(f"{called(wanted)}: {name} {DEGRADED}", hint=REPAIR)
    held = disks.probe(Path("/dev", name))
    text = json.dumps([wanted.kind, uuid, size, held], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = "/".join((*wanted.on, wanted.name)) if wanted.kind == "lv" else wanted.name
    content = ((0, held.get("UUID", ""), held.get("TYPE", "")),)
    return Fingerprint(wanted.name, path, size, digest, content)
