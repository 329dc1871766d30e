"""Disks for the VM of a test: blank ones to install on, used ones to keep."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anemos import disks
from anemos.disks import Device
from anemos.image.layout import MIB, Disk, Kept
from anemos.run import run
from anemos.workstation.qemu import Drive

KEPT_SIZE = 64 * MIB
MARKER = "anemos-test"  # a file on every kept disk


@dataclass(frozen=True)
class Image(Device):
    """A disk in FILE. File systems of its partitions lie beside it, in FILE1, FILE2..."""

    file: Path

    @property
    def path(self) -> Path:
        return self.file

    def part(self, number: int) -> Path:
        return self.file.with_name(f"{self.file.name}{number}") if number else self.file


def disk(wanted: Disk, directory: Path) -> Drive:
    """A blank disk with what the layout names the real one by."""
    file = directory / f"{wanted.name}.img"
    make(file, int(wanted.match.get("size", wanted.image)))
    return Drive(wanted.name, file, wanted.match)


def kept(wanted: Kept, directory: Path) -> tuple[Drive, dict[str, Any]]:
    """A kept disk with a small file system where the real one has its own, and its fingerprint."""
    file = directory / f"kept-{wanted.name}.img"
    size = int(wanted.match.get("size", KEPT_SIZE))
    make(file, size)
    match = wanted.match
    image = Image(file.name, match.get("serial", ""), match.get("wwn", ""), size, file)
    if wanted.part:
        partition(image, wanted.part)
    else:
        make_fs(file)
    found = disks.fingerprint(wanted.name, image)
    if wanted.part:
        image.part(wanted.part).unlink()
    # As it looks on its way through boot.json.
    return Drive(f"kept-{wanted.name}", file, match), json.loads(json.dumps(asdict(found)))


def make(file: Path, size: int) -> None:
    file.touch(0o600)
    os.truncate(file, size)


def partition(image: Image, number: int) -> None:
    """Write a table with the partition NUMBER alone, and a file system into that."""
    script = f"label: gpt\n{image.part(number)} : start={MIB // 1024}KiB, type=linux\n"
    run(["sfdisk", "--quiet", image.file], data=script.encode())
    (entry,) = disks.partition_table(image)
    make(image.part(number), entry["size"] * disks.SECTOR)
    make_fs(image.part(number))
    with image.file.open("r+b") as whole, image.part(number).open("rb") as part:
        whole.seek(entry["start"] * disks.SECTOR)
        shutil.copyfileobj(part, whole, MIB)


def make_fs(file: Path) -> None:
    with TemporaryDirectory() as content:
        (Path(content) / MARKER).write_text("kept\n")
        run(["mkfs.ext4", "-q", "-F", "-d", content, file])
