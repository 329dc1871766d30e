"""What lies on what on a server, from its disks up to the mount points, as its facts tell.

Names are the kernel's, without /dev/: sda2, md0, dm-1. A place is a disk and the number of a
partition of it, 0 for the disk itself: what everything else lies on in the end.
"""

import re
from collections.abc import Iterable, Iterator

from anemos import disks
from anemos.disks import Device
from anemos.workstation.deploy.facts import Facts

Place = tuple[str, int]
GROUP = re.compile(r"((?:[^-]|--)+)-(?!-)")  # device-mapper's GROUP-VOLUME; hyphens are doubled


def kernel_names(name: str, facts: Facts) -> set[str]:
    """What NAME is to the kernel: /dev/mapper/vg0-root, or vg0-root alone, is dm-0.

    A name of device-mapper's that the server has not explained may be any of those devices.
    """
    name = shown(name, facts)
    uppers = {upper for upper, _ in facts.slaves}
    known = uppers | {lower for _, lower in facts.slaves} | {part.name for part in facts.parts}
    mapped = {kernel for kernel, its in facts.mapped.items() if its == name}
    if not mapped and name in known | {disk.name for disk in facts.disks}:
        return {name}
    mapper = {upper for upper in uppers if upper.startswith("dm-")}
    return mapped or mapper - facts.mapped.keys() or {name}


def places(name: str, facts: Facts) -> set[Place]:
    """What NAME, one of the kernel's, lies on in the end."""
    below = [lower for upper, lower in facts.slaves if upper == name]
    part = next((part for part in facts.parts if part.name == name), None)
    if not below and part and part.disk not in {disk.name for disk in facts.disks}:
        below = [part.disk]  # a partition of an array
    if below:
        return set().union(*(places(each, facts) for each in below))
    return {(part.disk, part.number) if part else (name, 0)}


def below(name: str, facts: Facts) -> set[str]:
    """NAME, one of the kernel's, and all that it lies on."""
    lower = {low for up, low in facts.slaves if up == name}
    lower |= {part.disk for part in facts.parts if part.name == name}
    return {name}.union(*(below(each, facts) for each in lower))


def above(device: Device, facts: Facts) -> set[str]:
    """DEVICE and all that lies on it: partitions, arrays, volumes."""
    ours = re.compile(rf"{re.escape(device.name)}(p?\d+)?")
    lies = [*facts.slaves, *((part.name, part.disk) for part in facts.parts)]
    named = [line.split()[0] for line in (*facts.contents, *facts.mounts)]
    found = {device.name} | {name for each in named for name in kernel_names(each, facts)}
    found = {name for name in found | {lower for _, lower in lies} if ours.fullmatch(name)}
    while more := {upper for upper, lower in lies if lower in found} - found:
        found |= more
    return found


def holds(device: Device, facts: Facts) -> Iterator[str]:
    """What is on DEVICE now, through all layers: what is mounted, then what else there is."""
    ours, mounted = above(device, facts), set()
    for node, point, kind in (line.split() for line in facts.mounts):
        if kernel_names(node, facts) & ours:
            mounted.add(shown(node, facts))
            yield f"{point} ({kind})"
    for name, *words in dict.fromkeys(tuple(line.split()) for line in facts.contents):
        if kernel_names(name, facts) & ours and shown(name, facts) not in mounted:
            yield f"{name} ({' '.join(words)})"


def shown(name: str, facts: Facts) -> str:
    """NAME without its directory; of device-mapper's names the one that people know."""
    name = name.removeprefix("/dev/").removeprefix("mapper/")
    return facts.mapped.get(name, name)


def names(facts: Facts) -> Iterator[tuple[str, str, set[Place]]]:
    """The groups and arrays that there are: (vg or raid, name, what they lie on)."""
    for name, kind, *labels in (line.split() for line in facts.contents):
        if kind == "linux_raid_member" and labels:
            yield "raid", labels[0].rpartition(":")[2], ground([name], facts)  # HOST:NAME
    physical = [line.split()[0] for line in facts.contents if "LVM2_member" in line.split()]
    members = set().union(*(kernel_names(name, facts) for name in physical))
    for name in dict.fromkeys(line.split()[0] for line in facts.contents):
        kernels = kernel_names(name, facts)
        if (match := GROUP.match(name)) and any(
            u in kernels and m in members for u, m in facts.slaves
        ):
            yield "vg", match[1], ground([name], facts)
    for node, group in facts.groups:
        if not node.startswith("/dev/"):  # LVM's word for a disk that it misses
            continue
        yield "vg", group, ground([node], facts)


def ground(names: Iterable[str], facts: Facts) -> set[Place]:
    """What all of NAMES, as kernel_names takes them, lie on in the end."""
    kernels = set().union(*(kernel_names(name, facts) for name in names))
    return set().union(*(places(name, facts) for name in kernels))


def pools(facts: Facts) -> Iterator[tuple[str, set[Place]]]:
    """What may have several members: (what it is called, what they lie on)."""
    for upper in sorted({upper for upper, _ in facts.slaves}):
        mapped = facts.mapped.get(upper)
        yield f"{upper} ({mapped})" if mapped else upper, ground([upper], facts)
    for group in sorted({group for _, group in facts.groups}):
        members = [node for node, its in facts.groups if its == group and node.startswith("/dev/")]
        yield f"volume group {group}", ground(members, facts)
    for shared in sorted(
        {words for _, words in facts.identities if disks.is_pool(words.split(" ")[0])}
    ):
        yield shared, ground([name for name, words in facts.identities if words == shared], facts)
