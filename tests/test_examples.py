"""docs/examples: servers with Arch and Alpine, as far as the definition alone tells."""

from dataclasses import replace
from pathlib import Path

import pytest

from anemos.disks import Device
from anemos.system import imgbuild
from anemos.workstation import access
from anemos.workstation.deploy import facts, plan
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.plan import MIB, Sizes
from anemos.workstation.hosts import Host

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"
GIB = 1024 * MIB


def machine(efi: bool) -> Facts:
    """One that fits the examples."""
    given = facts.parse((ROOT / "tests/data/facts-virtio").read_text())
    disks = (Device("vda", "web-system", "", 8 * GIB), Device("vdb", "web-data", "", GIB))
    return replace(given, efi=efi, disks=disks)


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("target", "efi", "expected"),
    [
        ("arch", False, []),
        ("arch", True, []),
        ("alpine", False, []),
        (
            "alpine",
            True,
            ["the machine starts by UEFI; bootloader=grub with this layout is for BIOS"],
        ),
    ],
)
def test_plan(target: str, efi: bool, expected: list[str]) -> None:
    spec = imgbuild.load(EXAMPLES / target)
    sizes = Sizes(base=60 * MIB, layer=20 * MIB, payload=MIB, base_is_there=False)
    assert plan.problems(Host("web", spec.directory), spec, machine(efi), sizes) == expected
    assert not access.problem(spec, [])


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("target", "word", "message"),
    [
        ("arch", "\ngrub\n", "bootloader=grub needs one of these packages: grub"),
        ("arch", "\nlinux\n", "the IMGBUILD has no kernel among its packages (linux...)"),
        ("alpine", "\ngrub-bios\n", "bootloader=grub needs one of these packages: grub-bios"),
        ("alpine", "\nlinux-virt\n", "the IMGBUILD has no kernel among its packages (linux-...)"),
        (
            "alpine",
            " rootfstype=ext4 ",
            "Alpine's initramfs needs rootfstype=ext4 in `cmdline`, to find /",
        ),
    ],
)
def test_refused_without(tmp_path: Path, target: str, word: str, message: str) -> None:
    text = (EXAMPLES / target / "IMGBUILD").read_text()
    (tmp_path / "IMGBUILD").write_text(text.replace(word, word[0], 1))
    assert list(plan.bootable(imgbuild.load(tmp_path))) == [message]
