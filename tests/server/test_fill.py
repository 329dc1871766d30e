"""The slot that does not run is filled: what is in it then, and what the record says meanwhile."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anemos import mounts
from anemos.border.requests import Filled
from anemos.log import Failure
from anemos.run import run
from anemos.server import fill
from anemos.system import (
    booting,
    filesystems,
    imgbuild,
    installation,
    layout,
    manifest,
    slots,
    tree,
)
from anemos.system.installation import Installation
from anemos.system.layout import MIB, Mounted
from anemos.system.slots import Record, Slot
from tests import tiny
from tests.imaging import attached

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

IMGBUILD = """
target=debian
bootloader=grub
layout='
disk system serial=S
part bios type=bios size=1M
part boot fs=ext4 size=64M
part root fs=ext4 size=64M mount=/ slots=2
part srv  fs=ext4 mount=/srv
'
provision() { chown 5:6 /etc/key; }
"""
BEFORE = Record("a", {"a": Slot("good", "A"), "b": Slot("good", "B")})
SHARED = Mounted("/srv", "S", "ext4")
ARRAY = "ARRAY /dev/md/kept UUID=1:2:3:4\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """The place of the slot, with what was there before."""
    file = tmp_path / "disk"
    with file.open("wb") as disk:
        disk.truncate(64 * MIB)
    run(["mkfs.ext4", "-q", file])
    with attached(file) as found:
        yield found


@pytest.fixture
def record(tmp_path: Path) -> Path:
    file = tmp_path / "shared" / slots.FILE
    file.parent.mkdir()
    file.write_bytes(slots.encoded(BEFORE))
    return file


@pytest.fixture
def given(tmp_path: Path) -> Installation:
    system = tiny.make(tmp_path / "layer")
    files = {
        "layer/boot/vmlinuz-6.1": "kernel",
        "layer/boot/initrd.img-6.1": "initrd",
        "layer/etc/ssh/sshd_config": "",
        "payload/host/IMGBUILD": IMGBUILD,
        "payload/files/etc/motd": "hello",
        "payload/secrets/etc/key": "secret",
        "keys/ssh_host_ed25519_key": "key",
        "base": "base",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    run(["tar", "--create", "--file", tmp_path / "layer.tar", "--directory", system, "."])
    (tmp_path / "root").mkdir()
    spec = imgbuild.load(tmp_path / "payload/host")
    words = (tmp_path / "layer.tar", (tmp_path / "base", "0" * 64), tmp_path / "keys")
    return Installation(spec, tmp_path / "root", "DEPLOYMENT", "{}\n", *words, [SHARED], ARRAY)


def state(record: Path) -> Slot:
    """What the record says of slot b; of the other one always the same."""
    now = slots.read(record)
    assert (now.default, now.slots["a"]) == ("a", BEFORE.slots["a"])
    return now.slots["b"]


def test_filled(
    given: Installation, node: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = filesystems.make

    def make(*words: Any) -> Sequence[str | Path]:
        seen.append(state(record))
        return real(*words)

    monkeypatch.setattr(filesystems, "make", make)
    done = fill.fill(given, "b", node, record.parent)

    uuid, filled = layout.identity("DEPLOYMENT", "system/root_b", "fs"), state(record)
    assert (seen, filled[:3]) == ([Slot("filling")], ("filled", uuid, "DEPLOYMENT"))
    assert filled.filled > 0
    assert done == Filled("b", uuid, "6.1")
    assert run(["blkid", "-p", "-o", "value", "-s", "UUID", node]).strip() == uuid
    with mounts.mounted(node, at=given.root):
        root = given.root
        owners = {path.lstat().st_uid for path in root.rglob("*")}
        assert owners == {0, 5}
        assert (root / "var/lib/anemos" / f"base-{'0' * 64}.squashfs").read_text() == "base"
        assert (root / "etc/motd").read_text() == "hello"
        assert (root / "etc/key").stat().st_uid == 5
        assert (root / "etc/ssh/ssh_host_ed25519_key").read_text() == "key"
        assert (
            f"linux /boot/vmlinuz-6.1 root=UUID={uuid} ro\n"
            in (root / "boot/grub/grub.cfg").read_text()
        )
        assert (root / "etc/fstab").read_text() == (
            f"UUID={uuid} / ext4 defaults 0 1\nUUID=S /srv ext4 defaults 0 2\n"
        )
        assert (root / "srv").is_dir()
        assert os.access(root / installation.TRIAL, os.X_OK)
        assert "Running provision()" in (root / installation.LOG).read_text()
        assert (root / installation.LOG).stat().st_mode & 0o777 == 0o400
        entries = {each.path: each for each in manifest.read(root).entries}
        assert entries["boot/grub/grub.cfg"].content
        assert entries["etc/key"].secret
        assert (root / "etc/mdadm/mdadm.conf").read_text() == ARRAY


def test_filled_for_systemd_boot(
    given: Installation, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel lies on what both share, in the place of the one that was there; without room for
    it the slot is empty. The other slot's stays."""
    host = tmp_path / "payload/host"
    text = IMGBUILD.replace("grub", "systemd-boot").replace("part bios type=bios size=1M\n", "")
    boot = "part boot fs=ext4 size=64M"
    text = text.replace(boot, "part esp type=esp fs=vfat size=600M mount=/efi")
    (host / "IMGBUILD").write_text(text)
    given = replace(given, spec=imgbuild.load(host))
    top, record = tmp_path / "esp", slots.encoded(BEFORE, slots.LOADER_CONF)
    before = {
        "loader/entries/anemos-a-5.conf": b"a",
        "loader/entries/anemos-b-5.conf": b"b",
        "anemos-a/5/linux": b"a",
        "anemos-b/5/linux": b"b",
        slots.LOADER_CONF: record + b"timeout 3\n",
    }
    for path, data in before.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(data)

    fill.fill(given, "b", node, top)

    found = {f"{each.relative_to(top)}" for each in top.rglob("*") if each.is_file()}
    theirs = {each for each in before if "-b" not in each}
    own = {"loader/entries/anemos-b-6.1.conf", "anemos-b/6.1/linux", "anemos-b/6.1/initrd.img-6.1"}
    assert found == theirs | own
    assert state(top / slots.LOADER_CONF).state == "filled"
    assert (top / slots.LOADER_CONF).read_bytes()[slots.SECTOR :] == b"timeout 3\n"
    root = f"root=UUID={layout.identity('DEPLOYMENT', 'system/root_b', 'fs')} ro"
    assert root in (top / "loader/entries/anemos-b-6.1.conf").read_text()

    def full(*words: Any) -> None:
        share(*words)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    share = booting.share
    monkeypatch.setattr(booting, "share", full)
    with pytest.raises(Failure, match="what both slots share: No space left on device"):
        fill.fill(given, "b", node, top)
    assert state(top / slots.LOADER_CONF) == Slot("empty")
    assert (top / "anemos-a/5/linux").read_bytes() == b"a"
    assert not (top / "anemos-b").exists()


