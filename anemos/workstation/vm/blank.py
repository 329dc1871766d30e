"""Disks for the VM of a test: blank ones to install on, used ones to keep."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import disks
from anemos.disks import Device, Fingerprint
from anemos.run import run
from anemos.system.layout import LABELS, MIB, Disk, Kept
from anemos.workstation.qemu import Drive

KEPT_SIZE = 256 * MIB
PART_SIZE = 32 * MIB
MARKER = "anemos-test"  # a file on every kept disk


@dataclass(frozen=True)
class Image(Device):
    """A disk in FILE. File systems of its partitions lie beside it, in FILE1, FILE2..."""

    file: Path = field(kw_only=True)

    @property
    def path(self) -> Path:
        return self.file

    def part(self, number: int) -> Path:
        return self.file.with_name(f"{self.file.name}{number}") if number else self.file


def disk(wanted: Disk, keep: Sequence[Kept], directory: Path) -> tuple[Drive, list[Fingerprint]]:
    """A disk with what the layout names the real one by: blank, except the partitions to KEEP."""
    size = int(wanted.match.get("size", wanted.image))
    image = make(directory / f"{wanted.name}.img", wanted.match, size)
    kept = [each for each in keep if each.disk == wanted.name]
    partition(image, wanted.table, [each.part for each in kept])
    prints = [taken(each, image) for each in kept]
    return finished(wanted.name, image, wanted.match, prints)


def kept_disk(wanted: Kept, directory: Path) -> tuple[Drive, list[Fingerprint]]:
    """A disk to keep, with a small file system where the real one has its own."""
    size = int(wanted.match.get("size", KEPT_SIZE))
    image = make(directory / f"kept-{wanted.name}.img", wanted.match, size)
    if wanted.part:
        partition(image, "gpt", [wanted.part], size)
    else:
        make_fs(image.file)
    return finished(f"kept-{wanted.name}", image, wanted.match, [taken(wanted, image)])


def finished(
    name: str, image: Image, match: Mapping[str, str], prints: list[Fingerprint]
) -> tuple[Drive, list[Fingerprint]]:
    for file in image.file.parent.glob(f"{image.file.name}[0-9]*"):
        file.unlink()
    return Drive(name, image.file, match), prints


def taken(wanted: Kept, image: Image) -> Fingerprint:
    """The fingerprint that a kernel would take."""
    return disks.fingerprint(wanted.name, image, wanted.only)


def make(file: Path, match: Mapping[str, str], size: int) -> Image:
    file.touch(0o600)
    os.truncate(file, size)
    return Image(file.name, match.get("serial", ""), match.get("wwn", ""), size, file=file)


def partition(image: Image, table: str, numbers: Sequence[int], largest: int = PART_SIZE) -> None:
    """Write a TABLE with small partitions at the end, and a file system into each."""
    if not numbers:
        return
    length = min(largest, image.size // MIB * MIB - 2 * MIB)
    starts = [image.size // MIB * MIB - MIB - length * n for n in range(1, len(numbers) + 1)]
    lines = [f"label: {LABELS[table]}"] + [
        f"{image.part(number)} : start={start // 1024}KiB, size={length // 1024}KiB, type=linux"
        for number, start in zip(numbers, starts, strict=True)
    ]
    run(["sfdisk", "--quiet", image.file], data="\n".join([*lines, ""]).encode())
    for number, start in zip(numbers, starts, strict=True):
        image.part(number).touch(0o600)
        os.truncate(image.part(number), length)
        make_fs(image.part(number))
        options = [f"if={image.part(number)}", f"of={image.file}", f"seek={start // MIB}"]
        run(["dd", "status=none", "bs=1M", "conv=notrunc,sparse", *options])


def make_fs(file: Path) -> None:
    with TemporaryDirectory() as content:
        (Path(content) / MARKER).write_text("kept\n")
        run(["mkfs.ext4", "-q", "-F", "-d", content, file])
