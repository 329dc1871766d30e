"""systemd-boot, for UEFI: boot loader, kernel and initramfs lie on the EFI system partition.

Files and entries are what `bootctl install` and `kernel-install add` would make (bootctl(1),
kernel-install(8), Boot Loader Specification, type #1), so that these go on with them in the new
system. Neither runs here: both want to see the partition mounted, with its firmware. Each slot has
a token of its own there: loader.conf says whose newest entry starts.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from anemos.files import text
from anemos.log import FAILED, die
from anemos.system import slots, tree
from anemos.system.bootloader import kernels, places
from anemos.system.bootloader.kernels import Kernel
from anemos.system.bootloader.places import Entry, Packages, Target, Trusted
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
ENTRIES = "loader/entries"
RECORD = slots.LOADER_CONF
# Two kernels with a large initramfs each, and a third one while they are being replaced; of a slot.
ROOM = 256 * MIB


def ways(layout: Layout) -> frozenset[str]:
    return WAYS


def check(layout: Layout, cmdline: str) -> None:
    """Raises ValueError for a layout or command line that systemd-boot cannot start from."""
    places.check_esps("systemd-boot", layout, ROOM * (len(layout.slots()) or 1))
    check_slots(layout)
    if (mount := places.esps(layout)[0].mount) not in MOUNTS:
        raise ValueError(
            f"bootloader=systemd-boot needs its ESP at {', '.join(MOUNTS)}, not {mount}"
        )
    # kernel-install passes it through the shell's echo, which has a meaning for backslashes.
    if match := re.search(r"[^ -~]|\\", cmdline):
        raise ValueError(f"cmdline has a {match[0]}, which systemd-boot does not pass on")


def check_slots(layout: Layout) -> None:
    if not (shared := layout.shared()):
        return
    esps = places.esps(layout)
    if shared not in esps:
        raise ValueError(f"layout: {shared.path}: bootloader=systemd-boot starts slots by the ESP")
    if len(esps) > 1:
        raise ValueError(f"layout: {esps[1].path}: a copy of an ESP goes on starting one slot")


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
    kernel = kernels.newest(root)
    if kernel.stays and esp != "/boot":
        die(f"/boot/{kernel.file} is upgraded in place", hint="mount the ESP at /boot")
    add(target, tree.resolved(root, esp), kernel)


def configure(target: Target) -> None:
    """Tell kernel-install(8) how to go on with the ESP."""
    tree.write(target.root, "etc/kernel/entry-token", f"{token(target)}\n")
    tree.write(target.root, "etc/kernel/cmdline", f"{target.words}\n")


def token(target: Target) -> str:
    """What kernels and entries of the system at target.root are called by on the ESP."""
    slot = target.layout.root().what.slot
    return slots.PREFIX.format(slot) if slot else places.os_release(target.root).get("ID", "linux")


def clear(slot: str, top: Path) -> None:
    """The ESP is mounted at TOP."""
    token = slots.PREFIX.format(slot)
    for each in (top / ENTRIES).glob(f"{token}-*.conf"):
        each.unlink()
    if (top / token).exists():
        shutil.rmtree(top / token)


def share(target: Target, top: Path) -> None:
    """Raises OSError."""
    add(target, top, kernels.newest(target.root))


def first_entry(root: Path) -> Entry:
    kernel, words = kernels.newest(root), text(tree.resolved(root, "etc/kernel/cmdline")).strip()
    if not words:
        die("etc/kernel/cmdline of the slot is not there, or empty", status=FAILED)
    file, initrd = (tree.resolved(root, f"boot/{each}") for each in (kernel.file, kernel.initrd))
    return Entry(file, initrd, words)


def add(target: Target, esp: Path, kernel: Kernel) -> None:
    """Give KERNEL an entry on ESP. One whose files are upgraded in place is started from there."""
    place, names = "", (kernel.file, kernel.initrd)
    if not kernel.stays:
        place, names = f"/{token(target)}/{kernel.name}", ("linux", kernel.initrd)
        for source, name in zip((kernel.file, kernel.initrd), names, strict=True):
            found = tree.resolved(target.root, f"boot/{source}")
            tree.copy(found, esp, f"{place[1:]}/{name}", 0o644)
    lines = entry(
        places.os_release(target.root),
        kernel.name,
        target.words,
        *(f"{place}/{name}" for name in names),
    )
    tree.write(esp, f"{ENTRIES}/{token(target)}-{kernel.name}.conf", lines)


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
