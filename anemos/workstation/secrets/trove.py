"""Secrets: encrypted in a tree that mirrors the target, in clear only in memory.

ROOT/recipients             who can decrypt and who may sign: full fingerprints of GPG keys
ROOT/<host>/<path>.gpg      a file secret, which is put at /<path> on the target
ROOT/<host>/<NAME>.gpg      directly in the host's directory: a value for templates, called NAME

Other sources than GPG (see sources.py) have other suffixes and no recipients here.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from anemos import files
from anemos.log import FAILED, die
from anemos.system import declared
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import scratch
from anemos.workstation.scratch import remove, require_memory, write_private
from anemos.workstation.secrets.gpg import Keyring


class Source(Protocol):
    """Where the secrets of hosts are, and what opens them.

    A secret's name is its path on the target, without leading slash; a value's has no slash at all.
    Everything raises Failure (status 2) with the name of the file or entry.
    """

    def names(self, host: str) -> list[str]:
        """The names of HOST's secrets. Nothing is decrypted."""

    def reveal(self, host: str, name: str) -> bytes:
        """A secret in clear. Needs no terminal."""


@dataclass(frozen=True)
class Revealed:
    """Secrets in clear: FILES are the paths below INTO/files, VALUES the values themselves."""

    files: list[str]
    values: dict[str, str] = field(repr=False)


def read_recipients(path: Path) -> list[str]:
    """Read full fingerprints: 40 hex digits a line, spaces among them; `#` begins a comment.

    Raises Failure for a missing file, another line than that, and no fingerprint at all.
    """
    if not path.is_file():
        die(
            f"{path} is missing",
            hint="the full fingerprints of who can decrypt, one a line: gpg --fingerprint",
        )
    found = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n"), start=1):
        fingerprint = "".join(line.partition("#")[0].split()).upper()
        if re.fullmatch(r"[0-9A-F]{40}", fingerprint):
            found.append(fingerprint)
        elif fingerprint:
            die(f"{path}:{number}: not a full fingerprint, 40 hex digits", hint="gpg --list-keys")
    return found or die(f"{path} lists nobody")


def names(root: Path, host: str, suffix: str = ".gpg") -> list[str]:
    """The names of HOST's secrets, files first; a host without a directory in ROOT has none.

    Raises Failure for symbolic links and anything else that is not the name of a secret.
    """
    found = [name_of(path, root / host, suffix) for path in walk(root / host)]
    return sorted(found, key=lambda name: "/" not in name)


def lacking(spec: Imgbuild, there: Collection[str]) -> str:
    """Which secrets the IMGBUILD declares that are not THERE, by name; "" when all are."""
    found = [
        f"{name} (line {each.line})" if each.line else name
        for each in spec.secrets
        for name in each.names
        if name not in there
    ]
    if not found:
        return ""
    command = f"./inv secrets.generate --host {spec.directory.name}"
    return f"secrets are missing that {spec.file} declares: {', '.join(found)}: {command}"


def name_of(path: Path, top: Path, suffix: str = ".gpg") -> str:
    """The name of the secret PATH in the directory TOP of its host; only a file's has a slash."""
    target = path.relative_to(top)
    name = target.name.removesuffix(suffix)
    if name == target.name:
        die(f"{path} does not end in {suffix}", hint="only encrypted files belong there")
    if name in ("", ".", ".."):
        die(f"{path} stands for no file: its name without {suffix} is {name!r}")
    name = target.with_name(name).as_posix()
    check_name(str(path), name)
    return name


def check_name(where: str, name: str) -> None:
    """Die unless NAME, found at WHERE, is one for a secret: a path on the target, or a value's."""
    try:
        declared.check_name(name)
    except ValueError as error:
        die(f"{where}: {error}", hint="etc/ssl/mx.key, or for templates [A-Za-z_][A-Za-z0-9_]*")


def walk(top: Path) -> Iterator[Path]:
    """Yield the files below TOP. Raises Failure for what is no regular file, or not readable."""

    def unreadable(error: OSError) -> NoReturn:
        die(f"cannot read {error.filename}: {error.strerror}")

    if not os.path.lexists(top):
        return
    for directory, folders, leaves in os.walk(top, onerror=unreadable):
        for path in (Path(directory, name) for name in ("", *sorted(folders + leaves))):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                die(f"{path} is not a regular file", hint="symbolic links are refused too")
            if path.is_file():
                yield path


def reveal(source: Source, host: str, into: Path) -> Revealed:
    """Reveal the secrets of HOST to INTO/files/<path> and INTO/values/<NAME>, for `load`.

    Files get mode 0600, directories 0700. INTO must lie in memory; what was revealed there before
    is gone in every case. Raises Failure for what SOURCE refuses and for a value that is not
    UTF-8; then nothing stays revealed.
    """
    require_memory(into.parent)
    fresh = into.with_name(f".{into.name}.new")
    try:
        remove(into)
        remove(fresh)
        fresh.mkdir(mode=0o700, parents=True)
        for name in source.names(host):
            kind = "files" if "/" in name else "values"
            write_private(fresh, f"{kind}/{name}", clear(source, host, name))
        fresh.rename(into)
    except OSError as error:
        die(f"cannot reveal the secrets of {host}: {error}", status=FAILED)
    finally:
        remove(fresh)
    return load(into, host)


def clear(source: Source, host: str, name: str) -> bytes:
    """A secret as the target gets it: one last newline of a value does not count."""
    data = source.reveal(host, name)
    if "/" in name:
        return data
    value = data.removesuffix(b"\n")
    require_text(f"{host}/{name}", value)
    return value


def require_text(name: str, value: bytes) -> None:
    if value.decode(errors="ignore").encode() != value:
        die(f"{name}: a value must be UTF-8 text")


def load(into: Path, host: str) -> Revealed:
    """Read back what `reveal` left in INTO. Raises Failure when there is nothing."""
    if not into.is_dir():
        die(f"the secrets of {host} are not revealed", hint=f"./inv reveal-secrets --host {host}")
    top = into / "files"
    files = sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
    values = {path.name: path.read_bytes().decode() for path in sorted(into.glob("values/*"))}
    return Revealed(files, values)


def ensure_throwaway(home: Path, root: Path, host: str, make: Callable[[Path], None]) -> Keyring:
    """Return the keyring HOME of throw-away secrets, which are made in ROOT when HOST has none.

    MAKE is called with an empty directory in memory and writes into it, in clear, what ROOT/<host>
    is to hold: files at their paths on the target, values as NAME. What an interrupted call left
    behind does not count. Raises Failure.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    keyring = Keyring(home)
    recipients = root / "recipients"
    if not recipients.exists():
        files.replace(recipients, keyring.generate(f"throw-away secrets of {host}") + "\n")
    if not (root / host).exists():
        encrypt_tree(keyring, root, host, make)
    return keyring


def encrypt_tree(keyring: Keyring, root: Path, host: str, make: Callable[[Path], None]) -> None:
    recipients = read_recipients(root / "recipients")
    fresh = root / f".{host}.new"
    remove(fresh)
    fresh.mkdir()
    with scratch.directory() as clear_text:
        make(clear_text)
        for path in walk(clear_text):
            name = path.relative_to(clear_text).as_posix()
            target = fresh / f"{name}.gpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            label = f"{host}/{name}"
            target.write_bytes(keyring.encrypt(path.read_bytes(), str(target), recipients, label))
    fresh.rename(root / host)
