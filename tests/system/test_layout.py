"""Disk layouts: parsed, planned, and written by the real sfdisk(8)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anemos.run import run
from anemos.system import layout
from anemos.system.grammar import parse, parse_keep, parse_kept_volumes
from anemos.system.layout import MIB, UNITS, Disk, Kept, Layout, Mounted, Part, Volume, extents
from tests import tree

settings.register_profile("anemos", deadline=None, database=None)
settings.load_profile("anemos")

GIB = UNITS["G"]
SEED = "seed"
TEXT = """
    disk system serial=S1 wwn=W1 image=4G
    part bios   type=bios size=1M
    part root   fs=ext4 mount=/

    disk data size=1T table=msdos image=1G
    part swap size=100M
    part home fs=ext4 mount=/home size=3K
"""
ROOT = "disk d serial=s\npart r fs=ext4 mount=/\n"
STACK = """
    disk first serial=F table=gpt image=6G
    part bios type=bios size=1M
    part esp  type=esp size=64M fs=vfat mount=/boot/efi
    part boot size=512M fs=ext4 mount=/boot options=noatime,nodev
    part r1   type=raid size=3G
    part pv   type=lvm
    disk second serial=S table=msdos image=4G
    part r2   type=raid size=3G
    part swap type=swap fs=swap
    raid md0   level=1 on=first/r1,second/r2
    luks crypt on=md0 key=etc/luks/crypt.key
    vg   vg0   on=crypt,first/pv
    lv   root  on=vg0 size=1G fs=btrfs mount=/
    lv   home  on=vg0 fs=xfs mount=/home
    lv   swap  on=vg0 size=100M fs=swap options=pri=5
"""
SLOTTED = """
    disk system serial=S image=2G
    part bios type=bios size=1M
    part boot fs=ext4 size=64M
    part root fs=xfs size=512M mount=/ options=noatime slots=2
    part srv  fs=ext4 mount=/srv
