"""File systems in image files, checked by their own fsck and read back through the kernel."""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anemos.image import fsimage
from anemos.image.fsimage import Place
from anemos.log import Failure
from anemos.run import run
from anemos.system import tree

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

MIB = 2**20
START = 3 * MIB
UUID = "5b6c2f6e-9a53-4c37-9d1f-0e0b0f6a9b1d"
EPOCH = 1_600_000_000
CAPABILITY = bytes.fromhex("0100000200200000" + "0" * 24)
ODD = [b"a b", b"-rf", b"new\nline", b"\xff\xfe", b"what?offset=1", b'"quoted"', "\u00e4".encode()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with everything that Linux file systems hold."""
    made = tmp_path / "source"
    (made / "sub/deep").mkdir(parents=True)
    for number, name in enumerate(ODD):
        (made / "sub" / os.fsdecode(name)).write_bytes(name * number)
    (made / "su").write_text("#!")
    os.chown(made / "su", 1000, 100000)
    (made / "su").chmod(0o4711)
    os.setxattr(made / "su", "security.capability", CAPABILITY)
    os.setxattr(made / "sub", "user.colour", b"green")
    (made / "sub/hard").hardlink_to(made / "su")
    (made / "link").symlink_to("../nowhere")
    (made / "long").symlink_to("x" * 200)
    os.mkfifo(made / "fifo", 0o640)
    os.mknod(made / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (made / "sparse").open("wb") as file:
        file.seek(8 * MIB)
        file.write(b"end")
    (made / "big").write_bytes(os.urandom(3 * MIB + 1))
    made.chmod(0o751)
    os.chown(made, 7, 8)
    for path, _ in list(tree.walk(made)):
        os.utime(made / path, (EPOCH - 5, EPOCH - 7), follow_symlinks=False)
    return made


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """All that ROOT has, but for what a file system adds itself."""
    found: dict[str, tuple[object, ...]] = {}
    entries = [entry for entry in tree.walk(root) if entry[0] != "lost+found"]
    inodes: dict[int, str] = {}
    for path, status in entries:
        file = root / path
        kind = stat.S_IFMT(status.st_mode)
        content: object = file.readlink() if file.is_symlink() else None
        attributes = {}
        if kind == stat.S_IFREG:
            content = file.read_bytes()
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            attributes = {name: os.getxattr(file, name) for name in os.listxattr(file)}
        same = inodes.setdefault(status.st_ino, path) if kind == stat.S_IFREG else path
        owner = (status.st_uid, status.st_gid, status.st_rdev, int(status.st_mtime))
        found[path] = (status.st_mode, *owner, content, attributes, same)
    return found


def image(directory: Path, fs: str, size: int, source: Path | None) -> Place:
    place = Place(directory / "image", START, size)
    with place.file.open("wb") as file:
        file.truncate(START + size + MIB)
    fsimage.make(fs, place, "5B6C-2F6E" if fs == "vfat" else UUID, EPOCH, source)
    assert place.file.stat().st_size == START + size + MIB
    with place.file.open("rb") as file:  # nothing beyond it was touched
        assert not any(file.read(START))
        file.seek(START + size)
        assert not any(file.read())
    return place


def alone(place: Place) -> Path:
    """The file system as a file of its own."""
    file = place.file.with_name("alone")
    with place.file.open("rb") as whole, file.open("wb") as part:
        whole.seek(place.start)
        part.write(whole.read(place.size))
    return file


@contextmanager
def mounted(file: Path) -> Iterator[Path]:
    point = file.with_name("point")
    point.mkdir()
    run(["mount", "-o", "loop,ro", file, point])
    try:
        yield point
    finally:
        run(["umount", point])


@pytest.mark.parametrize(
    ("fs", "mib", "check"),
    [
        ("ext2", 64, ["e2fsck", "-f", "-n"]),
        ("ext4", 64, ["e2fsck", "-f", "-n"]),
        ("btrfs", 128, ["btrfs", "check"]),
        ("xfs", 320, ["xfs_repair", "-n"]),
    ],
)
def test_all_that_a_tree_has(
    tmp_path: Path, source: Path, fs: str, mib: int, check: list[str]
) -> None:
    place = image(tmp_path, fs, mib * MIB, source)
    assert place.file.stat().st_blocks * 512 < place.size / 2
    file = alone(place)
    run([*check, file])
    assert (
        run(["blkid", "--probe", "--output", "value", "--match-tag", "UUID", file]) == f"{UUID}\n"
    )
    with mounted(file) as point:
        assert picture(point) == picture(source)
        assert (point / "sparse").stat().st_blocks * 512 < MIB


def test_inodes_in_use(tmp_path: Path) -> None:
    """In several groups of inodes: what debugfs counts is what dumpe2fs lists, where it can."""
    source = tmp_path / "source"
    for directory in range(40):
        (source / f"{directory}").mkdir(parents=True)
        for name in range(100):
            (source / f"{directory}/{name}").touch()
    file = alone(image(tmp_path, "ext4", 64 * MIB, source))
    free = re.findall(r"(?m)^  Free inodes: (\d+)-(\d+)$", run(["dumpe2fs", file]))
    unused = {inode for first, last in free for inode in range(int(first), int(last) + 1)}
    found = fsimage.used_inodes(run(["debugfs", "-R", "stats", file]))
    assert len(found) > 4040
    assert not unused & set(found)
    assert len(unused) + len(found) + fsimage.FIRST_INODE - 1 == 16384


def shuffled(source: Path, copy: Path) -> Path:
    """SOURCE again, its files made in another order, at another time."""
    time.sleep(1.1)
    names = sorted((path for path, _ in tree.walk(source)), reverse=True)
    listing = "".join(f"./{name}\0" for name in names).encode(errors="surrogateescape")
    copy.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--no-recursion", "--null", "--files-from=-"]
    archive = copy.with_suffix(".tar")
    run(["tar", "-c", "-f", archive, "-C", source, *options], data=listing)
    run(["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "-f", archive, "-C", copy])
    return copy


@pytest.mark.parametrize("fs", ["ext4", "vfat", "swap"])
def test_same_bytes(tmp_path: Path, source: Path, fs: str) -> None:
    """Whatever the order of a directory, and whenever its files were changed or read."""
    if fs == "vfat":
        source = plain(source)
    again = shuffled(source, tmp_path / "again")
    made = [
        image(tmp_path, fs, 32 * MIB, None if fs == "swap" else tree).file.read_bytes()
        for tree in (source, again)
    ]
    assert made[0] == made[1]


def plain(source: Path) -> Path:
    """SOURCE without what FAT cannot hold."""
    for name in ("link", "long", "fifo", "null", "sparse", "sub/new\nline", 'sub/"quoted"'):
        (source / name).unlink()
    # mtools keeps a short name with such a letter in capitals, which FAT takes for the same.
    for odd in (b"\xff\xfe", b"what?offset=1", "\u00e4".encode()):
        (source / "sub" / os.fsdecode(odd)).unlink()
    for path, _ in list(tree.walk(source)):
        os.utime(source / path, (EPOCH - 5, EPOCH - 8))
    return source


def test_fat(tmp_path: Path, source: Path) -> None:
    source = plain(source)
    place = image(tmp_path, "vfat", 64 * MIB, source)
    file = alone(place)
    run(["fsck.vfat", "-n", file])
    assert 'UUID="5B6C-2F6E"' in run(["blkid", "--probe", file])
    run(["mcopy", "-s", "-m", "-i", file, "::/", tmp_path / "back"])
    for path, status in tree.walk(source):
        found = tmp_path / "back" / path
        if stat.S_ISREG(status.st_mode):
            assert found.read_bytes() == (source / path).read_bytes()
        else:
            assert found.is_dir()
    assert {path for path, _ in tree.walk(tmp_path / "back")} == {
        path for path, _ in tree.walk(source)
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("link", "vfat holds neither links nor special files"),
        ("fifo", "vfat holds neither links nor special files"),
        ("a:b", "vfat cannot have this name"),
        ("dot.", "vfat cannot have this name"),
        (os.fsdecode(b"\xff"), "vfat cannot have this name"),
        ("readme", "vfat has this name already, in another case"),
    ],
)
def test_what_fat_cannot_hold(tmp_path: Path, name: str, message: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README").touch()
    match name:
        case "link":
            (source / name).symlink_to("README")
        case "fifo":
            os.mkfifo(source / name)
        case _:
            (source / name).touch()
    with pytest.raises(Failure, match=message):
        image(tmp_path, "vfat", 32 * MIB, source)


def test_swap(tmp_path: Path) -> None:
    file = alone(image(tmp_path, "swap", 16 * MIB, None))
    found = run(["blkid", "--probe", file])
    assert f'UUID="{UUID}"' in found
    assert 'TYPE="swap"' in found


@pytest.mark.parametrize("fs", ["odd", "nosuch"])
def test_other_types(tmp_path: Path, fs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no kernel can mount, and one that nobody can make."""
    (tmp_path / "mkfs.odd").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", os.fspath(tmp_path), prepend=":")
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(Failure) as caught:
        image(tmp_path, fs, 16 * MIB, source)
    assert "which root can" in str(caught.value) or "there is no mkfs.nosuch" in str(caught.value)


def test_full(tmp_path: Path, source: Path) -> None:
    """Nothing stays mounted, and no loop device in use."""
    (source / "big").write_bytes(os.urandom(400 * MIB))
    with pytest.raises(Failure, match="No space left on device"):
        image(tmp_path, "xfs", 320 * MIB, source)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in run(["losetup", "--list"])
    shutil.rmtree(source)


def test_fat_ends_where_its_place_does(tmp_path: Path, source: Path) -> None:
    """Its boot sector counts its own sectors, not the image's (FAT specification: BPB_TotSec)."""
    place = image(tmp_path, "vfat", 64 * MIB, plain(source))
    head = alone(place).read_bytes()[:512]
    total = int.from_bytes(head[19:21], "little") or int.from_bytes(head[32:36], "little")
    assert total * 512 == place.size
