"""The slots of the running system, as the disks have them. Nothing is changed.

What runs is known by evidence only: the file system at / is the one that the record of slots has
for its default, on the device where the layout has that slot.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import disks
from anemos.border import records
from anemos.border.boot import STAMP, Seen
from anemos.disks import Device, Fingerprint
from anemos.log import FAILED, die
from anemos.server.shared import mounted, mounted_at, uuid_of
from anemos.system import layout, partitions, slots, tree
from anemos.system.bootloader import LOADERS
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Disk, Layout, Mounted
from anemos.system.slots import Record

MADE = ("raid", "luks")


@dataclass(frozen=True)
class Running:
    """SPEC, for the slot OTHER, which does not run. DEVICES: by the names of the layout's disks.
    TOP: where what both slots share is mounted."""

    spec: Imgbuild
    devices: Mapping[str, Device]
    top: Path
    other: str

    @property
    def node(self) -> Path:
        """What OTHER lies on."""
        return self.spec.layout.root().node(self.devices)

    def shared(self, kept: Sequence[Fingerprint]) -> list[Mounted]:
        """All file systems beside the slots, for fstab: the layout's, and what is KEPT."""
        own = [each for each in self.spec.layout.filesystems() if not each.what.slot]
        used = [each for each in own if each.mount or each.fs == "swap"]
        uuids = [uuid_of(each.node(self.devices)) for each in used]
        prints = {each.name: each for each in kept}
        return [
            *(
                Mounted(e.mount or "none", i, e.fs, e.options)
                for e, i in zip(used, uuids, strict=True)
            ),
            *(each.mounted(prints[each.name]) for each in self.spec.kept if each.mount),
        ]


@contextmanager
def found(spec: Imgbuild, host: Path) -> Iterator[Running]:
    """The slots of SPEC's layout on this machine, whose running system has its root at HOST; the
    record's file system is mounted meanwhile. Raises Failure when they are not what SPEC says."""
    check_stamp(spec, host)
    known = disks.devices()
    devices = {disk.name: disks.resolve(disk.name, disk.match, known) for disk in spec.layout.disks}
    whole = identified(placed(spec, devices), devices)
    shared = whole.shared()
    if shared is None:
        die("the layout has no slots", status=FAILED)
    with (
        TemporaryDirectory() as name,
        mounted(f"{shared.node(devices)}", Path(name)),
    ):
        file = Path(name) / LOADERS[spec.bootloader].RECORD
        if not file.is_file():
            die(f"bootloader={spec.bootloader} does not start what runs", status=FAILED)
        default = evident(whole, devices, slots.read(file), mounted_at(host))
        (other,) = {*whole.slots()} - {default}
        yield Running(replace(spec, layout=whole.into(other)), devices, Path(name), other)


def check_stamp(spec: Imgbuild, host: Path) -> None:
    """What runs was deployed with this layout, and keeps the same."""
    file = tree.resolved(host, STAMP)
    seen = records.load(Seen, file.read_bytes() if file.is_file() else b"{}", f"{file}")
    if why := layout.difference(seen.layout, spec.layout, spec.kept):
        die(why, hint="this needs a deployment of whole disks", status=FAILED)


def placed(spec: Imgbuild, devices: Mapping[str, Device]) -> Layout:
    """SPEC's layout around what is kept; the partitions must be where it has them."""
    dumps = {name: disks.dump(device) for name, device in devices.items()}
    try:
        whole = partitions.placed(spec.layout, spec.keep, dumps)
        for disk in whole.disks:
            check_table(disk, devices[disk.name], dumps[disk.name])
    except ValueError as error:
        die(str(error), status=FAILED)
    return whole


def identified(whole: Layout, devices: Mapping[str, Device]) -> Layout:
    """WHOLE, whose arrays and LUKS volumes have their UUIDs from the deployment that made them."""
    on = whole.carriers()
    own = {e.name: uuid_of(on[e.on[0]].node(devices)) for e in whole.volumes if e.kind in MADE}
    found = (replace(each, uuid=own.get(each.name, "")) for each in whole.volumes)
    return replace(whole, volumes=tuple(found))


def check_table(disk: Disk, device: Device, dump: str) -> None:
    there = partitions.entries(dump, partitions.sector(dump))
    places = layout.extents(disk, device.size)
    for number, part, place in zip(disk.numbers(), disk.parts, places, strict=True):
        if number not in there or there[number][:2] != place:
            where = f"{disk.name}/{part.name} is not partition {number} of {device.name}"
            raise ValueError(f"{where}, as the layout has it")


def evident(whole: Layout, devices: Mapping[str, Device], known: Record, root: Path) -> str:
    """The default slot, when it is the one that runs: ROOT is the device below /."""
    carrier = whole.slots()[known.default]
    uuid = known.slots[known.default].root
    if uuid_of(root) != uuid or not root.samefile(carrier.node(devices)):
        why = f"/ is on {root}, and not slot {known.default}, which starts by default"
        die(f"it is not known which slot runs: {why}", status=FAILED)
    return known.default
