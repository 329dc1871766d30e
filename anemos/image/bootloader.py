"""GRUB for BIOS, written into a disk or an image file of one, without mounting it.

grub-install(8) wants to see the devices, which an image file does not have; so the core image is
made by the image's own grub-mkimage(1) and put where grub-install puts it. The offsets are those
of GRUB's include/grub/i386/pc/boot.h and offsets.h; GRUB's manual, "Images", tells their parts.
"""

import os
import shutil
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos.image import chroot, tree
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import MIB, Disk, Layout, extents, root_uuid
from anemos.log import die

SECTOR = 512
KERNEL_SECTOR = 0x5C  # boot.img: where the core image starts, 64 bits
DRIVE_CHECK = 0x66  # boot.img: a jump that two NOPs replace on hard disks
BOOT_CODE_END = 0x1B8  # the disk's signature and partition table follow
BLOCK_LIST = SECTOR - 12  # end of the core's first sector: start of the rest, 64 bits
MODULES = ("biosdisk", "part_gpt", "part_msdos", "ext2", "search_fs_uuid")
GRUB = "usr/lib/grub/i386-pc"
BOOT = "boot/grub/i386-pc"


def install(imgbuild: Imgbuild, root: Path, disks: dict[str, Path], seed: str) -> None:
    """Make the disks bootable. DISKS: device or image file of each disk of the layout, by name."""
    uuid = root_uuid(imgbuild.layout, seed)
    configure(imgbuild, root, uuid)
    make_core(root, uuid)
    disk = boot_disk(imgbuild.layout)
    embed(root / BOOT / "boot.img", root / BOOT / "core.img", disk, disks[disk.name])


def boot_disk(layout: Layout) -> Disk:
    disk = layout.root().disk
    assert disk is not None  # imgbuild.check_grub
    return disk


def configure(imgbuild: Imgbuild, root: Path, uuid: str) -> None:
    """Write grub.cfg; update-grub(8) replaces it when the system installs its next kernel."""
    tree.write(root, "boot/grub/grub.cfg", menu(imgbuild.cmdline, uuid, *newest_kernel(root)))
    default = f'GRUB_CMDLINE_LINUX="{imgbuild.cmdline}"\nGRUB_TIMEOUT=1\n'
    tree.write(root, "etc/default/grub.d/anemos.cfg", default)


def newest_kernel(root: Path) -> tuple[str, str]:
    """Names in /boot of the newest kernel and its initramfs. Raises Failure without one."""
    kernels = sorted((root / "boot").glob("vmlinuz-*"), key=lambda file: version(file.name))
    if not kernels:
        die("the image has no kernel in /boot", hint="add a linux-image package to `packages`")
    initrd = kernels[-1].name.replace("vmlinuz-", "initrd.img-")
    if not (root / "boot" / initrd).is_file():
        die(f"the image has no /boot/{initrd}", hint="add initramfs-tools to `packages`")
    return kernels[-1].name, initrd


def version(name: str) -> list[tuple[bool, int, str]]:
    words = name.replace("-", ".").split(".")
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]


def menu(cmdline: str, uuid: str, kernel: str, initrd: str) -> str:
    words = " ".join(filter(None, (f"root=UUID={uuid}", "ro", cmdline)))
    serial = "serial\nterminal_input serial console\nterminal_output serial console\n"
    return (
        "set timeout=1\n"
        + (serial if "console=ttyS0" in cmdline else "")
        + "menuentry Linux {\n"
        + f"    search --no-floppy --fs-uuid --set=root {uuid}\n"
        + f"    linux /boot/{kernel} {words}\n"
        + f"    initrd /boot/{initrd}\n"
        + "}\n"
    )


def make_core(root: Path, uuid: str) -> None:
    """Put GRUB's modules and its core image into /boot/grub."""
    if not (root / GRUB).is_dir():
        die("bootloader=grub: the image has no GRUB", hint="add grub-pc to `packages`")
    shutil.copytree(root / GRUB, root / BOOT, dirs_exist_ok=True)
    early = f"search.fs_uuid {uuid} root\nset prefix=($root)/boot/grub\n"
    with TemporaryDirectory() as shared:
        (Path(shared) / "early.cfg").write_text(early)
        argv = ["grub-mkimage", "--format=i386-pc", f"--output=/{BOOT}/core.img"]
        argv += ["--config=/run/anemos/early.cfg", "--prefix=/boot/grub", *MODULES]
        chroot.call(root, argv, shared=Path(shared))


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
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def capacity(device: Path) -> int:
    """Bytes of a block device or an image file; stat(2) knows only the latter's."""
    with device.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def core_area(disk: Disk, size: int) -> tuple[int, int]:
    """Start and size in bytes of the place for the core image."""
    if disk.table == "msdos":
        return SECTOR, MIB - SECTOR
    for part, extent in zip(disk.parts, extents(disk, size), strict=True):
        if part.type == "bios":
            return extent
    die(f"layout: disk {disk.name!r} boots by BIOS and has no partition of type=bios")
