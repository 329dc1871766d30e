"""The power fails while a slot is filled, and while the record of slots is written: one of the two
slots starts all the same.

The real code works on a disk that notes what is written. From its log come disks as a cut may leave
them. They are read as GRUB reads them, and then as the system does that starts.
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from anemos import files, kexec, memory, mounts
from anemos.border.requests import Commit, Return, Try
from anemos.image import output, reproducible
from anemos.image.manifest import Sources
from anemos.run import CommandFailed, run
from anemos.server import fill, shared, staging, trial
from anemos.server.running import Running
from anemos.system import imgbuild, layout, slots, tree
from anemos.system.imgbuild import Imgbuild
from anemos.system.installation import Installation
from anemos.system.layout import MIB, Extent
from anemos.system.slots import FILLED, FILLING, GOOD, TRIAL, Record
from tests import brain, recorder, tiny
from tests.image import test_boot
from tests.image.test_image import with_grub
from tests.recorder import Cut, Entry

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

SEED = 13
LEAST = 100  # different disks
IMGBUILD = """
target=debian
format=disk
bootloader=grub
cmdline='{}'
layout='{}'
"""
LAYOUT = """
disk system serial=S image=96M
part bios type=bios size=1M
part boot size=16M fs=ext4
part root size=32M fs=ext4 mount=/ slots=2
"""
WRITE = slots.write
Write = Callable[[Path, Record], None]


class State(NamedTuple):
    """RECORD was written while the log grew from BEGUN to DONE entries."""

    record: Record
    begun: int
    done: int


@dataclass
class Story:
    """A disk as it was BEFORE, and the LOG of what came then. SHARED, SECOND: where the record's
    file system and slot b are. WHOLE: what was filled into that. KNOWN: what was read already."""

    before: Sequence[Entry]
    log: Sequence[Entry]
    size: int
    shared: Extent
    second: Extent
    states: Sequence[State]
    whole: Mapping[str, int | str]
    known: dict[tuple[object, ...], Mapping[str, int | str]] = field(default_factory=dict)

    def possible(self, at: int) -> dict[int | str, Record]:
        """The record by its checksum: the last one that is promised to be there, or a later one."""
        promised = max(n for n, state in enumerate(self.states) if state.done <= at)
        found = [each.record for each in self.states[promised:] if each.begun <= at]
        return {zlib.crc32(slots.encoded(each)): each for each in found}

    def read(self, place: Extent, cut: Cut, *, repaired: bool) -> Mapping[str, int | str]:
        """Digests of the files at PLACE, by path: as GRUB reads them, or when they are REPAIRED, as
        a start does it."""
        own = tuple(each for each in cut.written if each.data and each.within(place))
        if (place, repaired, own) not in self.known:
            with TemporaryDirectory(dir="/dev/shm") as name:
                part = Path(name, "part")
                recorder.write(part, place, [*self.before, *own])
                self.known[place, repaired, own] = checksums(part, repaired=repaired)
        return self.known[place, repaired, own]


def checksums(part: Path, *, repaired: bool) -> Mapping[str, int | str]:
    """debugfs(8) looks at no journal and, with -n, at no checksum of metadata: as GRUB does."""
    if repaired:
        with suppress(CommandFailed):  # status 1: it has done something
            run(["e2fsck", "-f", "-p", part])
        run(["e2fsck", "-f", "-n", part])
    to = part.with_name("to")
    to.mkdir()
    run(["debugfs", "-n", "-R", f"rdump / {to}", part])
    return tree.checksums(to)


def tell(top: Path, system: Path, text: str, write: Write = WRITE) -> Story:
    """What becomes of a disk with SYSTEM, a tree, in slot a. WRITE: writes the record."""
    (top / "payload/host").mkdir(parents=True)
    (top / "payload/host/IMGBUILD").write_text(text)
    spec = imgbuild.load(top / "payload/host")
    run(["tar", "--create", "--file", top / "layer.tar", "--directory", system, "."])
    sources = Sources("layer", "0")
    with reproducible.environment(test_boot.EPOCH):
        (disk,) = output.write(spec, system, top, f"{top}", epoch=test_boot.EPOCH, sources=sources)
    before, log, states = [*recorder.content(disk)], top / "log", list[State]()

    def noted(file: Path, record: Record) -> None:
        begun = recorder.count(log)
        write(file, record)
        states.append(State(slots.read(file), begun, recorder.count(log)))

    with pytest.MonkeyPatch.context() as patch, recorder.recorded(disk, log) as node:
        for module, name, value in (
            (slots, "write", noted),
            (staging, "HOST", top / "host"),
            (kexec, "load", lambda *_: None),
            (memory, "available", lambda: 2**40),
            (trial, "WORD", top / "word"),
        ):
            patch.setattr(module, name, value)
        whole = live(top, node, spec, states)
    size, written = disk.stat().st_size, [*recorder.entries(log)]
    recorder.write(top / "after", Extent(0, size), [*before, *written])
    run(["cmp", disk, top / "after"])  # the log has all that has changed the disk
    common, _, second = layout.extents(spec.layout.disks[0], size)[-3:]
    return Story(before, written, size, common, second, states, whole)


def live(top: Path, node: Path, spec: Imgbuild, states: list[State]) -> Mapping[str, int | str]:
    """Slot b is filled and tried, gets the word while its system writes, and is the default no more
    then. What it was filled with."""
    for name in ("host", "point", "slot", "keys"):
        (top / name).mkdir()
    with suppress(CommandFailed):  # most kernels have read the table by themselves
        run(["partx", "--add", node])
    devices = {"system": brain.device(f"{node}", "S")}
    first, second = (each.node(devices) for each in spec.layout.slots().values())
    common = spec.layout.shared()
    assert common
    with mounts.mounted("-r", first, at=top / "host"):
        with shared.mounted(f"{common.node(devices)}", top / "point"):
            record = top / "point" / slots.FILE
            states.append(State(slots.read(record), 0, 0))
            there = replace(spec, layout=spec.layout.into("b"))
            here = Running(there, devices, record.parent, "b")
            fill.fill(given(top, here), here.other, here.node, here.top)
        trial.start(Try(deployment(top), 600))
    with mounts.mounted(second, at=top / "host"):
        whole = tree.checksums(top / "host")
        (top / "host/var/tmp/x").write_bytes(os.urandom(MIB))
        trial.commit(Commit(deployment(top)))
        (top / "host/var/tmp/y").write_bytes(os.urandom(MIB))
        trial.go_back(Return(""))
    return whole


def deployment(top: Path) -> str:
    """Its id, and with that the UUIDs: other tests may have such disks at the same time."""
    return layout.identity(f"{top}")


def given(top: Path, here: Running) -> Installation:
    (top / "payload/files/etc").mkdir(parents=True)
    (top / "payload/files/etc/motd").write_text("hello")
    (top / "base").write_text("base")
    words = (top / "layer.tar", (top / "base", "0" * 64), top / "keys", here.shared([]))
    return Installation(here.spec, top / "slot", deployment(top), "{}\n", *words)


def check(story: Story, cut: Cut) -> Record:
    """The record after CUT, as GRUB reads it: what starts then is whole."""
    seen = story.read(story.shared, cut, repaired=False)
    here, before = seen.get(slots.FILE, ""), story.read(story.shared, Cut(0, ()), repaired=False)
    possible = story.possible(cut.at)
    assert here in possible, "record"
    assert {**seen, **before, slots.FILE: here} == seen, "what is beside the record"
    # A superblock has two sectors. Who finds it torn needs one of its copies.
    ways = [False] if cut.torn else [False, True]
    assert story.read(story.shared, cut, repaired=ways[-1]) == seen, "record, repaired"
    if possible[here].slots["b"].state in (FILLED, TRIAL, GOOD):
        for repaired in ways:
            found = story.read(story.second, cut, repaired=repaired)
            assert story.whole.items() <= found.items(), "slot b"
    return possible[here]


def small(top: Path, write: Write = WRITE) -> Story:
    with_grub(tiny.make(top / "system"))
    return tell(top, top / "system", IMGBUILD.format("", LAYOUT), write)


def test_cuts(tmp_path: Path) -> None:
    """Nobody writes elsewhere: partition table, boot loader and slot a are as they were."""
    story = small(tmp_path)
    places = (story.shared, story.second)
    assert all(any(each.within(place) for place in places) for each in story.log if each.data)
    cuts = [*recorder.cuts(story.log, SEED)]
    assert len({tuple(each.written) for each in cuts}) >= LEAST
    seen = [check(story, each) for each in cuts]
    assert all(each.record in seen for each in story.states)


def renamed(file: Path, record: Record) -> None:
    files.replace(file, slots.encoded(record))


def unflushed(file: Path, record: Record) -> None:
    with file.open("r+b") as opened:
        opened.write(slots.encoded(record))


def early(file: Path, record: Record) -> None:
    second = record.slots["b"]
    told = record.holding("b", second._replace(state=FILLED)) if second.state == FILLING else record
    WRITE(file, told)


@pytest.mark.all
@pytest.mark.parametrize(
    ("write", "wrong"), [(renamed, "record"), (unflushed, "record"), (early, "slot b")]
)
def test_faults_are_seen(tmp_path: Path, write: Write, wrong: str) -> None:
    """A record by a rename, which only a journal knows of; one that is promised too early; one that
    says too early that the slot is filled."""
    story = small(tmp_path, write)
    with pytest.raises(AssertionError, match=f"^{wrong}"):
        for each in recorder.cuts(story.log, SEED):
            check(story, each)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A system that starts, with GRUB."""
    top = tmp_path_factory.mktemp("real")
    system = test_boot.extract(top / "system")
    return tell(top, system, IMGBUILD.format(test_boot.CMDLINE, test_boot.SLOTTED))


