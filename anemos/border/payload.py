"""The payload: a tar with everything that is particular to one deployment of one host.

    manifest.json     see Manifest
    host/IMGBUILD     and, where the host has them, pacman.conf, repositories, keys/...
    files/PATH        the host's input files, templates rendered
    secrets/PATH      revealed files, mode 0600

The same inputs and the same deployment id give the same bytes.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from anemos import files
from anemos.border import records
from anemos.border.deployment import Deployment
from anemos.log import FAILED, die

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest(Deployment):
    finish: str  # see host.toml
    files: dict[str, str]  # path -> SHA-256


@dataclass(frozen=True)
class Member:
    path: str
    data: bytes  # of a symbolic link: its target
    mode: int
    link: bool = False


def write(out: Path, of: Deployment, finish: str, members: Sequence[Member]) -> None:
    """Write the payload to OUT, mode 0600."""
    digests = {each.path: sha256(each.data).hexdigest() for each in members}
    words = (of.deployment, of.host, of.keep, of.agreed, finish, digests)
    manifest = Manifest(*words, commit=of.commit)
    head = Member(MANIFEST, records.text(manifest).encode(), 0o600)
    kind = tarfile.GNU_FORMAT
    with files.private(out) as file, tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for member in [head, *members]:
            add(archive, member)


def add(archive: tarfile.TarFile, member: Member) -> None:
    info = tarfile.TarInfo(member.path)
    info.mode = member.mode
    if member.link:
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(member.data)
        archive.addfile(info)
    else:
        info.size = len(member.data)
        archive.addfile(info, io.BytesIO(member.data))


@contextmanager
def opened(payload: Path) -> Iterator[tarfile.TarFile]:
    """Raises Failure for what is no payload."""
    try:
        with tarfile.open(payload, "r:") as members:
            yield members
    except (tarfile.TarError, EOFError, LookupError) as error:
        die(f"{payload}: no payload: {error}", status=FAILED)


def manifest(payload: Path) -> Manifest:
    """Raises Failure."""
    with opened(payload) as members:
        member = members.extractfile(MANIFEST)
        text = member.read() if member else b""
    return records.load(Manifest, text, f"{payload}: {MANIFEST}")


def unpack(payload: Path, directory: Path) -> None:
    """Put all of PAYLOAD into DIRECTORY, in the place of what is there. Raises Failure."""
    shutil.rmtree(directory, ignore_errors=True)
    with opened(payload) as archive:
        archive.extractall(directory)


def check(directory: Path) -> None:
    """Every file that the manifest names, secrets too, is in DIRECTORY as it was packed."""
    for path, digest in unpacked(directory).files.items():
        file = directory / path
        if not file.is_symlink() and not (file.is_file() and files.sha256(file) == digest):
            die(f"payload: {path} is not what was packed", status=FAILED)


def unpacked(directory: Path) -> Manifest:
    """The manifest of the payload that was unpacked to DIRECTORY. Raises Failure."""
    file = directory / MANIFEST
    return records.load(Manifest, file.read_bytes(), f"{file}")
