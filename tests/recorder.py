"""A disk that notes what is written to it, and what a power cut may leave of that.

The disk is a daemon of QEMU's. It logs all writes and flushes in their order (its blklogwrites; the
format is that of Linux's dm-log-writes).
"""

import random
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from anemos.system.layout import MIB, Extent
from tests.imaging import attached
from tests.waiting import until

READY_S = 60.0
DAEMON = "qemu-storage-daemon"
SECTOR = 512
MAGIC, DISCARD = 0x6A736677736872, 4  # Linux: drivers/md/dm-log-writes.c


class Entry(NamedTuple):
    """A write to the disk; with no DATA, a flush."""

    start: int
    data: bytes

    def within(self, place: Extent) -> bool:
        return 0 <= self.start - place.start <= place.size - len(self.data)


class Cut(NamedTuple):
    """The power fails when the log has AT entries. WRITTEN: what has reached the disk. TORN: some
    of it only up to a sector, or from one on."""

    at: int
    written: Sequence[Entry]
    torn: bool = False


@contextmanager
def recorded(disk: Path, log: Path) -> Iterator[Path]:
    """DISK as a block device; what is written to it stands in LOG, too."""
    place = disk.with_name("exported")
    place.touch()
    log.touch()
    options = f"driver=blklogwrites,node-name=both,file=disk,log=log,log-sector-size={SECTOR}"
    process = subprocess.Popen(
        [DAEMON, "--blockdev", f"driver=file,node-name=disk,filename={disk}"]
        + ["--blockdev", f"driver=file,node-name=log,filename={log}"]
        + ["--blockdev", f"{options},log-super-update-interval=1"]
        + ["--export", f"type=fuse,id=export,node-name=both,mountpoint={place},writable=on"]
    )
    try:
        until(lambda: place.stat().st_size or process.poll() is not None)
        assert process.poll() is None, f"no {DAEMON}"
        with attached(place, "--partscan") as node:
            yield node
    finally:
        process.terminate()
        process.wait(READY_S)


def count(log: Path) -> int:
    """Of the entries so far."""
    with log.open("rb") as file:
        magic, _, number, sector = struct.unpack_from("<QQQI", file.read(SECTOR))
    assert (magic, sector) == (MAGIC, SECTOR)
    return int(number)


def entries(log: Path) -> Iterator[Entry]:
    with log.open("rb") as file:
        file.seek(SECTOR)
        for _ in range(count(log)):
            start, length, flags = struct.unpack_from("<QQQ", file.read(SECTOR))
            size = length * SECTOR
            yield Entry(start * SECTOR, bytes(size) if flags & DISCARD else file.read(size))


def content(disk: Path) -> Iterator[Entry]:
    """What writes DISK anew, without what is zero."""
    with disk.open("rb") as file:
        for start in range(0, disk.stat().st_size, MIB):
            if any(data := file.read(MIB)):
                yield Entry(start, data)


def write(file: Path, place: Extent, written: Sequence[Entry]) -> None:
    """Make FILE of what is at PLACE after WRITTEN."""
    with file.open("xb") as opened:
        opened.truncate(place.size)
        for each in written:
            if each.within(place):
                opened.seek(each.start - place.start)
                opened.write(each.data)


def cuts(log: Sequence[Entry], seed: int) -> Iterator[Cut]:
    """After each entry. What was flushed is there; of what came later all, or some, or each write
    torn."""
    chance, flushed = random.Random(seed), 0  # noqa: S311 (the same ones each time)
    for at in range(len(log) + 1):
        safe, late = log[:flushed], log[flushed:at]
        yield Cut(at, log[:at])
        if late:
            yield Cut(at, [*safe, *(each for each in late if chance.random() < 0.5)])
            yield Cut(at, [*safe, *(torn(each, chance) for each in late)], torn=True)
        if at < len(log) and not log[at].data:
            flushed = at + 1


def torn(entry: Entry, chance: random.Random) -> Entry:
    start, data = entry
    here = chance.randint(0, len(data) // SECTOR) * SECTOR
    return chance.choice([Entry(start, data[:here]), Entry(start + here, data[here:])])
