"""Kept volumes: found by what they lie on, in trees like sysfs; another kernel knows them."""

import json
import re
from pathlib import Path

import pytest

from anemos import disks, volumes
from anemos.border.deployment import Agreed, Deployment
from anemos.disks import Fingerprint, Wanted
from anemos.log import Failure
from anemos.server import drivers
from anemos.system import grammar
from anemos.system.layout import MIB

LAYOUT = "disk a serial=A\npart r fs=ext4 mount=/\ndisk b serial=B"
KEEP = """
    part d1 disk=a number=3
    part d2 disk=b number=3
    raid md1 on=d1,d2
    vg my-vg on=md1
    lv data on=my-vg mount=/srv
"""
HELD = {"md": {"TYPE": "LVM2_member", "UUID": "pv"}, "dm": {"TYPE": "ext4", "UUID": "u-1"}}


def wanted() -> list[Wanted]:
    whole = grammar.parse(LAYOUT)
    keep = grammar.parse_keep(KEEP, whole)
    found = grammar.parse_kept_volumes(KEEP, keep, whole)
    return [*(each.wanted for each in keep), *(each.wanted for each in found)]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def machine(block: Path, first: str, second: str, array: str, volume: str) -> None:
    """Two disks, an array on the third partition of both, a logical volume on that."""
    for name, serial in ((first, "A"), (second, "B")):
        write(block / name / "serial", serial)
        write(block / name / "size", f"{100 * MIB // 512}")
        write(block / array / "slaves" / f"{name}3", "")
    write(block / array / "size", "2048")
    write(block / array / "md/degraded", "0")
    write(block / volume / "slaves" / array, "")
    write(block / volume / "dm/name", "my--vg-data")
    write(block / volume / "dm/uuid", "LVM-group-volume")
    write(block / volume / "size", "1024")


@pytest.fixture
def block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disks, "SYS_BLOCK", tmp_path)
    monkeypatch.setattr(disks.devices, "__defaults__", (tmp_path,))
    monkeypatch.setattr(disks, "probe", lambda node: HELD[node.name[:2]])
    group(monkeypatch, "md127")
    return tmp_path


def group(monkeypatch: pytest.MonkeyPatch, *members: str) -> None:
    """MEMBERS are all that my-vg has; there is another group, too."""
    nodes = [*(f"/dev/{name}" for name in members), "/dev/sdz"]
    names = [*("my-vg UUID" for _ in members), "my-vg2 UUID-2"]
    found = {
        "pv": [
            {"pv_name": n, "vg_name": g, "vg_uuid": ""} for n, g in zip(nodes, names, strict=True)
        ]
    }
    monkeypatch.setattr(volumes, "run", lambda argv: json.dumps({"report": [found]}))


def of_volumes() -> list[Fingerprint]:
    return volumes.of_volumes(wanted(), volumes.nodes(wanted()))


def test_the_same_under_other_names(
    block: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(block, "sda", "sdb", "md127", "dm-0")
    before = of_volumes()
    assert [(each.name, each.serial, each.size, each.filesystems) for each in before] == [
        ("md1", "md1", MIB, ((0, "pv", "LVM2_member"),)),
        ("data", "my-vg/data", MIB // 2, ((0, "u-1", "ext4"),)),
    ]
    other = tmp_path / "other"
    monkeypatch.setattr(disks, "SYS_BLOCK", other)
    monkeypatch.setattr(disks.devices, "__defaults__", (other,))
    machine(other, "vdb", "vda", "md1", "dm-4")
    group(monkeypatch, "md1")
    assert of_volumes() == before


@pytest.mark.parametrize(
    ("file", "text"), [("dm-0/dm/uuid", "LVM-group-another"), ("dm-0/size", "2048")]
)
def test_another_volume(block: Path, file: str, text: str) -> None:
    machine(block, "sda", "sdb", "md127", "dm-0")
    before = of_volumes()
    write(block / file, text)
    assert [old == new for old, new in zip(before, of_volumes(), strict=True)] == [
        True,
        False,
    ]


def test_another_file_system(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(block, "sda", "sdb", "md127", "dm-0")
    before = of_volumes()
    monkeypatch.setitem(HELD, "dm", {"TYPE": "ext4", "UUID": "u-2"})
    assert of_volumes()[1].digest != before[1].digest


def test_what_is_not_there(block: Path) -> None:
    machine(block, "sda", "sdb", "md127", "dm-0")
    write(block / "md127/md/degraded", "1")
    with pytest.raises(Failure, match="kept raid 'md1': md127 is degraded") as caught:
        of_volumes()
    assert "mdadm --detail" in caught.value.hint
    write(block / "md127/slaves/sdc3", "")
    with pytest.raises(Failure, match="it lies on sda3, sdb3, sdc3, `keep` says sda3, sdb3"):
        of_volumes()
    write(block / "dm-0/dm/name", "my-vg-data")  # group "my", volume "vg-data"
    (block / "md127/slaves/sdc3").unlink()
    with pytest.raises(Failure, match="kept lv 'data': it is not active"):
        of_volumes()
    write(block / "md127/md/degraded", "0")
    write(block / "md127/size", "0")  # its members are there, and it does not run
    write(block / "dm-0/dm/name", "my--vg-data")
    with pytest.raises(Failure, match="kept raid 'md1': md127 is degraded or does not run"):
        of_volumes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), "kept vg 'my-vg': LVM does not show it: pvs"),
        (("md127", "sda9"), "kept vg 'my-vg': it lies on md127, sda9, `keep` says md127"),
        (("md127", "[unknown]"), "it lies on [unknown], md127, `keep` says md127"),
    ],
)
def test_group_that_is_another_one(
    block: Path, monkeypatch: pytest.MonkeyPatch, members: tuple[str, ...], message: str
) -> None:
    """A member of it may lie on a disk that is erased, or be missing."""
    machine(block, "sda", "sdb", "md127", "dm-0")
    group(monkeypatch, *members)
    with pytest.raises(Failure, match=re.escape(message)):
        of_volumes()


def test_with_disks(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is kept, in its order; where only disks are meant, volumes are none."""
    machine(block, "sda", "sdb", "md127", "dm-0")

    def taken(name: str, device: disks.Device, only: int) -> Fingerprint:
        return Fingerprint(name, device.serial, device.size, f"{only}", ())

    monkeypatch.setattr(disks, "fingerprint", taken)
    names = [each.name for each in volumes.fingerprints(wanted())]
    assert names == ["d1", "d2", "md1", "data"]


def test_drivers_of_what_it_lies_on(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(block, "sda", "sdb", "md127", "dm-0")
    asked: list[str] = []

    def problem(device: Path) -> str:
        asked.append(device.name)
        return ""

    monkeypatch.setattr(drivers, "problem", problem)
    drivers.check_disks(Deployment("d-1", "mx", wanted(), Agreed()))
    assert asked == ["sda", "sdb"]
