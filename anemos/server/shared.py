"""The record of slots, as the system in one of them finds it: where fstab(5) says."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from anemos import disks, mounts
from anemos.log import FAILED, die
from anemos.server import staging
from anemos.system import fstab, slots
from anemos.system.layout import SHARED
from anemos.system.slots import Record

PATIENCE_S = 10.0


class Found(NamedTuple):
    """FILE: the record, mounted here alone. KNOWN: what it says, with trials that have ended.
    RUNNING: the slot that / is."""

    file: Path
    known: Record
    running: str

    @property
    def other(self) -> str:
        """The slot that does not run."""
        return next(name for name in self.known.slots if name != self.running)

    def write(self, record: Record) -> None:
        slots.write(self.file, record)


@contextmanager
def found() -> Iterator[Found]:
    """The record, meanwhile. Raises Failure, for a system that is in no slot, too."""
    with TemporaryDirectory() as name:
        for source in sources():
            with mounted(source, Path(name)):
                if file := slots.file(Path(name)):
                    yield look(file)
                    return
    die("no slots here: nothing in /etc/fstab holds a record of them", status=FAILED)


def mounted(source: str, at: Path) -> AbstractContextManager[None]:
    """A moment later, if status.sh looks at it now. Without --rw, mount(8) would go on read-only
    then."""
    words = ["--rw", "-o", "nosuid,nodev,noexec", source]
    return mounts.mounted(*words, at=at, patience_s=PATIENCE_S)


def sources() -> list[str]:
    """What may hold the record: the file system for it, or an EFI system partition (see
    layout.shared)."""
    lines = staging.old(fstab.FILE).read_text().splitlines()
    rows = [line.split() for line in lines if fstab.point(line)]
    own = [row[0] for row in rows if row[1] == SHARED]
    return own or [row[0] for row in rows if row[2:3] == ["vfat"]]


def look(file: Path) -> Found:
    record = slots.read(file)
    uuid = uuid_of(mounted_at(staging.HOST))
    running = record.running(uuid)
    if not running:
        die(f"/ is no slot of the record: its file system is {uuid}", status=FAILED)
    return Found(file, record.settled(running), running)


def mounted_at(point: Path) -> Path:
    """The device that is mounted at POINT; of several the last one."""
    sources = [each.source for each in mounts.listed() if each.point == point]
    if not sources or not sources[-1].is_block_device():
        die("/ is not on a block device", status=FAILED)
    return sources[-1]


def uuid_of(node: Path) -> str:
    """Of the file system there. Raises Failure without one."""
    return disks.probe(node).get("UUID") or die(f"{node}: no file system", status=FAILED)
