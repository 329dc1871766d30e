"""Existing partition tables, as far as something of them is kept. Plans only."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from anemos.system.layout import LABELS, MAX_PARTS, Disk, Entry, Kept, Layout, Table

# Lines of `sfdisk --dump` about the whole table that a kept entry depends on: a partition of an
# msdos table has its UUID from label-id; one may lie before the first sector that sfdisk(8) would
# choose, or have a number beyond the usual.
HEAD = ("label", "label-id", "first-lba", "table-length")
ENTRY = re.compile(r"\S*?(\d+) : start= *(\d+), size= *(\d+), type=([^, ]+)")
CONTAINERS = ("5", "f", "85")  # msdos: an extended partition, where others lie inside


def around(disk: Disk, dump: str, numbers: Sequence[int]) -> Disk:
    """DISK, for a real one on which partitions NUMBERS are kept. DUMP: of `sfdisk --dump` there.

    Raises ValueError when they cannot be kept.
    """
    if not numbers:
        return disk
    head = dict(re.findall(r"(?m)^([a-z-]+): (\S+)$", dump))
    where = f"layout: disk {disk.name!r}"
    if head.get("label") != LABELS[disk.table]:
        found = head.get("label", "no table")
        raise ValueError(f"{where}: has {found}, not table={disk.table}: partitions are kept")
    known = entries(dump, sector(dump))
    for number in numbers:
        if number not in known:
            raise ValueError(f"{where}: no partition {number} to keep")
        kind = ENTRY.match(known[number].line)
        if disk.table == "msdos" and (
            number > MAX_PARTS["msdos"] or (kind and kind[4] in CONTAINERS)
        ):
            raise ValueError(f"{where}: partition {number}: only primary partitions are kept")
    lines = tuple(f"{key}: {head[key]}" for key in HEAD if key in head)
    return fitted(disk, Table(lines, {number: known[number] for number in numbers}))


def fitted(disk: Disk, old: Table) -> Disk:
    """DISK around what is kept of OLD. Raises ValueError when there are too many partitions."""
    if len(disk.parts) + len(old.entries) > MAX_PARTS[disk.table]:
        most = f"at most {MAX_PARTS[disk.table]} partitions, with those that are kept"
        raise ValueError(f"layout: disk {disk.name!r}: {most}")
    return replace(disk, old=old)


def sector(dump: str) -> int:
    """The unit of DUMP, in bytes."""
    found = re.search(r"(?m)^sector-size: (\d+)$", dump)
    return int(found[1]) if found else 512


def entries(dump: str, sector: int) -> dict[int, Entry]:
    """The entries in DUMP by number; SECTOR: the disk's unit in bytes."""
    found = (ENTRY.match(line) for line in dump.splitlines())
    return {
        int(match[1]): Entry(int(match[2]) * sector, int(match[3]) * sector, match.string)
        for match in found
        if match
    }


def kept_numbers(keep: Sequence[Kept], disk: Disk) -> list[int]:
    """The numbers of DISK's partitions that KEEP names."""
    return [each.part for each in keep if each.disk == disk.name]


def placed(layout: Layout, keep: Sequence[Kept], dumps: Mapping[str, str]) -> Layout:
    """LAYOUT around all partitions in KEEP. DUMPS: `sfdisk --dump` by the disk's name."""
    disks = (around(disk, dumps[disk.name], kept_numbers(keep, disk)) for disk in layout.disks)
    return replace(layout, disks=tuple(disks))
