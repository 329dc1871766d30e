"""Mounts that last for a block of code, and the kernel's list of them."""

import os
from pathlib import Path

import pytest

from anemos import mounts
from anemos.log import Failure
from anemos.run import run
from anemos.system.layout import MIB, identity
from tests.imaging import attached

MOUNTINFO = r"""
22 28 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
26 28 0:23 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,size=802444k,mode=755
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 24 0:26 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
95 26 0:44 / /run/user/1000 rw,nosuid,nodev,relatime shared:52 - tmpfs tmpfs rw,mode=700,uid=1000
96 28 0:45 / /mnt/two\040words rw,relatime - ramfs none rw
97 28 254:2 / /srv rw,relatime shared:60 master:2 - xfs /dev/vdb rw
98 97 0:46 / /srv rw,relatime shared:61 - tmpfs none rw
99 26 254:3 / /run/disk rw,relatime shared:62 - btrfs /dev/vdc rw
""".lstrip()


def test_unescaped() -> None:
    assert mounts.unescaped(r"/mnt/ä\040b\134c") == "/mnt/ä b\\c"


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("name", ["plain", "two words", "back\\slash", "ä"])
def test_mounted(tmp_path: Path, name: str) -> None:
    """Listed while it is there, and gone afterwards, also when the block fails."""
    point = tmp_path / name
    point.mkdir()
    with pytest.raises(Failure), mounts.mounted("-t", "tmpfs", "anemos", at=point):
        assert os.path.ismount(point)
        assert (Path("anemos"), point, "tmpfs") in mounts.listed()
        raise Failure("no")
    assert not os.path.ismount(point)


@pytest.mark.root
@pytest.mark.real("run")
def test_mounted_by_uuid(tmp_path: Path) -> None:
    """What lies on a device now counts, not what lay there a moment ago."""
    for name in ("one", "another"):
        file, uuid = tmp_path / name, identity(os.fspath(tmp_path), name)
        file.write_bytes(bytes(16 * MIB))
        run(["mkfs.ext4", "-q", "-U", uuid, file])
        with attached(file), mounts.mounted(f"UUID={uuid}", at=tmp_path):
            assert os.path.ismount(tmp_path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/secrets", "ext4"),
        ("/", "ext4"),
        ("/run/anemos", "tmpfs"),
        ("/running", "ext4"),
        ("/run/user/1000/anemos", "tmpfs"),
        ("/run/disk/x", "btrfs"),
        ("/mnt/two words/x", "ramfs"),
        ("/srv/x", "tmpfs"),
    ],
)
def test_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "mountinfo")
    assert mounts.kind(Path(path)) == kind


def test_kind_in_a_chroot_without_a_mount_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mountinfo").write_text("".join(MOUNTINFO.splitlines(keepends=True)[:2]))
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "mountinfo")
    assert mounts.kind(Path("/x")) == "an unknown file system"
