"""Boot loaders: one module each, with the same interface.

PACKAGES: by target and by way of starting; one of them is enough. TRUSTED: by target, all that is
needed where firmware starts what Microsoft has signed alone. ways(layout): how machines can start
it, "bios", "uefi" or both. files(layout): what has to be in an image, one of each is enough. Names
of packages and files are patterns for Architecture.named.
check(layout, cmdline): raises ValueError for what it cannot start.
install(target): makes the disks bootable.
configure(target): the part of that which lies in the root file system.
With slots:
RECORD: where the record of slots lies on what they share.
clear(slot, top): takes away what is there of a slot; TOP is where that is mounted.
share(target, top): writes to it by what the slot at target.root starts.
first_entry(root): what the slot at ROOT would start. Raises Failure.
"""

from pathlib import Path
from typing import Protocol

from anemos.system.bootloader import grub, systemd_boot
from anemos.system.bootloader.places import Entry, Packages, Target, Trusted
from anemos.system.layout import Layout


class Loader(Protocol):
    PACKAGES: Packages
    TRUSTED: Trusted
    RECORD: str

    def ways(self, layout: Layout) -> frozenset[str]: ...
    def files(self, layout: Layout) -> list[tuple[str, ...]]: ...
    def check(self, layout: Layout, cmdline: str) -> None: ...
    def install(self, target: Target) -> None: ...
    def configure(self, target: Target) -> None: ...
    def clear(self, slot: str, top: Path) -> None: ...
    def share(self, target: Target, top: Path) -> None: ...
    def first_entry(self, root: Path) -> Entry: ...


LOADERS: dict[str, Loader] = {"grub": grub, "systemd-boot": systemd_boot}