"""
WORDS = ["disk", "part", "raid", "luks", "vg", "lv", "a", "b", "c", "serial=", "serial=1", "wwn=2"]
WORDS += ["size=1M", "size=9G", "size=-1", "size=x", "image=2G", "fs=ext4", "fs=ntfs", "fs=swap"]
WORDS += ["mount=/", "mount=/a", "mount=a", "type=bios", "type=esp", "type=linux", "table=msdos"]
WORDS += ["table=gpt", "part=1", "part=x", "disk=d", "number=2", "on=a", "on=a/b", "on=b,c", "on="]
WORDS += ["slots=2", "slots=1"]
WORDS += ["level=1", "key=a/b", "options=ro", "=", "a=b", "#", "\0", "ä"]
# Statements that fit now and then: what lies on what is refused or planned, never more.
LINES = [
    "disk d serial=1",
    "disk e serial=2 table=msdos",
    "part a size=1G",
    "part b",
    "part c fs=xfs",
]
LINES += ["part r fs=ext4 mount=/", "raid m level=0 on=d/a,e/a", "raid n level=10 on=d/b,d/a"]
LINES += ["luks l on=d/a key=k/k", "luks o on=m key=k/k", "vg v on=d/a", "vg w on=l,m", "vg v on=w"]
LINES += [
    "lv x on=v fs=ext4 mount=/",
    "lv y on=w size=1G",
    "lv z on=v size=9T",
    "lv q on=v",
    "lv c on=l",
]


def test_parse() -> None:
    system, data = parse(TEXT).disks
    assert system == Disk(
        "system",
        {"serial": "S1", "wwn": "W1"},
        image=4 * GIB,
        parts=(Part("bios", "bios", MIB), Part("root", fs="ext4", mount="/")),
    )
    assert data == Disk(
        "data",
        {"size": str(UNITS["T"])},
        "msdos",
        GIB,
        (Part("swap", size=100 * MIB), Part("home", size=3072, fs="ext4", mount="/home")),
    )


def test_nothing() -> None:
    assert parse("\n \n").disks == ()
    assert parse_keep("", Layout()) == ()


def test_mounts_are_parents_first() -> None:
    points = ["/srv/a", "/srv-a", "/", "/srv", "/srv/a/b"]
    parts = "".join(f"part p{n} size=1M fs=ext4 mount={p}\n" for n, p in enumerate(points))
    found = parse(f"disk d serial=s\n{parts}").mounts()
    assert [each.mount for each in found] == ["/", "/srv", "/srv-a", "/srv/a", "/srv/a/b"]
    assert [each.number for each in found] == [3, 4, 2, 1, 5]


def test_stack() -> None:
    whole = parse(STACK)
    assert whole.volumes == (
        Volume("raid", "md0", ("first/r1", "second/r2"), level="1"),
        Volume("luks", "crypt", ("md0",), key="etc/luks/crypt.key"),
        Volume("vg", "vg0", ("crypt", "first/pv")),
        Volume("lv", "root", ("vg0",), size=GIB, fs="btrfs", mount="/"),
        Volume("lv", "home", ("vg0",), fs="xfs", mount="/home"),
        Volume("lv", "swap", ("vg0",), size=100 * MIB, fs="swap", options="pri=5"),
    )
    nodes = {volume.name: str(volume.node) for volume in whole.volumes if volume.kind != "vg"}
    assert nodes == {
        "md0": "/dev/md/md0",
        "crypt": "/dev/mapper/crypt",
        "root": "/dev/vg0/root",
        "home": "/dev/vg0/home",
        "swap": "/dev/vg0/swap",
    }
    below = [each.path for each in whole.beneath(whole.root())]
    assert below == ["root", "vg0", "crypt", "first/pv", "md0", "first/r1", "second/r2"]
    assert [each.path for each in whole.filesystems()] == [
        *("first/esp", "first/boot", "second/swap", "root", "home", "swap")
    ]


def test_slots() -> None:
    """The first slot has the file system, the other one only its place, until it is looked at."""
    whole = parse(SLOTTED)
    (disk,) = whole.disks
    assert [part.name for part in disk.parts] == ["bios", "boot", "root_a", "root_b", "srv"]
    assert {name: each.path for name, each in whole.slots().items()} == {
        "a": "system/root_a",
        "b": "system/root_b",
    }
    other = whole.into("b")
    assert [each.path for each in whole.mounts()] == [
        *("system/root_a", "system/srv", "system/boot")
    ]
    assert [each.path for each in other.mounts()] == [
        *("system/root_b", "system/srv", "system/boot")
    ]
    assert (other.root().fs, other.root().options) == ("xfs", "noatime")
    assert other.into("a") == whole
    assert extents(disk, disk.image) == extents(other.disks[0], disk.image)
    tables = [layout.sfdisk_script(each.disks[0], disk.image, SEED) for each in (whole, other)]
    assert tables[0] == tables[1]


def test_what_slots_share() -> None:
    shared = parse(SLOTTED).shared()
    assert shared and (shared.path, shared.options) == ("system/boot", "noauto")
    assert f" {layout.SHARED} ext4 noauto 0 2\n" in layout.fstab(parse(SLOTTED), SEED)
    esp = "part boot type=esp size=64M fs=vfat mount=/efi"
    uefi = parse(SLOTTED.replace("part boot fs=ext4 size=64M", esp)).shared()
    assert uefi and (uefi.path, uefi.mount) == ("system/boot", "/efi")
    assert parse(STACK).shared() is None
    assert parse(f"{ROOT}part boot fs=ext4 size=64M").filesystems()[-1].mount == ""


def test_logical_volumes_as_slots() -> None:
    lvm = "disk d serial=s\npart boot fs=ext4 size=64M\npart pv\nvg v on=d/pv\n"
    whole = parse(
        f"{lvm}lv root on=v size=1G fs=ext4 mount=/ slots=2\nlv srv on=v fs=xfs mount=/srv"
    )
    assert [volume.name for volume in whole.volumes] == ["v", "root_a", "root_b", "srv"]
    assert whole.into("b").root().path == "root_b"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slots=2", "slots=3", "slots=3': '3' is not one of 2"),
        ("size=512M", "", "slots= need size=, the size of each"),
        ("mount=/ opt", "mount=/x opt", "slots= are for what is mounted at /"),
        ("type=bios", "type=bios slots=2", "slots= are for what is mounted at /"),
        ("part srv ", "part swap fs=swap size=1M slots=2\n", "slots= are for what is mounted at /"),
        ("part root", f"part {'r' * 35}", "the name is too long for slots"),
        ("part srv", "part root_b", "the name 'system/root_b' stands there twice"),
        ("part boot fs=ext4", "part x fs=ext4", "slots= need what both slots start from: `part b"),
        ("part boot fs=ext4", "part boot fs=xfs", "system/boot: both slots start from it: fs=ext4"),
        ("mount=/srv", "mount=/boot", "system/srv: mount=/boot: each slot has its own, in its /"),
        ("mount=/srv", "mount=/usr", "mount=/usr: each slot has its own"),
        ("mount=/srv", "mount=/var", "mount=/var: each slot has its own"),
        ("mount=/srv", "mount=/var/lib/dpkg", "mount=/var/lib/dpkg: each slot has its own"),
        ("S image=2G", "S image=1G", "partitions do not fit in"),
        ("S image=2G", "S table=msdos", "'bios' is not one of"),
    ],
)
def test_slots_refused(old: str, new: str, message: str) -> None:
    assert old in SLOTTED
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(SLOTTED.replace(old, new))


def test_slots_need_two_of_four_partitions() -> None:
    text = SLOTTED.replace("S image=2G", "S table=msdos").replace("part bios type=bios", "part x")
    with pytest.raises(ValueError, match="at most 4 partitions with table=msdos"):
        parse(text)


def test_kept_mounts_that_slots_cannot_share() -> None:
    whole = parse(SLOTTED)
    assert parse_keep("disk k serial=K mount=/var/mail", whole)
    with pytest.raises(ValueError, match="mount=/var: each slot has its own"):
        parse_keep("disk k serial=K mount=/var", whole)


def test_sizes_of_a_stack() -> None:
    """A little less than there is, so that the rest is never too small; LVM's in whole extents."""
    whole = parse(STACK)
    found = layout.sizes(whole, {"first": 6 * GIB, "second": 4 * GIB})
    assert 0.99 * 3 * GIB < found["md0"] < 3 * GIB
    assert found["md0"] - found["crypt"] == 16 * MIB
    pv = found["first/pv"]
    assert pv == 6 * GIB - (2 + 1 + 64 + 512) * MIB - 3 * GIB
    assert 0 <= found["crypt"] + pv - found["vg0"] <= 16 * MIB
    assert found["vg0"] == found["root"] + found["home"] + found["swap"]
    assert all(found[name] % (4 * MIB) == 0 for name in ("root", "home", "swap"))
    assert found["swap"] == 100 * MIB


