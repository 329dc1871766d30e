"""What the old system left for the initramfs (written by server/staging.py)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    @property
    def stamp(self) -> str:
        """What the new system says of itself, as /etc/anemos/deployment.json."""
        fields = {"deployment": self.deployment, "host": self.host, "base": self.base}
        return json.dumps(fields) + "\n"


def load(file: Path = HERE / "boot.json") -> Boot:
    return Boot(**json.loads(file.read_text()))
