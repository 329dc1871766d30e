"""Disks for the VM of a test."""

import json
from pathlib import Path

import pytest

from anemos.disks import partition_table
from anemos.image.layout import MIB, Disk, Kept
from anemos.run import run
from anemos.workstation import blank
from anemos.workstation.blank import Image

pytestmark = pytest.mark.real("run")


@pytest.mark.parametrize(
    ("match", "size"), [({"serial": "S"}, 3 * MIB), ({"serial": "S", "size": "5000192"}, 5000192)]
)
def test_disk(tmp_path: Path, match: dict[str, str], size: int) -> None:
    drive = blank.disk(Disk("system", match, image=3 * MIB), tmp_path)

    assert drive.match == match
    assert drive.file.stat().st_size == size
    assert drive.file.stat().st_blocks == 0


@pytest.mark.parametrize("part", [0, 3])
def test_kept_disk(tmp_path: Path, part: int) -> None:
    """A file system where the host has its own, and the fingerprint that a kernel would take."""
    drive, found = blank.kept(Kept("data", {"serial": "S", "size": f"{MIB * 40}"}, part), tmp_path)

    assert (found["name"], found["serial"], found["size"]) == ("data", "S", 40 * MIB)
    assert json.loads(json.dumps(found)) == found
    assert [(number, kind) for number, _, kind in found["filesystems"] if kind] == [(part, "ext4")]
    image = Image("data", "S", "", 40 * MIB, drive.file)
    table = partition_table(image)
    assert [each["number"] for each in table] == ([part] if part else [])
    offset = table[0]["start"] * 512 if part else 0
    content = run(["debugfs", "-R", "cat /anemos-test", f"{drive.file}?offset={offset}"])
    assert content.startswith("kept\n")
    assert list(tmp_path.iterdir()) == [drive.file]
