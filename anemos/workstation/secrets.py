"""Secrets: GPG-encrypted in a tree that mirrors the target, in clear only in memory.

ROOT/recipients             who can decrypt and who may sign: full fingerprints of GPG keys
ROOT/<host>/<path>.gpg      a file secret, which is put at /<path> on the target
ROOT/<host>/<NAME>.gpg      directly in the host's directory: a value for templates, called NAME
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import NoReturn

from anemos.log import FAILED, die
from anemos.workstation.gpg import Keyring
from anemos.workstation.places import SHARED_MEMORY


@dataclass(frozen=True)
class Listing:
    """The ciphertexts of a host. A file's name is its path on the target, without leading slash."""

    files: dict[str, Path]
    values: dict[str, Path]


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
        die(f"{path} is missing", hint="the full fingerprints of who can decrypt, one a line")
    found = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n"), start=1):
        fingerprint = "".join(line.partition("#")[0].split()).upper()
        if re.fullmatch(r"[0-9A-F]{40}", fingerprint):
            found.append(fingerprint)
        elif fingerprint:
            die(f"{path}:{number}: not a full fingerprint, 40 hex digits", hint="gpg --list-keys")
    return found or die(f"{path} lists nobody")


def names(root: Path, host: str) -> Listing:
    """List the secrets of HOST; a host without a directory in ROOT has none.

    Raises Failure for symbolic links and anything else that is not the name of a secret.
    """
    listing = Listing({}, {})
    for path in walk(root / host):
        name = name_of(path, root / host)
        (listing.files if "/" in name else listing.values)[name] = path
    return listing


def name_of(path: Path, top: Path) -> str:
    """The name of the secret PATH in the directory TOP of its host; only a file's has a slash."""
    target = path.relative_to(top)
    name = target.name.removesuffix(".gpg")
    if name == target.name:
        die(f"{path} does not end in .gpg", hint="only encrypted files belong there")
    if name in ("", ".", ".."):
        die(f"{path} stands for no file: its name without .gpg is {name!r}")
    if len(target.parts) == 1 and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        die(f"{path}: {name!r} is no name for a value", hint="[A-Za-z_][A-Za-z0-9_]*")
    return target.with_name(name).as_posix()


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


def reveal(keyring: Keyring, root: Path, host: str, into: Path) -> Revealed:
    """Decrypt the secrets of HOST to INTO/files/<path> and INTO/values/<NAME>, for `load`.

    Files get mode 0600, directories 0700. INTO must lie in memory; what was revealed there before
    is gone, whatever happens. Raises Failure for what `names` and Keyring.decrypt refuse and for a
    value that is not UTF-8; then nothing stays revealed.
    """
    require_memory(into.parent)
    fresh = into.with_name(f".{into.name}.new")
    try:
        remove(into)
        remove(fresh)
        fresh.mkdir(mode=0o700, parents=True)
        for name, data in decrypt_all(keyring, root, host):
            write_private(fresh, name, data)
        fresh.rename(into)
    except OSError as error:
        die(f"cannot reveal the secrets of {host}: {error}", status=FAILED)
    finally:
        remove(fresh)
    return load(into, host)


def decrypt_all(keyring: Keyring, root: Path, host: str) -> Iterator[tuple[str, bytes]]:
    """Yield files/<path> and values/<NAME> with their plaintext."""
    listing = names(root, host)
    signers = read_recipients(root / "recipients") if listing.files or listing.values else []
    for name, path in listing.files.items():
        yield f"files/{name}", keyring.decrypt(path.read_bytes(), str(path), signers)
    for name, path in listing.values.items():
        value = keyring.decrypt(path.read_bytes(), str(path), signers).removesuffix(b"\n")
        require_text(path, value)
        yield f"values/{name}", value


def require_text(path: Path, value: bytes) -> None:
    if value.decode(errors="ignore").encode() != value:
        die(f"{path}: a value must be UTF-8 text")


def load(into: Path, host: str) -> Revealed:
    """Read back what `reveal` left in INTO. Raises Failure when there is nothing."""
    if not into.is_dir():
        die(f"the secrets of {host} are not revealed", hint=f"./inv reveal-secrets --host {host}")
    top = into / "files"
    files = sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
    values = {path.name: path.read_bytes().decode() for path in sorted(into.glob("values/*"))}
    return Revealed(files, values)


def write_private(top: Path, name: str, data: bytes) -> None:
    """Write DATA to the new file TOP/NAME, without a moment in which others can read it."""
    for parent in reversed(PurePath(name).parents):
        (top / parent).mkdir(mode=0o700, exist_ok=True)
    (top / name).touch(mode=0o600, exist_ok=False)
    (top / name).write_bytes(data)


def remove(directory: Path) -> None:
    if os.path.lexists(directory):
        shutil.rmtree(directory)


def require_memory(path: Path) -> None:
    """Die unless PATH, which need not exist, lies on a file system that lives in memory."""
    mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    kind = filesystem_type(path.resolve(), mountinfo)
    if kind not in ("tmpfs", "ramfs"):
        die(f"{path} lies on {kind}, not in memory: no place for secrets in clear")


def filesystem_type(path: Path, mountinfo: str) -> str:
    """The type of the file system that the absolute PATH lies on, by proc_pid_mountinfo(5).

    The longest mount point above PATH counts; of several mounts on it, the last.
    """
    longest, kind = 0, "an unknown file system"
    for line in mountinfo.rstrip("\n").split("\n"):
        mount, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4])
        if path.is_relative_to(point) and len(point) >= longest:
            longest, kind = len(point), source.split(" ")[0]
    return kind


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
        fresh = root / ".recipients.new"
        fresh.write_text(keyring.generate(f"throw-away secrets of {host}") + "\n")
        fresh.rename(recipients)
    if not (root / host).exists():
        encrypt_tree(keyring, root, host, make)
    return keyring


def encrypt_tree(keyring: Keyring, root: Path, host: str, make: Callable[[Path], None]) -> None:
    recipients = read_recipients(root / "recipients")
    fresh = root / f".{host}.new"
    remove(fresh)
    fresh.mkdir()
    require_memory(SHARED_MEMORY)
    with TemporaryDirectory(prefix="anemos-", dir=SHARED_MEMORY) as clear:
        make(Path(clear))
        for path in walk(Path(clear)):
            target = fresh / f"{path.relative_to(clear)}.gpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(keyring.encrypt(path.read_bytes(), str(target), recipients))
    fresh.rename(root / host)
