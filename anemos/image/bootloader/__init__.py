"""Boot loaders: one module each, with the same interface.

PACKAGES: Debian's, by way of starting; one of them is enough. ways(layout): how machines can start
it, "bios", "uefi" or both. files(layout): what has to be in an image, one of each is enough.
check(layout, cmdline): raises ValueError for what it cannot start.
install(target): makes the disks bootable.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anemos.image.bootloader import grub, systemd_boot
from anemos.image.bootloader.places import Packages, Target
from anemos.image.layout import Layout
from anemos.log import die

if TYPE_CHECKING:  # it asks for the checks
    from anemos.image.imgbuild import Imgbuild


class Loader(Protocol):
    PACKAGES: Packages

    def ways(self, layout: Layout) -> frozenset[str]: ...
    def files(self, layout: Layout) -> list[tuple[str, ...]]: ...
    def check(self, layout: Layout, cmdline: str) -> None: ...
    def install(self, target: Target) -> None: ...


LOADERS: dict[str, Loader] = {"grub": grub, "systemd-boot": systemd_boot}


def ways(imgbuild: Imgbuild) -> frozenset[str]:
    """How machines can start IMGBUILD's system."""
    loader = LOADERS.get(imgbuild.bootloader)
    return loader.ways(imgbuild.layout) if loader else frozenset()


def missing(imgbuild: Imgbuild) -> list[tuple[str, ...]]:
    """Packages of which IMGBUILD has none, although the boot loader needs one of each."""
    if imgbuild.target != "debian":
        return []
    packages = LOADERS[imgbuild.bootloader].PACKAGES
    needed = [packages[way] for way in sorted(ways(imgbuild))]
    return [each for each in needed if not set(each) & set(imgbuild.package_names)]


def rehearse(imgbuild: Imgbuild, present: Collection[str]) -> None:
    """Die when what the boot loader is made of is not among PRESENT, paths in the image."""
    loader = LOADERS.get(imgbuild.bootloader)
    for needed in loader.files(imgbuild.layout) if loader else ():
        if not set(needed) & set(present):
            names = " or ".join(f"/{each}" for each in needed)
            hint = f"one of these in `packages`? {packages_for(imgbuild)}"
            die(f"bootloader={imgbuild.bootloader}: the package layer has no {names}", hint=hint)


def packages_for(imgbuild: Imgbuild) -> str:
    known = LOADERS[imgbuild.bootloader].PACKAGES
    return ", ".join(name for way in sorted(ways(imgbuild)) for name in known[way])


def install(imgbuild: Imgbuild, root: Path, disks: Mapping[str, Path], seed: str) -> None:
    """Make the disks bootable. DISKS: device or image file of each disk of the layout, by name.

    Below ROOT all of the layout is mounted, or nothing is and the files move to their places later.
    """
    target = Target(imgbuild.layout, imgbuild.cmdline, root, disks, seed)
    LOADERS[imgbuild.bootloader].install(target)
