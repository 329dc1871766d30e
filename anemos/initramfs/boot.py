"""What the old system left for the initramfs (archive.py puts it there)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anemos import files

HERE = Path("/run/anemos")


@dataclass(frozen=True)
class Boot:
    deployment: str
    host: str
    base: str  # SHA-256 of the base image
    payload: str  # SHA-256
    layer: str  # SHA-256 of the package layer, or "": bootstrap here
    ssh_port: int
    network: dict[str, Any]
    kept: list[dict[str, Any]] | None  # fingerprints taken in the old system, if there was one
    time: float = 0.0  # the workstation's: seconds since the epoch; 0: not told
    once: bool = False  # payload, layer and host keys are still to come (delivery.py)
    # What `plan` has shown (workstation/deploy/consent.py), {} where nobody has asked it.
    agreed: dict[str, Any] = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        """What the new system says of itself, as /etc/anemos/deployment.json."""
        fields = {"deployment": self.deployment, "host": self.host, "base": self.base}
        return json.dumps({**fields, "kept": self.kept}) + "\n"


FILE = HERE / "boot.json"


def load(file: Path = FILE) -> Boot:
    return Boot(**json.loads(file.read_text()))


def save(boot: Boot, file: Path = FILE) -> None:
    files.replace(file, json.dumps(asdict(boot)))


def held(cmdline: Path = Path("/proc/cmdline")) -> float:
    """For how many seconds the operator wants to look around first, by the kernel command line."""
    words = dict(word.partition("=")[::2] for word in cmdline.read_text().split())
    return float(words.get("anemos.hold", 0))
