"""systemd-boot, for UEFI: boot loader, kernel and initramfs lie on the EFI system partition.

Files and entries are what `bootctl install` and `kernel-install add` would make (bootctl(1),
kernel-install(8), Boot Loader Specification, type #1), so that these go on with them in the new
system. Neither runs here: both want to see the partition mounted, with its firmware.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from anemos.log import die
from anemos.system import tree
from anemos.system.bootloader import kernels, places
from anemos.system.bootloader.kernels import Kernel
from anemos.system.bootloader.places import Packages, Target, Trusted
from anemos.system.layout import MIB, Layout

WAYS = frozenset(["uefi"])
PACKAGES: Packages = {
    "debian": {"uefi": ("systemd-boot", "systemd-boot-efi", "systemd-boot-efi-{name}-signed")},
    "arch": {"uefi": ("base", "systemd")},
    "alpine": {"uefi": ("systemd-boot",)},
}
TRUSTED: Trusted = {}  # Debian has signed it, Microsoft has not
LOADER = "usr/lib/systemd/boot/efi/systemd-boot{efi}.efi"
LOADERS = (f"{LOADER}.signed", LOADER)  # the first one that is there; Debian 13 has it signed
HINT = "Debian: add systemd-boot to `packages`, or systemd-boot-efi"
MOUNTS = ("/efi", "/boot", "/boot/efi")  # where bootctl and kernel-install look for the ESP
PLACES = ("EFI/BOOT/{removable}", "EFI/systemd/systemd-boot{efi}.efi")
# Two kernels with a large initramfs each, and a third one while they are being replaced.
ROOM = 256 * MIB


def ways(layout: Layout) -> frozenset[str]:
    return WAYS


def check(layout: Layout, cmdline: str) -> None:
    """Raises ValueError for a layout or command line that systemd-boot cannot start from."""
    if layout.slots():
        raise ValueError("bootloader=systemd-boot starts no slots, bootloader=grub does")
    places.check_esps("systemd-boot", layout, ROOM)
    if (mount := places.esps(layout)[0].mount) not in MOUNTS:
        raise ValueError(
            f"bootloader=systemd-boot needs its ESP at {', '.join(MOUNTS)}, not {mount}"
        )
    # kernel-install passes it through the shell's echo, which has a meaning for backslashes.
    if match := re.search(r"[^ -~]|\\", cmdline):
        raise ValueError(f"cmdline has a {match[0]}, which systemd-boot does not pass on")


def files(layout: Layout) -> list[tuple[str, ...]]:
    return [LOADERS]


def install(target: Target) -> None:
    """Fill the ESP."""
    root, esp, named = target.root, places.esps(target.layout)[0].mount, target.arch.named
    loader = next((each for each in map(named, LOADERS) if (root / each).is_file()), None)
    if loader is None:
        die(f"bootloader=systemd-boot: the image has no /{named(LOADER)}", hint=HINT)
    for path in PLACES:
        tree.copy(root / loader, root, f"{esp}/{named(path)}", 0o644)
    if not tree.inside(root, f"{esp}/loader/loader.conf").exists():  # the definition's counts
        tree.write(root, f"{esp}/loader/loader.conf", "timeout 1\n")
    tree.write(root, f"{esp}/loader/entries.srel", "type1\n")
    configure(target)
    add(target, esp, token(root), kernels.newest(root))


def configure(target: Target) -> None:
    """Tell kernel-install(8) how to go on with the ESP."""
    tree.write(target.root, "etc/kernel/entry-token", f"{token(target.root)}\n")
    tree.write(target.root, "etc/kernel/cmdline", f"{target.words}\n")


def token(root: Path) -> str:
    """What kernels and entries of the system at ROOT are called by on the ESP."""
    return places.os_release(root).get("ID", "linux")


def add(target: Target, esp: str, token: str, kernel: Kernel) -> None:
    """Give KERNEL an entry. One whose files are upgraded in place is started from there."""
    place, names = "", (kernel.file, kernel.initrd)
    if kernel.stays and esp != "/boot":
        die(f"/boot/{kernel.file} is upgraded in place", hint="mount the ESP at /boot")
    if not kernel.stays:
        place, names = f"/{token}/{kernel.name}", ("linux", kernel.initrd)
        for source, name in zip((kernel.file, kernel.initrd), names, strict=True):
            tree.copy(target.root / "boot" / source, target.root, f"{esp}{place}/{name}", 0o644)
    text = entry(
        places.os_release(target.root),
        kernel.name,
        target.words,
        *(f"{place}/{name}" for name in names),
    )
    tree.write(target.root, f"{esp}/loader/entries/{token}-{kernel.name}.conf", text)


def entry(release: Mapping[str, str], version: str, words: str, linux: str, initrd: str) -> str:
    """An entry as kernel-install's 90-loaderentry.install writes it."""
    fields = {
        "title": release.get("PRETTY_NAME", "Linux"),
        "version": version,
        "sort-key": release.get("ID", "linux"),
        "options": words,
        "linux": linux,
        "initrd": initrd,
    }
    return "".join(f"{key:<10} {value}\n" for key, value in fields.items())