@pytest.mark.parametrize("error", [Failure("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["leave_tools", "definition_layer"])
def test_failure(
    given: Installation,
    node: Path,
    record: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    step: str,
) -> None:
    """The slot counts as empty; nothing is mounted, and it can be filled again."""

    def fail(_: Installation) -> None:
        raise error

    monkeypatch.setattr(installation, step, fail)
    with pytest.raises(type(error) if step == "leave_tools" else Failure):
        fill.fill(given, "b", node, record.parent)
    assert state(record) == Slot("empty")
    assert not os.path.ismount(given.root)
    monkeypatch.undo()
    fill.fill(given, "b", node, record.parent)
    assert state(record).state == "filled"


def test_a_disk_that_changes_what_is_written(
    given: Installation,
    node: Path,
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind the file system's back, in the data of a file, where no checksum would tell it."""

    def damage(argv: Any, **options: Any) -> str:
        said = run(argv, **options)
        if argv[0] == "sync":
            with (tmp_path / "disk").open("r+b") as disk:
                start = disk.read().index(b"hello")
                disk.seek(start)
                disk.write(b"jello")
        return said

    monkeypatch.setattr(fill, "run", damage)
    with pytest.raises(Failure, match="/etc/motd is not what was written to the disk"):
        fill.fill(given, "b", node, record.parent)
    assert state(record) == Slot("empty")


def test_what_must_not_be_filled(given: Installation, node: Path, record: Path) -> None:
    with pytest.raises(Failure, match="slot a is the one that starts"):
        fill.fill(given, "a", node, record.parent)
    with (
        mounts.mounted(node, at=given.root),
        pytest.raises(Failure, match=f"{node}: Device or resource busy"),
    ):
        fill.fill(given, "b", node, record.parent)
    assert slots.read(record) == BEFORE


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = tree.checksums(tmp_path)
    assert found == {"file": 0x8CDC1683, "link": "/nowhere"}
