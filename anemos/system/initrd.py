"""Debian's initramfs in /boot: the package layer made it, before the definition was there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.system import chroot

PROGRAM = "usr/sbin/update-initramfs"
ARGV = ("update-initramfs", "-u", "-k", "all")
# What goes into it: initramfs-tools(7), hooks of kmod, udev, cryptsetup, mdadm, LVM, dropbear.
SOURCES = (
    "etc/console-setup/**/*",
    "etc/cryptsetup-initramfs/**/*",
    "etc/default/console-setup",
    "etc/default/keyboard",
    "etc/dropbear/initramfs/**/*",
    "etc/initramfs-tools/**/*",
    "etc/lvm/**/*",
    "etc/mdadm/**/*",
    "etc/modprobe.d/*",
    "etc/systemd/network/*.link",
    "etc/udev/**/*",
    "usr/lib/firmware/**/*",
    "usr/lib/modprobe.d/*",
    "usr/lib/systemd/network/*.link",
    "usr/lib/udev/rules.d/*",
    "usr/share/initramfs-tools/**/*",
)
Seen = Mapping[str, tuple[int, int]]  # size and time of the last change, by path


@dataclass(frozen=True)
class State:
    """What initramfs images are made from, and the images."""

    sources: Seen
    images: Seen


def state(root: Path) -> State:
    sources = {path: seen for glob in SOURCES for path, seen in look(root, glob)}
    return State(sources, dict(look(root, "boot/initrd.img-*")))


def look(root: Path, glob: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for file in root.glob(glob):
        status = file.lstat()
        yield str(file.relative_to(root)), (status.st_size, status.st_mtime_ns)


def outdated(root: Path, before: State) -> bool:
    """Tell whether what it is made from has changed since BEFORE, and nobody made it again."""
    now = state(root)
    renewed = not now.images or now.images != before.images
    return (root / PROGRAM).exists() and not renewed and now.sources != before.sources


def renew(root: Path) -> None:
    with log.step("Making the initramfs again"), TemporaryDirectory() as shared:
        chroot.call(root, ARGV, shared=Path(shared))
