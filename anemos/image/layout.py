"""Disk layouts: what an IMGBUILD's `layout` and `keep` say, as plain values. Plans only.

A layout is a text of statements, one a line; a `part` belongs to the `disk` above it:

    disk system serial=demo-system image=4G table=gpt
    part bios   type=bios size=1M
    part root   fs=ext4 mount=/

Sizes are bytes, written with a suffix K, M, G or T (powers of 1024). The partition without a size
takes the rest of its disk.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MIB = 1024**2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")  # GPT has room for 36 characters
MOUNT = re.compile(r"/|(/(?!\.\.?(/|$))[^/]+)+")  # absolute, without // . .. and a slash at its end
UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}
IMAGE = 8 * UNITS["G"]
TABLES = ("gpt", "msdos")
MAX_PARTS = {"gpt": 128, "msdos": 4}
MSDOS_END = 2**32 * 512  # its sector numbers have 32 bits
FILE_SYSTEMS = ("ext4",)
MATCHES = ("serial", "wwn", "size")
# Partition types by table, as sfdisk(8) takes them: UEFI specification 2.10, table 5.7, and
# GRUB's manual, "BIOS installation".
TYPES = {
    "gpt": {"linux": "L", "bios": "21686148-6449-6E6F-744E-656564454649"},
    "msdos": {"linux": "83"},
}
NAMESPACE = uuid.UUID("5b6c2f6e-9a53-4c37-9d1f-0e0b0f6a9b1d")


@dataclass(frozen=True)
class Part:
    name: str
    type: str = "linux"
    size: int | None = None
    fs: str = ""
    mount: str = ""


@dataclass(frozen=True)
class Disk:
    """A disk to be erased. MATCH names the real one, IMAGE is the size of an image file of it."""

    name: str
    match: Mapping[str, str]
    table: str = "gpt"
    image: int = IMAGE
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A disk that no deployment may change; PART of it (0: the whole disk) is mounted at MOUNT."""

    name: str
    match: Mapping[str, str]
    part: int = 0
    mount: str = ""


@dataclass(frozen=True)
class Layout:
    disks: tuple[Disk, ...] = ()

    def mounts(self) -> list[tuple[Disk, int, Part]]:
        """What is mounted, parents before children: (disk, number of the partition from 1, it)."""
        found = [(d, n, p) for d in self.disks for n, p in enumerate(d.parts, 1) if p.mount]
        return sorted(found, key=lambda item: item[2].mount)


class Extent(NamedTuple):
    """Where a partition lies, in bytes from the start of its disk."""

    start: int
    size: int


def parse(text: str) -> Layout:
    """The layout that TEXT describes. Raises ValueError with the offending line."""
    disks: list[Disk] = []
    parts: list[list[Part]] = []
    for line, words, options in statements(text):
        if words[0] == "disk":
            disks.append(parse_disk(line, words[1], options))
            parts.append([])
        elif words[0] == "part" and disks:
            parts[-1].append(parse_part(line, words[1], options, disks[-1]))
        else:
            raise ValueError(f"layout: {line!r}: expected `disk NAME ...` or, below one, `part`")
    whole = Layout(
        tuple(
            Disk(d.name, d.match, d.table, d.image or roomy(p), tuple(p))
            for d, p in zip(disks, parts, strict=True)
        )
    )
    check(whole)
    return whole


def roomy(parts: Sequence[Part]) -> int:
    """Bytes of an image file for PARTS, when the layout does not say."""
    return max(IMAGE, sum(part.size or 0 for part in parts) + UNITS["G"])


def parse_keep(text: str) -> tuple[Kept, ...]:
    """The kept disks: `disk NAME serial=... [part=N] [mount=/path]`, one a line."""
    kept = []
    for line, words, options in statements(text):
        if words[0] != "disk":
            raise ValueError(f"keep: {line!r}: expected `disk NAME ...`")
        match = take_match(line, options)
        part = options.pop("part", "0")
        if not re.fullmatch(r"[0-9]{1,3}", part):
            raise ValueError(f"keep: {line!r}: part is not a number")
        kept.append(Kept(words[1], match, int(part), options.pop("mount", "")))
        refuse_rest(line, options)
        if kept[-1].mount and not MOUNT.fullmatch(kept[-1].mount):
            raise ValueError(f"keep: {line!r}: a mount is an absolute path")
    refuse_twice("keep", "mount", [k.mount for k in kept if k.mount])
    refuse_twice("keep", "disk", [k.name for k in kept])
    return tuple(kept)


