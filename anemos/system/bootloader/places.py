"""Where a boot loader finds things: file systems of the layout, by mount point."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from anemos.architecture import Architecture
from anemos.system.layout import MIB, Carrier, Disk, Layout, Part, Volume, fs_uuid

# Names of packages and files are patterns, see Architecture.named.
# Packages by target, all of them.
Trusted = Mapping[str, tuple[str, ...]]
# Packages of a target with a boot loader for "bios" or "uefi"; one of them is enough.
Packages = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Place:
    """A directory, by the UUID of its file system and its path there, "" for the topmost one."""

    uuid: str
    path: str


@dataclass(frozen=True)
class Target:
    """What a boot loader is installed on. DISKS: device or image file of each disk, by name."""

    layout: Layout
    cmdline: str
    root: Path
    disks: Mapping[str, Path]
    seed: str
    arch: Architecture

    @property
    def words(self) -> str:
        """The kernel's whole command line."""
        return " ".join(filter(None, (f"root={root(self.layout, self.seed)}", "ro", self.cmdline)))

    def place(self, path: str) -> Place:
        carrier = holder(self.layout, path)
        return Place(fs_uuid(carrier, self.seed), path.removeprefix(carrier.mount.rstrip("/")))


class Entry(NamedTuple):
    """Files of a root file system, and the kernel's command line."""

    kernel: Path
    initrd: Path
    words: str


def root(layout: Layout, seed: str) -> str:
    """How the initramfs finds the root file system: as update-grub(8) would say it."""
    carrier = layout.root()
    if isinstance(carrier.what, Volume) and carrier.what.kind == "lv":
        # Device-mapper's name, from which initramfs-tools knows what to activate.
        return f"/dev/mapper/{carrier.what.on[0]}-{carrier.what.name}"
    return f"UUID={fs_uuid(carrier, seed)}"


def holder(layout: Layout, path: str) -> Carrier:
    """What carries the file system with PATH."""
    mounts = [
        each for each in layout.mounts() if f"{path}/".startswith(f"{each.mount.rstrip('/')}/")
    ]
    return max(mounts, key=lambda each: len(each.mount))


def stack(layout: Layout, carrier: Carrier) -> list[str]:
    """The kinds of volumes that CARRIER lies on: raid, luks, vg, lv."""
    found = (each.what for each in layout.beneath(carrier))
    return sorted({each.kind for each in found if isinstance(each, Volume)})


def disks_below(layout: Layout, path: str) -> list[Disk]:
    """The disks that hold the file system with PATH."""
    found = [each.disk for each in layout.beneath(holder(layout, path))]
    return [disk for disk in layout.disks if disk in found]


def esps(layout: Layout) -> list[Carrier]:
    """The EFI system partitions (ESP): first the one that is mounted, then its copies."""
    found = [each for each in layout.carriers().values() if getattr(each.what, "type", "") == "esp"]
    return sorted(found, key=lambda each: not each.mount)


def original(layout: Layout, carrier: Carrier) -> Carrier:
    """The ESP that CARRIER is a copy of, or CARRIER itself."""
    found = esps(layout)
    return found[0] if carrier in found else carrier


def check_esps(loader: str, layout: Layout, least: int) -> None:
    """Raises ValueError for EFI system partitions that no boot loader can be put into."""
    for each in esps(layout):
        assert isinstance(each.what, Part)
        if each.what.size is not None and each.what.size < least:
            raise ValueError(
                f"layout: {each.path}: bootloader={loader} needs {least // MIB}M there"
            )
    if sum(bool(each.mount) for each in esps(layout)) != 1:
        raise ValueError(
            f"layout: bootloader={loader} needs one partition of type=esp with a mount"
        )


def os_release(root: Path) -> dict[str, str]:
    """os-release(5) of the image."""
    file = root / "usr/lib/os-release"
    words = shlex.split(file.read_text(), comments=True) if file.is_file() else []
    return dict(word.split("=", 1) for word in words if "=" in word)
