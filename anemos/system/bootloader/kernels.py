"""Which kernel an image starts with, by the names that distributions give it in /boot."""

from dataclasses import dataclass
from pathlib import Path

from anemos.log import die
from anemos.system import tree

PREFIX = "vmlinuz-"
# The initramfs of vmlinuz-NAME. Debian: initrd.img-6.1.0-18-amd64; Arch: initramfs-linux.img;
# Alpine: initramfs-lts.
INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initramfs-{}")


@dataclass(frozen=True)
class Kernel:
    """Names of files in /boot. NAME is a version, or what stands for the newest: linux, lts."""

    name: str
    initrd: str

    @property
    def file(self) -> str:
        return PREFIX + self.name

    @property
    def stays(self) -> bool:
        """An upgrade of the kernel keeps its file's name (Arch, Alpine)."""
        return not self.name[0].isdigit()


def newest(root: Path) -> Kernel:
    """The newest kernel in ROOT/boot and its initramfs. Raises Failure without one."""
    boot = tree.resolved(root, "boot")
    names = [file.name.removeprefix(PREFIX) for file in boot.glob(f"{PREFIX}?*")]
    if not names:
        die("the image has no kernel in /boot", hint="add a kernel to `packages`")
    name = max(names, key=version)
    found = [initrd for form in INITRDS if (boot / (initrd := form.format(name))).is_file()]
    if not found:
        missing = " or ".join(form.format(name) for form in INITRDS)
        die(f"the image has no initramfs in /boot: {missing}", hint="Debian: add initramfs-tools")
    return Kernel(name, found[0])


def version(name: str) -> list[tuple[bool, int, str]]:
    words = name.replace("-", ".").split(".")
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]
