"""Tables around kept partitions: planned, and written by the real sfdisk(8)."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anemos.run import run
from anemos.system import layout, partitions
from anemos.system.grammar import parse, parse_keep
from anemos.system.layout import MIB, Disk, Entry, Extent, Part, Table, extents
from anemos.workstation.vm import blank

settings.register_profile("anemos", deadline=None, database=None)
settings.load_profile("anemos")

CAPACITY = 64 * MIB
SECTOR = 512
DATA = os.urandom(4 * MIB)


@st.composite
def kept_tables(draw: st.DrawFn) -> dict[int, Entry]:
    """Entries anywhere on the disk, not aligned, in any order of numbers, none over another."""
    edges = sorted(draw(st.sets(st.integers(34, CAPACITY // SECTOR - 34), max_size=12)))
    places = [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    numbers = draw(st.permutations(range(1, 9)))
    return {
        number: Entry(start * SECTOR, size * SECTOR, f"{number} : kept")
        for number, (start, size) in zip(numbers, places, strict=False)
    }


@st.composite
def part_lists(draw: st.DrawFn) -> tuple[Part, ...]:
    sizes: list[int | None] = list(draw(st.lists(st.integers(1, 24 * MIB), max_size=5)))
    if draw(st.booleans()):
        sizes.insert(draw(st.integers(0, len(sizes))), None)
    return tuple(Part(f"p{n}", size=size) for n, size in enumerate(sizes))


@settings(max_examples=300)
@given(kept_tables(), part_lists(), st.sampled_from(["gpt", "msdos"]))
def test_around(kept: dict[int, Entry], parts: tuple[Part, ...], table: str) -> None:
    """In order, aligned, beside what is kept; and the rest is as large as it can be."""
    disk = Disk("d", {}, table, parts=parts, old=Table(("label: gpt",), kept))
    try:
        found = extents(disk, CAPACITY)
    except ValueError:
        assert not fits(disk, {None: 1})
        return
    spans = sorted([(e.start, e.size) for e in kept.values()] + [tuple(e) for e in found])
    ends = [start + size for start, size in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
    assert all(e.start % MIB == e.size % MIB == 0 and e.start >= MIB for e in found)
    assert all(sum(e) <= CAPACITY - MIB for e in found)
    assert [e.start for e in found] == sorted(e.start for e in found)
    for part, extent in zip(parts, found, strict=True):
        if part.size is None:
            assert not fits(disk, {None: extent.size // MIB + 1})
        else:
            assert part.size <= extent.size < part.size + MIB
    numbers = disk.numbers()
    assert len(numbers) == len(parts) == len(set(numbers) - kept.keys())
    script = layout.sfdisk_script(disk, CAPACITY, "seed").splitlines()
    assert [line for line in script if line.endswith("kept")] == [
        kept[number].line for number in sorted(kept)
    ]


def fits(disk: Disk, rest: dict[None, int]) -> bool:
    """Whether the parts fit in order, found by trying every gap for each."""
    lengths = [rest[None] if p.size is None else -(-p.size // MIB) for p in disk.parts]
    free = [True] * (CAPACITY // MIB)
    free[0] = free[-1] = False
    for entry in disk.old.entries.values():
        for mib in range(entry.start // MIB, -(-(entry.start + entry.size) // MIB)):
            free[mib] = False
    at = 0
    for length in lengths:
        while at + length <= len(free) and not all(free[at : at + length]):
            at += 1
        if at + length > len(free):
            return False
        at += length
    return True


OLD = {
    "gpt": """label: gpt
        first-lba: 34
        1 : start=34, size=2014, name="old bios"
        2 : start=10MiB, size=4MiB
        5 : start=20MiB, size=4MiB, name="my \\x22data\\x22, all of it", attrs="LegacyBIOSBootable"
        9 : start=81921, size=8191, name="with no hyphen"
        3 : start=57344KiB, size=8158KiB""",
    "msdos": """label: dos
        2 : start=63, size=1985, type=de, bootable
        3 : start=20MiB, size=4MiB, type=7
        1 : start=60MiB, size=4MiB""",
}


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("table", "keep", "starts"),
    [
        ("gpt", [5], {1: 1, 2: 5, 3: 24, 5: 20}),
        ("gpt", [2, 5], {1: 1, 2: 10, 3: 5, 4: 24, 5: 20}),
        ("gpt", [1, 3, 5], {1: 34 / 2048, 2: 1, 3: 56, 4: 5, 5: 20, 6: 24}),
        ("msdos", [3], {1: 1, 2: 5, 3: 20, 4: 24}),
        ("msdos", [2], {1: 1, 2: 63 / 2048, 3: 5, 4: 10}),
    ],
)
def test_written(tmp_path: Path, table: str, keep: list[int], starts: dict[int, float]) -> None:
    """What is kept keeps its line in the dump, and its bytes."""
    file = tmp_path / "disk9"
    with file.open("wb") as image:
        image.truncate(CAPACITY)
    run(["sfdisk", "--quiet", file], data=re.sub(r"(?m)^ +", "", OLD[table]).encode())
    before = run(["sfdisk", "--dump", file])
    old = partitions.entries(before, SECTOR)
    with file.open("r+b") as image:
        for number in keep:
            image.seek(old[number].start)
            image.write(DATA[: old[number].size])
    disk = Disk(
        "d",
        {},
        table,
        parts=(Part("a", size=4 * MIB), Part("b", size=5 * MIB), Part("c")),
    )
    disk = partitions.around(disk, before, keep)
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"]
    script = layout.sfdisk_script(disk, CAPACITY, "seed").encode()
    run([*argv, "--wipe-partitions=never", file], data=script)
    after = partitions.entries(run(["sfdisk", "--dump", file]), SECTOR)
    assert {n: after[n].line for n in keep} == {n: old[n].line for n in keep}
    assert {n: entry.start / MIB for n, entry in after.items()} == starts
    places = [Extent(*after[n][:2]) for n in disk.numbers()]
    assert places == extents(disk, CAPACITY)
    with file.open("rb") as image:
        for number in keep:
            image.seek(old[number].start)
            assert image.read(min(old[number].size, len(DATA))) == DATA[: old[number].size]


DUMP = """label: dos
label-id: 0x01020304
device: /dev/vda
unit: sectors
sector-size: 512

