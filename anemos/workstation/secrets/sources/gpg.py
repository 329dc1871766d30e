"""GPG, the default: secrets.py tells the layout. Encrypted to all recipients, signed by one."""

from dataclasses import dataclass
from pathlib import Path

from anemos.workstation.secrets import trove
from anemos.workstation.secrets.gpg import Keyring


@dataclass(frozen=True)
class Gpg:
    """The secrets below ROOT, opened with the keys of KEYRING. A trove.Source."""

    keyring: Keyring
    root: Path

    def recipients(self) -> list[str]:
        return trove.read_recipients(self.root / "recipients")

    def names(self, host: str) -> list[str]:
        return trove.names(self.root, host)

    def reveal(self, host: str, name: str) -> bytes:
        return self.decrypt(host, name, self.root / host / f"{name}.gpg", self.recipients())

    def decrypt(self, host: str, name: str, path: Path, signers: list[str]) -> bytes:
        label = f"{host}/{name}"
        return self.keyring.decrypt(path.read_bytes(), str(path), signers, label)
