"""Disks of the running kernel: which is which, and what is on them."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anemos.log import die
from anemos.run import Argv, CommandFailed, run

SYS_BLOCK = Path("/sys/block")
PATIENCE_S = 10.0
SECTOR = 512  # the unit of /sys/block/*/size, not the disk's own (kernel: block/stat.rst)
# Where the kernel shows a serial: virtio; NVMe and MMC; SCSI and ATA (VPD page 0x80, 4 byte head).
SERIALS = ("serial", "device/serial", "device/vpd_pg80")
VPD_HEAD = 4
WWNS = ("wwid", "device/wwid")
# A disk's place in sysfs: below PCI devices. Of SAS, USB, iSCSI, Hyper-V and Xen no slot is told.
PCI = r"[0-9a-f]{4,}(?::[0-9a-f]{2}){2}\.[0-7]"
PLACE = re.compile(
    rf".*/devices/pci[^/]*/(?:{PCI}/)*(?P<pci>{PCI})/(?:virtio\d+/)?"
    r"(?:block|(?P<nvme>nvme)/nvme\d+|(?:(?P<ata>ata)\d+/)?host(?P<host>\d+)/target[^/]*"
    r"/\d+:(?P<unit>\d+:\d+:\d+)/block)/[^/]+"
)
HOST, PORT = re.compile(r"host\d+"), "ata_port/{}/port_no"
VIRTUAL = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "bcache", "zd", "drbd")
# What blkid(8) calls the members of something larger that have one UUID in common...
POOL = re.compile(r".*raid_member|btrfs|bcachefs|stratis|zfs_member")
# ... and all else that mount(8) cannot mount: of libblkid's superblocks, those of no file system.
NO_FILE_SYSTEM = re.compile(
    r".*_member|crypto_LUKS|BitLocker|cs_fvault2|swap|swsuspend|jbd|xfs_external_log|bcache"
    r"|stratis|vdo|ubi|drbd.*|DM_.*|ceph_bluestore"
)
PROBED = ("UUID", "TYPE", "LABEL", "PTTYPE", "EXT_JOURNAL", "LOGUUID", "POOL_UUID")
NO_MOUNT = "keep it without mount=; the definition may say how it is put to use"


@dataclass(frozen=True)
class Device:
    name: str  # of the running kernel: never kept beyond it
    serial: str
    wwn: str
    size: int  # bytes
    slot: str = ""  # where it is plugged in, as /dev/disk/by-path calls it

    @property
    def path(self) -> Path:
        return Path("/dev") / self.name

    def part(self, number: int) -> Path:
        """The node of partition NUMBER; 0: the disk itself."""
        infix = "p" if self.name[-1].isdigit() else ""
        return Path(f"/dev/{self.name}{infix}{number}") if number else self.path

    def same(self, other: "Device") -> bool:
        """Whether OTHER is this disk, by all that both kernels tell of it: drivers differ."""
        names = [("serial", self.serial, other.serial), ("wwn", self.wwn, other.wwn)]
        same = (plain(key, a) == plain(key, b) or not (a and b) for key, a, b in names)
        return self.size == other.size and all(same)

    def describe(self) -> str:
        return f"{self.name} ({self.words()}, {self.size / 1e9:.1f} GB)"

    def words(self) -> str:
        """What names it in `layout` and `keep`, as it is written there."""
        known = {"serial": self.serial, "wwn": self.wwn}
        last = {"path": self.slot} if self.slot else {"size": str(self.size)}
        return phrase({k: v for k, v in known.items() if v} or last)


def phrase(match: Mapping[str, str]) -> str:
    return " ".join(f"{key}={quoted(value)}" for key, value in match.items())


def quoted(value: str) -> str:
    """VALUE for `layout`, which stands between single quotes in an IMGBUILD (see grammar.py)."""
    value = value.replace('"', r"\042").replace("'", r"\047")
    return f'"{value}"' if " " in value else value


def plain(key: str, value: str) -> str:
    """VALUE as it is compared: sysfs, udev and lsblk(8) write WWNs and blanks in different ways."""
    if key == "path":
        return re.sub(r"^(/dev/disk/by-path/)?(virtio-)?|(?<=\d)\.0$", "", value)
    if key == "wwn":
        value = re.sub(r"^(0x|naa\.|eui\.|nvme\.|uuid\.)", "", value.lower())
    return " ".join(value.replace("_", " ").split())


def devices(sys_block: Path = SYS_BLOCK) -> list[Device]:
    """The disks that the kernel knows now, as sysfs(5) shows them; no udev is needed."""
    entries = sorted(sys_block.iterdir())
    return [device(each) for each in entries if not (each.name.startswith(VIRTUAL) or hidden(each))]


def hidden(entry: Path) -> bool:
    """One of several paths to an NVMe disk, which is there itself, too."""
    return attribute(entry, ["hidden"]) == "1"


def device(entry: Path) -> Device:
    size = int((entry / "size").read_text()) * SECTOR
    names = attribute(entry, SERIALS), attribute(entry, WWNS)
    place = entry.resolve()
    controller = next((each.parent for each in place.parents if HOST.fullmatch(each.name)), place)
    hosts = [int(each.name[4:]) for each in controller.glob("host*")]
    number = attribute(entry, ["nsid"]) or attribute(controller, [PORT.format(controller.name)])
    return Device(entry.name, *names, size, slot(f"{place}", number, min(hosts, default=0)))


def slot(place: str, number: str, first: int) -> str:
    """What udev calls the slot of a disk at PLACE in sysfs, "" for what is not known (systemd:
    udev-builtin-path_id.c).

    NUMBER: of its name space or its port. FIRST: of the hosts, which the kernel counts through, the
    controller's first.
    """
    found = PLACE.fullmatch(place)
    if not found:
        return ""
    kind = found["nvme"] or found["ata"]
    if kind:
        return f"pci-{found['pci']}-{kind}-{number}" if number else ""
    unit = f"-scsi-{int(found['host']) - first}:{found['unit']}" if found["host"] else ""
    return f"pci-{found['pci']}{unit}"


def attribute(entry: Path, places: Sequence[str]) -> str:
    for place in places:
        try:
            data = (entry / place).read_bytes()
        except OSError:  # also an attribute that exists but has nothing to say (EINVAL, ENXIO)
            continue
        data = data[VPD_HEAD:] if place.endswith("vpd_pg80") else data
        # The bar and control characters would break the line of server/facts.sh.
        return re.sub(r"[\x00-\x1f|]", "", data.decode(errors="replace")).strip(" ")
    return ""


def named_by(wanted: Sequence[Mapping[str, str]]) -> list[tuple[Device, str]]:
    """The disks that any of WANTED names, each with its number since the boot: one that was taken
    away and put back has another (kernel: ABI/stable/sysfs-block, diskseq)."""
    found = [each for each in devices() if any(matches(each, match) for match in wanted)]
    return [(each, attribute(SYS_BLOCK / each.name, ["diskseq"])) for each in found]


def read_only(found: Device) -> bool:
    return attribute(SYS_BLOCK / found.name, ["ro"]) == "1"


def partitions(found: Device) -> dict[int, Path]:
    """The partitions that the kernel knows on FOUND: number -> node."""
    files = (SYS_BLOCK / found.name).glob("*/partition")
    return {int(file.read_text()): Path("/dev") / file.parent.name for file in files}


def written(name: str) -> int:
    """Sectors written to, or discarded on, the disk or partition NAME since the kernel found it.

    Fields 7 and 14 (kernel: block/stat.rst); a disk's count has its partitions' in it.
    """
    fields = Path("/sys/class/block", name, "stat").read_text().split()
    return int(fields[6]) + int(fields[13])


def written_by_part(found: Device) -> tuple[int, dict[int, int]]:
    """As `written`: of the disk FOUND, and of its partitions by number, at one moment. A disk that
    others write to, an array's resync say, is asked until nothing comes in between, for PATIENCE_S.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        whole = written(found.name)
        parts = {number: written(node.name) for number, node in partitions(found).items()}
        if written(found.name) == whole or time.monotonic() > end:
            return whole, parts


