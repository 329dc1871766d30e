"""Disk layouts as plain values, and all that follows from them. grammar.py reads them from text.

A disk has partitions; volumes lie on partitions and on each other: md RAID, LUKS, LVM. Partitions
are called DISK/PART, volumes by their names; what may carry a file system is a Carrier.
Sizes are bytes.
"""

import json
import re
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

from anemos.disks import Device, Fingerprint, Wanted

MIB = 1024**2
UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}
IMAGE = 8 * UNITS["G"]
MSDOS_END = 2**32 * 512  # its sector numbers have 32 bits
# Partition types by table, as sfdisk(8) takes them: UEFI specification 2.10, table 5.7; GRUB's
# manual, "BIOS installation"; the Discoverable Partitions Specification.
TYPES = {
    "gpt": {
        "linux": "L",
        "bios": "21686148-6449-6E6F-744E-656564454649",
        "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        "swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
        "lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        "raid": "A19D880F-05FC-4D3B-A006-743F0F84911E",
    },
    "msdos": {"linux": "83", "esp": "ef", "swap": "82", "lvm": "8e", "raid": "fd"},
}
LABELS = {"gpt": "gpt", "msdos": "dos"}  # what sfdisk(8) calls the tables
MAX_PARTS = {"gpt": 128, "msdos": 4}
# The least that mkfs accepts (mkfs.xfs(8), mkfs.btrfs(8)), or a little more.
FILE_SYSTEMS = {
    "ext4": MIB,
    "xfs": 300 * MIB,
    "btrfs": 128 * MIB,
    "vfat": MIB,
    "swap": MIB,
}
FSCK = ("ext4", "vfat")  # the others check themselves (fsck.xfs(8), fsck.btrfs(8))
LUKS_HEADER = 16 * MIB  # cryptsetup-luksFormat(8), --offset
LVM_EXTENT = 4 * MIB  # vgcreate(8), --physicalextentsize
SLOTS = ("a", "b")
SHARED = "/var/lib/anemos/boot"  # where a slot mounts what both start from, when it writes there
NAMESPACE = uuid.UUID("5b6c2f6e-9a53-4c37-9d1f-0e0b0f6a9b1d")


@dataclass(frozen=True)
class Part:
    """A partition; without a SIZE it gets the rest. OPTIONS are those of fstab(5).

    SLOT: which one it is the root file system of, if there are slots.
    """

    name: str
    type: str = "linux"
    size: int | None = None
    fs: str = ""
    mount: str = ""
    options: str = ""
    slot: str = ""


class Entry(NamedTuple):
    """An entry of an existing partition table: bytes, and its line as `sfdisk --dump` has it."""

    start: int
    size: int
    line: str


@dataclass(frozen=True)
class Table:
    """What stays of an existing partition table because partitions are kept (partitions.py)."""

    head: tuple[str, ...]  # lines of `sfdisk --dump`
    entries: Mapping[int, Entry]  # by the partition's number


@dataclass(frozen=True)
class Disk:
    """A disk to be erased. MATCH names the real one, IMAGE is the size of an image file of it.

    OLD: what stays on the real one. Whoever works on a real disk puts it there.
    """

    name: str
    match: Mapping[str, str]
    table: str = "gpt"
    image: int = IMAGE
    parts: tuple[Part, ...] = ()
    old: Table = Table((), {})

    def numbers(self) -> list[int]:
        """The numbers of the partitions: those that no kept one has, in order."""
        free = (n for n in range(1, MAX_PARTS["gpt"] + 1) if n not in self.old.entries)
        return [number for _, number in zip(self.parts, free, strict=False)]