TWO = "disk d serial=s\npart r size=1G fs=ext4 mount=/\npart a size=1G\npart b\npart c size=8M\n"
VOLUMES = [
    ("raid m level=1 on=d/a,d/x", "'raid m level=1 on=d/a,d/x': no 'd/x' to lie on: DISK/PART or"),
    ("raid m level=1 on=d/a,m", "no 'm' to lie on"),  # a cycle; a longer one needs such a line, too
    ("vg v on=l\nluks l on=d/a key=k/k", "'vg v on=l': no 'l' to lie on"),
    ("raid m level=1 on=d/a,d/a", "'d/a' is in use: 'raid m level=1 on=d/a,d/a'"),
    (
        "luks l on=d/a key=k/k\nvg v on=d/a",
        "'vg v on=d/a': 'd/a' is in use: 'luks l on=d/a key=k/k'",
    ),
    ("vg v on=d/r", "'d/r' is in use: 'part r size=1G fs=ext4 mount=/'"),
    ("raid m level=1 on=d/a", "a RAID has at least two members"),
    ("raid m level=1", "a RAID has at least two members"),
    ("raid m level=5 on=d/a,d/b", "level= is one of 0, 1, 10"),
    ("raid m on=d/a,d/b", "level= is one of 0, 1, 10"),
    (
        "raid m level=1 on=d/a,d/b size=1G",
        "'raid m level=1 on=d/a,d/b size=1G': unknown option 'size'",
    ),
    ("luks l on=d/a,d/b key=k/k", "luks lies on one: on=..."),
    ("luks l on=d/a", "key= is the path of a secret, etc/luks/l.key"),
    *((f"luks l on=d/a key={key}", "key= is the path") for key in ("k", "/k/k", "a/../k", "a//k")),
    ("luks l on=d/c key=k/k", "layout: luks 'l': no room on d/c"),
    ("luks control on=d/a key=k/k", "a volume's name has up to 25 letters"),
    ("vg a-b on=d/a", "a volume's name has up to 25 letters, digits and _"),
    ("vg v on=d/a\nlv snapshot1 on=v", "a volume's name has up to 25 letters"),
    ("vg v on=d/a\nlv x_tmeta on=v", "a volume's name has up to 25 letters"),
    ("vg d on=d/a", "'vg d on=d/a': the name 'd' stands there twice"),
    ("lv x on=d/a", "lv lies on a vg, and nothing else does"),
    ("vg v on=d/a\nvg w on=v", "lv lies on a vg, and nothing else does"),
    ("vg v on=d/a fs=ext4", "'vg v on=d/a fs=ext4': unknown option 'fs'"),
    ("vg v on=d/a\nlv x on=v\nlv y on=v", "layout: vg 'v': two volumes without a size"),
    (
        "vg v on=d/a\nlv x on=v size=2G",
        "layout: vg 'v': its volumes do not fit in 1069547520 bytes",
    ),
    (
        "vg v on=d/a\nlv x on=v size=200M fs=xfs",
        "layout: x: xfs needs 300 MiB, has 209715200 bytes",
    ),
    ("vg v on=d/a\npart x", "'part x': expected `disk NAME ...`"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part r fs=ext4 mount=/", "expected `disk NAME ...`, raid, luks, vg, lv or, below a disk"),
        ("disc d serial=s", "layout: 'disc d serial=s': expected `disk NAME ...`"),
        ("disk serial=s", "'disk serial=s': expected a keyword and one name"),
        ("disk a b serial=s", "'disk a b serial=s': expected a keyword and one name"),
        ("# comment", "layout: '# comment': expected `disk NAME ...`"),
        ("disk a/b serial=s", "'disk a/b serial=s': a name has"),
        ('disk d serial=s\npart a"b', "'part a\"b': a quote is not closed"),
        *(
            (
                f"{ROOT}part h size=1M fs=ext4 mount={mount}",
                f"would not boot with a mount at {mount}",
            )
            for mount in (
                "/etc",
                "/dev",
                "/dev/shm",
                "/proc",
                "/run",
                "/run/x",
                "/sys",
                "/usr/bin",
                "/bin",
                "/sbin",
                "/lib",
                "/lib64",
                "/usr/lib/modules",
                "/var/run",
                "/etc/systemd/system",
            )
        ),
        *(
            (f"{ROOT}part h size=200M fs=btrfs mount=/h options={words}", "no subvolume is made")
            for words in ("subvol=@", "noatime,subvol=@home", "subvolid=256")
        ),
        ('disk d serial="s', "a quote is not closed"),
        ('disk d serial=" "', "serial must not be empty"),
        ("disk d wwn=0x", "wwn must not be empty"),
        (f'{ROOT}part x size=1M fs=ext4 mount="/a b"', "mount= has no blanks"),
        ("disk d wwn=0x5A\npart r fs=ext4 mount=/\ndisk e wwn=naa.5a", "match 'wwn=5a' stands"),
        (f"disk {'d' * 37} serial=s", "a name has up to 36"),
        ("disk d", "'disk d': which disk? one of serial=, wwn=, path=, size="),
        ("disk d id=sda", "id= names no disk; ./inv plan shows how to write them"),
        ("disk d id=wwn-0x5002538e40a1b2c3-part1", "id= names no disk"),
        ("disk d serial=", "'disk d serial=': serial must not be empty"),
        ("disk d serial=s wwn=", "serial, wwn must not be empty"),
        ("disk d size=big", "'disk d size=big': size 'big' is not a number with a suffix"),
        ("disk d serial=s serial=t", "'disk d serial=s serial=t': an option stands there twice"),
        ("disk d serial=s sda=1", "'disk d serial=s sda=1': unknown option 'sda'"),
        ("disk d serial=s table=apm", "'disk d serial=s table=apm': 'apm' is not one of gpt, ms"),
        ("disk d serial=s image=4GB", "'disk d serial=s image=4GB': size '4GB' is not a number"),
        ("disk d serial=s\npart r size=0", "'part r size=0': size '0' is not a number"),
        ("disk d serial=s\npart r size=1.5G", "'part r size=1.5G': size '1.5G' is not a number"),
        ("disk d serial=s\npart r size=٣", "is not a number"),
        ("disk d serial=s\npart r fs=ext5", "'part r fs=ext5': 'ext5' is not one of ext4, xfs"),
        ("disk d serial=s\npart r type=boot", "'boot' is not one of linux, bios"),
        ("disk d serial=s table=msdos\npart r type=bios", "'bios' is not one of linux"),
        (
            "disk d serial=s\npart e type=esp fs=ext4",
            "'part e type=esp fs=ext4': type=esp needs fs=v",
        ),
        ("disk d serial=s\npart b type=bios fs=ext4", "type=bios has no file system"),
        ("disk d serial=s\npart s fs=swap mount=/swap", "mount=/swap': swap is not mounted"),
        ("disk d serial=s\npart r fs=ext4 options=ro", "options=ro': options= are for a mount"),
        (f"{ROOT}part h fs=ext4 mount=/h options=a,,b", "options=a,,b': options= are for a mount"),
        (f"{ROOT}part x size=1M fs=xfs", "layout: d/x: xfs needs 300 MiB, has 1048576 bytes, by"),
        ("disk d serial=s\npart r colour=red", "'part r colour=red': unknown option 'colour'"),
        ("disk d serial=s\npart r mount=/", "a mount is an absolute path and needs a file system"),
        *(
            (f"{ROOT}part h size=1M fs=ext4 mount={mount}", f"mount={mount}': a mount is an abso")
            for mount in ("home", "/home/", "//home", "/a//b", "/..", "/a/../b", "/./a", "//")
        ),
        ("disk d serial=s", "layout: 0 file systems are mounted at /, not one"),
        (
            f"{ROOT}part s size=1M fs=ext4 mount=/",
            "layout: 2 file systems are mounted at /, not one",
        ),
        (
            f"{ROOT}part a size=1M fs=ext4 mount=/a\npart b size=1M fs=ext4 mount=/a",
            "layout: mount '/a' stands there twice",
        ),
        (f"{ROOT}disk d serial=t", "layout: 'disk d serial=t': the name 'd' stands there twice"),
        (f"{ROOT}disk e serial=s", "layout: match 'serial=s' stands there twice"),
        (f"{ROOT}part r size=1M", "layout: 'part r size=1M': the name 'd/r' stands there twice"),
        (f"{ROOT}part s", "layout: disk 'd': two partitions without a size"),
        (
            "disk d serial=s image=8G\npart r fs=ext4 mount=/\npart s size=9G",
            f"layout: disk 'd': partitions do not fit in {8 * GIB} bytes, by the disks' image=",
        ),
        (f"{ROOT}disk e serial=t image=1M", f"disk 'e': partitions do not fit in {MIB} bytes"),
        (
            "disk d serial=s table=msdos\npart r fs=ext4 mount=/\n"
            + "".join(f"part p{n} size=1M\n" for n in range(4)),
            "layout: disk 'd': at most 4 partitions with table=msdos",
        ),
        (
            "disk d serial=s table=msdos image=3T\npart r fs=ext4 mount=/",
            "layout: disk 'd': table=gpt is needed beyond 2T, by the disks' image=",
        ),
        *((f"{TWO}{volume}", message) for volume, message in VOLUMES),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize(
    "mount",
    ["/usr", "/var", "/boot", "/etc/letsencrypt", "/library", "/usr/local", "/root", "/tmp"],
)
def test_mounts_that_make_sense(mount: str) -> None:
    assert parse(f"{ROOT}part h size=1M fs=ext4 mount={mount}").mounts()[-1].mount == mount


def test_subvolume_that_is_there() -> None:
    """Of what is kept."""
    (kept,) = parse_keep("disk data serial=D part=1 mount=/home options=subvol=@home", parse(ROOT))

    assert kept.options == "subvol=@home"


def test_volumes_that_the_initramfs_needs() -> None:
    text = "disk d serial=s\npart r fs=ext4 mount=/ size=1G\npart p type=lvm\nvg v on=d/p\n"
    text += "lv home on=v size=1G fs=ext4 mount=/home\n"

    assert layout.early(parse(text)) == []
    whole = parse(f"{text}lv usr on=v size=1G fs=ext4 mount=/usr")
    assert [each.name for each in layout.early(whole)] == ["usr", "v"]


def test_keep() -> None:
    text = "\n disk data serial=D part=12 mount=/home options=ro\ndisk raw size=2G\n"
    text += "part old disk=d number=3 mount=/old\npart raw2 disk=d number=4"
    assert parse_keep(text, parse(ROOT)) == (
        Kept("data", {"serial": "D"}, 12, "/home", "ro"),
        Kept("raw", {"size": str(2 * GIB)}),
        Kept("old", {"serial": "s"}, 3, "/old", disk="d"),
        Kept("raw2", {"serial": "s"}, 4, disk="d"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "luks r serial=s",
            "keep: 'luks r serial=s': expected `disk NAME ...`, `part NAME ...` or raid, vg, lv",
        ),
        ("part r number=1", "keep: 'part r number=1': disk= names a disk of the layout"),
        ("part r disk=e number=1", "disk= names a disk of the layout"),
        ("part r disk=d", "keep: 'part r disk=d': number is not a number"),
        ("part r disk=d number=0", "number is not a number"),
        ("part r disk=d number=129", "number is not a number"),
        ("part r disk=d number=1 part=1", "unknown option 'part'"),
        ("part r disk=d number=1\npart s disk=d number=1", "partition 'd 1' stands there twice"),
        ("disk d serial=t options=ro", "options= are for a mount"),
        ("disk d", "'disk d': which disk?"),
        ("disk d wwn=", "'disk d wwn=': wwn must not be empty"),
        ("disk d serial=s part=one", "keep: 'disk d serial=s part=one': part is not a number"),
        ("disk d serial=s part=-1", "part is not a number"),
        ("disk d serial=s part=", "part is not a number"),
        ("disk d serial=s fs=ext4", "'disk d serial=s fs=ext4': unknown option 'fs'"),
        ("disk d serial=t part=1 mount=/etc", "would not boot with a mount at /etc"),
        ("disk d serial=t part=1 mount=/usr", "the new system has a /usr of its own"),
        ("disk d serial=t part=1 mount=/boot", "the new system has a /boot of its own"),
        ("disk d serial=s mount=home", "keep: 'disk d serial=s mount=home': a mount is an"),
        ("disk d serial=s\ndisk d serial=t", "keep: name 'd' stands there twice"),
        ("disk d serial=s mount=/a\ndisk e serial=t mount=/a", "keep: mount '/a' stands there twi"),
    ],
)
def test_keep_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_keep(text, parse(ROOT))


MEMBERS = "part d1 disk=d number=3\npart d2 disk=d number=4\n"
KEPT_STACK = (
    MEMBERS + "raid md1 on=d1,d2\nvg old-vg on=md1\nlv data on=old-vg mount=/srv options=ro"
)


def kept_volumes(text: str, plan: str = ROOT) -> tuple[Volume, ...]:
    whole = parse(plan)
    return parse_kept_volumes(text, parse_keep(text, whole), whole)


def test_kept_volumes() -> None:
    """In the layout's own words, with the names that a server has for them."""
    assert kept_volumes(KEPT_STACK) == (
        Volume("raid", "md1", ("d1", "d2")),
        Volume("vg", "old-vg", ("md1",)),
        Volume("lv", "data", ("old-vg",), mount="/srv", options="ro"),
    )
    assert len(parse_keep(KEPT_STACK, parse(ROOT))) == 2
    assert kept_volumes(MEMBERS) == ()
    two = MEMBERS + "raid md1 on=d1 mount=/a\nvg v on=d2\nlv a on=v\nlv b on=v mount=/b"
    assert [each.mount for each in kept_volumes(two)] == ["/a", "", "", "/b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raid md1 on=d1,e", "raid does not lie on 'e': a kept `part` without mount=, or a volume"),
        ("raid md1", "raid does not lie on ''"),
        ("raid md1 on=d1,d1", "raid does not lie on 'd1'"),
        ("raid md1 on=d1\nvg v on=d1", "vg does not lie on 'd1'"),
        ("part d3 disk=d number=5 mount=/m\nvg v on=d3", "vg does not lie on 'd3'"),
        ("disk k serial=k\nvg v on=k", "vg does not lie on 'k'"),
        ("raid md1 on=d1 mount=/m\nvg v on=md1", "vg does not lie on 'md1'"),
        ("lv a on=d1", "lv does not lie on 'd1'"),
        ("lv a on=v\nvg v on=d1", "lv does not lie on 'v'"),
        ("vg v on=d1\nvg w on=d2\nlv a on=v,w", "keep: lv 'a': it lies on one group"),
        ("vg v on=d1 mount=/m", "unknown option 'mount'"),
        ("vg v on=d1\nlv a on=v size=1G", "unknown option 'size'"),
        ("vg v on=d1\nlv a on=v mount=/etc", "would not boot with a mount at /etc"),
        ("vg v on=d1\nlv a on=v options=ro", "options= are for a mount"),
        ("vg v on=d1\nlv a on=v mount=/m\nlv b on=v mount=/m", "keep: mount '/m' stands there twi"),
        ("vg d2 on=d1", "keep: name 'd2' stands there twice"),
        ("raid a-b on=d1", "keep: raid 'a-b': a name has up to 25 letters, digits and _"),
        ("vg taken on=d1", "keep: vg 'taken': the layout makes one of this name"),
    ],
)
def test_kept_volume_refused(text: str, message: str) -> None:
    whole = f"{ROOT.rstrip()} size=1G\npart pv type=lvm\nvg taken on=d/pv\nlv a on=taken"
    with pytest.raises(ValueError, match=re.escape(message)):
        kept_volumes(MEMBERS + text, whole)