def nodes(found: Device) -> list[Path]:
    """The disk FOUND and its partitions."""
    return [found.path, *partitions(found).values()]


def dump(found: Device) -> str:
    """What `sfdisk --dump` says of FOUND's partition table; "" if there is none."""
    return told(["sfdisk", "--dump", found.path], 1)


def told(argv: Argv, *nothing: int) -> str:
    """What ARGV prints; "" when it ends with one of the statuses that mean NOTHING is there. One
    that was killed has not looked: what it would have found may be what has to stay."""
    try:
        return run(argv)
    except CommandFailed as failed:
        if failed.returncode not in nothing:
            raise
        return ""


def matches(found: Device, match: Mapping[str, str]) -> bool:
    known = {"serial": found.serial, "wwn": found.wwn, "path": found.slot, "size": str(found.size)}
    return all(plain(key, known[key]) == plain(key, value) for key, value in match.items())


def resolve(name: str, match: Mapping[str, str], found: Sequence[Device]) -> Device:
    """The one device of FOUND that MATCH names. Raises Failure for none and for several."""
    hits = [each for each in found if matches(each, match)]
    if len(hits) != 1:
        seen = "; ".join(each.describe() for each in hits or found)
        count = len(hits) or "no"
        hint = f"seen: {seen}; {spelled(name, found, hits)}"
        die(f"disk {name!r}: {count} disks match {phrase(match)}", hint=hint)
    return hits[0]


