"""boot.json: what the initramfs is told by the old system; and what it tells the new one."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from anemos import files
from anemos.border import records, stage
from anemos.border.deployment import Agreed, Revision
from anemos.border.network import Network
from anemos.disks import Fingerprint
from anemos.log import FAILED, die

STAMP = "/etc/anemos/deployment.json"  # of a system that was deployed


@dataclass(frozen=True)
class Stamp:
    """What is in STAMP; boot.json has all of it, too, except the layout."""

    deployment: str = ""
    host: str = ""
    base: str = ""  # SHA-256 of the base image
    kept: list[Fingerprint] | None = None
    layout: dict[str, str] = field(default_factory=dict)  # layout.elements
    commit: Revision = field(default_factory=Revision)

    @property
    def text(self) -> str:
        return records.text(self) + "\n"


@dataclass(frozen=True)
class Seen(Stamp):
    """What a system says of itself: a Stamp, nothing if Anemos did not deploy it, or a Boot."""

    layer: str = ""
    ssh_port: int = 0  # 0 unless it is the initramfs


@dataclass(frozen=True)
class Boot:
    deployment: str
    host: str
    base: str  # SHA-256 of the base image
    payload: str  # SHA-256
    layer: str  # SHA-256 of the package layer, or "": bootstrap here
    ssh_port: int
    network: Network
    kept: list[Fingerprint] | None  # taken in the old system, if there was one
    time: float = 0.0  # the workstation's: seconds since the epoch; 0: not told
    late: bool = False  # the rest is still to come (initramfs/delivery.py)
    agreed: Agreed = field(default_factory=Agreed)

    def stamp(self, layout: dict[str, str], commit: Revision) -> str:
        """What the new system says of itself. LAYOUT: its elements. COMMIT: of the payload that is
        installed, which may be another one than at first (`resume --repack`)."""
        return Stamp(self.deployment, self.host, self.base, self.kept, layout, commit).text


def load(file: Path = stage.BOOT) -> Boot:
    return records.load(Boot, file.read_bytes(), f"{file}")


def save(boot: Boot, file: Path = stage.BOOT) -> None:
    files.replace(file, records.text(boot))


def base_hash(image: str | Path) -> str:
    """The SHA-256 that the name of a base IMAGE says."""
    return Path(image).stem.removeprefix("base-")


def held(cmdline: Path = Path("/proc/cmdline")) -> float:
    """For how many seconds the operator wants to look around first, by the kernel command line.

    Raises Failure.
    """
    words = dict(word.partition("=")[::2] for word in files.text(cmdline).split())
    seconds = words.get("anemos.hold", "0")
    if not re.fullmatch("[0-9]{1,9}", seconds):
        die(f"anemos.hold={seconds} is no number of seconds", status=FAILED)
    return float(seconds)
