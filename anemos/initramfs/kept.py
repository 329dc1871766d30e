"""Kept disks: compared with their fingerprint from the old system, then put out of reach.

A kept partition cannot be: its disk is in use. It is read-only, which a hostile root can undo; so
what is written meanwhile is counted, by the kernel.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from anemos import disks, log
from anemos.disks import Device, Fingerprint
from anemos.initramfs.hardware import wait_for
from anemos.log import FAILED, die
from anemos.run import run
from anemos.system.layout import Kept, Mounted


def secure(keep: tuple[Kept, ...], before: Sequence[Fingerprint] | None) -> list[Mounted]:
    """Put kept disks out of reach, set kept partitions read-only; return their file systems.

    BEFORE: the fingerprints taken in the old system; None when there was none. Raises Failure for
    one that is missing, ambiguous or changed.
    """
    mounts: list[Mounted] = []
    expected = {each.name: each.digest for each in before or []}
    for each in keep:
        device = disks.resolve(each.name, each.match, disks.devices())
        found = disks.fingerprint(each.name, device, each.only)
        if before is not None and found.digest != expected.get(each.name):
            die(f"kept {each.name!r} is not what it was in the old system", status=FAILED)
        if each.mount:
            mounts.append(each.mounted(found))
        if each.disk:
            run(["blockdev", "--setro", device.part(each.part)])
            log.info(
                f"Kept partition {each.name!r} ({device.part(each.part)}): unchanged, read-only"
            )
        else:
            out_of_reach(found, device)
    return mounts


def out_of_reach(found: Fingerprint, device: Device) -> None:
    """Take DEVICE away from the kernel, or where its bus cannot do that, set it read-only."""
    entry = (disks.SYS_BLOCK / device.name).resolve()
    action = detachment((entry / "device").resolve())
    if action is None:
        read_only(device)
        log.info(f"Kept disk {found.name!r} ({device.describe()}): unchanged, set read-only")
        return
    ((file, word),) = action.items()
    file.write_text(word)
    wait_for(f"end of {device.path}", lambda: not entry.exists())
    log.info(f"Kept disk {found.name!r} ({device.describe()}): unchanged, taken from the kernel")


def detachment(device: Path) -> Mapping[Path, str] | None:
    """What to write into which sysfs file to make DEVICE (a disk's parent in sysfs) go away.

    SCSI and ATA: the device is deleted (kernel: ABI/testing/sysfs-bus-scsi-devices...); virtio and
    NVMe with a single namespace: the driver is unbound (ABI/testing/sysfs-driver).
    """
    if (device / "delete").exists():
        return {device / "delete": "1"}
    bound = device
    if (device / "subsystem").resolve().name == "nvme":
        if len(list(device.glob("nvme*n*"))) != 1:
            return None
        bound = (device / "device").resolve()
    unbind = bound / "driver" / "unbind"
    return {unbind: bound.name} if unbind.exists() else None


@contextmanager
def watched(keep: Sequence[Kept]) -> Iterator[None]:
    """Raises Failure at the end when anything was written to what KEEP names, as far as it is still
    there, or to a disk with a kept partition but to none of its partitions: perhaps into that one.
    """
    os.sync()
    before = written(keep)
    try:
        yield
    finally:  # what also went wrong stands in the log
        os.sync()
        if changed := written(keep) - before:
            what = ", ".join(f"{sectors} sectors of {name}" for name, sectors in changed.items())
            hint = "look with ./inv rescue; ./inv resume goes on"
            die(f"written to, although kept: {what}", hint=hint, status=FAILED)


def written(keep: Sequence[Kept]) -> Counter[str]:
    """Sectors written so far, by what they were written to."""
    count: Counter[str] = Counter()
    for each, device in itertools.product(keep, disks.devices()):
        if not disks.matches(device, each.match):
            continue
        whole = disks.written(device.name)
        if each.disk:
            parts = {n: disks.written(node.name) for n, node in disks.partitions(device).items()}
            count[f"partition {each.name!r} ({device.part(each.part)})"] = parts.get(each.part, 0)
            past = whole - sum(parts.values())
            count[f"{device.path}, outside its partitions or past their devices"] = past
        else:
            count[f"disk {each.name!r} ({device.path})"] = whole
    return count


def read_only(device: Device) -> None:
    """Set DEVICE and its partitions read-only (blockdev(8)); a hostile root could undo it."""
    for node in disks.nodes(device):
        run(["blockdev", "--setro", node])
