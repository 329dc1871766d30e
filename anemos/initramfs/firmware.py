"""Makes UEFI firmware start the new system first.

The boot loader lies where firmware looks for it unasked (UEFI specification 2.10, 3.5.1.1), so
a firmware that forgets or refuses our entry finds the new system all the same: only a warning.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from anemos import architecture, log, mounts
from anemos.log import Failure
from anemos.run import run

FIRMWARE = Path("/sys/firmware/efi")
LABEL = "anemos"
LOADER = rf"\EFI\BOOT\{architecture.own().removable}"


def register(partitions: Sequence[tuple[Path, int]]) -> None:
    """Put EFI system PARTITIONS (disk, number from 1) first in the boot order, in their order.

    Entries of earlier deployments go, and the one that may have started this (server/once.py). A
    kernel that was started by BIOS knows of no firmware to be told, nor does one that kexec started
    from a kernel without EFI's runtime services.
    """
    if not FIRMWARE.is_dir():
        if partitions:
            log.info("No boot entry can be set: UEFI firmware has to find EFI/BOOT by itself")
        return
    try:
        with mounts.mounted("-t", "efivarfs", "efivarfs", at=FIRMWARE / "efivars"):
            for argv in commands(run(["efibootmgr"]), partitions):
                run(argv)
        log.info(f"The firmware starts {LABEL!r} first")
    except Failure as failure:
        log.info(f"warning: the firmware does not take a boot entry: {failure}")


def commands(listing: str, partitions: Sequence[tuple[Path, int]]) -> list[list[str]]:
    """efibootmgr(8)'s argvs; LISTING is what it prints by itself. A new entry becomes the first."""
    ours = re.findall(
        rf"^Boot([0-9A-F]{{4}})[* ] {LABEL}(?: once)?(?:\t.*)?$", listing, re.MULTILINE
    )
    quiet = ["efibootmgr", "--quiet"]
    stale = [[*quiet, "--delete-bootnum", "--bootnum", number] for number in ours]
    words = ["--label", LABEL, "--loader", LOADER]
    return stale + [
        [*quiet, "--create", "--disk", str(disk), "--part", str(number), *words]
        for disk, number in reversed(partitions)
    ]
