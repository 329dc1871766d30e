"""Images of a small tree, read back with the tools of their formats."""

import json
import os
import re
import stat
import tarfile
from pathlib import Path

import pytest

from anemos.image import output, reproducible
from anemos.image.manifest import Sources
from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.system import imgbuild, layout
from anemos.system.imgbuild import Imgbuild

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

SEED = "seed"
LAYOUT = """
layout='
disk system serial=S image=64M
part bios type=bios size=1M
part root fs=ext4 mount=/

disk data serial=D image=64M table=msdos
part spare size=8M fs=ext4
part home fs=ext4 mount=/home
part tmp size=8M fs=ext4 mount=/var/tmp
'
"""
# path -> mode, owner, group, content
FILES = {
    "etc/shadow": (0o640, 0, 42, b"root:*:\n"),
    "home/alice/a b": (0o600, 1000, 1001, b"\0\xff"),
    "usr/bin/su": (0o4755, 0, 0, b"#!"),
    "var/tmp/x": (0o644, 100000, 100000, b""),
}
DIRECTORIES = {"home": (0o711, 7, 8), "home/alice": (0o700, 1000, 1001), "var/tmp": (0o1777, 0, 0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    for path, (mode, uid, gid, content) in FILES.items():
        file = made / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.chown(file, uid, gid)
        file.chmod(mode)
    for path, (mode, uid, gid) in DIRECTORIES.items():
        os.chown(made / path, uid, gid)
        (made / path).chmod(mode)
    (made / "etc/link").symlink_to("/nowhere")
    os.mknod(made / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.setxattr(
        made / "usr/bin/su", "security.capability", bytes.fromhex("0100000200200000" + "0" * 24)
    )
    return made


def spec(directory: Path, form: str, more: str = "") -> Imgbuild:
    (directory / "IMGBUILD").write_text(f"target=debian\nimgname=x:y\nformat='{form}'\n{more}")
    return imgbuild.load(directory)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write(
    tmp_path: Path, root: Path, out: Path, form: str, more: str = "", epoch: int = 1_600_000_000
) -> list[Path]:
    sources = Sources("layer", "0")
    made = spec(tmp_path, form, more)
    with reproducible.environment(epoch):
        return output.write(made, root, out, SEED, epoch=epoch, sources=sources)


@pytest.mark.parametrize(
    ("form", "name", "mode"),
    [("tar", "x:y.tar", "r:"), ("tar gz", "x:y.tar.gz", "r:gz"), ("tar xz", "x:y.tar.xz", "r:xz")],
)
def test_tar(tmp_path: Path, root: Path, out: Path, form: str, name: str, mode: str) -> None:
    (made,) = write(tmp_path, root, out, form)
    assert made == out / name
    with tarfile.open(made, mode) as archive:  # type: ignore[call-overload]
        for path, (bits, uid, gid, content) in FILES.items():
            member = archive.getmember(f"./{path}")
            assert (member.mode, member.uid, member.gid) == (bits, uid, gid)
            assert archive.extractfile(member).read() == content
        for path, (bits, uid, gid) in DIRECTORIES.items():
            member = archive.getmember(f"./{path}")
            assert (member.isdir(), member.mode, member.uid, member.gid) == (True, bits, uid, gid)
        assert archive.getmember("./zero").ischr()
        assert archive.getmember("./etc/link").linkname == "/nowhere"
        assert "SCHILY.xattr.security.capability" in archive.getmember("./usr/bin/su").pax_headers


def test_sparse_file_in_a_tar(tmp_path: Path, root: Path, out: Path) -> None:
    """Its holes take no room, and come out as they were."""
    with (root / "sparse").open("wb") as file:
        file.seek(48 * 2**20)
        file.write(b"middle")
        file.truncate(64 * 2**20)
    (made,) = write(tmp_path, root, out, "tar")
    first = made.read_bytes()
    (made,) = write(tmp_path, root, out, "tar")
    assert made.read_bytes() == first
    assert len(first) < 16 * 2**20
    run(["tar", "--extract", "--file", made, "-C", tmp_path, "./sparse"])
    assert (tmp_path / "sparse").read_bytes() == (root / "sparse").read_bytes()
    assert (tmp_path / "sparse").stat().st_blocks * 512 < 2**20
    with tarfile.open(made) as archive:
        member = archive.extractfile("./sparse")
        assert member is not None
        assert member.read() == (root / "sparse").read_bytes()


@pytest.mark.parametrize("form", ["squashfs", "squashfs xz -Xbcj x86"])
def test_squashfs(tmp_path: Path, root: Path, out: Path, form: str) -> None:
    (made,) = write(tmp_path, root, out, form)
    assert made == out / "x:y.squashfs"
    run(["unsquashfs", "-quiet", "-no-progress", "-dest", tmp_path / "back", made])
    same(tmp_path / "back")
    compression = "xz" if "xz" in form else "zstd"
    assert f"Compression {compression}" in run(["unsquashfs", "-stat", made])


def same(directory: Path) -> None:
    """DIRECTORY has what the tree had."""
    for path, (mode, uid, gid, content) in FILES.items():
        found = (directory / path).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, uid, gid)
        assert (directory / path).read_bytes() == content
    for path, (mode, uid, gid) in DIRECTORIES.items():
        found = (directory / path).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, uid, gid)
    assert (directory / "zero").is_char_device()
    assert (directory / "etc/link").readlink() == Path("/nowhere")
    assert os.getxattr(directory / "usr/bin/su", "security.capability")


def test_directory(tmp_path: Path, root: Path, out: Path) -> None:
    (made,) = write(tmp_path, root, out, "dir")
    assert made == out / "x:y"
    same(made)


def test_directory_on_another_file_system(tmp_path: Path, root: Path) -> None:
    """Where nothing can be moved to: builds happen in memory."""
    other = tmp_path / "other"
    other.mkdir()
    run(["mount", "-t", "tmpfs", "tmpfs", other])
    try:
        (made,) = write(tmp_path, root, other, "dir")
        same(made)
    finally:
        run(["umount", other])


def test_directory_that_exists(tmp_path: Path, root: Path, out: Path) -> None:
    (out / "x:y").mkdir()
    (out / "x:y/precious").touch()
    with pytest.raises(Failure, match="/x:y exists\n") as caught:
        write(tmp_path, root, out, "dir")
    assert caught.value.status == BAD_INPUT
    assert list((out / "x:y").iterdir()) == [out / "x:y/precious"]


def debugfs(file: Path, start: int, request: str) -> str:
    return run(["debugfs", "-R", request, f"{file}?offset={start}"])


def attributes(file: Path, start: int, path: str) -> tuple[int, int, int]:
    """Mode, owner and group of PATH in the file system at START bytes of FILE."""
    found = debugfs(file, start, f'stat "{path}"')
    match = re.search(r"Mode:  (\d+) .*?User: +(\d+) +Group: +(\d+) ", found, re.DOTALL)
    assert match, found
    return int(match[1], 8), int(match[2]), int(match[3])


def test_disks(tmp_path: Path, root: Path, out: Path) -> None:
    made = write(tmp_path, root, out, "disk", LAYOUT)
    assert made == [out / "x:y-system.img", out / "x:y-data.img"]
    system, data = spec(tmp_path, "disk", LAYOUT).layout.disks
    homes = {"/": (made[0], system, 1), "/home": (made[1], data, 1), "/var/tmp": (made[1], data, 2)}
    for file, disk in zip(made, (system, data), strict=True):
        assert file.stat().st_size == disk.image
        assert file.stat().st_blocks * 512 < disk.image / 2  # sparse
        table = json.loads(run(["sfdisk", "--json", file]))["partitiontable"]
        starts = [part["start"] * 512 for part in table["partitions"]]
        assert starts == [extent.start for extent in layout.extents(disk, disk.image)]
        for part, start in zip(disk.parts, starts, strict=True):
            if part.fs:
                run(["e2fsck", "-f", "-n", f"{file}?offset={start}"])
                carrier = spec(tmp_path, "disk", LAYOUT).layout.carriers()[
                    f"{disk.name}/{part.name}"
                ]
                uuid = layout.fs_uuid(carrier, SEED)
                assert uuid in debugfs(file, start, "show_super_stats -h")
    everything = {path: attributes[:3] for path, attributes in FILES.items()} | DIRECTORIES
    for path, wanted in everything.items():
        point = max((p for p in homes if f"/{path}/".startswith(p)), key=len)
        file, disk, index = homes[point]
        start = layout.extents(disk, disk.image)[index].start
        assert attributes(file, start, f"/{path}"[len(point.rstrip("/")) :] or "/") == wanted
        if path in FILES:
            debugfs(file, start, f'dump "{f"/{path}"[len(point.rstrip("/")) :]}" {tmp_path}/dump')
            assert (tmp_path / "dump").read_bytes() == FILES[path][3]
    start = layout.extents(system, system.image)[1].start
    assert attributes(made[0], start, "/") == (stat.S_IMODE(root.stat().st_mode), 0, 0)
    for point in ("/home", "/var/tmp"):  # empty mount points
        listing = debugfs(made[0], start, f"ls -p {point}").split()
        assert [line.split("/")[5] for line in listing] == [".", ".."]
    debugfs(made[0], start, f"dump /etc/fstab {tmp_path}/fstab")
    whole = spec(tmp_path, "disk", LAYOUT).layout
    assert (tmp_path / "fstab").read_text() == layout.fstab(whole, SEED)


def test_disk_again(tmp_path: Path, root: Path, out: Path) -> None:
    """An older image is replaced, not written into."""
    (out / "x:y-system.img").write_bytes(b"\xff" * 2**20)
    (out / "x:y-data.img").write_bytes(b"\xff" * 2**28)
    made = write(tmp_path, root, out, "disk", LAYOUT)
    assert [file.stat().st_size for file in made] == [2**26, 2**26]


def test_mount_point_that_is_a_link(tmp_path: Path, root: Path, out: Path) -> None:
    """It would lead out of the tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (root / "var/tmp/x").unlink()
    (root / "var/tmp").rmdir()
    (root / "var/tmp").symlink_to(outside)
    with pytest.raises(Failure, match=r"^layout: /var/tmp is a symbolic link in the image$"):
        write(tmp_path, root, out, "disk", LAYOUT)
    assert (outside / "precious").exists()


def test_tree_that_does_not_fit(tmp_path: Path, root: Path, out: Path) -> None:
    (root / "big").write_bytes(os.urandom(2**20) * 70)
    with pytest.raises(Failure, match=r"mkfs\.ext4.*exit status 1"):
        write(tmp_path, root, out, "disk", LAYOUT)


def test_volumes(tmp_path: Path, root: Path, out: Path) -> None:
    """No image file has what only a running kernel makes; ./inv test makes such disks."""
    layout = LAYOUT.replace("part root fs=ext4 mount=/", "part pv type=lvm")
    layout = layout.replace(
        "disk data", "vg group on=system/pv\nlv root on=group fs=ext4 mount=/\ndisk data"
    )
    with pytest.raises(Failure, match=r"^layout: vg 'group': .*\n.*`\./inv test`"):
        write(tmp_path, root, out, "disk", layout)
    assert not list(out.iterdir())
