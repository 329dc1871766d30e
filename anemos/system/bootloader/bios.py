"""GRUB's place on a disk that a BIOS starts from: boot sector and core image, written as bytes.

grub-install(8) wants to see the devices, which an image file does not have; so the images are put
where it would put them. The offsets are those of GRUB's include/grub/i386/pc/boot.h and
offsets.h; GRUB's manual, "Images", tells their parts.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from anemos.log import die
from anemos.system.layout import MIB, Disk, extents

SECTOR = 512
KERNEL_SECTOR = 0x5C  # boot.img: where the core image starts, 64 bits
DRIVE_CHECK = 0x66  # boot.img: a jump that two NOPs replace on hard disks
BOOT_CODE_END = 0x1B8  # the disk's signature and partition table follow
# The table behind it: four entries, each with a flag, and a type in its fifth byte.
TABLE, ENTRY, ACTIVE, PROTECTIVE = 0x1BE, 16, 0x80, 0xEE
BLOCK_LIST = SECTOR - 12  # end of the core's first sector: start of the rest, 64 bits


def embed(boot: Path, core: Path, disk: Disk, device: Path) -> None:
    """Write boot and core image to DEVICE: the core into the BIOS boot partition, or the gap."""
    start, room = core_area(disk, capacity(device))
    data = bytearray(core.read_bytes())
    if len(data) > room:
        die(f"GRUB needs {len(data)} bytes, disk {disk.name!r} has {room} for it")
    struct.pack_into("<Q", data, BLOCK_LIST, start // SECTOR + 1)
    first = bytearray(boot.read_bytes()[:BOOT_CODE_END])
    struct.pack_into("<Q", first, KERNEL_SECTOR, start // SECTOR)
    first[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"
    with device.open("r+b") as file:
        file.write(first)
        if disk.table == "gpt":
            mark(file)
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def mark(file: BinaryIO) -> None:
    """Give the protective entry of a GPT disk the boot flag: there are BIOSes that start no disk
    without one. UEFI firmware ignores it (UEFI specification 2.10, table 5.4)."""
    file.seek(TABLE)
    entries = bytearray(file.read(4 * ENTRY))
    for start in range(0, len(entries), ENTRY):
        if entries[start + 4] == PROTECTIVE:
            entries[start] = ACTIVE
    file.seek(TABLE)
    file.write(entries)


def capacity(device: Path) -> int:
    """Bytes of a block device or an image file; stat(2) knows only the latter's."""
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def check(disk: Disk) -> None:
    """Raises ValueError where something kept lies in the way: old partitions may begin early."""
    if disk.table == "msdos" and gap_end(disk) < MIB:
        why = f"the first MiB of disk {disk.name!r}, where a kept partition lies"
        raise ValueError(f"bootloader=grub needs {why}")


def gap_end(disk: Disk) -> int:
    """Where the gap behind an msdos table ends, in bytes."""
    return min([MIB, *(each.start for each in disk.old.entries.values())])


def core_area(disk: Disk, size: int) -> tuple[int, int]:
    """Start and size in bytes of the place for the core image."""
    if disk.table == "msdos":
        return SECTOR, gap_end(disk) - SECTOR
    for part, extent in zip(disk.parts, extents(disk, size), strict=True):
        if part.type == "bios":
            return extent
    die(f"layout: disk {disk.name!r} boots by BIOS and has no partition of type=bios")