def spelled(name: str, found: Sequence[Device], hits: Sequence[Device]) -> str:
    """How to write the disk NAME when HITS, none or several of FOUND, match: the first, say."""
    for one in hits or found:
        match = {"serial": one.serial, "wwn": one.wwn, "path": one.slot, "size": str(one.size)}
        for keys in (("serial", "wwn"), ("serial", "wwn", "path"), (*match,)):
            wanted = {key: match[key] for key in keys if match[key]}
            if wanted and [each for each in found if matches(each, wanted)] == [one]:
                return f"{one.name} is written: disk {name} {phrase(wanted)}"
    return "nothing that could be written tells them apart"


@dataclass(frozen=True)
class Wanted:
    """A disk that is kept, or ONLY that partition of it, by what finds it.

    Of a volume (volumes.py): its KIND, raid, vg or lv, and the names of what it lies ON.
    """

    name: str
    match: Mapping[str, str]
    only: int = 0
    kind: str = ""
    on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a kept disk, partition or volume and its content, equal on every kernel.

    It holds the partition table and the identity of every file system, not their data: the old
    and the new system write to a kept disk as they please, only a deployment must not.
    """

    name: str
    serial: str  # of a volume: its path, vg0/data
    size: int
    digest: str  # SHA-256 over the partition table and the file systems
    filesystems: tuple[tuple[int, str, str], ...]  # (partition, UUID, type); 0: the whole disk

    def filesystem(self, part: int) -> tuple[str, str]:
        """UUID and type of the file system on partition PART. Raises Failure without one."""
        where = f"partition {part}" if part else "it"
        for number, uuid, kind in self.filesystems:
            if number == part and not mountable(kind):
                die(
                    f"kept {self.name!r}: {kind} on {where}, which cannot be mounted", hint=NO_MOUNT
                )
            if number == part and uuid:
                return uuid, kind
        die(f"kept {self.name!r}: no file system on {where}")


def is_pool(kind: str) -> bool:
    """Whether what is done to one with the UUID of such a thing is done to all that have it."""
    return bool(POOL.fullmatch(kind))


def mountable(kind: str) -> bool:
    """Whether KIND, as blkid(8) calls it, is a file system."""
    return not NO_FILE_SYSTEM.fullmatch(kind)


def fingerprints(wanted: Iterable[Wanted]) -> list[Fingerprint]:
    """As this kernel reads them. Raises Failure for what is missing or ambiguous."""
    found = devices()
    named = [(each, resolve(each.name, each.match, found)) for each in wanted]
    return [fingerprint(each.name, device, each.only) for each, device in named]


def fingerprint(name: str, found: Device, only: int = 0) -> Fingerprint:
    """Of the disk FOUND, or ONLY of that partition of it. Raises Failure without one."""
    table = partition_table(found)
    if only:
        table = [part for part in table if part["number"] == only]
        if not table:
            die(f"kept partition {name!r}: {found.describe()} has no partition {only}")
    numbers = [*([] if only else [0]), *(part["number"] for part in table)]
    filesystems = {number: probe(found.part(number)) for number in numbers}
    text = json.dumps([found.serial, found.size, table, filesystems], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    known = tuple((n, fs.get("UUID", ""), fs.get("TYPE", "")) for n, fs in filesystems.items())
    return Fingerprint(name, found.serial, found.size, digest, known)


def partition_table(found: Device) -> list[dict[str, Any]]:
    """The partitions as sfdisk(8) sees them, without names of the running kernel."""
    table = json.loads(told(["sfdisk", "--json", found.path], 1) or "{}").get("partitiontable", {})
    return [portable(part) for part in table.get("partitions", [])]


def portable(part: dict[str, Any]) -> dict[str, Any]:
    keys = ("start", "size", "type", "uuid", "name", "attrs", "bootable")
    number = int(re.findall(r"\d+", part["node"])[-1])
    return {"number": number} | {key: part[key] for key in keys if key in part}


def probe(node: Path) -> dict[str, str]:
    """What blkid(8) reads from NODE itself, past its cache, by the names of PROBED."""
    # 2: nothing recognised; 8: several things
    lines = told(["blkid", "--probe", "--output", "export", node], 2, 8).splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    return {key: pairs[key] for key in PROBED if key in pairs}
