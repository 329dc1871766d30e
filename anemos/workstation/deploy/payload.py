"""What goes into the payload of a host: its definition, rendered, and its secrets."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from anemos.border import payload
from anemos.border.deployment import Agreed, Deployment, Revision
from anemos.border.payload import Member, opened
from anemos.log import die
from anemos.system import definition, fstab, layout, template, tree
from anemos.system.imgbuild import Imgbuild

BOOTSTRAP = ("pacman.conf", "repositories", "keys")  # what a bootstrap takes beside the IMGBUILD

AUTHORIZED = "root/.ssh/authorized_keys"
NOTHING, UNKNOWN = Agreed(), Revision()


def write(
    out: Path,
    spec: Imgbuild,
    deployment: str,
    values: Mapping[str, str],
    secrets: Path,
    finish: str = "reboot",
    agreed: Agreed = NOTHING,
    commit: Revision = UNKNOWN,
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
    for member in members:
        if member.path == f"files/{fstab.FILE}":
            text = member.data.decode(errors="replace")
            fstab.check(spec.directory / member.path, text, spec.mount_points())
    given = Deployment(deployment, spec.directory.name, spec.wanted, agreed, commit=commit)
    payload.write(out, given, finish, members)


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
    with opened(file) as archive:
        names = [f"{top}/{AUTHORIZED}" for top in ("files", "secrets")]
        found = [each for each in archive if each.name in names and each.isreg()]
        return [stream.read() for stream in map(archive.extractfile, found) if stream]
