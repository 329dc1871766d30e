"""How much a deployment sends, and how much memory it takes."""

from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
# What the installing system itself takes: its kernel, Python, sshd, file systems' buffers.
WORKING_MEMORY = 200 * MIB
# What Python and kexec take on the old system, the kernel image twice, and what the kernel wants to
# keep free: with 26 MiB it ran out of memory, with 80 it did not (Debian 12, hosts/demo).
STAGING_MEMORY = 64 * MIB
# What apt and dpkg take besides: 187 MiB were gone meanwhile (Debian 13, hosts/demo).
BOOTSTRAP_MEMORY = 192 * MIB


@dataclass(frozen=True)
class Sizes:
    """Bytes to send; None for the base image when the server has it."""

    base: int
    layer: int
    payload: int
    base_is_there: bool
    way: str = "kexec"  # that is taken, and what that means (ways.py):
    copies: int = 3  # of the initramfs, in the old system's memory
    late: bool = False  # the package layer comes after the jump
    by_server: bool = False  # that makes it, in the slot

    @property
    def sent(self) -> int:
        return self.layer + self.payload + (0 if self.base_is_there else self.base)

    @property
    def initramfs(self) -> int:
        return self.base + self.layer + self.payload

    @property
    def before_jump(self) -> int:
        """Memory on the old system: the parts, joined; and what kexec_file_load(2) reads and keeps.

        The layer's part is gone when the kernel gets its copies.
        """
        staged = 0 if self.base_is_there else self.base
        held = self.initramfs - (self.layer if self.late else 0)
        return self.copies * held + staged + STAGING_MEMORY

    @property
    def beside(self) -> int:
        """Memory on the old system while a slot is filled: what is staged, the payload unpacked.
        A package layer that is sent goes straight into the slot."""
        staged = 0 if self.base_is_there else self.base
        made = BOOTSTRAP_MEMORY if self.by_server else 0
        return staged + 2 * self.payload + STAGING_MEMORY + made

    @property
    def after_jump(self) -> int:
        """Memory in the initramfs at its worst: the archive and what is unpacked from it.

        Its file system is a tmpfs of half the memory (kernel: ramfs-rootfs-initramfs.rst): in it
        lie the payload, unpacked too, and the one that `resume --repack` sends.
        """
        return max(2 * self.initramfs + WORKING_MEMORY, 2 * self.files)

    @property
    def files(self) -> int:
        return self.base + self.layer + 3 * self.payload


def size(file: str | Path) -> int:
    """In bytes; 0 for what is not made, or not there any more."""
    return Path(file).stat().st_size if file and Path(file).exists() else 0
