"""How far an installation has come: what a second run of the brain, after a failure, must know."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anemos import files
from anemos.border import records, stage
from anemos.border.resuming import BOOT_LOADER, PARTITIONS, Request
from anemos.log import FAILED, die
from anemos.system import bootstrap
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Kept, Mounted, Volume


@dataclass(frozen=True)
class Disks:
    erased: Mapping[str, Mapping[str, str]]  # what finds them, by the names in the layout
    kept: list[Kept]
    volumes: list[Volume]  # kept ones


@dataclass
class Progress:
    """Kept disks are out of reach after the first run: what was learnt from them stays here."""

    disks: Disks  # which ones are erased and kept: no corrected payload changes that
    mounts: list[Mounted]  # kept file systems
    packages: str  # what the package layer was made from, see bootstrap.key
    applied: str = ""  # the payload (SHA-256) whose definition is complete on the disks

    def save(self) -> None:
        files.replace(stage.PROGRESS, records.text(self))

    def first_step(self, payload: str, asked: str = "") -> str:
        """Where to go on, if not where the operator ASKED for.

        Packages and definition change the tree in place: half of one is nothing to go on from, so
        it begins with new partitions.
        """
        return asked or (BOOT_LOADER if self.applied == payload else PARTITIONS)


def disks_of(spec: Imgbuild) -> Disks:
    """What SPEC says about whole disks, and what it keeps."""
    erased = {disk.name: disk.match for disk in spec.layout.disks}
    return Disks(erased, list(spec.keep), list(spec.kept_volumes))


def begin(spec: Imgbuild, mounts: list[Mounted]) -> Progress:
    progress = Progress(disks_of(spec), mounts, bootstrap.key(spec))
    progress.save()
    return progress


def load(spec: Imgbuild) -> Progress:
    """Raises Failure when SPEC wants other disks than the first run erased and kept."""
    progress = records.load(Progress, stage.PROGRESS.read_bytes(), f"{stage.PROGRESS}")
    if progress.disks != disks_of(spec):
        die(
            "the corrected IMGBUILD names other disks, or keeps other ones",
            hint="that needs the whole preflight: a new deployment",
            status=FAILED,
        )
    return progress


def request(file: Path = stage.RESUMING) -> Request:
    return records.load(Request, file.read_bytes() or b"{}", f"{file}")