/dev/vda1 : start=        2048, size=        2048, type=83, bootable
/dev/vda2 : start=        8192, size=       20480, type=5
/dev/vda5 : start=       10240, size=        2048, type=83
"""


@pytest.mark.parametrize(
    ("table", "dump", "keep", "message"),
    [
        ("gpt", DUMP, [1], "layout: disk 'd': has dos, not table=gpt: partitions are kept"),
        ("msdos", "", [1], "has no table, not table=msdos"),
        ("msdos", DUMP, [3], "layout: disk 'd': no partition 3 to keep"),
        ("msdos", DUMP, [2], "partition 2: only primary partitions are kept"),
        ("msdos", DUMP, [5], "partition 5: only primary partitions are kept"),
        ("msdos", DUMP, [1], "at most 4 partitions, with those that are kept"),
    ],
)
def test_refused(table: str, dump: str, keep: list[int], message: str) -> None:
    disk = Disk("d", {}, table, parts=tuple(Part(f"p{n}", size=MIB) for n in range(4)))
    with pytest.raises(ValueError, match=re.escape(message)):
        partitions.around(disk, dump, keep)


def test_nothing_kept_forgets_the_old_table() -> None:
    disk = Disk("d", {})
    assert partitions.around(disk, DUMP, []) is disk


def test_sectors_of_4096_bytes() -> None:
    dump = DUMP.replace("sector-size: 512", "sector-size: 4096")
    found = partitions.around(Disk("d", {}, "msdos"), dump, [1]).old
    assert found.entries[1][:2] == (2048 * 4096, 2048 * 4096)
    assert found.head == ("label: dos", "label-id: 0x01020304")


def test_numbers_of_carriers() -> None:
    """Whatever works with numbers of partitions sees those of the real disk."""
    whole = parse("disk d serial=s table=msdos\npart r fs=ext4 mount=/ size=1G\npart x")
    keep = parse_keep("part a disk=d number=1", whole)
    carriers = partitions.placed(whole, keep, {"d": DUMP}).carriers()
    assert {path: each.number for path, each in carriers.items()} == {"d/r": 2, "d/x": 3}


@pytest.mark.real("run")
@pytest.mark.parametrize("table", ["gpt", "msdos"])
def test_in_a_local_vm(tmp_path: Path, table: str) -> None:
    """A blank disk with partitions to keep: the layout fits around them, their content is known."""
    whole = parse(f"disk d serial=s table={table} image=1G\npart r fs=ext4 mount=/")
    (disk,) = whole.disks
    keep = parse_keep("part a disk=d number=3 mount=/a\npart b disk=d number=2", whole)
    _, prints = blank.disk(disk, keep, tmp_path)
    assert [each.filesystems[0][2] for each in prints] == ["ext4", "ext4"]
    assert [path.name for path in tmp_path.iterdir()] == ["d.img"]
    dump = run(["sfdisk", "--dump", tmp_path / "d.img"])
    (around,) = partitions.placed(whole, keep, {"d": dump}).disks
    assert around.numbers() == [1]
    kept = 2 * blank.PART_SIZE // MIB
    assert extents(around, disk.image) == [(MIB, (1024 - 2 - kept) * MIB)]
