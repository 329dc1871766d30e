"""The architectures of machines, each with the names that others have for it."""

import os
from typing import NamedTuple


class Architecture(NamedTuple):
    name: str  # Debian's, in names of packages, too (dpkg-architecture(1))
    machine: str  # the kernel's (uname(2))
    efi: str  # in names of programs for UEFI (specification 2.10, 3.5.1.1)
    grub: str  # GRUB's for UEFI (grub-mkimage(1))
    serial: str  # a kernel's device for the first serial line

    @property
    def removable(self) -> str:
        """The file that UEFI firmware looks for unasked, in EFI/BOOT."""
        return f"BOOT{self.efi.upper()}.EFI"

    def named(self, pattern: str) -> str:
        """PATTERN, with this architecture's names in the place of {name}, {efi}..."""
        return pattern.format(**self._asdict(), removable=self.removable)


AMD64 = Architecture("amd64", "x86_64", "x64", "x86_64-efi", "ttyS0")
ARM64 = Architecture("arm64", "aarch64", "aa64", "arm64-efi", "ttyAMA0")
ARCHITECTURES = {each.name: each for each in (AMD64, ARM64)}


def of(machine: str) -> Architecture | None:
    """The one that the kernel calls MACHINE."""
    return next((each for each in ARCHITECTURES.values() if each.machine == machine), None)


def own() -> Architecture:
    """This machine's."""
    return of(os.uname().machine) or AMD64