ANYTHING = (
    st.text()
    | st.lists(st.lists(st.sampled_from(WORDS)).map(" ".join)).map("\n".join)
    | st.lists(st.sampled_from(LINES)).map("\n".join)
)


@settings(max_examples=300)
@given(ANYTHING, st.booleans())
def test_arbitrary_text_is_no_traceback(text: str, keep: bool) -> None:
    try:
        parse_keep(text, parse(ROOT)) if keep else parse(text)
    except ValueError as error:
        assert str(error)


@given(st.integers(1, 10**18), st.sampled_from(sorted(UNITS)))
def test_size(number: int, unit: str) -> None:
    assert layout.size(f"{number}{unit}") == number * UNITS[unit]


@given(st.text("0123456789KMGTkB .-+_e²٣\n", max_size=6))
def test_size_is_a_number_with_a_suffix(text: str) -> None:
    try:
        found = layout.size(text)
    except ValueError:
        assert not re.fullmatch("[1-9][0-9]*[KMGT]?", text)
    else:
        assert found > 0
        assert re.fullmatch("[0-9]+[KMGT]?", text)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    """Any disk that `parse` would let pass."""
    rest = draw(st.none() | st.integers(0, 3))
    sizes: list[int | None] = list(draw(st.lists(st.integers(1, 64 * MIB), max_size=3)))
    if rest is not None:
        sizes.insert(min(rest, len(sizes)), None)
    parts = tuple(Part(f"p{number}", size=size) for number, size in enumerate(sizes))
    return Disk("d", {"serial": "s"}, draw(st.sampled_from(list(layout.TYPES))), parts=parts)


