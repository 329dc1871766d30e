"""GRUB, for BIOS and UEFI, from the image's own packages.

grub-install(8) would want to see devices and firmware, which a build lacks; its work is done
by grub-mkimage(1) and by writing files and sectors. The core image finds /boot by the UUID of its
file system, so that it does not matter which disk or firmware it is started from.
"""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos.files import text
from anemos.log import FAILED, die
from anemos.system import chroot, slots, tree
from anemos.system.bootloader import bios, kernels, places
from anemos.system.bootloader.kernels import Kernel
from anemos.system.bootloader.places import Entry, Packages, Place, Target, Trusted
from anemos.system.layout import MIB, Disk, Layout

BOOT = "/boot"
HOME = f"{BOOT}/grub"
# No upgrade in a slot may replace what both start from. Debian's packages run grub-install(8) for
# this directory (grub-efi-amd64 of Debian 12, shim-signed), or where there is a core image in
# /boot/grub (grub-pc, grub-efi-amd64 of Debian 13). With slots it is not there.
EFI = "/boot/efi"
EFI_UPGRADED = f"upgrades of Debian's GRUB write to {EFI}"
SETTINGS = "etc/default/grub.d/anemos.cfg"
BIOS = "i386-pc"  # GRUB's platform
PACKAGES: Packages = {
    "debian": {
        "bios": ("grub-pc", "grub-pc-bin"),
        "uefi": ("grub-efi-{name}-bin", "grub-efi-{name}", "grub-efi", "shim-signed"),
    },
    "arch": {"bios": ("grub",), "uefi": ("grub",)},
    "alpine": {"bios": ("grub-bios",), "uefi": ("grub-efi",)},
}
TRUSTED: Trusted = {"debian": ("shim-signed", "grub-efi-{name}-signed")}
MODULES = ("part_gpt", "part_msdos", "search_fs_uuid")
FILE_SYSTEMS = {**dict.fromkeys(("ext2", "ext3", "ext4"), "ext2"), "vfat": "fat"}
FILE_SYSTEMS |= {"xfs": "xfs", "btrfs": "btrfs"}
VOLUMES = {"lv": "lvm", "vg": "lvm", "raid": "mdraid1x"}
# Shim, which Microsoft has signed, starts the distribution's signed GRUB beside it (shim's README;
# Debian: shim-signed, shim-helpers-*-signed, grub-efi-*-signed).
SIGNED = {
    "usr/lib/shim/shim{efi}.efi.signed": "{removable}",
    "usr/lib/shim/mm{efi}.efi.signed": "mm{efi}.efi",
    "usr/lib/grub/{grub}-signed/grub{efi}.efi.signed": "grub{efi}.efi",
}
REMOVABLE = "grub-efi-{name} grub2/force_efi_extra_removable boolean true\n"
# As in grub-mkconfig's: for a boot entry that is taken once (server/once.py).
CUSTOM = """\
if [ -f ${config_directory}/custom.cfg ]; then
    source ${config_directory}/custom.cfg
fi
"""
# What slots share: it starts the default one by its own grub.cfg, or where that fails, the other.
# Before that, an entry for one boot, if the record on the disk says that it is used up: GRUB cannot
# write to every device and file system (its manual, "The GRUB environment block").
CHOICE = f"""\
load_env --file ($root)/{slots.FILE} slot root_a root_b once
if [ "$once" = 1 ]; then
    set once=0
    if save_env --file ($root)/{slots.FILE} once; then
        set once=1
        load_env --file ($root)/{slots.FILE} once
        if [ "$once" = 0 ]; then source ($root)/{slots.ONCE}; fi
    fi
fi
function start {{
    if search --no-floppy --fs-uuid --set=root "$1"; then
        configfile ($root){HOME}/grub.cfg
    fi
}}
if [ "$slot" = b ]; then
    start "$root_b"
fi
start "$root_a"
start "$root_b"
"""
RECORD = slots.FILE
ROOM = 16 * MIB  # shim, GRUB and, while they are replaced, both again


def ways(layout: Layout) -> frozenset[str]:
    found = {"bios": bios_disks(layout), "uefi": places.esps(layout)}
    return frozenset(way for way, where in found.items() if where)


def bios_disks(layout: Layout) -> list[Disk]:
    """Disks that get a core image for BIOS: on GPT, those with a partition for it.

    An msdos table always leaves room for one; it is used on the disks that hold GRUB's files,
    unless the layout has an EFI system partition instead.
    """
    msdos = [] if places.esps(layout) else places.disks_below(layout, home(layout))
    return [
        disk
        for disk in layout.disks
        if any(part.type == "bios" for part in disk.parts)
        or (disk.table == "msdos" and disk in msdos)
    ]


