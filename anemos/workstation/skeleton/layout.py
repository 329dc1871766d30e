"""`layout` and `keep` of a definition, from the disks of a running server.

The disk that / lies on is to be erased. What else is mounted, and no part of the system, is kept.
"""

import re
from dataclasses import dataclass, field

from anemos import disks
from anemos.disks import Device
from anemos.system import grammar
from anemos.system.layout import FILE_SYSTEMS, MAX_PARTS, MIB
from anemos.workstation.deploy import stack
from anemos.workstation.deploy.facts import Facts, Partition

# Of the system, beside /: a new system has these anew.
SYSTEM = re.compile("/(boot|tmp|usr|var|var/(cache|lib|log|tmp))")
ESP = ("/boot/efi", "/efi", "/boot")
ESP_SIZE = 512 * MIB
KEPT = "options=nofail,x-systemd.device-timeout=5min"
NOWHERE = "/ is on no disk that the server names: write the serial of the disk to erase"
OTHERWISE = "/ is on {} there; the layout here puts it onto a plain partition of {}"


@dataclass
class Drawn:
    layout: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mounts: set[str] = field(default_factory=set)  # what `layout` mounts
    kept: set[str] = field(default_factory=set)  # what `keep` does
    systems: set[str] = field(default_factory=lambda: {"ext4"})  # types of file systems

    def here(self, path: str) -> bool:
        """Whether PATH is made anew, and not kept."""
        return not any(path.startswith(f"{each}/") for each in self.kept)


@dataclass(frozen=True)
class Mount:
    """PART: None if that is no plain partition or disk. PLACES: what it lies on in the end."""

    point: str
    fs: str
    node: str
    part: Partition | None
    places: set[stack.Place]


def draw(name: str, facts: Facts, tables: dict[str, str], loader: str) -> Drawn:
    """NAME: of the host. TABLES: disk -> what lsblk(8) calls its partition table."""
    mounts = mounted(facts)
    drawn = Drawn()
    found = next((each for each in mounts if each.point == "/"), None)
    named = {each.name: each for each in facts.disks}
    below = sorted(disk for disk, _ in found.places if disk in named) if found else []
    if not found or not below:
        drawn.notes.append(NOWHERE)
        drawn.layout = [f"disk system serial={name}-system", *firmware(facts, "gpt", loader, [])]
        drawn.layout.append("part root fs=ext4 mount=/")
        return drawn
    system = named[below[0]]
    if not found.part:
        drawn.notes.append(OTHERWISE.format(found.node, system.name))
    table = "msdos" if tables.get(system.name) == "dos" and not facts.efi else "gpt"
    own = [each for each in mounts if each.part and each.part.disk == system.name]
    head = f"disk system {system.words()}" + (" table=msdos" if table == "msdos" else "")
    drawn.layout = [head, *firmware(facts, table, loader, own)]
    drawn.layout += parts(own, drawn)
    drawn.layout += swap(facts, system)
    drawn.layout.append(f"part root fs={usable(found.fs, drawn)} mount=/")
    drawn.mounts.add("/")
    keep(mounts, named, system, table, drawn)
    return drawn


def mounted(facts: Facts) -> list[Mount]:
    """Each mounted device once, at its first place."""
    parts = {part.name: part for part in facts.parts}
    known = {disk.name: Partition(disk.name, disk.name, 0, 0, disk.size) for disk in facts.disks}
    found: dict[str, Mount] = {}
    for node, point, fs in (line.split() for line in facts.mounts):
        names = stack.kernel_names(node, facts)
        one = next(iter(names)) if len(names) == 1 else ""
        part = parts.get(one) or known.get(one)
        if part and part.disk not in known:  # of an array
            part = None
        shown = stack.shown(node, facts)
        if shown.startswith("loop"):
            continue
        mount = Mount(point, fs, shown, part, stack.ground([node], facts))
        if point == "/":
            found[node] = mount
        found.setdefault(node, mount)
    return list(found.values())


def firmware(facts: Facts, table: str, loader: str, own: list[Mount]) -> list[str]:
    """The partition that the machine starts from."""
    if not facts.efi:
        return ["part bios type=bios size=1M"] if table == "gpt" else []
    sizes = [
        each.part.size for each in own if each.part and each.point in ESP and each.fs == "vfat"
    ]
    least = ESP_SIZE if loader == "systemd-boot" else 64 * MIB
    size = max(least, *sizes) if sizes else ESP_SIZE
    return [f"part esp type=esp size={size // MIB}M fs=vfat mount={ESP[0]}"]


def parts(own: list[Mount], drawn: Drawn) -> list[str]:
    """The other partitions of the system, as large as they are."""
    found = []
    for each in own:
        if each.part and SYSTEM.fullmatch(each.point) and each.fs != "vfat":
            drawn.mounts.add(each.point)
            words = f"fs={usable(each.fs, drawn)} size={each.part.size // MIB}M mount={each.point}"
            found.append(f"part {named_by(each.point)} {words}")
    return found


def swap(facts: Facts, system: Device) -> list[str]:
    types = dict(line.split()[:2] for line in facts.contents)
    sizes = [p.size for p in facts.parts if p.disk == system.name and types.get(p.name) == "swap"]
    return [f"part swap type=swap fs=swap size={max(sizes) // MIB}M"] if sizes else []


def usable(fs: str, drawn: Drawn) -> str:
    fs = fs if fs in FILE_SYSTEMS else "ext4"
    drawn.systems.add(fs)
    return fs


def named_by(point: str) -> str:
    return re.sub("[^A-Za-z0-9]+", "-", point).strip("-")[:30] or "data"


def keep(
    mounts: list[Mount], named: dict[str, Device], system: Device, table: str, drawn: Drawn
) -> None:
    taken = {system.name}
    for each in mounts:
        where = {disk for disk, _ in each.places if disk in named}
        part, what = each.part, f"{each.point} ({each.node})"
        if each.point in drawn.mounts or (each.point in ESP and each.fs == "vfat"):
            continue
        if SYSTEM.fullmatch(each.point):
            drawn.notes.append(f"{what} is a file system of its own there; here it is in /")
        elif not (where and plain(each.point) and disks.mountable(each.fs)):
            drawn.notes.append(f"{what} is in neither layout nor keep")
        elif part and part.disk == system.name and part.number <= MAX_PARTS[table]:
            words = f"disk=system number={part.number} mount={each.point} {KEPT}"
            drawn.keep.append(f"part {named_by(each.point)} {words}")
            drawn.kept.add(each.point)
        elif system.name in where:
            drawn.notes.append(f"{what} lies on {system.name}: a deployment would ERASE it")
        elif part and part.disk not in taken:
            taken.add(part.disk)
            words = f"{named[part.disk].words()} part={part.number} mount={each.point} {KEPT}"
            drawn.keep.append(f"disk {named_by(each.point)} {words}")
            drawn.kept.add(each.point)
        else:
            drawn.keep += [
                f"disk kept-{named_by(disk)} {named[disk].words()}" for disk in where - taken
            ]
            taken |= where
            drawn.notes.append(f"{what} is kept, but nothing mounts it here")


def plain(point: str) -> bool:
    """Whether `keep` takes POINT."""
    usual = grammar.MOUNT.fullmatch(point) and not grammar.NEEDED.fullmatch(point)
    return bool(usual) and not re.search(r"[\\\s\"'#=]", point)
