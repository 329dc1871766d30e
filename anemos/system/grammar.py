"""Reads an IMGBUILD's `layout` and `keep`: statements, one a line. docs/imgbuild.md explains them.

    disk system serial=S1 table=gpt
    part bios   type=bios size=1M
    part pv     type=lvm
    vg   vg0    on=system/pv
    lv   root   on=vg0 fs=ext4 mount=/

Every function raises ValueError with the offending line.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from anemos.disks import plain
from anemos.system.layout import (
    FILE_SYSTEMS,
    IMAGE,
    MAX_PARTS,
    SHARED,
    SLOTS,
    TYPES,
    UNITS,
    Disk,
    Kept,
    Layout,
    Part,
    Volume,
    size,
    sizes,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}")  # GPT has room for 36 characters
# mdadm(8) has room for 27 beside "any:"; device-mapper doubles hyphens.
VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,24}")
# lvm(8), "valid names", and /dev/mapper/control.
RESERVED = re.compile(
    r"control|snapshot.*|pvmove.*|.*_([cmrt](data|meta)|corig|m?image|rimage|mlog|pmspare|v(data|origin)).*"
)
MOUNT = re.compile(r"/|(/(?!\.\.?(/|$))[^/]+)+")  # absolute, without // . .. and a slash at its end
# What has to be there before anything is mounted, and what the kernel, systemd and Anemos mount.
NEEDED = re.compile(
    r"/etc|/(dev|proc|run|sys|etc/(anemos|systemd)|var/(run|lock)"
    r"|(usr/)?(bin|sbin|lib(32|64|x32|exec)?))(/.*)?"
)
# What two slots cannot share: kernels, programs, and what package managers know of these.
OWN = re.compile(r"/(boot|usr|var|var/lib(/(anemos|apk|apt|dpkg|pacman)(/.*)?)?)")
IN_PLACE = ("ext4", "vfat")  # they write a file's bytes where they are (slots.py)
OPTIONS = re.compile(r"[^\s#,]+(,[^\s#,]+)*")
SECRET = re.compile(r"(?!.*(^|/)\.\.?(/|$))[^/]+(/[^/]+)+")
MATCHES = ("serial", "wwn", "path", "size")
# Names in /dev/disk/by-id: what udev(7) makes of a WWN, or of model and serial.
BY_ID = re.compile(
    r"(?:/dev/disk/by-id/)?(?:(?:wwn-|nvme-(?=(?:eui|nvme|uuid)\.)|scsi-3)(?P<wwn>.+)"
    r"|(?:virtio-|(?:ata|nvme|mmc)-.+_)(?P<serial>[^_]{3,})(?:_\d+)?)"
)
WORD = re.compile(r"""(?:[^\s"]|"[^"]*")+""")
ESCAPED = re.compile(r"\\0(40|42|47)")  # a blank and both quotes, as in fstab(5)
LEVELS = ("0", "1", "10")
CARRIES = ("fs", "mount", "options")
# The words of each kind of volume beside `on`.
VOLUMES = {
    "raid": ("level", *CARRIES),
    "luks": ("key", *CARRIES),
    "vg": (),
    "lv": ("size", "slots", *CARRIES),
}
# The kept volumes, and what each may lie on.
KEPT_ON = {"raid": ("part",), "vg": ("part", "raid"), "lv": ("vg",)}
Place = TypeVar("Place", bound=Part | Volume)


@dataclass
class Draft:
    """A layout while it is read."""

    disks: list[Disk] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)  # carrier -> its line
    used: dict[str, str] = field(default_factory=dict)  # carrier -> what lies on it
    below_disk: bool = False

    def layout(self) -> Layout:
        disks = (
            replace(disk, image=disk.image or roomy([*disk.parts, *self.volumes]))
            for disk in self.disks
        )
        return Layout(tuple(disks), tuple(self.volumes))


def parse(text: str) -> Layout:
    """The layout that TEXT describes."""
    draft = Draft()
    for line, (kind, name), options in statements(text):
        if kind == "disk":
            add_disk(draft, line, name, options)
        elif kind == "part" and draft.below_disk:
            add_part(draft, line, name, options)
        elif kind in VOLUMES:
            add_volume(draft, line, kind, name, options)
        else:
            kinds = f"`disk NAME ...`, {', '.join(VOLUMES)} or, below a disk, `part`"
            raise ValueError(f"layout: {line!r}: expected {kinds}")
        if options:
            raise ValueError(f"layout: {line!r}: unknown option {next(iter(options))!r}")
    whole = with_shared(draft.layout())
    check(whole)
    return whole


def roomy(parts: Sequence[Part | Volume]) -> int:
    """Bytes of a sparse image file for a disk with PARTS, when the layout does not say."""
    return max(IMAGE, sum(part.size or 0 for part in parts) + UNITS["G"])


def statements(text: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.count('"') % 2:
            raise ValueError(f"{line!r}: a quote is not closed")
        found = [word.replace('"', "") for word in WORD.findall(line)]
        words = [word for word in found if "=" not in word]
        pairs = [word.split("=", 1) for word in found if "=" in word]
        options = {key: value for key, value in pairs}
        if blanks := [key for key, value in pairs if " " in value and key not in MATCHES]:
            raise ValueError(f"{line!r}: {blanks[0]}= has no blanks")
        if len(words) != 2:
            raise ValueError(f"{line!r}: expected a keyword and one name before the options")
        if not NAME.fullmatch(words[1]):
            raise ValueError(f"{line!r}: a name has up to 36 letters, digits, dots, _ and -")
        if len(options) != len(pairs):
            raise ValueError(f"{line!r}: an option stands there twice")
        yield line, words, options


def add_disk(draft: Draft, line: str, name: str, options: dict[str, str]) -> None:
    declare(draft, line, name)
    draft.below_disk = True
    draft.disks.append(
        Disk(
            name,
            take_match(line, options),
            table=one_of(line, options.pop("table", "gpt"), tuple(TYPES)),
            image=length(line, options.pop("image")) if "image" in options else 0,
        )
    )


def add_part(draft: Draft, line: str, name: str, options: dict[str, str]) -> None:
    disk = draft.disks[-1]
    kind = one_of(line, options.pop("type", "linux"), tuple(TYPES[disk.table]))
    wanted = options.pop("size", "")
    part = Part(name, kind, length(line, wanted) if wanted else None, *take_carried(line, options))
    if part.type == "esp" and part.fs != "vfat":
        raise ValueError(f"layout: {line!r}: type=esp needs fs=vfat")
    if part.type == "bios" and part.fs:
        raise ValueError(f"layout: {line!r}: type=bios has no file system: GRUB lies there")
    parts = in_slots(line, part, options.pop("slots", ""))
    for each in parts:
        declare(draft, line, f"{disk.name}/{each.name}")
    draft.disks[-1] = replace(disk, parts=(*disk.parts, *parts))


def add_volume(draft: Draft, line: str, kind: str, name: str, options: dict[str, str]) -> None:
    if not VOLUME.fullmatch(name) or RESERVED.fullmatch(name):
        raise ValueError(f"layout: {line!r}: a volume's name has up to 25 letters, digits and _")
    draft.below_disk = False
    on = take_on(draft, line, kind, name, options)
    words = {key: options.pop(key) for key in VOLUMES[kind] if key in options}
    if kind == "raid" and words.get("level", "") not in LEVELS:
        raise ValueError(f"layout: {line!r}: level= is one of {', '.join(LEVELS)}")
    if kind == "luks" and not SECRET.fullmatch(words.get("key", "")):
        raise ValueError(f"layout: {line!r}: key= is the path of a secret, etc/luks/{name}.key")
    volume = Volume(
        kind,
        name,
        on,
        words.get("level", ""),
        words.get("key", ""),
        length(line, words["size"]) if "size" in words else None,
        *take_carried(line, words),
    )
    for each in in_slots(line, volume, words.get("slots", "")):
        declare(draft, line, each.name)
        draft.volumes.append(each)


def in_slots(line: str, what: Place, slots: str) -> list[Place]:
    """WHAT, or with SLOTS a place for each of them; the first one has the file system."""
    if not slots:
        return [what]
    one_of(f"layout: {line}", slots, (f"{len(SLOTS)}",))
    if what.mount != "/":
        raise ValueError(f"layout: {line!r}: slots= are for what is mounted at /")
    if what.size is None:
        raise ValueError(f"layout: {line!r}: slots= need size=, the size of each")
    if len(what.name) > (34 if isinstance(what, Part) else 23):
        raise ValueError(f"layout: {line!r}: the name is too long for slots: _a and _b follow it")
    first, second = (replace(what, name=f"{what.name}_{slot}", slot=slot) for slot in SLOTS)
    return [first, replace(second, fs="", mount="", options="")]


def with_shared(layout: Layout) -> Layout:
    """LAYOUT with a mount point for what both slots start from; nothing mounts it at boot."""

    def fields(what: Part | Volume) -> Mapping[str, str]:
        shared = what.name == "boot" and what.fs not in ("", "swap") and not what.mount
        return {"mount": SHARED, "options": "noauto"} if shared else {}

    return layout.changed(fields) if layout.slots() else layout


def declare(draft: Draft, line: str, name: str) -> None:
    if name in draft.lines:
        raise ValueError(f"layout: {line!r}: the name {name!r} stands there twice")
    draft.lines[name] = line


def take_on(
    draft: Draft, line: str, kind: str, name: str, options: dict[str, str]
) -> tuple[str, ...]:
    """The carriers that `on=` names: there, free, and of the right number and kind."""
    on = tuple(options.pop("on", "").split(","))
    known = draft.layout().carriers()
    groups = {volume.name for volume in draft.volumes if volume.kind == "vg"}
    if kind == "raid" and len(on) < 2:
        raise ValueError(f"layout: {line!r}: a RAID has at least two members: on=A,B")
    if kind in ("luks", "lv") and len(on) != 1:
        raise ValueError(f"layout: {line!r}: {kind} lies on one: on=...")
    for each in on:
        if each not in known or each == name:
            hint = "DISK/PART or a volume that stands above"
            raise ValueError(f"layout: {line!r}: no {each!r} to lie on: {hint}")
        what = known[each].what
        if (each in groups) != (kind == "lv"):
            raise ValueError(f"layout: {line!r}: lv lies on a vg, and nothing else does")
        if what.fs or (isinstance(what, Part) and what.type in ("bios", "esp")):
            raise ValueError(f"layout: {line!r}: {each!r} is in use: {draft.lines[each]!r}")
        if each in draft.used and kind != "lv":
            raise ValueError(f"layout: {line!r}: {each!r} is in use: {draft.used[each]!r}")
        draft.used[each] = line
    return on


def take_carried(line: str, options: dict[str, str]) -> tuple[str, str, str]:
    """File system, mount point, options of fstab(5)."""
    fs = one_of(line, options.pop("fs", ""), ("", *FILE_SYSTEMS))
    mount, words = options.pop("mount", ""), options.pop("options", "")
    if fs == "swap" and mount:
        raise ValueError(f"layout: {line!r}: swap is not mounted")
    if mount and not (fs and MOUNT.fullmatch(mount)):
        raise ValueError(f"layout: {line!r}: a mount is an absolute path and needs a file system")
    check_mount(line, mount)
    check_options(line, words, bool(mount) or fs == "swap")
    if re.search(r"(^|,)subvol(id)?=", words):
        raise ValueError(f"layout: {line!r}: no subvolume is made: it would not be there at boot")
    return fs, mount, words


def check_mount(line: str, mount: str) -> None:
    if NEEDED.fullmatch(mount):
        raise ValueError(f"{line!r}: the system would not boot with a mount at {mount}")


def check_options(line: str, words: str, mounted: bool) -> None:
    if words and not (mounted and OPTIONS.fullmatch(words)):
        raise ValueError(f"{line!r}: options= are for a mount: options=noatime,nodev")


def take_match(line: str, options: dict[str, str]) -> dict[str, str]:
    found = {key: options.pop(key) for key in MATCHES if key in options}
    if name := options.pop("id", ""):
        found |= by_id(line, name)
    match = {key: ESCAPED.sub(lambda m: chr(int(m[1], 8)), word) for key, word in found.items()}
    if not match:
        raise ValueError(
            f"{line!r}: which disk? one of {', '.join(m + '=' for m in (*MATCHES, 'id'))}"
        )
    if "size" in match:
        match["size"] = str(length(line, match["size"]))
    if not all(plain(*pair) for pair in match.items()):  # many disks have no serial number at all
        raise ValueError(f"{line!r}: {', '.join(match)} must not be empty")
    return match


def by_id(line: str, name: str) -> dict[str, str]:
    """The serial or the WWN in a NAME that udev has made."""
    found = BY_ID.fullmatch(name)
    if not found or name.rpartition("-")[2].startswith("part"):
        raise ValueError(f"{line!r}: id= names no disk; ./inv plan shows how to write them")
    return {key: value for key, value in found.groupdict().items() if value}


def one_of(line: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{line!r}: {value!r} is not one of {', '.join(filter(None, allowed))}")
    return value


def length(line: str, text: str) -> int:
    try:
        return size(text)
    except ValueError as error:
        raise ValueError(f"{line!r}: {error}") from None


def check(layout: Layout) -> None:
    """What no single line tells."""
    mounts = [each.mount for each in layout.mounts()]
    if layout.disks and mounts.count("/") != 1:
        raise ValueError(f"layout: {mounts.count('/')} file systems are mounted at /, not one")
    refuse_twice("layout", "mount", mounts)
    check_slots(layout)
    matches = [
        " ".join(f"{key}={plain(key, value)}" for key, value in disk.match.items())
        for disk in layout.disks
    ]
    refuse_twice("layout", "match", matches)
    for disk in layout.disks:
        if len(disk.parts) > MAX_PARTS[disk.table]:
            most = f"at most {MAX_PARTS[disk.table]} partitions"
            raise ValueError(f"layout: disk {disk.name!r}: {most} with table={disk.table}")
        if sum(part.size is None for part in disk.parts) > 1:
            raise ValueError(f"layout: disk {disk.name!r}: two partitions without a size")
    for group in (volume for volume in layout.volumes if volume.kind == "vg"):
        members = [v for v in layout.volumes if v.on == (group.name,)]
        if sum(volume.size is None for volume in members) > 1:
            raise ValueError(f"layout: vg {group.name!r}: two volumes without a size")
    try:
        sizes(layout, {disk.name: disk.image for disk in layout.disks})
    except ValueError as error:
        raise ValueError(f"{error}, by the disks' image=") from None


def check_slots(layout: Layout) -> None:
    if not layout.slots():
        return
    for each in layout.mounts():
        check_own(f"layout: {each.path}", layout, each.mount)
    shared = layout.shared()
    if shared is None:
        either = "`part boot fs=ext4 size=64M` without mount=, or type=esp with one"
        raise ValueError(f"layout: slots= need what both slots start from: {either}")
    if shared.fs not in IN_PLACE:
        raise ValueError(f"layout: {shared.path}: both slots start from it: fs=ext4 or vfat")


def check_own(where: str, layout: Layout, mount: str) -> None:
    if layout.slots() and mount != SHARED and OWN.fullmatch(mount):
        raise ValueError(f"{where}: mount={mount}: each slot has its own, in its /")


def refuse_twice(where: str, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {kind} {name!r} stands there twice")


def parse_keep(text: str, layout: Layout) -> tuple[Kept, ...]:
    """What is kept: disks of their own, and partitions of LAYOUT's disks."""
    kept = [
        kept_one(line, words, options, layout)
        for line, words, options in statements(text)
        if words[0] not in KEPT_ON
    ]
    refuse_twice("keep", "mount", [each.mount for each in kept if each.mount])
    refuse_twice("keep", "name", [each.name for each in kept])
    refuse_twice("keep", "partition", [f"{k.disk} {k.part}" for k in kept if k.disk])
    return tuple(kept)


def parse_kept_volumes(text: str, keep: Sequence[Kept], layout: Layout) -> tuple[Volume, ...]:
    """The volumes among what is kept, that lie on partitions in KEEP."""
    free = {each.name: "part" for each in keep if each.disk and not each.mount}
    found: list[Volume] = []
    for line, (kind, name), options in statements(text):
        if kind not in KEPT_ON:
            continue
        on = tuple(options.pop("on", "").split(","))
        for each in on:
            if free.get(each) not in KEPT_ON[kind]:
                below = "a kept `part` without mount=, or a volume that stands above"
                raise ValueError(f"keep: {line!r}: {kind} does not lie on {each!r}: {below}")
            if kind != "lv":
                del free[each]
        mount, words = take_kept_mount(line, options, layout) if kind != "vg" else ("", "")
        found.append(Volume(kind, name, on, mount=mount, options=words))
        refuse_rest(line, options)
        if not mount:
            free[name] = kind
    check_kept_volumes(found, keep, layout)
    return tuple(found)


def check_kept_volumes(found: Sequence[Volume], keep: Sequence[Kept], layout: Layout) -> None:
    made = {(each.kind, each.name) for each in layout.volumes}
    kept: list[Kept | Volume] = [*keep, *found]
    refuse_twice("keep", "mount", [each.mount for each in kept if each.mount])
    refuse_twice("keep", "name", [each.name for each in kept])
    for each in found:
        if each.kind == "lv" and len(each.on) > 1:
            raise ValueError(f"keep: lv {each.name!r}: it lies on one group: on=...")
        if each.kind == "raid" and not VOLUME.fullmatch(each.name):
            raise ValueError(f"keep: raid {each.name!r}: a name has up to 25 letters, digits and _")
        if each.kind != "lv" and (each.kind, each.name) in made:
            raise ValueError(f"keep: {each.kind} {each.name!r}: the layout makes one of this name")


def kept_one(line: str, words: list[str], options: dict[str, str], layout: Layout) -> Kept:
    match: Mapping[str, str]
    if words[0] == "disk":
        disk, match, word = "", take_match(line, options), "part"
    elif words[0] == "part":
        disk, word = options.pop("disk", ""), "number"
        match = system_match(line, disk, layout)
    else:
        kinds = f"`disk NAME ...`, `part NAME ...` or {', '.join(KEPT_ON)}"
        raise ValueError(f"keep: {line!r}: expected {kinds}")
    number = options.pop(word, "0" if word == "part" else "")
    least, most = (1, MAX_PARTS["gpt"]) if disk else (0, 999)
    if not re.fullmatch(r"[0-9]{1,3}", number) or not least <= int(number) <= most:
        raise ValueError(f"keep: {line!r}: {word} is not a number")
    mount, options_ = take_kept_mount(line, options, layout)
    refuse_rest(line, options)
    return Kept(words[1], match, int(number), mount, options_, disk)


def take_kept_mount(line: str, options: dict[str, str], layout: Layout) -> tuple[str, str]:
    """Mount point, options of fstab(5)."""
    mount, words = options.pop("mount", ""), options.pop("options", "")
    if mount and not MOUNT.fullmatch(mount):
        raise ValueError(f"keep: {line!r}: a mount is an absolute path")
    check_mount(line, mount)
    if mount in ("/boot", "/usr"):
        raise ValueError(f"keep: {line!r}: the new system has a {mount} of its own")
    check_own(f"keep: {line!r}", layout, mount)
    check_options(line, words, bool(mount))
    return mount, words


def refuse_rest(line: str, options: Mapping[str, str]) -> None:
    if options:
        raise ValueError(f"keep: {line!r}: unknown option {next(iter(options))!r}")


def system_match(line: str, name: str, layout: Layout) -> Mapping[str, str]:
    for disk in layout.disks:
        if disk.name == name:
            return disk.match
    raise ValueError(f"keep: {line!r}: disk= names a disk of the layout")
