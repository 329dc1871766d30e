"""Disks: found in trees like sysfs, named by what they are, recognised again."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from anemos import disks
from anemos.disks import Device, Fingerprint
from anemos.log import Failure
from anemos.run import CommandFailed, run
from anemos.system import grammar
from anemos.workstation.deploy import facts

MIB = 2**20
SECTORS = MIB // disks.SECTOR
Attributes = dict[str, bytes | str]
Tree = Callable[[str, Attributes], Path]


@pytest.fixture
def sysfs(tmp_path: Path) -> Tree:
    """Makes a disk like /sys/block/NAME out of its attributes: relative path -> content."""

    def add(name: str, attributes: Attributes) -> Path:
        entry = tmp_path / "block" / name
        size: Attributes = {"size": f"{2048 * SECTORS}\n"}
        for path, data in (size | attributes).items():
            (entry / path).parent.mkdir(parents=True, exist_ok=True)
            (entry / path).write_bytes(data.encode() if isinstance(data, str) else data)
        return entry

    (tmp_path / "block").mkdir()
    return add


def vpd_pg80(serial: bytes) -> bytes:
    """SPC-4, 7.8.17: a head of four bytes, the last two of them the length."""
    return b"\x00\x80" + len(serial).to_bytes(2, "big") + serial


# attributes -> (serial, WWN)
DISKS: dict[str, tuple[Attributes, tuple[str, str]]] = {
    "vda": ({"serial": "demo-system\n"}, ("demo-system", "")),
    "vdb": ({"serial": "demo-data-of-20-char"}, ("demo-data-of-20-char", "")),
    "vdc": ({"serial": ""}, ("", "")),
    "vdd": ({}, ("", "")),
    "sda": (
        {
            "device/vpd_pg80": vpd_pg80(b"     S3Z8NB0K"),
            "device/wwid": "naa.5002538e40a1b2c3\n",
            "device/model": "Samsung SSD 860 \n",
        },
        ("S3Z8NB0K", "naa.5002538e40a1b2c3"),
    ),
    "sdb": (
        {"device/vpd_pg80": vpd_pg80(b"drive-scsi1\0\0"), "device/wwid": "t10.QEMU  HARDDISK 1 \n"},
        ("drive-scsi1", "t10.QEMU  HARDDISK 1"),
    ),
    "sdc": ({"device/vpd_pg80": vpd_pg80(b"")}, ("", "")),
    "sde": (
        {"device/vpd_pg80": vpd_pg80(b"a|b\nc d"), "device/wwid": "t10.x|y\tz"},
        ("abc d", "t10.xyz"),
    ),
    "sdd": ({"device/vpd_pg80": vpd_pg80(rb"back\tslash\c")}, (r"back\tslash\c", "")),
    "nvme0n1": (
        {
            "device/serial": "S64GNE0R700123      \n",
            "device/model": "SAMSUNG MZQL21T9HCJR-00A07\n",
            "wwid": "eui.36344730527001230025384e00000001\n",
        },
        ("S64GNE0R700123", "eui.36344730527001230025384e00000001"),
    ),
    "mmcblk0": ({"device/serial": "0x5f3a21bc\n"}, ("0x5f3a21bc", "")),
}
# Places in sysfs -> attributes, and what udev calls the slot.
IDE, SCSI, CARD = "pci0000:00/0000:00:1f.2", "pci0000:00/0000:00:05.0", "pci0000:00/0000:00:1c.0"
PORTS: Attributes = {"../../../../../ata_port/ata4/port_no": "2\n"}
SLOTS: dict[str, tuple[Attributes, str]] = {
    f"{IDE}/ata4/host3/target3:0:0/3:0:0:0/block/sdf": (PORTS, "pci-0000:00:1f.2-ata-2"),
    f"{SCSI}/virtio2/host4/target4:0:1/4:0:1:0/block/sdg": ({}, "pci-0000:00:05.0-scsi-0:0:1:0"),
    f"{CARD}/host7/target7:2:0/7:2:0:0/block/sdh": ({}, "pci-0000:00:1c.0-scsi-1:2:0:0"),
    f"{CARD}/0000:05:00.0/nvme/nvme1/nvme1n1": ({"nsid": "1\n"}, "pci-0000:05:00.0-nvme-1"),
    "pci0000:00/0000:00:02.0/virtio1/block/vde": ({}, "pci-0000:00:02.0"),
    f"{CARD}/host6/port-6:0/end_device-6:0/target6:0:0/6:0:0:0/block/sdi": ({}, ""),  # SAS
    "pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host8/target8:0:0/8:0:0:0/block/sdj": ({}, ""),
    "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/nvme/nvme2/nvme2n1": ({"nsid": "1"}, ""),
    "virtual/nvme-subsystem/nvme-subsys3/nvme3n1": ({"nsid": "1"}, ""),
}
NO_DISKS = ["loop0", "ram0", "zram0", "dm-0", "md127", "sr0", "fd0", "nbd0"]


@pytest.fixture
def block(sysfs: Tree, tmp_path: Path) -> Path:
    for name, (attributes, _) in DISKS.items():
        sysfs(name, attributes)
    for place, (attributes, _) in SLOTS.items():
        name = Path(place).name
        (tmp_path / "devices" / place).mkdir(parents=True)
        (tmp_path / "block" / name).symlink_to(f"../devices/{place}")
        sysfs(name, attributes)
    for name in NO_DISKS:
        sysfs(name, {"serial": "no"})
    # One path of two to an NVMe disk; the kernel hides its node, but shows it here.
    sysfs("nvme0c0n1", DISKS["nvme0n1"][0] | {"hidden": "1\n"})
    (tmp_path / "block/nvme0n1/hidden").write_text("0\n")
    # Attributes that exist and cannot be read, as EINVAL and ENXIO of real ones.
    (tmp_path / "block/vdd/serial").mkdir()
    (tmp_path / "block/vdd/device/wwid").mkdir(parents=True)
    return tmp_path / "block"


def test_devices(block: Path) -> None:
    found = {device.name: device for device in disks.devices(block)}

    assert {name: (each.serial, each.wwn) for name, each in found.items() if name in DISKS} == {
        name: names for name, (_, names) in DISKS.items()
    }
    slots = {Path(place).name: slot for place, (_, slot) in SLOTS.items()}
    assert {name: each.slot for name, each in found.items()} == dict.fromkeys(DISKS, "") | slots
    assert {device.size for device in found.values()} == {2048 * MIB}
    assert list(found) == sorted(found)


@pytest.mark.real("run")
def test_the_shell_finds_the_same(block: Path) -> None:
    """The plan believes facts.sh, the initramfs believes us: the same disk, or none at all."""
    text = facts.probe("facts.sh").replace("/sys/block/", f"{block}/")

    seen = facts.parse(run(["sh", "-c", text, "facts", ""]))

    assert sorted(seen.disks, key=lambda each: each.name) == disks.devices(block)
    assert seen.models["sda"] == "Samsung SSD 860"
    assert seen.models["nvme0n1"] == "SAMSUNG MZQL21T9HCJR-00A07"


@pytest.mark.parametrize(
    ("name", "whole", "first"),
    [
        ("sda", "/dev/sda", "/dev/sda1"),
        ("vdaa", "/dev/vdaa", "/dev/vdaa1"),
        ("nvme0n1", "/dev/nvme0n1", "/dev/nvme0n1p1"),
        ("mmcblk0", "/dev/mmcblk0", "/dev/mmcblk0p1"),
        ("loop7", "/dev/loop7", "/dev/loop7p1"),
    ],
)
def test_nodes(name: str, whole: str, first: str) -> None:
    device = Device(name, "", "", MIB)

    assert (str(device.path), str(device.part(0)), str(device.part(1))) == (whole, whole, first)


ONE = Device("sda", "A", "naa.1", 1000)
TWO = Device("sdb", "B", "naa.2", 1000)
BARE = Device("sdc", "", "", 2000)
SLOT = Device("sdd", "", "", 4000, "pci-0000:00:1f.2-ata-1")
VIRTIO = Device("vda", "WD A 1", "", 8000, "pci-0000:00:04.0")


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"serial": "A"}, ONE),
        ({"wwn": "naa.2"}, TWO),
        ({"size": "2000"}, BARE),
        ({"serial": "B", "size": "1000"}, TWO),
        ({"wwn": "0x2"}, TWO),  # as lsblk(8) shows it
        ({"wwn": "2"}, TWO),
        ({"wwn": "NAA.2"}, TWO),
        ({"path": "pci-0000:00:1f.2-ata-1"}, SLOT),
        ({"path": "/dev/disk/by-path/pci-0000:00:1f.2-ata-1.0"}, SLOT),
        ({"path": "virtio-pci-0000:00:04.0"}, VIRTIO),
        ({"serial": "WD_A  1"}, VIRTIO),  # as udevadm(8) shows it
    ],
)
def test_resolve(match: dict[str, str], expected: Device) -> None:
    assert disks.resolve("system", match, [ONE, TWO, BARE, SLOT, VIRTIO]) is expected


@pytest.mark.parametrize(
    ("match", "message", "hint"),
    [
        ({"serial": "C"}, "no disks match serial=C", "seen: sda (serial=A wwn=naa.1, 0.0 GB); sdb"),
        ({"serial": "a"}, "no disks match serial=a", "sdc (size=2000, 0.0 GB)"),
        ({"serial": "A", "wwn": "naa.2"}, "no disks match serial=A wwn=naa.2", "seen: sda"),
        (
            {"size": "1000"},
            "2 disks match size=1000",
            "; sda is written: disk system serial=A wwn=naa",
        ),
    ],
)
def test_resolve_none_or_several(match: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(Failure) as caught:
        disks.resolve("system", match, [ONE, TWO, BARE])

    assert caught.value.message == f"disk 'system': {message}"
    assert hint in caught.value.hint


NAMESPACES = [Device("nvme0n1", "S", "eui.01", 1), Device("nvme0n2", "S", "eui.02", 2)]


@pytest.mark.parametrize(
    ("found", "match", "line"),
    [
        (NAMESPACES, {"serial": "S"}, "disk system serial=S wwn=eui.01"),
        ([replace(each, wwn="") for each in NAMESPACES], {"serial": "S"}, "serial=S size=1"),
        ([Device("sda", "WD  A 1", "", 1), BARE], {"serial": "x"}, 'disk system serial="WD  A 1"'),
        ([Device("sda", "", "", 7)], {"serial": "x"}, "disk system size=7"),
        ([SLOT, replace(SLOT, slot="p")], {"size": "4000"}, "system path=pci-0000:00:1f.2-ata-1"),
    ],
)
def test_refusal_that_says_what_to_write(
    found: list[Device], match: dict[str, str], line: str
) -> None:
    """The line is taken as it stands, and names the disk that it is told of."""
    with pytest.raises(Failure) as caught:
        disks.resolve("system", match, found)

    said = caught.value.hint.rpartition("is written: ")[2]
    assert line in said
    (disk,) = grammar.parse(f"{said}\npart r fs=ext4 mount=/").disks
    assert disks.resolve("system", disk.match, found) == found[0]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("wwn-0x5002538e40a1b2c3", Device("sda", "S3Z8NB0K", "naa.5002538E40A1B2C3", 1)),
        ("scsi-35002538e40a1b2c3", Device("sda", "S3Z8NB0K", "naa.5002538e40a1b2c3", 1)),
        ("ata-Samsung_SSD_860_S3Z8NB0K", Device("sda", "S3Z8NB0K", "", 1)),
        (
            "nvme-eui.36344730527001230025384e00000001",
            Device("n", "", "eui.36344730527001230025384e00000001", 1),
        ),
        ("nvme-SAMSUNG_MZQL21T9HCJR-00A07_S64GNE0R700123", Device("n", "S64GNE0R700123", "", 1)),
        ("nvme-SAMSUNG_MZQL21T9HCJR-00A07_S64GNE0R700123_1", Device("n", "S64GNE0R700123", "", 1)),
        ("nvme-nvme.1344-3138", Device("n", "", "nvme.1344-3138", 1)),
        ("virtio-demo-system", Device("vda", "demo-system", "", 1)),
    ],
)
def test_names_in_by_id(name: str, device: Device) -> None:
    for written in (name, f"/dev/disk/by-id/{name}"):
        (disk,) = grammar.parse(f"disk d id={written}\npart r fs=ext4 mount=/").disks
        assert disks.matches(device, disk.match)


@pytest.mark.parametrize("odd", ["WD ABC  123", 'a"b c', "it's", "t10.ATA     WDC WD10"])
def test_names_with_blanks_and_quotes(odd: str) -> None:
    device = Device("sda", odd, odd, 1)

    (disk,) = grammar.parse(f"disk d {device.words()}\npart r fs=ext4 mount=/").disks

    assert disk.match == {"serial": odd, "wwn": odd}
    assert "'" not in device.words()  # which would end the string of an IMGBUILD
    assert disks.matches(device, disk.match)
    fewer = {"serial": " ".join(odd.split())}  # as lsblk(8) shows it
    assert disks.matches(device, fewer)


def test_resolve_among_nothing() -> None:
    with pytest.raises(Failure, match="no disks match"):
        disks.resolve("system", {"serial": "A"}, [])


@pytest.mark.parametrize(
    ("node", "number"), [("/dev/vda1", 1), ("/dev/sdb12", 12), ("/dev/nvme1n1p3", 3)]
)
def test_partitions_without_names_of_this_kernel(node: str, number: int) -> None:
    part = {"node": node, "start": 2048, "size": 4096, "type": "L", "uuid": "u", "bootable": True}

    assert disks.portable(part) == {
        "number": number,
        "start": 2048,
        "size": 4096,
        "type": "L",
        "uuid": "u",
        "bootable": True,
    }


def test_filesystem_of_a_fingerprint() -> None:
    known = Fingerprint("data", "S", 1, "d", ((0, "", ""), (1, "uuid-1", "ext4")))

    assert known.filesystem(1) == ("uuid-1", "ext4")
    with pytest.raises(Failure, match="kept 'data': no file system on it"):
        known.filesystem(0)
    with pytest.raises(Failure, match="kept 'data': no file system on partition 2"):
        known.filesystem(2)


@pytest.mark.parametrize("kind", ["crypto_LUKS", "LVM2_member", "swap", "linux_raid_member"])
def test_what_is_no_file_system(kind: str) -> None:
    known = Fingerprint("data", "S", 1, "d", ((1, "uuid", kind),))

    with pytest.raises(Failure, match=f"'data': {kind} on partition 1, which cannot be mounted"):
        known.filesystem(1)


# A real block device.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Device]:
    file = tmp_path / "disk"
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 64 * MIB)
    loop = run(["losetup", "--show", "--find", file]).strip()
    yield Device(Path(loop).name, "S", "", 64 * MIB)
    run(["losetup", "--detach", loop])


def mkfs(disk: Device, *options: str) -> None:
    run(["mkfs.ext4", "-q", "-F", *options, disk.path])


def taken(disk: Device) -> Fingerprint:
    return disks.fingerprint("data", disk)


@pytest.mark.root
@pytest.mark.real("run")
def test_fingerprint_of_an_empty_disk(disk: Device) -> None:
    assert taken(disk).filesystems == ((0, "", ""),)


@pytest.mark.root
@pytest.mark.real("run")
def test_fingerprint_of_a_file_system(disk: Device, tmp_path: Path) -> None:
    """Equal whatever is written to the file system, different for another one."""
    uuid = "0b2b1ad5-7d4a-4f36-9d1c-0c7d3f3f3a11"
    mkfs(disk, "-U", uuid, "-L", "data")
    first = taken(disk)
    assert first.filesystem(0) == (uuid, "ext4")

    point = tmp_path / "mounted"
    point.mkdir()
    run(["mount", disk.path, point])
    (point / "file").write_bytes(bytes(MIB))
    busy = taken(disk)
    run(["umount", point])

    assert busy == first == taken(disk)

    run(["tune2fs", "-L", "other", disk.path])
    assert taken(disk).digest != first.digest
    mkfs(disk)
    assert taken(disk).filesystems != first.filesystems


@pytest.mark.root
@pytest.mark.real("run")
def test_fingerprint_of_a_table(disk: Device) -> None:
    def write(script: str) -> Fingerprint:
        run(
            ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk.path],
            data=script.encode(),
        )
        return taken(disk)

    table = "label: gpt\nsize=10M, uuid={0}, name=home\nsize=+, uuid={1}\n"
    first = write(table.format(*UUIDS))

    assert [number for number, *_ in first.filesystems] == [0, 1, 2]
    assert write(table.format(*UUIDS)) == first
    seen = {first.digest}
    for changed in (
        table.format(*reversed(UUIDS)),
        table.format(*UUIDS).replace("10M", "11M"),
        table.format(*UUIDS).replace("home", "srv"),
        table.format(*UUIDS).replace("name=home", "name=home, attrs=RequiredPartition"),
        "label: dos\nsize=10M\nsize=+, bootable\n",
    ):
        seen.add(write(changed).digest)
    assert len(seen) == 6


UUIDS = ("5DD31F8F-7B7E-4B0E-8A0F-0D6D7A7C1B01", "5DD31F8F-7B7E-4B0E-8A0F-0D6D7A7C1B02")


@pytest.mark.root
@pytest.mark.real("run")
def test_fingerprint_of_another_disk_with_the_same_content(disk: Device) -> None:
    mkfs(disk)

    assert taken(replace(disk, serial="T")).digest != taken(disk).digest
    assert taken(replace(disk, size=1)).digest != taken(disk).digest
    assert taken(replace(disk, wwn="known to one kernel alone")) == taken(disk)


@pytest.mark.root
@pytest.mark.real("run")
def test_fingerprint_survives_json(disk: Device) -> None:
    """It is compared after it went over SSH: equal as JSON."""
    mkfs(disk)
    here = asdict(taken(disk))

    assert json.loads(json.dumps(here)) == json.loads(json.dumps(asdict(taken(disk))))
    assert here["digest"] in json.dumps(here)


@pytest.mark.real("run")
def test_who_was_killed_has_not_looked() -> None:
    """That blkid(8) finds nothing is one thing: it lets a disk be erased."""
    assert disks.told(["sh", "-c", "echo x; exit 2"], 2) == ""
    for script in ("exit 1", "kill -KILL $$"):
        with pytest.raises(CommandFailed):
            disks.told(["sh", "-c", script], 2)
