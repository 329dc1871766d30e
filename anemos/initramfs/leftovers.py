"""What an earlier system, or a run that failed, left on the system disks: found, put out of use.

The kernel itself tells what lies on what (sysfs, `holders`), so nothing else is touched.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anemos import disks, mounts, volumes
from anemos.disks import Device
from anemos.run import run

LVM = "LVM2_member"
# Where superblocks say what blkid(8) does not: the UUID that a cache has in common with what it is
# for (kernel: include/uapi/linux/bcache.h, cache_sb); the start of the log, 0 for one that lies on
# another device (kernel: fs/xfs/libxfs/xfs_format.h, xfs_dsb).
BCACHE_SET = 4096 + 56
XFS_LOG_START = 48


@dataclass(frozen=True)
class InUse:
    """What uses some disks: mount points and swaps, latest first; block devices, upper first."""

    mounts: tuple[str, ...]
    swaps: tuple[str, ...]
    stack: tuple[str, ...]  # dm-0, md127


def release(found: Sequence[Device]) -> None:
    """End every use of the disks FOUND: unmount, swap off, take apart what lies on them.

    The other way round than it was put together. Raises CommandFailed if something is busy.
    """
    take_apart(in_use(found))


def take_apart(use: InUse) -> None:
    for argv in steps(use, volumes.mapped()):
        run(argv)
    forget(Path("/dev"))


def steps(use: InUse, mapped: Mapping[str, str]) -> Iterator[list[str]]:
    """MAPPED: device-mapper's name of each dm-N. dmsetup(8) knows LUKS and LVM alike."""
    yield from (["umount", point] for point in use.mounts)
    yield from (["swapoff", node] for node in use.swaps)
    for name in use.stack:
        if name in mapped:
            yield ["dmsetup", "remove", "--noudevsync", "--retry", mapped[name]]
        elif name.startswith("md"):
            yield ["mdadm", "--quiet", "--stop", f"/dev/{name}"]


def in_use(found: Sequence[Device]) -> InUse:
    stack = list(above(each.name for each in found))
    names = [each.name for each in found] + stack
    nodes = {Path("/dev") / name for name in names}
    nodes |= {
        Path("/dev") / file.parent.name
        for name in names
        for file in (disks.SYS_BLOCK / name).glob("*/partition")
    }
    numbers = {number for node in nodes if (number := device_number(node))}
    return InUse(
        tuple(
            str(m.point) for m in reversed(mounts.listed()) if device_number(m.source) in numbers
        ),
        tuple(str(node) for node in swaps() if device_number(node) in numbers),
        tuple(stack),
    )


def above(names: Iterable[str]) -> Iterator[str]:
    """The block devices that lie on NAMES, disks or partitions, directly or not, upper first."""
    seen: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        places = (f"{name}/holders/*", f"{name}/{name}*/holders/*", f"*/{name}/holders/*")
        for link in sorted(link for place in places for link in disks.SYS_BLOCK.glob(place)):
            if link.name not in seen:
                seen.add(link.name)
                yield from visit(link.name)
                yield link.name

    for name in names:
        yield from visit(name)


def swaps() -> list[Path]:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return [Path(mounts.unescaped(line.split()[0])) for line in lines]


def device_number(node: Path) -> int:
    """The number of a block device, 0 for anything else."""
    try:
        status = node.stat()
    except OSError:
        return 0
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else 0


def forget(dev: Path) -> None:
    """Remove nodes and links of devices that are gone; udev would do it, but there is none here.

    LVM takes a directory /dev/VG for a sign that the name VG is in use.
    """
    for node in dev.glob("mapper/*"):
        number = device_number(node)
        if number and not Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists():
            node.unlink()
    for link in dev.glob("*/*"):
        if link.is_symlink() and not link.exists() and not link.parent.is_symlink():
            link.unlink()
            if not any(link.parent.iterdir()):
                link.parent.rmdir()


def entangled(
    erased: Sequence[Path], staying: Sequence[Path], groups: Mapping[Path, str]
) -> list[str]:
    """The arrays, volume groups, pools and journals shared by ERASED and STAYING nodes.

    GROUPS: see volumes.groups.
    """
    return common(
        [(node, ties(node, groups)) for node in erased],
        [(node, ties(node, groups)) for node in staying],
    )


Tied = Sequence[tuple[Path, set[str]]]


def common(erased: Tied, staying: Tied) -> list[str]:
    return [
        f"{tie}: {node} is to be erased, {other} is not"
        for node, its in erased
        for other, others in staying
        for tie in sorted(its & others)
    ]


def ties(node: Path, groups: Mapping[Path, str]) -> set[str]:
    """What NODE is a part of; nothing if it stands for itself. GROUPS: see volumes.groups."""
    found = disks.probe(node)
    kind, uuid = found.get("TYPE", ""), found.get("POOL_UUID") or found.get("UUID", "")
    if kind == LVM:
        group = groups.get(node, "that LVM cannot read")  # not knowing is no reason to go on
        return {f"volume group {group}"} if group else set()
    if kind == "bcache":
        cache = read(node, BCACHE_SET, 16)
        return {f"bcache {cache.hex()}"} if any(cache) else set()
    if disks.is_pool(kind):
        return {f"{kind} {uuid}"}
    journals = {found[key] for key in ("EXT_JOURNAL", "LOGUUID") if key in found}
    if kind == "xfs" and not any(read(node, XFS_LOG_START, 8)):
        journals.add(uuid)
    return {f"journal {each}" for each in journals}


def read(node: Path, offset: int, length: int) -> bytes:
    with node.open("rb") as file:
        file.seek(offset)
        return file.read(length)
