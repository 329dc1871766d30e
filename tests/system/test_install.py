"""What a deployment adds to the new system for the disks below it."""

from pathlib import Path

import pytest

from anemos.system import grammar, installation
from tests import tiny

PLAIN = "disk d serial=s\npart r fs=ext4 mount=/"
STACK = "disk d serial=s\npart p type=lvm\nvg v on=d/p\nlv r on=v fs=ext4 mount=/"
# What Debian's hooks want to see: mounts, devices of disks; and that / is the image.
HOOK = """#!/bin/sh
ls /dev/loop-control /proc/self/mounts /sys/block >/dev/null && echo "$@" >/made
"""


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
def test_initramfs_is_made_again(tmp_path: Path, text: str, expected: bool) -> None:
    target = tmp_path / "root"
    tiny.make(target)
    before = Path("/proc/self/mounts").read_text()
    installation.rebuild_initramfs(target, grammar.parse(text))  # no update-initramfs there
    hook = target / "usr/sbin/update-initramfs"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    installation.rebuild_initramfs(target, grammar.parse(text))
    made = target / "made"
    assert made.exists() == expected
    assert not expected or made.read_text() == "-u -k all\n"
    assert Path("/proc/self/mounts").read_text() == before


@pytest.mark.root
@pytest.mark.real("run")
def test_initramfs_of_a_definition(tmp_path: Path) -> None:
    """Files of the definition went into it."""
    target = tmp_path / "root"
    hook = tiny.make(target) / "usr/sbin/update-initramfs"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    installation.rebuild_initramfs(target, grammar.parse(PLAIN), outdated=True)
    assert (target / "made").read_text() == "-u -k all\n"


def test_append(tmp_path: Path) -> None:
    """What the definition brings stays in front; a link leads nowhere outside."""
    target = tmp_path
    (target / "etc").mkdir()
    installation.append(target, "etc/crypttab", "")
    assert not (target / "etc/crypttab").exists()
    (target / "etc/crypttab").write_text("own\n")
    for _ in range(2):  # a step that is done again
        installation.append(target, "etc/crypttab", "ours\n")
    assert (target / "etc/crypttab").read_text() == "own\nours\n"
    (target / "etc/mdadm").symlink_to("/elsewhere")
    installation.append(target, "etc/mdadm/mdadm.conf", "ARRAY\n")
    assert (target / "elsewhere/mdadm.conf").read_text() == "ARRAY\n"
