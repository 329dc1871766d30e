"""How far an installation has come: what a second run of the brain, after a failure, must know."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anemos import files
from anemos.initramfs.boot import HERE
from anemos.log import FAILED, die
from anemos.system import bootstrap
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Mounted

FILE = HERE / "progress.json"
RESUMING = HERE / "resuming"  # the operator's request, see Request; init puts it there
PARTITIONS, PACKAGES, DEFINITION, BOOT_LOADER = STEPS = (
    "partitions",
    "package-layer",
    "definition",
    "boot-loader",
)


@dataclass
class Progress:
    """Kept disks are out of reach after the first run: what was learnt from them stays here."""

    disks: dict[str, Any]  # which ones are erased and kept: no corrected payload changes that
    mounts: list[Mounted]  # kept file systems
    packages: str  # what the package layer was made from, see bootstrap.key
    applied: str = ""  # the payload (SHA-256) whose definition is complete on the disks

    def save(self) -> None:
        files.replace(FILE, json.dumps(asdict(self)))

    def first_step(self, payload: str, asked: str = "") -> str:
        """Where to go on, if not where the operator ASKED for.

        Packages and definition change the tree in place: half of one is nothing to go on from, so
        it begins with new partitions.
        """
        return asked or (BOOT_LOADER if self.applied == payload else PARTITIONS)


@dataclass(frozen=True)
class Request:
    """What the operator asks for; "" for what is as it was."""

    payload: str = ""  # SHA-256 of a corrected one
    layer: str = ""  # SHA-256 of another package layer
    step: str = ""  # of STEPS, to begin with


def disks_of(spec: Imgbuild) -> dict[str, Any]:
    """What SPEC says about whole disks, as JSON has it."""
    erased = {disk.name: dict(disk.match) for disk in spec.layout.disks}
    return dict(json.loads(json.dumps({"erased": erased, "kept": [*map(asdict, spec.keep)]})))


def begin(spec: Imgbuild, mounts: list[Mounted]) -> Progress:
    progress = Progress(disks_of(spec), mounts, bootstrap.key(spec))
    progress.save()
    return progress


def load(spec: Imgbuild) -> Progress:
    """Raises Failure when SPEC wants other disks than the first run erased and kept."""
    progress = Progress(**json.loads(FILE.read_text()))
    progress.mounts = [Mounted(*each) for each in progress.mounts]
    if progress.disks != disks_of(spec):
        die(
            "the corrected IMGBUILD names other disks, or keeps other ones",
            hint="that needs the whole preflight: a new deployment",
            status=FAILED,
        )
    return progress


def request(file: Path = RESUMING) -> Request:
    return Request(**json.loads(file.read_text() or "{}"))
