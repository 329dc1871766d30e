"""Where the secrets of a host are: `[secrets] source` in its host.toml chooses one of these.

GPG's files are encrypted to all recipients and signed by one (trove.py tells the layout). The other
sources are signed by nobody: whoever writes to the repository, or to the store, can replace a
secret.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anemos.log import Failure, die
from anemos.run import Argv, read
from anemos.workstation import hosts, places
from anemos.workstation.secrets import trove
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.trove import Source

DEADLINE_S = 120.0  # a pinentry may ask a person


def of(name: str) -> Source:
    """The source of the secrets of the host NAME. Raises Failure for its host.toml."""
    settings = hosts.secret_settings(name)
    match settings.source:
        case "age":
            return Age(places.SECRETS, settings.identity_file)
        case "sops":
            return Sops(places.SECRETS)
        case "pass":
            return PasswordStore(settings.prefix)
        case _:
            return Gpg(Keyring(None), places.SECRETS)


def ask(argv: Argv, what: str) -> bytes:
    """The standard output of ARGV, which opens WHAT. Raises Failure (status 2) that names WHAT.

    The program finds its keys as it does when the user calls it: it gets the user's environment.
    """
    try:
        return read(argv, f"{what}: {argv[0]}", env=os.environ, timeout=DEADLINE_S)
    except Failure as failure:
        die(failure.message)


@dataclass(frozen=True)
class Gpg:
    """The secrets below ROOT, opened with the keys of KEYRING."""

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


@dataclass(frozen=True)
class Age:
    """age(1): ROOT/<host>/<path or NAME>.age, opened with the key in the file IDENTITY."""

    root: Path
    identity: Path | None

    def names(self, host: str) -> list[str]:
        return trove.names(self.root, host, ".age")

    def reveal(self, host: str, name: str) -> bytes:
        if self.identity is None:
            die(f'hosts/{host}/host.toml: source = "age" needs an identity, the file of the key')
        file = self.root / host / f"{name}.age"
        return ask(["age", "--decrypt", "--identity", self.identity, file], str(file))


@dataclass(frozen=True)
class PasswordStore:
    """pass(1): entries PREFIX/<host>/<path> and PREFIX/<host>/<NAME> of the user's store."""

    prefix: str

    def names(self, host: str) -> list[str]:
        store = Path(os.environ.get("PASSWORD_STORE_DIR") or Path.home() / ".password-store")
        return trove.names(store / self.prefix, host)

    def reveal(self, host: str, name: str) -> bytes:
        entry = f"{self.prefix}/{host}/{name}"
        return ask(["pass", "show", "--", entry], f"password store: {entry}")


@dataclass(frozen=True)
class Sops:
    """sops(1): ROOT/<host>.sops.json, opened with any key that sops finds.

    One object, its members called like the secrets, their values text. sops encrypts values only,
    each bound to its name; names are read without a key.
    """

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
        value = members(file, ask(["sops", "--decrypt", file], str(file))).get(name)
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
