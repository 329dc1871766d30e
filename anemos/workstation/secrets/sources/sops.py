"""sops(1): SECRETS/<host>.sops.json, one object; its members are called like the secrets.

Values are text. sops encrypts values only, each bound to its name; names are read without a key.
Signed by nobody: whoever writes to the repository can replace the whole file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anemos.log import die
from anemos.workstation.secrets import trove
from anemos.workstation.secrets.sources import program


@dataclass(frozen=True)
class Sops:
    """The files in ROOT, opened with the key that sops finds. A trove.Source."""

    root: Path

    def names(self, host: str) -> list[str]:
        file = self.file(host)
        if not file.exists():
            return []
        found = members(file, file.read_bytes())
        if "sops" not in found:
            die(f"{file} is not encrypted")
        names = sorted(found.keys() - {"sops"})
        for name in names:
            trove.check_name(str(file), name)
            if not str(found[name]).startswith("ENC["):
                die(f"{file}: {name} is not encrypted")
        return names

    def reveal(self, host: str, name: str) -> bytes:
        file = self.file(host)
        value = members(file, program.ask(["sops", "--decrypt", file], str(file))).get(name)
        if not isinstance(value, str):
            die(f"{file}: {name} is no text")
        return value.encode()

    def file(self, host: str) -> Path:
        return self.root / f"{host}.sops.json"


def members(file: Path, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # its text would show what it stumbled over
        found = None
    return found if isinstance(found, dict) else die(f"{file} is no JSON object")
