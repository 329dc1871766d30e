"""Disks for the VM of a test."""

from pathlib import Path

import pytest

from anemos import disks
from anemos.border import records
from anemos.disks import Fingerprint
from anemos.run import run
from anemos.system.layout import MIB, Disk, Kept
from anemos.workstation.vm import blank
from anemos.workstation.vm.blank import Image

pytestmark = pytest.mark.real("run")


@pytest.mark.parametrize(
    ("match", "size"), [({"serial": "S"}, 3 * MIB), ({"serial": "S", "size": "5000192"}, 5000192)]
)
def test_disk(tmp_path: Path, match: dict[str, str], size: int) -> None:
    drive, prints = blank.disk(Disk("system", match, image=3 * MIB), [], tmp_path)

    assert (drive.match, prints) == (match, [])
    assert drive.file.stat().st_size == size
    assert drive.file.stat().st_blocks == 0


@pytest.mark.parametrize("part", [0, 3])
def test_kept_disk(tmp_path: Path, part: int) -> None:
    """A file system where the host has its own, and the fingerprint that a kernel would take."""
    kept = Kept("data", {"serial": "S", "size": f"{MIB * 40}"}, part)
    drive, (found,) = blank.kept_disk(kept, tmp_path)

    assert (found.name, found.serial, found.size) == ("data", "S", 40 * MIB)
    assert records.parse(Fingerprint, records.text(found)) == found
    assert [(number, kind) for number, _, kind in found.filesystems if kind] == [(part, "ext4")]
    image = Image("data", "S", "", 40 * MIB, file=drive.file)
    table = disks.partition_table(image)
    assert [each["number"] for each in table] == ([part] if part else [])
    offset = table[0]["start"] * 512 if part else 0
    content = run(["debugfs", "-R", "cat /anemos-test", f"{drive.file}?offset={offset}"])
    assert content.startswith("kept\n")
    assert list(tmp_path.iterdir()) == [drive.file]


@pytest.mark.parametrize("table", ["gpt", "msdos"])
def test_kept_partitions_of_a_system_disk(tmp_path: Path, table: str) -> None:
    """They lie where the new ones are not, and each has a fingerprint of its own."""
    match = {"serial": "S"}
    wanted = Disk("system", match, table, 400 * MIB)
    keep = [Kept(name, match, part, disk="system") for name, part in (("mail", 3), ("www", 2))]
    other = Kept("data", {"serial": "D"}, 1)

    drive, prints = blank.disk(wanted, [*keep, other], tmp_path)

    assert [each.name for each in prints] == ["mail", "www"]
    assert len({each.digest for each in prints}) == 2
    image = Image("system", "S", "", 400 * MIB, file=drive.file)
    ends = [part["start"] + part["size"] for part in disks.partition_table(image)]
    assert sorted(ends) == [(400 - 33) * 2048, (400 - 1) * 2048]
    assert list(tmp_path.iterdir()) == [drive.file]
