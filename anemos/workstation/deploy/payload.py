"""The payload: a tar with everything that is particular to one deployment of one host.

    manifest.json     {"deployment", "host", "keep": [kept disks], "finish": see host.toml,
                      "files": {path: SHA-256}, "agreed": see consent.py}
    host/IMGBUILD     and, where the host has them, pacman.conf, repositories, keys/...
    files/PATH        the host's input files, templates rendered
    secrets/PATH      revealed files, mode 0600

The same inputs and the same deployment id give the same bytes.
"""

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from anemos import files
from anemos.log import die
from anemos.system import definition, fstab, layout, template, tree
from anemos.system.imgbuild import Imgbuild

BOOTSTRAP = ("pacman.conf", "repositories", "keys")  # what a bootstrap takes beside the IMGBUILD

AUTHORIZED = "root/.ssh/authorized_keys"


@dataclass(frozen=True)
class Member:
    path: str
    data: bytes  # of a symbolic link: its target
    mode: int
    link: bool = False


def write(
    out: Path,
    spec: Imgbuild,
    deployment: str,
    values: Mapping[str, str],
    secrets: Path,
    finish: str = "reboot",
    agreed: Mapping[str, Any] | None = None,
) -> None:
    """Write the payload to OUT, mode 0600. SECRETS: the tree of revealed files.

    Raises Failure for input files that cannot be used and templates that name unknown values.
    """
    try:
        members = list(collect(spec, values, secrets))
        for volume in layout.volumes(spec.layout, "luks"):
            if not (volume.key in spec.server_secrets or (secrets / volume.key).is_file()):
                die(f"layout: luks {volume.name!r}: no secret {volume.key}")
    except OSError as error:
        die(f"{error.filename}: {error.strerror}")
    manifest = {
        "deployment": deployment,
        "host": spec.directory.name,
        "keep": [asdict(each) for each in spec.keep],
        "finish": finish,
        "agreed": agreed or {},
        "files": {member.path: sha256(member.data).hexdigest() for member in members},
    }
    for member in members:
        if member.path == f"files/{fstab.FILE}":
            text = member.data.decode(errors="replace")
            fstab.check(spec.directory / member.path, text, spec.mount_points())
    head = Member("manifest.json", json.dumps(manifest, indent=1).encode(), 0o600)
    kind = tarfile.GNU_FORMAT
    with files.private(out) as file, tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for member in [head, *members]:
            add(archive, member)


def collect(spec: Imgbuild, values: Mapping[str, str], secrets: Path) -> Iterator[Member]:
    yield Member("host/IMGBUILD", spec.file.read_bytes(), 0o644)
    for name in BOOTSTRAP:
        top = spec.directory / name
        found = sorted(top.iterdir()) if top.is_dir() else [top] if top.exists() else []
        for each in found:
            inside = each.relative_to(spec.directory)
            yield Member(f"host/{inside}", each.read_bytes(), 0o644)
    files = spec.directory / "files"
    if files.is_dir():
        yield from (input_member(path, file, values) for path, file in tree.inputs(files))
    for path, file in tree.inputs(secrets):
        yield Member(f"secrets/{path}", file.read_bytes(), 0o600)


def input_member(path: str, file: Path, values: Mapping[str, str]) -> Member:
    if file.is_symlink():
        return Member(f"files/{path}", os.fsencode(file.readlink()), 0o777, link=True)
    mode = stat.S_IMODE(file.stat().st_mode)
    if path.endswith(template.SUFFIX):
        text = definition.rendered(file, values)
        mode = template.mode(file.read_text(), mode)
        return Member(f"files/{path.removesuffix(template.SUFFIX)}", text.encode(), mode)
    return Member(f"files/{path}", file.read_bytes(), mode)


def authorized(file: Path) -> list[bytes]:
    """What the payload FILE has for root's authorized_keys: of input files, then of secrets."""
    with tarfile.open(file) as archive:
        names = [f"{top}/{AUTHORIZED}" for top in ("files", "secrets")]
        found = [each for each in archive if each.name in names and each.isreg()]
        return [stream.read() for stream in map(archive.extractfile, found) if stream]


def add(archive: tarfile.TarFile, member: Member) -> None:
    info = tarfile.TarInfo(member.path)
    info.mode = member.mode
    if member.link:
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(member.data)
        archive.addfile(info)
    else:
        info.size = len(member.data)
        archive.addfile(info, io.BytesIO(member.data))
