"""An initramfs that is older than the files it is made from is made again."""

from pathlib import Path

import pytest

from anemos.system import definition, imgbuild, initrd, tree
from anemos.system.definition import Definition
from tests import tiny

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

HOOK = "#!/bin/sh\necho $* >>/made\n"
BLACKLIST = "mkdir -p /etc/modprobe.d; echo blacklist nouveau >/etc/modprobe.d/own.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tiny.make(tmp_path / "root")
    tree.write(made, initrd.PROGRAM, HOOK, 0o755)
    tree.write(made, "boot/initrd.img-6.1", "of the package layer")
    tree.write(made, "etc/initramfs-tools/modules", "")
    tree.write(made, "etc/udev/udev.conf", "")
    return made


@pytest.mark.parametrize(
    ("file", "provision", "expected"),
    [
        ("etc/motd", ":", False),
        ("etc/modprobe.d/own.conf", ":", True),
        ("etc/initramfs-tools/modules", ":", True),
        ("etc/systemd/network/10-lan.link", ":", True),
        ("etc/systemd/network/10-lan.network", ":", False),
        ("etc/udev/rules.d/own.rules", ":", True),
        ("etc/motd", BLACKLIST, True),
        ("etc/motd", "rm /etc/udev/udev.conf", True),
        ("etc/motd", f"{BLACKLIST}; echo made by provision >/boot/initrd.img-6.1", False),
        ("etc/motd", f"{BLACKLIST}; rm /boot/initrd.img-6.1", False),
        ("etc/motd", f"{BLACKLIST}; rm /{initrd.PROGRAM}", False),
    ],
)
def test_made_again(tmp_path: Path, root: Path, file: str, provision: str, expected: bool) -> None:
    tree.write(tmp_path, f"files/{file}", "own")
    (tmp_path / "IMGBUILD").write_text(f"target=debian\nprovision() {{ {provision}; }}\n")
    spec = imgbuild.load(tmp_path)
    definition.complete(spec, root, Definition([tmp_path / "files"]))
    made = root / "made"
    assert made.exists() == expected
    assert not expected or made.read_text() == "-u -k all\n"