@pytest.mark.vm
@pytest.mark.all
@pytest.mark.parametrize(
    ("point", "way", "default"),
    [
        ("before", "bios", "a"),
        ("while it is filled", "bios", "a"),
        ("while it is filled", "uefi", "a"),
        ("filled", "bios", "a"),
        ("before the word", "uefi", "a"),
        ("at the word", "bios", "ab"),
        ("after the word", "bios", "b"),
        ("after the word", "uefi", "b"),
    ],
)
def test_start(real: Story, tmp_path: Path, point: str, way: str, default: str) -> None:
    """GRUB, the kernel and its initramfs find what the record names."""
    _, filling, filled, *_, word, _ = real.states
    at = {
        "before": 0,
        "while it is filled": (filling.done + filled.begun) // 2,
        "filled": filled.done,
        "before the word": word.begun,
        "at the word": word.done - 1,
        "after the word": word.done,
    }
    *_, cut = (each for each in recorder.cuts(real.log, SEED) if each.at == at[point])
    record = check(real, cut)
    assert record.default in default
    recorder.write(tmp_path / "disk", Extent(0, real.size), [*real.before, *cut.written])

    said = test_boot.start(tmp_path / "disk", tmp_path, way)

    root = record.slots[record.default].root
    assert f"started by {way}: " in said
    assert f" root=UUID={root} ro " in said
