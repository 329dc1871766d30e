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

REPAIR = "mdadm --detail tells which member is missing; it is kept when it is whole again"


class Stack(NamedTuple):
    """What lies on what."""

    slaves: Sequence[tuple[str, str]]  # (dm-0, sda3): the first lies on the second
    mapped: Mapping[str, str]  # device-mapper's names: dm-0 -> vg0-root


def stack() -> Stack:
    """As this kernel shows it (kernel: ABI/testing/sysfs-block-dm, sysfs-block)."""
    slaves = disks.SYS_BLOCK.glob("*/slaves/*")
    names = disks.SYS_BLOCK.glob("dm-*/dm/name")
    return Stack(
        [(slave.parts[-3], slave.name) for slave in slaves],
        {name.parts[-3]: name.read_text().strip() for name in names},
    )


def located(wanted: Sequence[Wanted], parts: Mapping[str, str], seen: Stack) -> dict[str, str]:
    """What each array and logical volume of WANTED is to the kernel.

    PARTS: the kept partitions, by their names in WANTED. Raises ValueError for what is not there,
    or lies on anything else than WANTED says.
    """
    members = {name: {node} for name, node in parts.items()}
    found: dict[str, str] = {}
    for each in (each for each in wanted if each.kind):
        below = set().union(*(members[name] for name in each.on))
        members[each.name] = below
        if each.kind != "vg":
            found[each.name] = FINDERS[each.kind](each, below, seen)
            members[each.name] = {found[each.name]}
    return found


def array(wanted: Wanted, below: set[str], seen: Stack) -> str:
    for upper, its in lying(seen).items():
        if upper.startswith("md") and its & below:
            if its != below:
                raise misplaced(wanted, its, below)
            return upper
    raise ValueError(f"{called(wanted)}: no array runs on {words(below)}: mdadm --assemble --scan")


def lv(wanted: Wanted, below: set[str], seen: Stack) -> str:
    """Only what lies on its group's members itself: thin ones, caches and LVM's own RAID do not."""
    (group,) = wanted.on
    name = "-".join(word.replace("-", "--") for word in (group, wanted.name))
    kernel = next((kernel for kernel, its in seen.mapped.items() if its == name), "")
    its = lying(seen)[kernel]
    if not its:
        raise ValueError(f"{called(wanted)}: it is not active: vgchange --activate y {group}")
    if not its <= below:
        raise misplaced(wanted, its, below)
    return kernel


FINDERS = {"raid": array, "lv": lv}


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
    return [*disks.fingerprints(each for each in wanted if not each.kind), *of_volumes(wanted)]


def of_volumes(wanted: Sequence[Wanted]) -> list[Fingerprint]:
    there = disks.devices()
    parts = {
        each.name: disks.resolve(each.name, each.match, there).part(each.only).name
        for each in wanted
        if each.only
    }
    try:
        found = located(wanted, parts, stack())
    except ValueError as error:
        die(str(error))
    return [fingerprint(each, found[each.name]) for each in wanted if each.name in found]


def fingerprint(wanted: Wanted, name: str) -> Fingerprint:
    """Of the volume that is NAME to the kernel. LVM's UUIDs stand in its own."""
    entry = disks.SYS_BLOCK / name
    if disks.attribute(entry, ["md/degraded"]) not in ("", "0"):
        die(f"{called(wanted)}: {name} is degraded", hint=REPAIR)
    size, uuid = int((entry / "size").read_text()) * SECTOR, disks.attribute(entry, ["dm/uuid"])
    held = disks.probe(Path("/dev", name))
    text = json.dumps([wanted.kind, uuid, size, held], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = "/".join((*wanted.on, wanted.name)) if wanted.kind == "lv" else wanted.name
    content = ((0, held.get("UUID", ""), held.get("TYPE", "")),)
    return Fingerprint(wanted.name, path, size, digest, content)
