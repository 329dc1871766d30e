"""File systems in image files, filled from a tree; none is mounted that need not be.

ext2, ext3 and ext4 are made in their place in the image, the rest in a file of its own that is
copied there: no other mkfs knows an offset, or (mkfs.fat 4.2) takes the whole file's size for that
of the file system then. btrfs, xfs and others are filled by mounting them, which takes root.
(mkfs.btrfs --rootdir forgets the status of the topmost directory and the numbers of devices;
mkfs.xfs -p knows no extended attributes.) The kernel puts the time into these, so two of one tree
are equal in content, not in bytes.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import BinaryIO

from anemos.log import die
from anemos.run import Argv, CommandFailed, run
from anemos.system import filesystems

EXT = ("ext2", "ext3", "ext4")
FIRST_INODE = 11  # those before it are reserved (kernel: filesystems/ext4/special_inodes.rst)
SECTOR = 512
NOT_FAT = re.compile(r'["*:<>?\\|\x00-\x1f\x7f\udc80-\udcff]|[ .]$')


@dataclass(frozen=True)
class Place:
    """SIZE bytes of FILE from START on, all zero until a file system is made there."""

    file: Path
    start: int
    size: int


def make(fs: str, place: Place, uuid: str, epoch: int, source: Path | None = None) -> None:
    """Make the file system FS at PLACE, with what is below SOURCE, modes and owners as there.

    UUID as blkid(8) shows it. EPOCH: seconds since 1970, for times that no file of SOURCE has.
    """
    if fs in EXT:
        make_ext(fs, place, uuid, epoch, source)
    elif fs == "vfat":
        make_fat(place, uuid, epoch, source)
    else:
        make_apart(fs, place, uuid, source)


def program(fs: str) -> str:
    """What makes the file system FS."""
    return "mkswap" if fs == "swap" else f"mkfs.{fs}"


def make_ext(fs: str, place: Place, uuid: str, epoch: int, source: Path | None) -> None:
    # Prezeroed: neither mkfs nor, later, the kernel has to write empty inode tables (mke2fs(8)).
    extended = f"offset={place.start},hash_seed={uuid},assume_storage_prezeroed=1,nodiscard"
    argv: list[str | Path] = [f"mkfs.{fs}", "-q", "-F", "-U", uuid, "-E", extended]
    argv += ["-d", source.absolute()] if source else []
    now = {"E2FSPROGS_FAKE_TIME": str(max(epoch, 1))}  # 0 would be the clock's
    run([*argv, place.file.name, f"{place.size // 1024}k"], cwd=place.file.parent, env=now)
    if source:
        # By name, not by path, in which a question mark would have a meaning (debugfs(8)). Newer
        # dumpe2fs(8) knows no offset.
        where = f"{place.file.name}?offset={place.start}"
        found = run(["debugfs", "-R", "stats", where], cwd=place.file.parent)
        with NamedTemporaryFile("w", dir=place.file.parent) as script:
            script.write(settled(source.stat(), used_inodes(found), epoch))
            script.flush()
            # It repeats every command on standard output.
            quiet = 'exec debugfs -w -f "$1" "$2" >/dev/null'
            name = Path(script.name).name
            run(["sh", "-c", quiet, "sh", name, where], cwd=place.file.parent, env=now)


def used_inodes(stats: str) -> list[int]:
    """The inodes in use, except the reserved ones, from what `stats` of debugfs(8) says.

    mkfs takes the first free one of a group, and gives none back: the free ones stand at its end.
    """
    count = re.search(r"(?m)^Inode count: +(\d+)$", stats)
    free = [int(number) for number in re.findall(r" (\d+) free inodes?,", stats)]
    assert count and free, stats
    size = int(count[1]) // len(free)  # of each group
    used = (range(n * size + 1, (n + 1) * size + 1 - number) for n, number in enumerate(free))
    return [inode for group in used for inode in group if inode >= FIRST_INODE]


def settled(top: os.stat_result, inodes: list[int], epoch: int) -> str:
    """Commands for debugfs(8) that do what `mkfs.ext4 -d` leaves to do.

    It does nothing for the topmost directory, and the times of access and change come from the
    source, where nobody can set the latter.
    """
    own = {"mode": f"0{top.st_mode:o}", "uid": top.st_uid, "gid": top.st_gid}
    own["mtime"] = f"@{int(top.st_mtime)}"
    lines = [f"sif <2> {name} {value}" for name, value in own.items()]
    lines += [f"sif <{inode}> {name} @{epoch}" for inode in inodes for name in ("atime", "ctime")]
    return "\n".join([*lines, ""])


def make_fat(place: Place, uuid: str, epoch: int, source: Path | None) -> None:
    """mkfs.fat(8); mtools(1) fill it, in the order of names."""
    with apart(place) as file:
        hidden = f"{place.start // SECTOR}"
        run(["mkfs.vfat", "--invariant", "-i", uuid.replace("-", ""), "-h", hidden, file])
        if source:
            fill_fat(file, epoch, source)


def fill_fat(file: Path, epoch: int, source: Path) -> None:
    drive: list[str | Path] = ["-i", file]
    env = {"TZ": "UTC0", "SOURCE_DATE_EPOCH": str(epoch)}
    for parent, below, files in os.walk(source):
        below.sort()
        check_fat(Path(parent), [*below, *files])
        where = "::/" + "".join(f"{part}/" for part in Path(parent).relative_to(source).parts)
        if below:
            run(["mmd", *drive, *(where + name for name in below)], env=env)
        if files:
            paths = [Path(parent, name).absolute() for name in sorted(files)]
            run(["mcopy", "-m", *drive, *paths, where], env=env)


def check_fat(parent: Path, names: list[str]) -> None:
    """Raises Failure for what FAT cannot hold. It has no modes and owners."""
    seen: set[str] = set()
    for name in sorted(names):
        file = parent / name
        if not stat.S_ISREG(file.lstat().st_mode) and (file.is_symlink() or not file.is_dir()):
            die(f"{file}: vfat holds neither links nor special files")
        if NOT_FAT.search(name):
            die(f"{os.fspath(file)!r}: vfat cannot have this name")
        if name.casefold() in seen:
            die(f"{file}: vfat has this name already, in another case")
        seen.add(name.casefold())


def make_apart(fs: str, place: Place, uuid: str, source: Path | None) -> None:
    with apart(place) as file:
        run(maker(fs, uuid, file))
        if source:
            pour(source, file)


@contextmanager
def apart(place: Place) -> Iterator[Path]:
    """A file of PLACE's size, which is copied there at the end."""
    with TemporaryDirectory(dir=place.file.parent) as name:
        file = Path(name) / "fs"
        with file.open("wb") as empty:
            empty.truncate(place.size)
        yield file
        splice(file, place)


