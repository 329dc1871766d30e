"""Secrets one by one: what the developer's own GPG keys open, read and replaced.

Ciphertext is only ever replaced whole: written beside the hosts' directories, then renamed.
"""

import getpass
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anemos import files, log
from anemos.log import FAILED, Failure, die
from anemos.workstation import Result, hosts, places
from anemos.workstation.secrets import editor, trove
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.sources import Gpg

# Who changes the secrets that GPG does not open.
OTHERS = {
    "age": "age --encrypt --recipients-file FILE --output secrets/HOST/NAME.age",
    "sops": "sops secrets/HOST.sops.json",
    "pass": "pass edit PREFIX/HOST/NAME",
}


@dataclass(frozen=True)
class Vault(Gpg):
    """The secrets that GPG opens, to be changed. Raises Failure with the name of the file."""

    def hosts(self, only: str = "") -> list[str]:
        """The hosts that have secrets; or the one, which need not have any yet."""
        if only:
            hosts.find(only)
            require_gpg(only)
            return [only]
        return sorted(path.name for path in self.root.glob("[!.]*/") if is_gpg(path.name))

    def place(self, of: str, name: str) -> Path:
        """The file for the secret NAME of the host OF, whether it is there or not."""
        hosts.find(of)
        require_gpg(of)
        if not name:
            die("which secret? --name etc/ssl/private/mx.key, or NAME for templates")
        trove.check_name("--name", name)
        pure = PurePosixPath(name)
        for other in map(PurePosixPath, self.names(of)):
            if other != pure and (other.is_relative_to(pure) or pure.is_relative_to(other)):
                die(f"{of}: {name} and {other} cannot both be on the target")
        return self.root / of / f"{name}.gpg"

    def read(self, of: str, name: str) -> bytes | None:
        """The secret in clear; None when there is none of that name."""
        path = self.place(of, name)
        return self.reveal(of, name) if path.exists() else None

    def require_writable(self, of: str) -> None:
        """Die unless secrets of OF can be encrypted: or all that a person types would be lost."""
        hosts.find(of)
        require_gpg(of)
        self.keyring.encrypt(b"", f"the secrets of {of}", self.recipients(), "")

    def write(self, of: str, name: str, data: bytes) -> None:
        path = self.place(of, name)
        if "/" not in name:
            trove.require_text(str(path), data)
        new = "" if path.exists() else "new "
        label = f"{of}/{name}"
        self.replace(path, self.keyring.encrypt(data, str(path), self.recipients(), label))
        log.info(f"{of}: {new}secret {name} is encrypted and signed")

    def replace(self, path: Path, ciphertext: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A task that is killed here leaves no file that looks like a secret.
            files.replace(path, ciphertext, beside=self.root)
        except OSError as error:
            die(f"cannot write {path}: {error.strerror}", status=FAILED)


def is_gpg(of: str) -> bool:
    """Tell whether GPG opens the secrets of OF: a host, or the name of one that is gone."""
    return not (places.HOSTS / of).is_dir() or hosts.secret_settings(of).source == "gpg"


def require_gpg(of: str) -> None:
    source = hosts.secret_settings(of).source
    if source != "gpg":
        die(f"the secrets of {of} are kept by {source}, not by GPG", hint=OTHERS[source])


def own() -> Vault:
    """The project's secrets, with the developer's own keys."""
    return Vault(Keyring(None), places.SECRETS)


def edit(vault: Vault, of: str, name: str) -> Result:
    """Have the user edit a secret; a new one starts empty. No change, no new ciphertext."""
    old = vault.read(of, name) or b""
    vault.require_writable(of)
    new = editor.edit(old, name)
    if new == old:
        log.info(f"{of}: {name} is unchanged")
    else:
        vault.write(of, name, new)
    return {"host": of, "name": name, "changed": new != old}


def put(vault: Vault, of: str, name: str) -> Result:
    """Take a secret from standard input, as it is; or from a person, who types it twice."""
    vault.place(of, name)
    data = typed(name) if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not data:
        die(f"{name} would be empty", hint="./inv secrets.set ... < FILE")
    vault.write(of, name, data)
    return {"host": of, "name": name}


def typed(name: str) -> bytes:
    try:
        answers = [getpass.getpass(prompt) for prompt in (f"{name}: ", "once more: ")]
    except EOFError:
        die(f"{name}: no answer")
    if answers[0] != answers[1]:
        die(f"{name}: these were two different answers")
    return answers[0].encode()


def rekey(vault: Vault, only: str = "", former: str = "") -> Result:
    """Encrypt to the recipients all that is not encrypted to exactly them; all of it, or nothing.

    FORMER: the fingerprint of who was a recipient until now, and whose signatures count once more.
    (Not whom the ciphertext names: anybody can encrypt to himself, too.)
    """
    fresh: dict[Path, bytes] = {}
    wrong: list[str] = []
    found = [(of, name) for of in vault.hosts(only) for name in vault.names(of)]
    wanted = vault.keyring.chosen(vault.recipients()) if found else []
    for of, name in found:
        try:
            fresh |= rekeyed(vault, of, name, signer(former), wanted)
        except Failure as failure:
            wrong.append(str(failure))
    if wrong:
        hint = "--former FINGERPRINT: accept what a former recipient has signed"
        die("nothing was changed:\n" + "\n".join(f"  - {each}" for each in wrong), hint=hint)
    for path, ciphertext in fresh.items():
        vault.replace(path, ciphertext)
        log.info(f"{path.relative_to(vault.root)}: encrypted anew")
    log.info(f"{len(fresh)} secrets are encrypted anew")
    return {"rekeyed": [path.relative_to(vault.root).as_posix() for path in fresh]}


def rekeyed(
    vault: Vault, of: str, name: str, former: list[str], wanted: list[str]
) -> dict[Path, bytes]:
    """The file of a secret with its new ciphertext, unless it is encrypted to the WANTED keys."""
    keyring, recipients = vault.keyring, vault.recipients()
    path = vault.root / of / f"{name}.gpg"
    if keyring.key_ids(path.read_bytes(), str(path)) == wanted:
        return {}
    clear = vault.decrypt(of, name, path, [*recipients, *former])
    return {path: keyring.encrypt(clear, str(path), recipients, f"{of}/{name}")}


def signer(former: str) -> list[str]:
    fingerprint = "".join(former.split()).upper()
    if fingerprint and not re.fullmatch(r"[0-9A-F]{40}", fingerprint):
        die(f"--former {former!r}: not a full fingerprint, 40 hex digits")
    return [fingerprint] if fingerprint else []
