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
from anemos.image.layout import LABELS, MIB, Disk, Kept
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


def kept_partition(wanted: Kept, home: Disk, directory: Path) -> dict[str, Any]:
    """A small partition at the end of the layout's disk HOME, and its fingerprint."""
    file = directory / f"{home.name}.img"
    size = file.stat().st_size
    match = wanted.match
    image = Image(file.name, match.get("serial", ""), match.get("wwn", ""), size, file)
    others = len(disks.partition_table(image))
    start = size // MIB - (KEPT_SIZE // MIB + 1) * (others + 1)
    label = [] if others else [f"label: {LABELS[home.table]}"]
    entry = f"{image.part(wanted.part)} : start={start}MiB, size={KEPT_SIZE // MIB}MiB"
    script = "\n".join([*label, entry, ""])
    write_table(image, wanted.part, script, *(["--append"] if others else []))
    found = disks.fingerprint(wanted.name, image, wanted.part)
    image.part(wanted.part).unlink()
    return dict(json.loads(json.dumps(asdict(found))))


def make(file: Path, size: int) -> None:
    file.touch(0o600)
    os.truncate(file, size)


def partition(image: Image, number: int) -> None:
    """Write a table with the partition NUMBER alone, and a file system into that."""
    write_table(image, number, f"label: gpt\n{image.part(number)} : start={MIB // 1024}KiB\n")


def write_table(image: Image, number: int, script: str, *options: str) -> None:
    """Have sfdisk(8) run SCRIPT, which makes the partition NUMBER, and fill that."""
    run(["sfdisk", "--quiet", *options, image.file], data=script.encode())
    (entry,) = (each for each in disks.partition_table(image) if each["number"] == number)
    make(image.part(number), entry["size"] * disks.SECTOR)
    make_fs(image.part(number))
    with image.file.open("r+b") as whole, image.part(number).open("rb") as part:
        whole.seek(entry["start"] * disks.SECTOR)
        shutil.copyfileobj(part, whole, MIB)


def make_fs(file: Path) -> None:
    with TemporaryDirectory() as content:
        (Path(content) / MARKER).write_text("kept\n")
        run(["mkfs.ext4", "-q", "-F", "-d", content, file])
