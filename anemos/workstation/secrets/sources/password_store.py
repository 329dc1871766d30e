"""pass(1): entries PREFIX/<host>/<path> and PREFIX/<host>/<NAME> of the user's password store.

pass checks no signature of entries: whoever writes to the store can replace a secret.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from anemos.workstation.secrets import trove
from anemos.workstation.secrets.sources import program


@dataclass(frozen=True)
class PasswordStore:
    """The entries below PREFIX in the user's store. A trove.Source."""

    prefix: str

    def names(self, host: str) -> list[str]:
        return trove.names(store() / self.prefix, host)

    def reveal(self, host: str, name: str) -> bytes:
        entry = f"{self.prefix}/{host}/{name}"
        return program.ask(["pass", "show", "--", entry], f"password store: {entry}")


def store() -> Path:
    return Path(os.environ.get("PASSWORD_STORE_DIR") or Path.home() / ".password-store")