@dataclass(frozen=True)
class Volume:
    """A block device made of others, or an LVM volume group (vg), which carries nothing but lv.

    ON: the partitions and volumes that it is made of.
    """

    kind: str  # raid, luks, vg, lv
    name: str
    on: tuple[str, ...]
    level: str = ""  # raid: 0, 1, 10
    key: str = ""  # luks: path of a secret file
    size: int | None = None  # lv; None: the rest
    fs: str = ""
    mount: str = ""
    options: str = ""
    slot: str = ""  # as a partition's
    uuid: str = ""  # raid, luks: as blkid(8) shows it, of one that is there already

    @property
    def node(self) -> Path:
        """Where it is once it is activated, in the initramfs and in the new system alike."""
        places = {"raid": "/dev/md", "luks": "/dev/mapper", "lv": f"/dev/{self.on[0]}"}
        return Path(places[self.kind], self.name)

    @property
    def wanted(self) -> Wanted:
        """Of one that is kept."""
        return Wanted(self.name, {}, kind=self.kind, on=self.on)

    def mounted(self, found: Fingerprint) -> "Mounted":
        """As of a disk that is kept."""
        return Mounted(self.mount, *found.filesystem(0), self.options or "defaults")


@dataclass(frozen=True)
class Carrier:
    """What a file system may lie on. Of a partition: its DISK and its NUMBER there, from 1."""

    path: str  # as `on=` calls it
    what: Part | Volume
    disk: Disk | None = None
    number: int = 0

    @property
    def fs(self) -> str:
        return self.what.fs

    @property
    def mount(self) -> str:
        return self.what.mount

    @property
    def options(self) -> str:
        """Fourth field of fstab(5). Nothing in a running system waits for an EFI system partition:
        one that is lost with its disk must not keep a mirrored system from starting.
        """
        esp = isinstance(self.what, Part) and self.what.type == "esp"
        return self.what.options or ("umask=0077,nofail" if esp else "defaults")

    def node(self, devices: Mapping[str, Device]) -> Path:
        """DEVICES: by the names of the layout's disks."""
        if self.disk is not None:
            return devices[self.disk.name].part(self.number)
        assert isinstance(self.what, Volume)
        return Path("/nonexistent") if self.what.kind == "vg" else self.what.node


@dataclass(frozen=True)
class Kept:
    """A disk, or a partition of a system disk (DISK), that no deployment may change.

    PART: the partition's number. Of a whole disk, it is what is mounted (0: the disk itself).
    """

    name: str
    match: Mapping[str, str]
    part: int = 0
    mount: str = ""
    options: str = ""
    disk: str = ""

    @property
    def only(self) -> int:
        """The partition that is kept, 0 where it is the whole disk."""
        return self.part if self.disk else 0

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.name, self.match, self.only)

    def mounted(self, found: Fingerprint) -> "Mounted":
        """Raises Failure when FOUND has nothing that can be mounted."""
        return Mounted(self.mount, *found.filesystem(self.part), self.options or "defaults")


class Mounted(NamedTuple):
    """A file system for fstab(5). The MOUNT of a swap is "none"."""

    mount: str
    uuid: str
    fs: str
    options: str = "defaults"


