"""Kept disks: compared, then put out of reach, in trees like sysfs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from anemos import disks, volumes
from anemos.disks import Device, Fingerprint, Wanted
from anemos.initramfs import kept, leftovers
from anemos.log import FAILED, Failure
from anemos.system import layout
from anemos.system.layout import Kept, Volume

SIZE = 4096


class Sysfs:
    """A tree like /sys: block/NAME is a link into devices/, as the kernel has it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name in ("block", "bus", "class", "devices"):
            (top / name).mkdir()

    def device(self, path: str, subsystem: str, driver: str = "") -> Path:
        """A device of SUBSYSTEM (bus/virtio, class/nvme), bound to DRIVER."""
        device = self.top / "devices" / path
        device.mkdir(parents=True, exist_ok=True)
        (self.top / subsystem).mkdir(parents=True, exist_ok=True)
        (device / "subsystem").symlink_to(self.top / subsystem)
        if driver:
            place = self.top / subsystem / "drivers" / driver
            place.mkdir(parents=True, exist_ok=True)
            (place / "unbind").touch()
            (device / "driver").symlink_to(place)
        return device

    def disk(self, name: str, parent: Path, below: str = "block", serial: str = "S") -> Path:
        entry = parent / below / name
        entry.mkdir(parents=True)
        (entry / "device").symlink_to(parent)
        (entry / "serial").write_text(serial)
        (entry / "size").write_text(str(SIZE))
        (self.top / "block" / name).symlink_to(entry)
        return entry

    def virtio(self, name: str = "vda", number: int = 1) -> Path:
        parent = self.device(f"pci/virtio{number}", "bus/virtio", "virtio_blk")
        return self.disk(name, parent, serial=name.upper())

    def scsi(self, name: str = "sda") -> Path:
        parent = self.device("pci/ata1/host0/target0:0:0/0:0:0:0", "bus/scsi", "sd")
        (parent / "delete").touch()
        return self.disk(name, parent)

    def nvme(self, *namespaces: str) -> list[Path]:
        self.device("0000:01:00.0", "bus/pci", "nvme")
        controller = self.device("0000:01:00.0/nvme/nvme0", "class/nvme")
        (controller / "device").symlink_to(self.top / "devices/0000:01:00.0")
        (controller / "ng0n1").mkdir()  # its character device is no second namespace
        return [self.disk(name, controller, below="") for name in namespaces]

    def parent(self, name: str) -> Path:
        return ((self.top / "block" / name).resolve() / "device").resolve()


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def detachment(sysfs: Sysfs, name: str) -> dict[str, str] | None:
    found = kept.detachment(sysfs.parent(name))
    return None if found is None else {str(k.resolve()): v for k, v in found.items()}


def test_virtio(sysfs: Sysfs) -> None:
    sysfs.virtio("vda", 1)
    sysfs.virtio("vdb", 2)

    assert detachment(sysfs, "vdb") == {
        f"{sysfs.top}/bus/virtio/drivers/virtio_blk/unbind": "virtio2"
    }


def test_scsi(sysfs: Sysfs) -> None:
    """Deleted, although it has a driver to be unbound: unbound, it could be bound again."""
    sysfs.scsi()

    assert detachment(sysfs, "sda") == {
        f"{sysfs.top}/devices/pci/ata1/host0/target0:0:0/0:0:0:0/delete": "1"
    }


def test_nvme(sysfs: Sysfs) -> None:
    sysfs.nvme("nvme0n1")

    assert detachment(sysfs, "nvme0n1") == {
        f"{sysfs.top}/bus/pci/drivers/nvme/unbind": "0000:01:00.0"
    }


def test_nvme_with_two_namespaces(sysfs: Sysfs) -> None:
    """The other one may be the system disk: only read-only is left."""
    sysfs.nvme("nvme0n1", "nvme0n2")

    assert detachment(sysfs, "nvme0n1") is None
    assert detachment(sysfs, "nvme0n2") is None


def test_nvme_of_several_paths(sysfs: Sysfs) -> None:
    """Its parent is the subsystem, a device without driver."""
    parent = sysfs.device("virtual/nvme-subsystem/nvme-subsys0", "class/nvme-subsystem")
    sysfs.disk("nvme0n1", parent, below="")

    assert detachment(sysfs, "nvme0n1") is None


@pytest.mark.parametrize("driver", ["", "mystery"])
def test_unknown_bus(sysfs: Sysfs, driver: str) -> None:
    parent = sysfs.device("platform/x", "bus/strange", driver)
    if driver:  # some drivers forbid it (suppress_bind_attrs)
        (sysfs.top / "bus/strange/drivers/mystery/unbind").unlink()
    sysfs.disk("xda", parent)

    assert detachment(sysfs, "xda") is None


