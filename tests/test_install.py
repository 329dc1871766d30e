"""What a deployment adds to the new system for the disks below it."""

from pathlib import Path

import pytest

from anemos.initramfs import install
from anemos.system import grammar
from tests import tiny

PLAIN = "disk d serial=s\npart r fs=ext4 mount=/"
STACK = "disk d serial=s\npart p type=lvm\nvg v on=d/p\nlv r on=v fs=ext4 mount=/"
# What Debian's hooks want to see: mounts, devices of disks; and that / is the image.
HOOK = """#!/bin/sh
ls /dev/loop-control /proc/self/mounts /sys/block >/dev/null && echo "$@" >/made
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    monkeypatch.setattr(install, "TARGET", root)
    return root


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, False),
        (PLAIN.replace("ext4", "xfs"), True),
        (STACK, True),
    ],
)
def test_initramfs_is_made_again(target: Path, text: str, expected: bool) -> None:
    tiny.make(target)
    before = Path("/proc/self/mounts").read_text()
    install.rebuild_initramfs(grammar.parse(text))  # no update-initramfs there: nothing to do
    hook = target / "usr/sbin/update-initramfs"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    install.rebuild_initramfs(grammar.parse(text))
    made = target / "made"
    assert made.exists() == expected
    assert not expected or made.read_text() == "-u -k all\n"
    assert Path("/proc/self/mounts").read_text() == before


@pytest.mark.root
@pytest.mark.real("run")
def test_initramfs_of_a_definition(target: Path) -> None:
    """Files of the definition went into it."""
    hook = tiny.make(target) / "usr/sbin/update-initramfs"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    install.rebuild_initramfs(grammar.parse(PLAIN), outdated=True)
    assert (target / "made").read_text() == "-u -k all\n"


def test_append(target: Path) -> None:
    """What the definition brings stays in front; a link leads nowhere outside."""
    (target / "etc").mkdir(parents=True)
    install.append("etc/crypttab", "")
    assert not (target / "etc/crypttab").exists()
    (target / "etc/crypttab").write_text("own\n")
    for _ in range(2):  # a step that is done again
        install.append("etc/crypttab", "ours\n")
    assert (target / "etc/crypttab").read_text() == "own\nours\n"
    (target / "etc/mdadm").symlink_to("/elsewhere")
    install.append("etc/mdadm/mdadm.conf", "ARRAY\n")
    assert (target / "elsewhere/mdadm.conf").read_text() == "ARRAY\n"
