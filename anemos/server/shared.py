"""The record of slots, as the system in one of them finds it: where fstab(5) says."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from anemos import mounts
from anemos.log import FAILED, die
from anemos.run import run
from anemos.server import staging
from anemos.system import fstab, slots
from anemos.system.layout import SHARED
from anemos.system.slots import Record


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
            with mounts.mounted("-o", "nosuid,nodev,noexec", source, at=Path(name)):
                file = Path(name, slots.FILE)
                if file.is_file():
                    yield look(file)
                    return
    die(f"no slots here: nothing in /etc/fstab holds {slots.FILE}", status=FAILED)


def sources() -> list[str]:
    """What may hold the record: the file system for it, or an EFI system partition (see
    layout.shared)."""
    lines = staging.old(fstab.FILE).read_text().splitlines()
    rows = [line.split() for line in lines if fstab.point(line)]
    own = [row[0] for row in rows if row[1] == SHARED]
    return own or [row[0] for row in rows if row[2:3] == ["vfat"]]


def look(file: Path) -> Found:
    record = slots.read(file)
    nodes = [each.source for each in mounts.listed() if each.point == staging.HOST]
    uuid = run(["blkid", "--probe", "--output", "value", "--match-tag", "UUID", nodes[-1]]).strip()
    running = record.running(uuid)
    if not running:
        die(f"/ is no slot of the record: its file system is {uuid}", status=FAILED)
    return Found(file, record.settled(running), running)