def test_no_parent(sysfs: Sysfs) -> None:
    assert kept.detachment(sysfs.top / "devices/none") is None


# What is done


def print_of(name: str, device: Device, only: int = 0, digest: str = "same") -> Fingerprint:
    return Fingerprint(name, device.serial, device.size, digest, ((0, "", ""), (1, "U", "ext4")))


@pytest.fixture
def done(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of disks: the kernel of this tree takes away what is unbound or deleted."""
    told: list[str] = []

    def wait_for(what: str, condition: Callable[[], bool]) -> None:
        name = what.removeprefix("end of /dev/")
        entry = (sysfs.top / "block" / name).resolve()
        assert not condition()
        entry.rename(entry.with_name(f"gone-{name}"))
        (sysfs.top / "block" / name).unlink()
        assert condition()
        told.append(f"taken {name}")

    monkeypatch.setattr(disks, "SYS_BLOCK", sysfs.top / "block")
    monkeypatch.setattr(disks.devices, "__defaults__", (sysfs.top / "block",))
    monkeypatch.setattr(disks, "fingerprint", print_of)
    monkeypatch.setattr(kept, "wait_for", wait_for)
    monkeypatch.setattr(kept, "run", lambda argv: told.append(" ".join(map(str, argv))))
    return told


def keep(name: str, serial: str, part: int = 0, mount: str = "") -> Kept:
    return Kept(name, {"serial": serial}, part, mount)


def before(*names: str, digest: str = "same") -> list[Fingerprint]:
    return [print_of(name, Device("", "", "", 1), digest=digest) for name in names]


def test_taken_from_the_kernel(sysfs: Sysfs, done: list[str]) -> None:
    sysfs.virtio("vda", 1)
    sysfs.virtio("vdb", 2)

    mounts = kept.secure((keep("data", "VDB", 1, "/home"),), before("data"))

    assert mounts == [("/home", "U", "ext4", "defaults")]
    assert done == ["taken vdb"]
    assert (sysfs.top / "bus/virtio/drivers/virtio_blk/unbind").read_text() == "virtio2"
    assert [each.name for each in disks.devices()] == ["vda"]


def test_several(sysfs: Sysfs, done: list[str]) -> None:
    sysfs.virtio("vda", 1)
    sysfs.virtio("vdb", 2)
    sysfs.scsi("sda")

    mounts = kept.secure((keep("one", "VDB"), keep("two", "S", 1, "/srv")), before("one", "two"))

    assert mounts == [("/srv", "U", "ext4", "defaults")]
    assert done == ["taken vdb", "taken sda"]


def test_read_only_where_the_bus_cannot(
    sysfs: Sysfs, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sysfs.nvme("nvme0n1", "nvme0n2")
    (sysfs.top / "block/nvme0n2/serial").write_text("OTHER")

    kept.secure((keep("data", "S"),), before("data"))

    assert done == ["blockdev --setro /dev/nvme0n1"]
    assert "set read-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fingerprints", [before("data", digest="other"), before("another name"), []]
)
def test_changed(sysfs: Sysfs, done: list[str], fingerprints: list[Fingerprint]) -> None:
    sysfs.virtio("vda", 1)

    with pytest.raises(Failure, match="kept 'data' is not what it was") as caught:
        kept.secure((keep("data", "VDA"),), fingerprints)

    assert caught.value.status == FAILED
    assert done == []


def test_missing_and_ambiguous(sysfs: Sysfs, done: list[str]) -> None:
    sysfs.virtio("vda", 1)
    with pytest.raises(Failure, match="disk 'data': no disks match serial=VDB"):
        kept.secure((keep("data", "VDB"),), before("data"))

    (sysfs.virtio("vdb", 2) / "serial").write_text("VDA")
    with pytest.raises(Failure, match="disk 'data': 2 disks match serial=VDA"):
        kept.secure((keep("data", "VDA"),), before("data"))
    assert done == []


def test_no_file_system_to_mount(sysfs: Sysfs, done: list[str]) -> None:
    sysfs.virtio("vda", 1)

    with pytest.raises(Failure, match="kept 'data': no file system on partition 2"):
        kept.secure((keep("data", "VDA", 2, "/home"),), before("data"))

    assert done == []


def test_partition(sysfs: Sysfs, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk it lies on stays, and is written to."""
    sysfs.virtio("vda", 1)
    one = Kept("old", {"serial": "VDA"}, 1, "/old", "ro", disk="system")

    assert kept.secure((one,), before("old")) == [("/old", "U", "ext4", "ro")]

    assert done == ["blockdev --setro /dev/vda1"]
    assert [each.name for each in disks.devices()] == ["vda"]


def test_nothing_to_keep(done: list[str]) -> None:
    assert kept.secure((), []) == []
    assert done == []


@pytest.mark.parametrize(
    ("name", "sectors", "says"),
    [
        ("vda3", 8, "8 sectors of partition 'old' (/dev/vda3)"),
        ("vda", 2, "2 sectors of /dev/vda, outside its partitions or past their devices"),
        ("nvme0n1", 1, "1 sectors of disk 'data' (/dev/nvme0n1)"),
        ("vda1", 100, ""),
    ],
)
def test_writes_are_counted(
    sysfs: Sysfs,
    done: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sectors: int,
    says: str,
) -> None:
    """A disk's count has those of its partitions in it."""
    sysfs.virtio("vda", 1)
    sysfs.nvme("nvme0n1", "nvme0n2")
    (sysfs.top / "block/nvme0n2/serial").write_text("OTHER")
    count = {"vda": 70, "vda1": 60, "vda3": 0, "nvme0n1": 0}
    parts = {1: Path("/dev/vda1"), 3: Path("/dev/vda3")}
    monkeypatch.setattr(disks, "written", count.__getitem__)
    monkeypatch.setattr(disks, "partitions", lambda device: parts)
    kept_ones = [
        Kept("old", {"serial": "VDA"}, 3, disk="system"),
        keep("data", "S"),
        keep("x", "?"),
    ]

    with pytest.raises(Failure) if says else nullcontext() as caught, kept.watched(kept_ones):
        count[name] += sectors
        count["vda"] += sectors if name in ("vda1", "vda3") else 0

    if caught:
        assert caught.value.message == f"written to, although kept: {says}"


def test_others_that_write_meanwhile(
    sysfs: Sysfs, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the resync of an array on the disk's other partitions, which ends in time."""
    sysfs.virtio("vda", 1)
    count, left = {"vda": 70, "vda1": 60, "vda3": 0}, [*range(5)]

    def written(name: str) -> int:
        seen = count[name]
        if left:
            left.pop()
            count["vda"], count["vda1"] = count["vda"] + 8, count["vda1"] + 8
        return seen

    monkeypatch.setattr(disks, "written", written)
    monkeypatch.setattr(disks, "partitions", lambda _: {1: Path("/dev/vda1"), 3: Path("/dev/vda3")})
    with kept.watched([Kept("old", {"serial": "VDA"}, 3, disk="system")]):
        assert not left
    assert count["vda"] == 110


def test_what_is_there(sysfs: Sysfs, done: list[str]) -> None:
    """Where no old system has told it, this is what the kept disks are compared with."""
    sysfs.virtio("vda", 1)

    found = disks.fingerprints([keep("data", "VDA").wanted])

    assert [(each.name, each.digest) for each in found] == [("data", "same")]
    kept.secure((keep("data", "VDA"),), found)
    assert done == ["taken vda"]


# Volumes, which tests/initramfs/test_storage_vm.py has in earnest

OLD = [Kept(n, {"serial": "VDA"}, part, disk="system") for n, part in (("d1", 3), ("d2", 4))]
VOLUMES = (
    Volume("raid", "md1", ("d1", "d2")),
    Volume("vg", "vg0", ("md1",)),
    Volume("lv", "data", ("vg0",), mount="/srv", options="nofail"),
)
LOOKED = [
    "blockdev --getsz /dev/vda3",
    "losetup --find --show FILE",
    "dmsetup create --noudevsync --noudevrules kept_vda3"
    " --table 0 2048 snapshot /dev/vda3 /dev/loop7 N 8",
    "losetup --detach /dev/loop7",
    "blockdev --getsz /dev/vda4",
    "losetup --find --show FILE",
    "dmsetup create --noudevsync --noudevrules kept_vda4"
    " --table 0 2048 snapshot /dev/vda4 /dev/loop7 N 8",
    "losetup --detach /dev/loop7",
    "mdadm --quiet --assemble --readonly /dev/md/md1 /dev/dm-3 /dev/dm-4",
    'lvchange --activate y --config activation/read_only_volume_list=["vg0/data"] vg0/data',
]
APART = [
    "dmsetup remove --noudevsync --retry vg0-data",
    "mdadm --quiet --stop /dev/md127",
    "dmsetup remove --noudevsync --retry kept_vda3",
    "dmsetup remove --noudevsync --retry kept_vda4",
]


def of_volume(name: str, digest: str = "same") -> Fingerprint:
    return Fingerprint(name, name, SIZE, digest, ((0, "U", "ext4"),))


class Kernel:
    """What puts volumes together makes entries in SYSFS."""

    def __init__(self, sysfs: Sysfs) -> None:
        self.disk = sysfs.virtio("vda", 1)
        self.block = sysfs.top / "block"
        self.done: list[str] = []
        self.count = {"vda": 10, "vda3": 0, "vda4": 0}

    def mapper(self, name: str, kernel: str, below: Path) -> None:
        (below / "holders" / kernel).mkdir(parents=True)
        (self.block / kernel / "dm").mkdir(parents=True)
        (self.block / kernel / "dm/name").write_text(f"{name}\n")

    def run(self, argv: Sequence[str | Path]) -> str:
        words = [str(word) for word in argv]
        self.done.append(" ".join("FILE" if word.startswith("/tmp/") else word for word in words))
        match words[:2]:
            case ["blockdev", "--getsz"]:
                return "2048\n"
            case ["losetup", "--find"]:
                return "/dev/loop7\n"
            case ["dmsetup", "create"]:
                part = words[4].removeprefix("kept_")
                self.mapper(words[4], f"dm-{part[-1]}", self.disk / part)
            case ["mdadm", "--quiet"] if "--assemble" in words:
                for name in ("dm-3", "dm-4"):
                    (self.block / name / "holders/md127").mkdir(parents=True)
                (self.block / "md127/holders").mkdir(parents=True)
            case ["lvchange", _]:
                self.mapper("vg0-data", "dm-0", self.block / "md127")
        return ""


@pytest.fixture
def look(sysfs: Sysfs, done: list[str], monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(sysfs)
    monkeypatch.setattr(kept, "run", kernel.run)
    monkeypatch.setattr(leftovers, "run", kernel.run)
    monkeypatch.setattr(leftovers, "forget", lambda dev: None)
    monkeypatch.setattr(disks, "written", kernel.count.__getitem__)
    monkeypatch.setattr(disks, "partitions", lambda device: {n: device.part(n) for n in (3, 4)})
    found = [of_volume("md1"), of_volume("data")]
    monkeypatch.setattr(volumes, "of_volumes", lambda wanted, parts: found)
    return kernel


def test_look_at_volumes(look: Kernel) -> None:
    """Read-only, an array above what takes the kernel's writes; and nothing of it is left."""
    before = [of_volume("md1"), of_volume("data")]

    mounts, found = kept.secure_volumes(OLD, VOLUMES, before)

    assert mounts == [("/srv", "U", "ext4", "nofail")]
    assert found == before
    assert look.done == [*LOOKED, *APART]


def test_group_on_a_partition_has_no_shield(look: Kernel) -> None:
    """LVM would see its physical volume twice."""
    on_part = (Volume("vg", "vg0", ("d1",)), VOLUMES[2])
    kept.secure_volumes(OLD, on_part, [of_volume("md1"), of_volume("data")])
    assert look.done[0] == LOOKED[-1]


def test_volume_that_is_another_one(look: Kernel) -> None:
    with pytest.raises(Failure, match="kept 'data' is not what it was in the old system"):
        kept.secure_volumes(OLD, VOLUMES, [of_volume("md1"), of_volume("data", "other")])

    assert look.done == [*LOOKED, *APART]


def test_volume_that_nobody_has_asked_for(look: Kernel) -> None:
    assert kept.secure_volumes(OLD, VOLUMES, None)[1] == [of_volume("md1"), of_volume("data")]
    assert kept.secure_volumes(OLD, (), []) == ([], [])


@pytest.mark.parametrize(
    ("sectors", "says"), [(0, "not there"), (8, "written to, although kept: 8 sectors of part")]
)
def test_look_that_fails(
    look: Kernel, monkeypatch: pytest.MonkeyPatch, sectors: int, says: str
) -> None:
    """What was put together is taken apart all the same; what it has written is told."""

    def of_volumes(wanted: Sequence[Wanted], parts: Mapping[str, Path]) -> list[Fingerprint]:
        look.count["vda3"] += sectors
        raise Failure("not there")

    monkeypatch.setattr(volumes, "of_volumes", of_volumes)
    with pytest.raises(Failure, match=says):
        kept.secure_volumes(OLD, VOLUMES, [])

    assert look.done == [*LOOKED, *APART]


def test_arrays_in_the_new_system() -> None:
    uuid = "0123abcd-4567-89ab-cdef-0123456789ab"
    known = [replace(of_volume("d1"), filesystems=((3, uuid, "linux_raid_member"),))]

    assert (
        layout.kept_arrays(VOLUMES, known)
        == "ARRAY /dev/md/md1 UUID=0123abcd:456789ab:cdef0123:456789ab\n"
    )
    assert layout.kept_arrays((), []) == ""
