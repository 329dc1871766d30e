"""Kept disks: compared with their fingerprint from the old system, then put out of reach.

A kept partition cannot be: its disk is in use. It is read-only, which a hostile root can undo; so
what is written meanwhile is counted, by the kernel. A kept volume lies on such partitions, which
stay unused: it is put together for a look, above shields, and taken apart again.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from anemos import disks, log, volumes
from anemos.disks import Device, Fingerprint, Wanted
from anemos.initramfs import leftovers
from anemos.initramfs.hardware import wait_for
from anemos.initramfs.leftovers import InUse
from anemos.log import FAILED, die
from anemos.run import run
from anemos.system import layout
from anemos.system.layout import Kept, Mounted, Volume

SHIELD = 64 * layout.MIB  # of memory, at most, for what is written to a shield


def secure(keep: tuple[Kept, ...], before: Sequence[Fingerprint] | None) -> list[Mounted]:
    """Put kept disks out of reach, set kept partitions read-only; return their file systems.

    BEFORE: the fingerprints taken in the old system; None when there was none. Raises Failure for
    one that is missing, ambiguous or changed.
    """
    mounts: list[Mounted] = []
    for each in keep:
        device = disks.resolve(each.name, each.match, disks.devices())
        found = disks.fingerprint(each.name, device, each.only)
        compare(found, before)
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


def compare(found: Fingerprint, before: Sequence[Fingerprint] | None) -> None:
    expected = {each.name: each.digest for each in before or []}
    if before is not None and found.digest != expected.get(found.name):
        die(f"kept {found.name!r} is not what it was in the old system", status=FAILED)


def secure_volumes(
    keep: Sequence[Kept], kept: Sequence[Volume], before: Sequence[Fingerprint] | None
) -> tuple[list[Mounted], list[Fingerprint]]:
    """Look at the volumes KEPT; return their file systems and fingerprints.

    They are out of reach before and after: nothing has put together what lies on the partitions
    in KEEP, which are read-only by now. BEFORE: as for `secure`.
    """
    if not kept:
        return [], []
    wanted = [*(each.wanted for each in keep), *(each.wanted for each in kept)]
    parts = volumes.nodes(wanted)
    with watched(keep):
        try:
            found = look(wanted, kept, parts)
        finally:
            used = leftovers.above(node.name for node in parts.values())
            leftovers.take_apart(InUse((), (), tuple(used)))
    for each in found:
        compare(each, before)
        log.info(f"Kept volume {each.serial}: unchanged, not in use")
    prints = {each.name: each for each in found}
    return [each.mounted(prints[each.name]) for each in kept if each.mount], found


def look(
    wanted: Sequence[Wanted], kept: Sequence[Volume], parts: Mapping[str, Path]
) -> list[Fingerprint]:
    """Put KEPT together, on the partitions PARTS."""
    members = {name for each in kept if each.kind == "raid" for name in each.on}
    parts = {name: shield(node) if name in members else node for name, node in parts.items()}
    for argv in together(kept, parts):
        run(argv)
    return volumes.of_volumes(wanted, parts)


def shield(node: Path) -> Path:
    """A device like NODE. What is written to it stays in memory (kernel: snapshot.rst).

    The kernel warns of its own writes to a read-only device, and does them (bio_check_ro). md
    writes an array's bitmap even when it is read-only (md_bitmap_load, md_bitmap_flush).
    """
    name, sectors = f"kept_{node.name}", int(run(["blockdev", "--getsz", node]))
    with NamedTemporaryFile() as file:
        file.truncate(SHIELD)
        loop = run(["losetup", "--find", "--show", file.name]).strip()
    try:
        table = f"0 {sectors} snapshot {node} {loop} N 8"
        run(["dmsetup", "create", "--noudevsync", "--noudevrules", name, "--table", table])
    finally:
        run(["losetup", "--detach", loop])  # it ends with its last user
    return next(Path("/dev", kernel) for kernel, its in volumes.mapped().items() if its == name)


def together(kept: Sequence[Volume], parts: Mapping[str, Path]) -> Iterator[list[str | Path]]:
    """What puts KEPT together, on PARTS: without a resync, and without a write to a volume.

    mdadm(8) starts no array that lacks a member. LVM's table is read-only because of its list
    (lvm.conf(5)).
    """
    for each in kept:
        if each.kind == "raid":
            members = [parts[name] for name in each.on]
            yield ["mdadm", "--quiet", "--assemble", "--readonly", each.node, *members]
        elif each.kind == "lv":
            path = f"{each.on[0]}/{each.name}"
            only = f'activation/read_only_volume_list=["{path}"]'
            yield ["lvchange", "--activate", "y", "--config", only, path]


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
def watched(keep: Sequence[Kept], hint: str = "") -> Iterator[None]:
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
            die(f"written to, although kept: {what}", hint=hint, status=FAILED)


def written(keep: Sequence[Kept]) -> Counter[str]:
    """Sectors written so far, by what they were written to."""
    count: Counter[str] = Counter()
    for each, device in itertools.product(keep, disks.devices()):
        if not disks.matches(device, each.match):
            continue
        whole, parts = disks.written_by_part(device)
        if each.disk:
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