@dataclass(frozen=True)
class Layout:
    """VOLUMES stand behind what they are made of.

    Of two slots, one carries a root file system: the system is for that one (see `into`).
    """

    disks: tuple[Disk, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def carriers(self) -> dict[str, Carrier]:
        """All partitions and volumes, in order of their making, by what `on=` calls them."""
        parts = [
            Carrier(f"{disk.name}/{part.name}", part, disk, number)
            for disk in self.disks
            for part, number in zip(disk.parts, disk.numbers(), strict=True)
        ]
        volumes = [Carrier(volume.name, volume) for volume in self.volumes]
        return {each.path: each for each in (*parts, *volumes)}

    def filesystems(self) -> list[Carrier]:
        """All that has a file system or is swap."""
        return [each for each in self.carriers().values() if each.fs]

    def mounts(self) -> list[Carrier]:
        """What is mounted, parents before children."""
        found = [each for each in self.filesystems() if each.mount]
        return sorted(found, key=lambda each: each.mount)

    def beneath(self, carrier: Carrier) -> list[Carrier]:
        """CARRIER and all that it is made of, down to the partitions."""
        found, todo, known = [], [carrier.path], self.carriers()
        while todo:
            each = known[todo.pop(0)]
            found.append(each)
            todo += each.what.on if isinstance(each.what, Volume) else ()
        return found

    def root(self) -> Carrier:
        """What is mounted at /."""
        return next(each for each in self.mounts() if each.mount == "/")

    def slots(self) -> dict[str, Carrier]:
        """What the slots lie on; nothing without slots."""
        return {each.what.slot: each for each in self.carriers().values() if each.what.slot}

    def shared(self) -> Carrier | None:
        """With slots: the file system that the boot loader reads first, whichever slot starts."""
        if not self.slots():
            return None
        esps = (each for each in self.mounts() if getattr(each.what, "type", "") == "esp")
        boot = (each for each in self.mounts() if each.mount == SHARED)
        return next(boot, next(esps, None))

    def into(self, slot: str) -> Self:
        """The layout for a system in SLOT, a or b; the other one carries nothing then."""
        root = self.root().what
        full = {"fs": root.fs, "mount": root.mount, "options": root.options}
        fields = {"": {}, slot: full}
        return self.changed(lambda what: fields.get(what.slot, dict.fromkeys(full, "")))

    def only(self, slot: str) -> Self:
        """The layout for a system in SLOT, with its root file system alone: all else is there."""
        bare = dict.fromkeys(("fs", "mount", "options"), "")
        return self.into(slot).changed(lambda what: {} if what.slot == slot else bare)

    def changed(self, fields: Callable[[Part | Volume], Mapping[str, Any]]) -> Self:
        """The layout with other FIELDS of its partitions and volumes."""
        disks = (
            replace(disk, parts=tuple(replace(part, **fields(part)) for part in disk.parts))
            for disk in self.disks
        )
        volumes = (replace(volume, **fields(volume)) for volume in self.volumes)
        return replace(self, disks=tuple(disks), volumes=tuple(volumes))


class Extent(NamedTuple):
    """Where a partition lies, in bytes from the start of its disk."""

    start: int
    size: int


def size(text: str) -> int:
    """Bytes in "512", "1M", "8G". Raises ValueError."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,18})([KMGT]?)", text)
    if not match:
        raise ValueError(f"size {text!r} is not a number with a suffix K, M, G or T")
    return int(match[1]) * UNITS[match[2]]


def up(length: int, unit: int = MIB) -> int:
    return -(-length // unit) * unit


def extents(disk: Disk, capacity: int) -> list[Extent]:
    """Where DISK's partitions lie on CAPACITY bytes: in order, aligned to 1 MiB.

    The first and the last MiB stay free for the tables (GPT has a copy at the end) and, with an
    msdos table, for GRUB; what is kept stays where it is. Raises ValueError if they do not fit.
    """
    lengths = [None if part.size is None else up(part.size) for part in disk.parts]
    room = gaps(disk, capacity)

    def with_rest(mib: int) -> list[Extent]:
        return placed([mib * MIB if length is None else length for length in lengths], room)

    rest = 0
    if None in lengths:  # as large as possible
        largest = max((gap.size // MIB for gap in room), default=0)
        rest = bisect_left(range(1, largest + 1), True, key=lambda mib: not with_rest(mib))
    found = with_rest(rest)
    if capacity < 2 * MIB or len(found) < len(lengths) or (None in lengths and not rest):
        raise ValueError(f"layout: disk {disk.name!r}: partitions do not fit in {capacity} bytes")
    if disk.table == "msdos" and found and sum(found[-1]) > MSDOS_END:
        raise ValueError(f"layout: disk {disk.name!r}: table=gpt is needed beyond 2T")
    return found


def gaps(disk: Disk, capacity: int) -> list[Extent]:
    """What is free for new partitions, in whole MiB."""
    found, start = [], MIB
    for each in sorted(disk.old.entries.values()):
        found.append(Extent(start, each.start // MIB * MIB - start))
        start = max(start, up(each.start + each.size))
    found.append(Extent(start, (capacity // MIB - 1) * MIB - start))
    return [gap for gap in found if gap.size > 0]


def placed(lengths: Sequence[int], room: Sequence[Extent]) -> list[Extent]:
    """LENGTHS in order, in the gaps of ROOM in order; [] if they do not fit."""
    found: list[Extent] = []
    rest = iter(room)
    start = end = 0
    for length in lengths:
        while end - start < length:
            gap = next(rest, None)
            if gap is None:
                return []
            start, end = gap.start, sum(gap)
        found.append(Extent(start, length))
        start += length
    return found


def sizes(layout: Layout, capacities: Mapping[str, int]) -> dict[str, int]:
    """What every carrier has room for (a little less than it will), on disks of CAPACITIES.

    Raises ValueError when something does not fit.
    """
    found: dict[str, int] = {}
    for disk in layout.disks:
        places = extents(disk, capacities[disk.name])
        for part, place in zip(disk.parts, places, strict=True):
            found[f"{disk.name}/{part.name}"] = place.size
    for volume in layout.volumes:
        if volume.kind == "lv":
            continue
        found[volume.name] = usable(volume, [found[name] for name in volume.on])
        if volume.kind == "vg":
            found |= divided(layout, volume, found[volume.name])
    for each in layout.filesystems():
        if found[each.path] < FILE_SYSTEMS[each.fs]:
            least = f"{each.fs} needs {FILE_SYSTEMS[each.fs] // MIB} MiB"
            raise ValueError(f"layout: {each.path}: {least}, has {found[each.path]} bytes")
    return found


def usable(volume: Volume, members: Sequence[int]) -> int:
    """What VOLUME makes of MEMBERS, sizes in bytes, without its own data about them."""
    if volume.kind == "luks":
        found = members[0] - LUKS_HEADER
    elif volume.kind == "vg":  # pvcreate(8): metadata, and an alignment to chunks of a RAID
        found = sum((each - LVM_EXTENT) // LVM_EXTENT * LVM_EXTENT for each in members)
    else:
        # md(4), version 1.2: superblock, bitmap, and room that mdadm leaves for a later reshape:
        # at most a thousandth of the member.
        least = min(members) - min(members) // 512 - 2 * MIB
        found = {"0": least * len(members), "1": least, "10": least * len(members) // 2}[
            volume.level
        ]
    if found <= 0:
        raise ValueError(f"layout: {volume.kind} {volume.name!r}: no room on {volume.on[0]}")
    return found


def divided(layout: Layout, group: Volume, room: int) -> dict[str, int]:
    """The sizes of GROUP's logical volumes."""
    members = [v for v in layout.volumes if v.kind == "lv" and v.on == (group.name,)]
    found = {lv.name: up(lv.size, LVM_EXTENT) for lv in members if lv.size is not None}
    rest = room - sum(found.values())
    if rest < (LVM_EXTENT if len(found) < len(members) else 0):
        raise ValueError(f"layout: vg {group.name!r}: its volumes do not fit in {room} bytes")
    return {lv.name: found.get(lv.name, rest) for lv in members}


def identity(seed: str, *names: str) -> str:
    """A UUID that depends on SEED (a deployment's id, say) and NAMES alone (RFC 9562, 5.5)."""
    return str(uuid.uuid5(NAMESPACE, "/".join((seed, *names))))


def digest(layout: Layout, keep: Sequence[Kept | Volume]) -> str:
    """SHA-256 over all that LAYOUT and KEEP say."""
    text = json.dumps([asdict(layout), [asdict(each) for each in keep]], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def elements(layout: Layout, keep: Sequence[Kept | Volume]) -> dict[str, str]:
    """What LAYOUT and KEEP say of each disk, partition and volume, and of their order: digests.

    Another version of Anemos, which knows more words, makes the same of what says none of them.
    """
    disks = {f"disk {e.name!r}": {"match": e.match, "table": e.table} for e in layout.disks}
    rest = {path: vars(each.what) for path, each in layout.carriers().items()}
    kept = {f"keep {each.name!r}": vars(each) for each in keep}
    told = {**disks, **rest, **kept, "its order": {"order": [*disks, *rest]}}
    said = {name: {k: v for k, v in what.items() if v} for name, what in told.items()}
    texts = {name: json.dumps(what, sort_keys=True) for name, what in said.items()}
    return {name: sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def difference(before: Mapping[str, str], layout: Layout, keep: Sequence[Kept | Volume]) -> str:
    """Where LAYOUT and KEEP differ from those with the elements BEFORE; "" if nowhere."""
    now = elements(layout, keep)
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    if not before:
        return "the running system does not tell its layout"
    return f"the layout differs from the running one in {', '.join(names)}" if names else ""


def fs_uuid(carrier: Carrier, seed: str) -> str:
    """The UUID of CARRIER's file system, as blkid(8) shows it: vfat's has 32 bits."""
    found = identity(seed, carrier.path, "fs")
    return f"{found[:4]}-{found[4:8]}".upper() if carrier.fs == "vfat" else found


def sfdisk_script(disk: Disk, capacity: int, seed: str) -> str:
    """Input for sfdisk(8) that writes DISK's table, with the entries that are kept as they are."""
    head = list(disk.old.head)
    if not head:
        own = identity(seed, disk.name)
        own = own if disk.table == "gpt" else f"0x{own[:8]}"
        head = [f"label: {LABELS[disk.table]}", f"label-id: {own}"]
    lines = {number: entry.line for number, entry in disk.old.entries.items()}
    places = extents(disk, capacity)
    for number, part, place in zip(disk.numbers(), disk.parts, places, strict=True):
        words = [
            f"start={place.start // 1024}KiB",
            f"size={place.size // 1024}KiB",
            f"type={TYPES[disk.table][part.type]}",
        ]
        if disk.table == "gpt":
            words += [f"uuid={identity(seed, disk.name, part.name)}", f'name="{part.name}"']
        lines[number] = f"{number} : {', '.join(words)}"
    return "\n".join([*head, "", *(lines[number] for number in sorted(lines)), ""])


def fstab(layout: Layout, seed: str, kept: Sequence[Mounted] = ()) -> str:
    """fstab(5), with the file systems of KEPT."""
    own = [
        Mounted(each.mount or "none", fs_uuid(each, seed), each.fs, each.options)
        for each in layout.filesystems()
        if each.mount or each.fs == "swap"
    ]
    return "".join(
        f"UUID={each.uuid} {each.mount} {each.fs} {each.options} 0 {fsck_pass(each)}\n"
        for each in sorted([*own, *kept])
    )


def fsck_pass(each: Mounted) -> int:
    if each.fs not in FSCK:
        return 0
    return 1 if each.mount == "/" else 2


def early(layout: Layout) -> list[Volume]:
    """The volumes that / and /usr lie on: the new system's own initramfs has to activate them."""
    needed = [each for each in layout.mounts() if each.mount in ("/", "/usr")]
    below = [each.what for carrier in needed for each in layout.beneath(carrier)]
    return [what for what in dict.fromkeys(below) if isinstance(what, Volume)]


def crypttab(layout: Layout, seed: str) -> str:
    """crypttab(5): what / lies on is asked for at the console, the rest has its key in a file."""
    asked = early(layout)
    lines = []
    for volume in volumes(layout, "luks"):
        key, options = ("none", "luks,initramfs") if volume in asked else (f"/{volume.key}", "luks")
        lines.append(f"{volume.name} UUID={volume_uuid(volume, seed)} {key} {options}\n")
    return "".join(lines)


def mdadm_conf(layout: Layout, seed: str) -> str:
    """The ARRAY lines of mdadm.conf(5)."""
    return "".join(
        f"ARRAY {volume.node} metadata=1.2 UUID={array_uuid(volume, seed)}\n"
        for volume in volumes(layout, "raid")
    )


def kept_arrays(kept: Sequence[Volume], known: Sequence[Fingerprint]) -> str:
    """The same for the arrays in KEPT, as their members in KNOWN say."""
    uuids = {each.name: uuid for each in known for _, uuid, _ in each.filesystems}
    made = {each.node: md_uuid(uuids[each.on[0]]) for each in kept if each.kind == "raid"}
    return "".join(f"ARRAY {node} UUID={uuid}\n" for node, uuid in made.items())


def volumes(layout: Layout, kind: str) -> Iterator[Volume]:
    return (each for each in layout.volumes if each.kind == kind)


def array_uuid(volume: Volume, seed: str) -> str:
    """As mdadm(8) writes it."""
    return md_uuid(volume_uuid(volume, seed))


def volume_uuid(volume: Volume, seed: str) -> str:
    """As blkid(8) shows it."""
    return volume.uuid or identity(seed, volume.name)


def md_uuid(uuid: str) -> str:
    """UUID, as blkid(8) shows that of an array, as mdadm(8) writes it."""
    digits = uuid.replace("-", "")
    return ":".join(digits[start : start + 8] for start in range(0, 32, 8))