def maker(fs: str, uuid: str, file: Path) -> Argv:
    if fs not in filesystems.MAKERS:
        if shutil.which(program(fs)) is None:
            die(f"there is no {program(fs)} here to make a file system of type {fs!r}")
        return [program(fs), file]
    return filesystems.make(fs, uuid, file)


def pour(source: Path, file: Path) -> None:
    """Fill the file system in FILE by mounting it. The kernel frees the loop device itself."""
    point = file.with_name("mounted")
    point.mkdir()
    try:
        run(["mount", "-o", "loop", file, point])
    except CommandFailed as failed:
        die(failed.message, hint="such a file system is filled by mounting it, which root can")
    try:
        run(["cp", "--archive", "--no-target-directory", source, point])
    finally:
        run(["umount", point])


def splice(source: Path, place: Place) -> None:
    """Copy what is not a hole in SOURCE to PLACE."""
    with source.open("rb") as reader, place.file.open("r+b") as writer:
        for start, end in data(reader):
            os.lseek(writer.fileno(), place.start + start, os.SEEK_SET)
            done = start
            while done < end:
                done += os.sendfile(writer.fileno(), reader.fileno(), done, end - done)


def data(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Start and end of everything in FILE that is not a hole (lseek(2))."""
    fd, end, size = file.fileno(), 0, file.seek(0, os.SEEK_END)
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