def home(layout: Layout) -> str:
    """Where GRUB has its modules and reads its first grub.cfg, seen from the new system."""
    shared = layout.shared()
    return f"{shared.mount}/grub" if shared else HOME


def check(layout: Layout, cmdline: str) -> None:
    """Raises ValueError for a layout or command line that GRUB cannot start a system from."""
    for boot in (places.holder(layout, BOOT), places.holder(layout, home(layout))):
        if boot.fs not in FILE_SYSTEMS:
            raise ValueError(f"bootloader=grub does not start from fs={boot.fs}")
        if "luks" in places.stack(layout, boot):
            apart = "with slots, it is in /" if layout.slots() else "a partition with mount=/boot"
            raise ValueError(f"bootloader=grub needs /boot outside of LUKS: {apart}")
    if not ways(layout):
        names = ", ".join(repr(disk.name) for disk in places.disks_below(layout, BOOT))
        raise ValueError(f"bootloader=grub needs a partition of type=bios or esp on disk {names}")
    for disk in bios_disks(layout):
        bios.check(disk)
    if places.esps(layout):
        places.check_esps("grub", layout, ROOM)
    check_slots(layout)
    # These mean something to GRUB's shell or to the one that reads /etc/default/grub.
    if match := re.search(r"""["'\\$`;&|<>{}#]""", cmdline):
        raise ValueError(f"cmdline has a {match[0]}, which GRUB does not pass on")


def check_slots(layout: Layout) -> None:
    if not (shared := layout.shared()):
        return
    if shared.what.size is not None and shared.what.size < ROOM:
        raise ValueError(f"layout: {shared.path}: bootloader=grub needs {ROOM // MIB}M there")
    if any(each.mount == EFI for each in places.esps(layout)):
        raise ValueError(f"bootloader=grub with slots needs its ESP at /efi: {EFI_UPGRADED}")


def files(layout: Layout) -> list[tuple[str, ...]]:
    places = {"bios": BIOS, "uefi": "{grub}"}
    return [(f"usr/lib/grub/{places[way]}/kernel.img",) for way in sorted(ways(layout))]


def install(target: Target) -> None:
    """Write GRUB's files below /boot/grub or what slots share, core images on the disks, and to the
    ESP.
    """
    directory = home(target.layout)
    place = target.place(directory)
    early = f"search.fs_uuid {place.uuid} root\nset prefix=($root){place.path}\n"
    configure(target)
    if target.layout.slots():
        tree.write(target.root, f"{directory}/grub.cfg", CHOICE)
    if disks := bios_disks(target.layout):
        core = make_core(target, "bios", early, "core.img")
        for disk in disks:
            bios.embed(core.with_name("boot.img"), core, disk, target.disks[disk.name])
    if esps := places.esps(target.layout):
        core = make_core(target, "uefi", early, "core.efi")
        fill_esp(target, esps[0].mount, core, early)


def configure(target: Target) -> None:
    """Write grub.cfg, and the settings with which grub-mkconfig(8) replaces it one day."""
    root, kernel = target.root, kernels.newest(target.root)
    tree.write(root, "boot/grub/grub.cfg", menu(target.words, target.place(BOOT), kernel))
    settings = f'GRUB_CMDLINE_LINUX="{target.cmdline}"\nGRUB_TIMEOUT=1\n'
    tree.write(root, SETTINGS, settings)
    if kernel.stays:  # Arch, Alpine: only Debian's grub-mkconfig reads all files of that directory
        given = tree.inside(root, "etc/default/grub")
        own = text(given)
        tree.write(root, "etc/default/grub", f"{own}\n. /{SETTINGS}\n")


def menu(words: str, boot: Place, kernel: Kernel) -> str:
    serial = "serial\nterminal_input serial console\nterminal_output serial console\n"
    return (
        "set timeout=1\n"
        + (serial if "console=ttyS0" in words else "")
        + "menuentry Linux {\n"
        + f"    search --no-floppy --fs-uuid --set=root {boot.uuid}\n"
        + f"    linux {boot.path}/{kernel.file} {words}\n"
        + f"    initrd {boot.path}/{kernel.initrd}\n"
        + "}\n"
        + CUSTOM
    )