@given(disks(), st.integers(0, 300 * MIB))
def test_extents(disk: Disk, capacity: int) -> None:
    rounded = [-(-part.size // MIB) if part.size else 1 for part in disk.parts]
    fits = sum(rounded) <= capacity // MIB - 2
    try:
        found = extents(disk, capacity)
    except ValueError:
        assert not fits
        return
    assert fits
    assert len(found) == len(disk.parts)
    assert all(extent.start % MIB == extent.size % MIB == 0 for extent in found)
    ends = [MIB, *(extent.start + extent.size for extent in found)]
    assert [extent.start for extent in found] == ends[:-1]  # in order, no gap, no overlap
    assert ends[-1] <= capacity - MIB
    for part, extent in zip(disk.parts, found, strict=True):
        if part.size is not None:
            assert part.size <= extent.size < part.size + MIB
    if any(part.size is None for part in disk.parts):
        assert ends[-1] > capacity - 2 * MIB


def test_largest_msdos_disk() -> None:
    disk = Disk("d", {}, "msdos", parts=(Part("p"),))
    assert extents(disk, 2 * UNITS["T"])
    with pytest.raises(ValueError, match="table=gpt is needed"):
        extents(disk, 2 * UNITS["T"] + 2 * MIB)


def table(disk: Disk, capacity: int, file: Path) -> dict[str, Any]:
    """What sfdisk reads back from a file after it wrote DISK's table to it."""
    with file.open("wb") as image:
        image.truncate(capacity)
    run(["sfdisk", "--quiet", file], data=layout.sfdisk_script(disk, capacity, SEED).encode())
    found: dict[str, Any] = json.loads(run(["sfdisk", "--json", file]))["partitiontable"]
    return found


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("capacity", "parts"),
    [
        (4 * GIB, (Part("bios", "bios", MIB), Part("root", fs="ext4", mount="/"))),
        (GIB + 12345, (Part("first"), Part("last.one_-x", size=5 * MIB + 1))),
        (3 * UNITS["T"], (Part("x" * 36, size=UNITS["T"]), Part("y", size=2 * UNITS["T"] // 3))),
        (3 * MIB, (Part("only"),)),
        (200 * MIB, tuple(Part(f"p{n}", size=1) for n in range(128))),
    ],
)
def test_gpt(tmp_path: Path, capacity: int, parts: tuple[Part, ...]) -> None:
    disk = Disk("d", {}, parts=parts)
    found = table(disk, capacity, tmp_path / "disk")
    assert found["label"] == "gpt"
    assert found["id"].lower() == layout.identity(SEED, "d")
    assert [(p["start"] * 512, p["size"] * 512) for p in found["partitions"]] == list(
        extents(disk, capacity)
    )
    assert [p["name"] for p in found["partitions"]] == [part.name for part in parts]
    assert [p["uuid"].lower() for p in found["partitions"]] == [
        layout.identity(SEED, "d", part.name) for part in parts
    ]
    types = {"linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "bios": layout.TYPES["gpt"]["bios"]}
    assert [p["type"] for p in found["partitions"]] == [types[part.type] for part in parts]


@pytest.mark.real("run")
@pytest.mark.parametrize("capacity", [GIB, 2 * UNITS["T"]])
def test_msdos(tmp_path: Path, capacity: int) -> None:
    parts = (*(Part(f"p{n}", size=n * MIB) for n in (1, 2, 3)), Part("rest"))
    disk = Disk("d", {}, "msdos", parts=parts)
    found = table(disk, capacity, tmp_path / "disk")
    assert (found["label"], found["id"]) == ("dos", f"0x{layout.identity(SEED, 'd')[:8]}")
    assert [(p["start"] * 512, p["size"] * 512) for p in found["partitions"]] == list(
        extents(disk, capacity)
    )
    assert {p["type"] for p in found["partitions"]} == {"83"}


def test_identities_differ() -> None:
    whole = parse(TEXT)
    seen = {
        word
        for seed in ("a", "b")
        for disk in whole.disks
        for word in (
            layout.identity(seed, disk.name),
            *(layout.identity(seed, disk.name, part.name) for part in disk.parts),
        )
    }
    seen |= {layout.fs_uuid(c, seed) for seed in ("a", "b") for c in whole.carriers().values()}
    assert len(seen) == 2 * (2 + 4 + 4)
    assert layout.identity("a", "b") == layout.identity("a", "b")


def test_fstab() -> None:
    whole = parse(TEXT)
    uuids = [layout.fs_uuid(each, SEED) for each in whole.mounts()]
    assert layout.fs_uuid(whole.root(), SEED) == uuids[0]
    assert layout.fstab(whole, SEED, [Mounted("/home/kept", "1234-ABCD", "vfat")]) == (
        f"UUID={uuids[0]} / ext4 defaults 0 1\n"
        f"UUID={uuids[1]} /home ext4 defaults 0 2\n"
        "UUID=1234-ABCD /home/kept vfat defaults 0 2\n"
    )


@pytest.mark.real("run")
def test_fstab_is_understood(tmp_path: Path) -> None:
    (tmp_path / "fstab").write_text(
        layout.fstab(parse(STACK), SEED, [Mounted("/k", "12-AB", "xfs")])
    )
    argv = ["findmnt", "--json", "--output", "target,fstype", "--tab-file"]
    found = json.loads(run([*argv, tmp_path / "fstab"]))["filesystems"]
    assert [tuple(each.values()) for each in found] == [
        ("/", "btrfs"),
        ("/boot", "ext4"),
        ("/boot/efi", "vfat"),
        ("/home", "xfs"),
        ("/k", "xfs"),
        ("none", "swap"),
        ("none", "swap"),
    ]


def test_image_has_room_for_large_partitions() -> None:
    (disk,) = parse("disk d serial=s\npart r fs=ext4 mount=/ size=100G").disks

    assert disk.image > 100 * 1024**3


def test_examples_of_the_reference() -> None:
    text = (tree.ROOT / "docs/imgbuild.md").read_text()
    examples = re.findall(r"(?m)^layout='\n(.*?)'\n(?:keep='\n(.*?)')?", text, re.DOTALL)
    assert len(examples) >= 3
    for example, keep in examples:
        whole = parse(example)
        kept = parse_keep(keep, whole)
        assert whole.root() and bool(kept) == bool(keep)
        assert bool(parse_kept_volumes(keep, kept, whole)) == ("lv " in keep)
