"""A boot entry of GRUB or UEFI firmware that is taken once: the way where kexec is not allowed.

What lies on the disk is public, except the private half of a host key that serves this one boot.
The rest is sent when the initramfs answers (initramfs/delivery.py).
"""

import os
import re
import shutil
from pathlib import Path

from anemos import files, keys
from anemos.border import archive
from anemos.border.boot import Boot
from anemos.border.requests import Arm, BuildEntry, Built, Keys
from anemos.log import die
from anemos.run import run
from anemos.server import kexec, logins, staging

PLACE = "anemos"  # in the directory of grub.cfg, or of the EFI system partition
LABEL = "anemos once"  # disarm.sh and initramfs/firmware.py look for it
BEGIN, END = "# anemos: begin, for one boot", "# anemos: end"  # disarm.sh looks for them
ROOM = Path("/tmp")  # noqa: S108 (on a tmpfs of our own, see enter.sh)
# grub.cfg reads it last, before there is a menu. The entry is taken only when the environment block
# says, on the disk, that it is used up: GRUB cannot write to every device and file system (its
# manual, "The GRUB environment block").
SCRIPT = """\
set anemos="${{config_directory}}/{place}"
set anemos_once=0
if [ -s "$anemos/env" ]; then load_env --file "$anemos/env"; fi
if [ "$anemos_once" = 1 ]; then
    set anemos_once=0
    if save_env --file "$anemos/env" anemos_once; then
        set anemos_once=1
        load_env --file "$anemos/env"
        if [ "$anemos_once" = 0 ]; then
            if linux "$anemos/vmlinuz" {words}; then
                if initrd "$anemos/initrd"; then boot; fi
            fi
            reboot
        fi
    fi
fi
"""


def build(asked: BuildEntry) -> Built:
    """Write kernel and initramfs into PLACE. Raises Failure."""
    boot = staging.describe(asked, asked.deployment)
    found, place = logins.ssh_keys(staging.HOST), staging.old(asked.directory) / PLACE
    key = write(staging.old(asked.base), boot, place, found["authorized_keys"])
    return Built(boot, logins.public(found), key)


def write(base: Path, boot: Boot, place: Path, allowed: bytes) -> str:
    """The files; returns the public half of the key of this boot. ALLOWED: authorized_keys."""
    private = ROOM / archive.ONCE_KEY
    public = keys.make(private, "once")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    require_private(place)
    shutil.copyfile(kexec.KERNEL, place / "vmlinuz")
    with (place / "initrd").open("wb") as file:
        archive.found(file, staging.BASE_INITRD, base, None)
        own: archive.Keys = {"authorized_keys": allowed, archive.ONCE_KEY: private}
        archive.finish(file, boot, None, own, stay=False)
    return public


def require_private(place: Path) -> None:
    """Die where others may read PLACE all the same: vfat has no modes but those of its mount."""
    if place.stat().st_mode & 0o077:
        where = Path("/") / place.parent.relative_to(staging.HOST)
        hint = "on the server: umask=0077 in its line of fstab, then umount and mount it again"
        die(f"{where}: all users can read there, also the key of the next boot", hint=hint)


def arm(asked: Arm, old: str) -> Keys:
    """Have the loader take the entry at the next boot. OLD: the running kernel's command line.

    Returns the host keys that the initramfs gets then.
    """
    words = kexec.cmdline(old, asked.hold, kexec.DELIVERY)
    if asked.loader == "grub":
        arm_grub(staging.old(asked.directory), words)
    else:
        arm_firmware(asked.device, words)
    os.sync()
    return {name: key.decode() for name, key in logins.host_keys(staging.HOST).items()}


def arm_grub(directory: Path, words: str) -> None:
    (directory / PLACE / "env").write_bytes(environment("anemos_once=1"))
    custom = directory / "custom.cfg"
    files.replace(custom, without(files.text(custom)) + block(words))


def arm_firmware(device: str, words: str) -> None:
    """The kernel is an EFI program, which finds its initrd on the partition that it came from
    (kernel: admin-guide/efi-stub.rst). The firmware removes BootNext before it starts it (UEFI
    specification 2.10, 3.1.2)."""
    part = Path("/sys/class/block", device).resolve()
    made = run(create(part.parent.name, (part / "partition").read_text().strip(), words))
    number = re.findall(rf"^Boot([0-9A-F]{{4}})[* ] {LABEL}", made, re.MULTILINE)[-1]
    run(["efibootmgr", "--quiet", "--bootnext", number])


def create(disk: str, part: str, words: str) -> list[str]:
    """The argv of efibootmgr(8), which prints all entries then."""
    loader, line = rf"\{PLACE}\vmlinuz", rf"initrd=\{PLACE}\initrd {words}"
    place = ["--disk", f"/dev/{disk}", "--part", part, "--loader", loader, "--unicode", line]
    return ["efibootmgr", "--create-only", "--label", LABEL, *place]


def block(words: str) -> str:
    """What custom.cfg gets; WORDS: the kernel's command line, quoted for GRUB's shell."""
    quoted = " ".join(f"'{word}'" for word in words.split() if "'" not in word)
    return f"{BEGIN}\n{SCRIPT.format(place=PLACE, words=quoted)}{END}\n"


def without(custom: str) -> str:
    """The text of custom.cfg without an older block."""
    before, begin, rest = custom.partition(f"{BEGIN}\n")
    return before + rest.partition(f"{END}\n")[2] if begin else custom


def environment(line: str) -> bytes:
    """A file of GRUB's environment block: 1024 bytes, of which the rest are # (its manual)."""
    return f"# GRUB Environment Block\n{line}\n".encode().ljust(1024, b"#")