def share(target: Target, top: Path) -> None:
    """Nothing: what slots share reads the grub.cfg of each."""


def clear(slot: str, top: Path) -> None:
    """Nothing: nobody starts a slot that is not the default."""


def first_entry(root: Path) -> Entry:
    """What the own grub.cfg of the slot at ROOT starts first. Raises Failure."""
    text = tree.resolved(root, f"{HOME}/grub.cfg").read_text()
    linux = re.search(r"^\s*linux\s+(\S+)\s+(.*?)\s*$", text, re.MULTILINE)
    initrd = re.search(r"^\s*initrd\s+(\S+)\s*$", text, re.MULTILINE)
    if not linux or not initrd:
        die(f"{HOME}/grub.cfg of the slot names no kernel and initramfs", status=FAILED)
    return Entry(tree.resolved(root, linux[1]), tree.resolved(root, initrd[1]), linux[2])


def once(root: str, kernel: str, initrd: str, words: str) -> str:
    """What starts the system on the file system with the UUID ROOT, or resets. KERNEL and INITRD:
    paths there. WORDS: the kernel's command line, as grub.cfg has it."""
    return (
        f"search --no-floppy --fs-uuid --set=root {root}\n"
        f"if linux {kernel} {words}; then\n"
        f"    if initrd {initrd}; then boot; fi\n"
        "fi\n"
        "reboot\n"
    )


def make_core(target: Target, way: str, early: str, name: str) -> Path:
    """Put GRUB's modules and its core image, called NAME, into a directory of `home`."""
    root, platform = target.root, BIOS if way == "bios" else target.arch.grub
    source, directory = root / "usr/lib/grub" / platform, f"{home(target.layout)}/{platform}"
    if not source.is_dir():
        die(
            f"bootloader=grub: the image has no GRUB for {way.upper()}",
            hint=f"Debian: add {target.arch.named(PACKAGES['debian'][way][0])} to `packages`",
        )
    whole = shutil.ignore_patterns("monolithic")  # Debian's images for UEFI, of 15 MiB
    shutil.copytree(source, tree.inside(root, directory), ignore=whole, dirs_exist_ok=True)
    with TemporaryDirectory() as shared:
        (Path(shared) / "early.cfg").write_text(early)
        argv = ["grub-mkimage", f"--format={platform}", f"--output={directory}/{name}"]
        argv += ["--config=/run/anemos/early.cfg", "--prefix=/boot/grub", *modules(target, way)]
        chroot.call(root, argv, shared=Path(shared))
    return tree.inside(root, f"{directory}/{name}")


def modules(target: Target, way: str) -> list[str]:
    """What the core image needs to read its own files and /boot; it loads the rest from there."""
    found = [places.holder(target.layout, path) for path in (home(target.layout), BOOT)]
    systems = {FILE_SYSTEMS[each.fs] for each in found}
    volumes = {VOLUMES[kind] for each in found for kind in places.stack(target.layout, each)}
    disks = ["biosdisk"] if way == "bios" else []
    return [*disks, *MODULES, *sorted(systems), *sorted(volumes)]


def fill_esp(target: Target, esp: str, core: Path, early: str) -> None:
    """Put GRUB where firmware looks for it unasked (UEFI specification 2.10, 3.5.1.1)."""
    root, named = target.root, target.arch.named
    signed = {named(file): named(name) for file, name in SIGNED.items()}
    if not all((root / file).is_file() for file in signed):
        tree.copy(core, root, f"{esp}/EFI/BOOT/{target.arch.removable}", 0o644)
        return
    for file, name in signed.items():
        tree.copy(root / file, root, f"{esp}/EFI/BOOT/{name}", 0o644)
    # The signed GRUB has no configuration of ours in it; it looks for one in the directory of its
    # distribution, as grub-install makes it.
    vendor = places.os_release(root).get("ID", "debian")
    tree.write(root, f"{esp}/EFI/{vendor}/grub.cfg", early + "configfile $prefix/grub.cfg\n")
    if (root / "usr/bin/debconf-set-selections").is_file():
        follow_upgrades(root, named(REMOVABLE))


def follow_upgrades(root: Path, answer: str) -> None:
    """Have Debian's packages run grub-install(8) for the file that firmware looks for unasked, too.

    They do so whenever the directory of the distribution is on the ESP.
    """
    with TemporaryDirectory() as shared:
        (Path(shared) / "answer").write_text(answer)
        chroot.call(root, ["debconf-set-selections", "/run/anemos/answer"], shared=Path(shared))
