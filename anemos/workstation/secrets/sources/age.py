"""age(1): SECRETS/<host>/<path>.age and SECRETS/<host>/<NAME>.age.

Encrypted, but signed by nobody: whoever writes to the repository can replace a secret.
"""

from dataclasses import dataclass
from pathlib import Path

from anemos.log import die
from anemos.workstation.secrets import trove
from anemos.workstation.secrets.sources import program

SUFFIX = ".age"


@dataclass(frozen=True)
class Age:
    """The files below ROOT, opened with the key in IDENTITY. A trove.Source."""

    root: Path
    identity: Path | None

    def names(self, host: str) -> list[str]:
        return trove.names(self.root, host, SUFFIX)

    def reveal(self, host: str, name: str) -> bytes:
        if self.identity is None:
            die(f'hosts/{host}/host.toml: source = "age" needs an identity, the file of the key')
        file = self.root / host / f"{name}{SUFFIX}"
        return program.ask(["age", "--decrypt", "--identity", self.identity, file], str(file))