def statements(text: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    for line in filter(None, (line.strip() for line in text.splitlines())):
        words = [word for word in line.split() if "=" not in word]
        pairs = [word.split("=", 1) for word in line.split() if "=" in word]
        options = {key: value for key, value in pairs}
        if len(words) != 2:
            raise ValueError(f"{line!r}: expected a keyword and one name before the options")
        if not NAME.fullmatch(words[1]):
            raise ValueError(f"{line!r}: a name has up to 36 letters, digits, dots, _ and -")
        if len(options) != len(pairs):
            raise ValueError(f"{line!r}: an option stands there twice")
        yield line, words, options


def parse_disk(line: str, name: str, options: dict[str, str]) -> Disk:
    disk = Disk(
        name,
        take_match(line, options),
        table=one_of(line, options.pop("table", "gpt"), TABLES),
        image=length(line, options.pop("image")) if "image" in options else 0,
    )
    refuse_rest(line, options)
    return disk


def parse_part(line: str, name: str, options: dict[str, str], disk: Disk) -> Part:
    wanted = options.pop("size", "")
    part = Part(
        name,
        type=one_of(line, options.pop("type", "linux"), tuple(TYPES[disk.table])),
        size=length(line, wanted) if wanted else None,
        fs=one_of(line, options.pop("fs", ""), ("", *FILE_SYSTEMS)),
        mount=options.pop("mount", ""),
    )
    refuse_rest(line, options)
    if part.mount and not (part.fs and MOUNT.fullmatch(part.mount)):
        raise ValueError(f"layout: {line!r}: a mount is an absolute path and needs a file system")
    return part


def take_match(line: str, options: dict[str, str]) -> dict[str, str]:
    match = {key: options.pop(key) for key in MATCHES if key in options}
    if not match:
        raise ValueError(f"{line!r}: which disk? one of {', '.join(m + '=' for m in MATCHES)}")
    if "size" in match:
        match["size"] = str(length(line, match["size"]))
    if not all(match.values()):  # many disks have no serial number at all
        raise ValueError(f"{line!r}: {', '.join(match)} must not be empty")
    return match


def refuse_rest(line: str, options: Mapping[str, str]) -> None:
    if options:
        raise ValueError(f"{line!r}: unknown option {next(iter(options))!r}")


def one_of(line: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{line!r}: {value!r} is not one of {', '.join(filter(None, allowed))}")
    return value


def length(line: str, text: str) -> int:
    try:
        return size(text)
    except ValueError as error:
        raise ValueError(f"{line!r}: {error}") from None


def size(text: str) -> int:
    """Bytes in "512", "1M", "8G". Raises ValueError."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,18})([KMGT]?)", text)
    if not match:
        raise ValueError(f"size {text!r} is not a number with a suffix K, M, G or T")
    return int(match[1]) * UNITS[match[2]]


def check(layout: Layout) -> None:
    mounts = [part.mount for _, _, part in layout.mounts()]
    if layout.disks and mounts.count("/") != 1:
        raise ValueError(f"layout: {mounts.count('/')} partitions are mounted at /, not one")
    refuse_twice("layout", "mount", mounts)
    refuse_twice("layout", "disk", [d.name for d in layout.disks])
    refuse_twice(
        "layout", "match", [" ".join(map("=".join, d.match.items())) for d in layout.disks]
    )
    for disk in layout.disks:
        refuse_twice(f"layout: disk {disk.name!r}", "part", [part.name for part in disk.parts])
        if len(disk.parts) > MAX_PARTS[disk.table]:
            most = f"at most {MAX_PARTS[disk.table]} partitions"
            raise ValueError(f"layout: disk {disk.name!r}: {most} with table={disk.table}")
        if sum(part.size is None for part in disk.parts) > 1:
            raise ValueError(f"layout: disk {disk.name!r}: two partitions without a size")
        try:
            extents(disk, disk.image)
        except ValueError as error:
            raise ValueError(f"{error}, its image=") from None


def refuse_twice(where: str, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {kind} {name!r} stands there twice")


def extents(disk: Disk, capacity: int) -> list[Extent]:
    """Where DISK's partitions lie on CAPACITY bytes: in order, aligned to 1 MiB.

    The first and the last MiB stay free for the tables (GPT has a copy at the end) and, with an
    msdos table, for GRUB. Raises ValueError when they do not fit.
    """
    lengths = [None if p.size is None else -(-p.size // MIB) * MIB for p in disk.parts]
    rest = (capacity // MIB - 2) * MIB - sum(filter(None, lengths))
    if rest < (MIB if None in lengths else 0):
        raise ValueError(f"layout: disk {disk.name!r}: partitions do not fit in {capacity} bytes")
    found, start = [], MIB
    for length in lengths:
        found.append(Extent(start, rest if length is None else length))
        start += found[-1].size
    if disk.table == "msdos" and start > MSDOS_END:
        raise ValueError(f"layout: disk {disk.name!r}: table=gpt is needed beyond 2T")
    return found


def identity(seed: str, *names: str) -> str:
    """A UUID that depends on SEED (a deployment's id, say) and NAMES alone (RFC 9562, 5.5)."""
    return str(uuid.uuid5(NAMESPACE, "/".join((seed, *names))))


def sfdisk_script(disk: Disk, capacity: int, seed: str) -> str:
    """Input for sfdisk(8) that writes DISK's table."""
    if disk.table == "gpt":
        head = ["label: gpt", f"label-id: {identity(seed, disk.name)}"]
    else:
        head = ["label: dos", f"label-id: 0x{identity(seed, disk.name)[:8]}"]
    lines = []
    for part, extent in zip(disk.parts, extents(disk, capacity), strict=True):
        words = [
            f"start={extent.start // 1024}KiB",
            f"size={extent.size // 1024}KiB",
            f"type={TYPES[disk.table][part.type]}",
        ]
        if disk.table == "gpt":
            words += [f"uuid={identity(seed, disk.name, part.name)}", f'name="{part.name}"']
        lines.append(", ".join(words))
    return "\n".join([*head, *lines, ""])


def fs_uuid(disk: Disk, part: Part, seed: str) -> str:
    return identity(seed, disk.name, part.name, "fs")


def root_uuid(layout: Layout, seed: str) -> str:
    return next(fs_uuid(d, p, seed) for d, _, p in layout.mounts() if p.mount == "/")


def fstab(layout: Layout, seed: str, kept: Mapping[str, tuple[str, str]]) -> str:
    """fstab(5). KEPT: file systems of kept disks, mount point -> (UUID, type)."""
    entries = {p.mount: (fs_uuid(d, p, seed), p.fs) for d, _, p in layout.mounts()} | dict(kept)
    return "".join(
        f"UUID={uuid} {mount} {fs} defaults 0 {1 if mount == '/' else 2}\n"
        for mount, (uuid, fs) in sorted(entries.items())
    )
