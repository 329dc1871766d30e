"""Disk layouts: parsed, planned, and written by the real sfdisk(8)."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anemos.image import layout
from anemos.image.layout import MIB, UNITS, Disk, Kept, Part, extents, parse, parse_keep
from anemos.run import run

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
WORDS = ["disk", "part", "a", "b", "serial=", "serial=1", "wwn=2", "size=1M", "size=9G", "image=2G"]
WORDS += ["size=-1", "size=x", "fs=ext4", "fs=ntfs", "mount=/", "mount=/a", "mount=a", "type=bios"]
WORDS += ["table=msdos", "table=gpt", "type=linux", "part=1", "part=x", "=", "a=b", "#", "\0", "ä"]


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
    assert parse_keep("") == ()


def test_mounts_are_parents_first() -> None:
    points = ["/srv/a", "/srv-a", "/", "/srv", "/srv/a/b"]
    parts = "".join(f"part p{n} size=1M fs=ext4 mount={p}\n" for n, p in enumerate(points))
    found = parse(f"disk d serial=s\n{parts}").mounts()
    assert [part.mount for _, _, part in found] == ["/", "/srv", "/srv-a", "/srv/a", "/srv/a/b"]
    assert [number for _, number, _ in found] == [3, 4, 2, 1, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part r fs=ext4 mount=/", "expected `disk NAME ...` or, below one, `part`"),
        ("disc d serial=s", "layout: 'disc d serial=s': expected `disk NAME ...`"),
        ("disk serial=s", "'disk serial=s': expected a keyword and one name"),
        ("disk a b serial=s", "'disk a b serial=s': expected a keyword and one name"),
        ("# comment", "layout: '# comment': expected `disk NAME ...`"),
        ("disk a/b serial=s", "'disk a/b serial=s': a name has"),
        ('disk d serial=s\npart a"b', "'part a\"b': a name has"),
        (f"disk {'d' * 37} serial=s", "a name has up to 36"),
        ("disk d", "'disk d': which disk? one of serial=, wwn=, size="),
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
        ("disk d serial=s\npart r fs=ext5", "'part r fs=ext5': 'ext5' is not one of ext4"),
        ("disk d serial=s\npart r type=boot", "'boot' is not one of linux, bios"),
        ("disk d serial=s table=msdos\npart r type=bios", "'bios' is not one of linux"),
        ("disk d serial=s\npart r colour=red", "'part r colour=red': unknown option 'colour'"),
        ("disk d serial=s\npart r mount=/", "a mount is an absolute path and needs a file system"),
        *(
            (f"{ROOT}part h size=1M fs=ext4 mount={mount}", f"mount={mount}': a mount is an abso")
            for mount in ("home", "/home/", "//home", "/a//b", "/..", "/a/../b", "/./a", "//")
        ),
        ("disk d serial=s", "layout: 0 partitions are mounted at /, not one"),
        (f"{ROOT}part s size=1M fs=ext4 mount=/", "layout: 2 partitions are mounted at /, not one"),
        (
            f"{ROOT}part a size=1M fs=ext4 mount=/a\npart b size=1M fs=ext4 mount=/a",
            "layout: mount '/a' stands there twice",
        ),
        (f"{ROOT}disk d serial=t", "layout: disk 'd' stands there twice"),
        (f"{ROOT}disk e serial=s", "layout: match 'serial=s' stands there twice"),
        (f"{ROOT}part r size=1M", "layout: disk 'd': part 'r' stands there twice"),
        (f"{ROOT}part s", "layout: disk 'd': two partitions without a size"),
        (
            "disk d serial=s image=8G\npart r fs=ext4 mount=/\npart s size=9G",
            f"layout: disk 'd': partitions do not fit in {8 * GIB} bytes, its image=",
        ),
        (f"{ROOT}disk e serial=t image=1M", f"disk 'e': partitions do not fit in {MIB} bytes"),
        (
            "disk d serial=s table=msdos\npart r fs=ext4 mount=/\n"
            + "".join(f"part p{n} size=1M\n" for n in range(4)),
            "layout: disk 'd': at most 4 partitions with table=msdos",
        ),
        (
            "disk d serial=s table=msdos image=3T\npart r fs=ext4 mount=/",
            "layout: disk 'd': table=gpt is needed beyond 2T, its image=",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_keep() -> None:
    text = "\n disk data serial=D part=12 mount=/home\ndisk raw size=2G\n"
    assert parse_keep(text) == (
        Kept("data", {"serial": "D"}, 12, "/home"),
        Kept("raw", {"size": str(2 * GIB)}),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part r serial=s", "keep: 'part r serial=s': expected `disk NAME ...`"),
        ("disk d", "'disk d': which disk?"),
        ("disk d wwn=", "'disk d wwn=': wwn must not be empty"),
        ("disk d serial=s part=one", "keep: 'disk d serial=s part=one': part is not a number"),
        ("disk d serial=s part=-1", "part is not a number"),
        ("disk d serial=s part=", "part is not a number"),
        ("disk d serial=s fs=ext4", "'disk d serial=s fs=ext4': unknown option 'fs'"),
        ("disk d serial=s mount=home", "keep: 'disk d serial=s mount=home': a mount is an"),
        ("disk d serial=s\ndisk d serial=t", "keep: disk 'd' stands there twice"),
        ("disk d serial=s mount=/a\ndisk e serial=t mount=/a", "keep: mount '/a' stands there twi"),
    ],
)
def test_keep_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_keep(text)


ANYTHING = st.text() | st.lists(st.lists(st.sampled_from(WORDS)).map(" ".join)).map("\n".join)


@settings(max_examples=200)
@given(ANYTHING, st.sampled_from([parse, parse_keep]))
def test_arbitrary_text_is_no_traceback(text: str, read: Callable[[str], object]) -> None:
    try:
        read(text)
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
    return Disk("d", {"serial": "s"}, draw(st.sampled_from(layout.TABLES)), parts=parts)


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
            *(layout.fs_uuid(disk, part, seed) for part in disk.parts),
        )
    }
    assert len(seen) == 2 * (2 + 4 + 4)
    assert layout.identity("a", "b") == layout.identity("a", "b")


def test_fstab() -> None:
    whole = parse(TEXT)
    uuids = [layout.fs_uuid(disk, part, SEED) for disk, _, part in whole.mounts()]
    assert layout.root_uuid(whole, SEED) == uuids[0]
    assert layout.fstab(whole, SEED, {"/home/kept": ("1234-ABCD", "vfat")}) == (
        f"UUID={uuids[0]} / ext4 defaults 0 1\n"
        f"UUID={uuids[1]} /home ext4 defaults 0 2\n"
        "UUID=1234-ABCD /home/kept vfat defaults 0 2\n"
    )


@pytest.mark.real("run")
def test_fstab_is_understood(tmp_path: Path) -> None:
    (tmp_path / "fstab").write_text(layout.fstab(parse(TEXT), SEED, {"/k": ("12-AB", "xfs")}))
    argv = ["findmnt", "--json", "--output", "target,fstype", "--tab-file"]
    found = json.loads(run([*argv, tmp_path / "fstab"]))["filesystems"]
    assert [tuple(each.values()) for each in found] == [
        ("/", "ext4"),
        ("/home", "ext4"),
        ("/k", "xfs"),
    ]


def test_image_has_room_for_large_partitions() -> None:
    (disk,) = parse("disk d serial=s\npart r fs=ext4 mount=/ size=100G").disks

    assert disk.image > 100 * 1024**3
