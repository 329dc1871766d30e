"""Writes a layout onto disks: tables, RAID, LUKS, LVM, file systems. Planned, then carried out.

Before it comes what is in the way (leftovers.py), and what must not be touched (kept.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anemos import disks, log, volumes
from anemos.disks import Device
from anemos.initramfs import leftovers
from anemos.initramfs.hardware import wait_for
from anemos.log import FAILED, Failure, die
from anemos.run import run
from anemos.system import filesystems, layout, partitions, tree
from anemos.system.layout import Carrier, Disk, Kept, Layout, Volume

# Argon2 takes as much memory as there is, which is little here and may be less at the next boot;
# 64 MiB are in the range that RFC 9106, section 4, recommends.
KEY_DERIVATION = ["--pbkdf=argon2id", "--pbkdf-memory=65536"]


@dataclass(frozen=True)
class Step:
    argv: Sequence[str | Path]
    data: bytes = b""  # standard input


Devices = Mapping[str, Device]  # by the names of the layout's disks


def check(plan: Layout, keep: Sequence[Kept], devices: Devices, secrets: Path) -> Layout:
    """PLAN around what is kept, when all of it can be done. Nothing is changed.

    SECRETS: the revealed files. Raises Failure.
    """
    try:
        dumps = {name: disks.dump(device) for name, device in devices.items()}
        plan = partitions.placed(plan, keep, dumps)
        layout.sizes(plan, {name: device.size for name, device in devices.items()})
    except ValueError as error:
        die(str(error), status=FAILED)
    for volume in plan.volumes:
        if volume.key and not (secrets / volume.key).is_file():
            die(f"layout: luks {volume.name!r}: no secret {volume.key}", status=FAILED)
    check_apart(plan, keep, devices)
    return plan


def check_apart(plan: Layout, keep: Sequence[Kept], devices: Devices) -> None:
    """What is erased and what stays, named or not, have nothing in common, now and in the new
    system."""
    found = disks.devices()
    homes = {each.name: disks.resolve(each.name, each.match, found) for each in keep}
    named = [*devices.values(), *(homes[each.name] for each in keep if not each.disk)]
    for device in named:
        if named.count(device) > 1:
            die(f"two disks of layout and keep are the same: {device.describe()}", status=FAILED)
    kept = {homes[each.name].part(each.part) for each in keep if each.disk}
    everything = [node for device in devices.values() for node in disks.nodes(device)]
    erased = [node for node in everything if node not in kept]
    others = [device for device in found if device not in devices.values() and device.size]
    staying = sorted(kept) + [node for device in others for node in disks.nodes(device)]
    groups = volumes.groups()
    for common in leftovers.entangled(erased, staying, groups):
        die(common, hint="keep all of it, or erase all of it", status=FAILED)
    check_names(plan, staying, groups)


def check_names(plan: Layout, staying: Sequence[Path], groups: Mapping[Path, str]) -> None:
    """No group and no array that stays has the name of a new one: LVM would refuse to make it, and
    the new system would not know which is which."""
    taken: dict[str, dict[str, Path]] = {"vg": {}, "raid": {}}
    for node in staying:
        found = disks.probe(node)
        if (
            found.get("TYPE") == leftovers.LVM
            and node not in groups
            and any(layout.volumes(plan, "vg"))
        ):
            die(f"LVM cannot read {node}: its group may have a name of the layout", status=FAILED)
        taken["vg"][groups.get(node, "").partition(" ")[0]] = node
        if found.get("TYPE") == "linux_raid_member":
            taken["raid"][found.get("LABEL", "").rpartition(":")[2]] = node  # HOST:NAME
    for volume in plan.volumes:
        if other := taken.get(volume.kind, {}).get(volume.name):
            die(
                f"layout: {volume.kind} {volume.name!r}: there is one of this name on {other},"
                " which is not erased",
                hint="give it another name in the layout",
                status=FAILED,
            )


def write(plan: Layout, devices: Devices, seed: str, secrets: Path) -> None:
    """Erase the disks and put PLAN on them, all of it in use except mounts."""
    leftovers.release(list(devices.values()))
    for disk in plan.disks:
        table(disk, devices[disk.name], seed)
    keys = {volume.name: key(secrets, volume, plan) for volume in layout.volumes(plan, "luks")}
    for carrier in making_order(plan):
        for step in make(carrier, plan, devices, seed, keys):
            run(step.argv, data=step.data, log=log.info)


def activate(plan: Layout, devices: Devices, seed: str, secrets: Path) -> None:
    """Put volumes to use again that `write` has made, and a release taken apart."""
    carriers = plan.carriers()
    for volume in plan.volumes:
        members = [carriers[name].node(devices) for name in volume.on]
        if volume.kind == "raid":
            uuid = f"--uuid={layout.array_uuid(volume, seed)}"
            run(["mdadm", "--quiet", "--assemble", volume.node, "--run", uuid, *members])
            for step in still(volume):
                run(step.argv)
        elif volume.kind == "luks":
            (member,) = members
            argv: list[str | Path] = ["cryptsetup", "open", "--key-file=-", member, volume.name]
            run(argv, data=key(secrets, volume, plan))
        elif volume.kind == "vg":
            run(["vgchange", "--activate", "y", volume.name])


def table(disk: Disk, device: Device, seed: str) -> None:
    """Wipe DEVICE and write its table; the kernel learns of it without letting go of kept parts."""
    present = disks.partitions(device)
    for step in table_steps(disk, device, present, seed):
        run(step.argv, data=step.data, log=log.info)
    after = partitions.entries(disks.dump(device), 1)
    for number, entry in disk.old.entries.items():
        if number not in after or after[number].line != entry.line:
            die(f"kept partition {number} of {device.name} has changed", status=FAILED)
    for number in disk.numbers():
        node = device.part(number)
        wait_for(str(node), node.is_block_device)


def table_steps(
    disk: Disk, device: Device, present: Mapping[int, Path], seed: str
) -> Iterator[Step]:
    """PRESENT: the partitions that the kernel knows, by number.

    A table is written in one go, and neither sfdisk(8) nor the kernel reads it again: that would
    make new devices of kept partitions, writable ones. partx(8) tells the kernel the difference.
    """
    kept = disk.old.entries
    gone = {number: node for number, node in sorted(present.items()) if number not in kept}
    for number, node in gone.items():
        yield Step(["wipefs", "--all", "--force", "--quiet", node])
        yield Step(["partx", "--delete", "--nr", str(number), device.path])
    if not kept:  # a kept partition may end where the disk does, with a superblock at its end
        yield Step(["wipefs", "--all", "--force", "--quiet", device.path])
    script = layout.sfdisk_script(disk, device.size, seed)
    options = ["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"]
    options += ["--wipe-partitions=never"]
    yield Step(["sfdisk", *options, device.path], script.encode())
    for number in disk.numbers():
        yield Step(["partx", "--add", "--nr", str(number), device.path])


def making_order(plan: Layout) -> Iterator[Carrier]:
    """Logical volumes that have a size come right after their group: one may get the rest."""
    carriers = plan.carriers()
    sized = [v for v in layout.volumes(plan, "lv") if v.size is not None]
    for carrier in carriers.values():
        if carrier.what not in sized:
            yield carrier
            yield from (carriers[volume.name] for volume in sized if volume.on == (carrier.path,))


def make(
    carrier: Carrier, plan: Layout, devices: Devices, seed: str, keys: Mapping[str, bytes]
) -> Iterator[Step]:
    """Make CARRIER and its file system. KEYS: by the names of LUKS volumes.

    What lay in its place before is wiped first: old volumes must not come back to life.
    """
    what = carrier.what
    if isinstance(what, Volume):
        members = [plan.carriers()[name].node(devices) for name in what.on if what.kind != "lv"]
        yield from MAKERS[what.kind](what, members, seed, keys.get(what.name, b""))
        if what.kind == "vg":
            return
    node = carrier.node(devices)
    yield Step(["wipefs", "--all", "--force", "--quiet", node])
    if carrier.fs:
        yield Step(filesystems.make(carrier.fs, layout.fs_uuid(carrier, seed), node))


def raid(volume: Volume, members: Sequence[Path], seed: str, _key: bytes) -> Iterator[Step]:
    """mdadm(8). homehost=any: the array has the same name on every host, so in the new system."""
    options = [f"--level={volume.level}", f"--raid-devices={len(members)}", "--metadata=1.2"]
    options += [f"--name={volume.name}", f"--uuid={layout.array_uuid(volume, seed)}"]
    options += ["--homehost=any", *(["--bitmap=internal"] if volume.level != "0" else [])]
    yield Step(["mdadm", "--quiet", "--create", volume.node, "--run", *options, *members])
    yield from still(volume)


def still(volume: Volume) -> Iterator[Step]:
    """The resync of an array waits for the new system (md(4)): the installation is quicker, and
    nothing else writes to the disks while the writes to them are counted."""
    if volume.level != "0":
        yield Step(["mdadm", "--quiet", "--action=frozen", volume.node])


def luks(volume: Volume, members: Sequence[Path], seed: str, key: bytes) -> Iterator[Step]:
    """cryptsetup-luksFormat(8), cryptsetup-luksOpen(8)."""
    options = ["--type=luks2", "--key-file=-", "--batch-mode"]
    uuid = f"--uuid={layout.identity(seed, volume.name)}"
    yield Step(["cryptsetup", "luksFormat", uuid, *KEY_DERIVATION, *options, *members], key)
    yield Step(["cryptsetup", "open", *options, *members, volume.name], key)


def vg(volume: Volume, members: Sequence[Path], _seed: str, _key: bytes) -> Iterator[Step]:
    yield Step(["pvcreate", "--quiet", "--yes", "--force", "--force", *members])
    yield Step(["vgcreate", "--quiet", "--yes", volume.name, *members])


def lv(volume: Volume, _members: Sequence[Path], _seed: str, _key: bytes) -> Iterator[Step]:
    size = ["--extents=100%FREE"] if volume.size is None else [f"--size={volume.size}b"]
    options = ["--quiet", "--yes", "--wipesignatures=y", *size]
    yield Step(["lvcreate", *options, f"--name={volume.name}", volume.on[0]])


MAKERS = {"raid": raid, "luks": luks, "vg": vg, "lv": lv}


def key(secrets: Path, volume: Volume, plan: Layout) -> bytes:
    """What opens VOLUME: its secret, byte for byte; without a last newline if it is typed in."""
    found = (secrets / volume.key).read_bytes()
    return found.removesuffix(b"\n") if volume in layout.early(plan) else found


@contextmanager
def mounted(plan: Layout, devices: Devices, target: Path) -> Iterator[None]:
    """PLAN's file systems, mounted below TARGET; in the end nothing of the disks is in use.

    Swap stays unused: what is in this memory must reach no disk in clear.
    """
    found = list(devices.values())
    try:
        for carrier in plan.mounts():
            mount(carrier, carrier.node(devices), target)
        yield
    except BaseException:
        try:
            leftovers.release(found)
        except Failure as failure:  # the reason of it all is the other one
            log.info(f"still in use: {failure}")
        raise
    run(["sync"])
    leftovers.release(found)


def mount(carrier: Carrier, node: Path, target: Path) -> None:
    point = target if carrier.mount == "/" else tree.inside(target, carrier.mount.lstrip("/"))
    point.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", carrier.fs, node, point])
