"""What is in an image, and what it was made of: IMGNAME.manifest.json beside it.

    {"image": name, "format": "disk", "target": "debian", "source_date_epoch": seconds,
     "inputs": {path: SHA-256, ...},  the IMGBUILD, every input file, the package layer
     "tools": {program: version},     what wrote the image
     "packages": [[name, version, architecture], ...],
     "files": [{"path", "type", "mode", "uid", "gid", "mtime", ...}, ...]}

A file has "size" and "sha256", a link "target", a device "device". Only name, mode, owner and time
of what is or may be secret: secrets, templates that are filled in, all that not everybody may read.
Bytes of names that are no UTF-8 are written as Python's surrogateescape does.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, MutableMapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from anemos.files import sha256
from anemos.run import CommandFailed, run
from anemos.system import packages, tree
from anemos.system.imgbuild import Imgbuild
from anemos.system.manifest import TYPES

# SHA-256 by inode, size and time of the last change of anything about it: as git's index has it.
Digests = MutableMapping[str, str]


@dataclass(frozen=True)
class Sources:
    """What an image is made of. SECRET: paths in it whose content must not be told."""

    layer: str
    layer_sha256: str
    inputs: Sequence[Path] = ()
    secret: Set[str] = frozenset()
    known: Digests = field(default_factory=dict)


def name(imgbuild: Imgbuild) -> str:
    return f"{imgbuild.name}.manifest.json"


def text(
    imgbuild: Imgbuild,
    root: Path,
    sources: Sources,
    tools: Iterable[str],
    epoch: int,
) -> str:
    """The manifest of the tree ROOT. EPOCH: the newest time in it."""
    head = {
        "image": imgbuild.name,
        "format": " ".join([imgbuild.format, *imgbuild.format_options]),
        "target": imgbuild.target,
        "source_date_epoch": epoch,
        "inputs": digests(imgbuild, sources),
        "tools": {tool: version(tool) for tool in sorted(set(tools))},
    }
    parts = [json.dumps(head, indent=1)[:-2]]  # without its closing brace
    for part, rows in (("packages", packages.installed(root)), ("files", files(root, sources))):
        parts.append(f'"{part}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
    return ",\n".join(parts) + "\n}\n"


def digests(imgbuild: Imgbuild, sources: Sources) -> dict[str, str]:
    """Digests of all inputs but secrets, whose digests may tell what they are."""
    found = {"IMGBUILD": sha256(imgbuild.file), sources.layer: sources.layer_sha256}
    for directory in sources.inputs:
        for path, file in tree.inputs(directory):
            if not file.is_symlink():
                found[f"{directory.name}/{path}"] = sha256(file)
    return found


def version(tool: str) -> str:
    """The first line of what TOOL says about its version, "" if it does not."""
    option = "-V" if tool.startswith("mkfs.") else "--version"
    lines: list[str] = []
    with suppress(CommandFailed):  # mkfs.vfat has no such option, and tells it all the same
        run([tool, option], log=lines.append)
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "")


def files(root: Path, sources: Sources) -> Iterator[dict[str, object]]:
    for path, status in tree.walk(root):
        yield {
            "path": path,
            "type": TYPES[stat.S_IFMT(status.st_mode)],
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": int(status.st_mtime),
            **content(root, path, status, sources),
        }


def content(root: Path, path: str, status: os.stat_result, sources: Sources) -> dict[str, object]:
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFLNK:
            return {"target": os.fspath((root / path).readlink())}
        case stat.S_IFCHR | stat.S_IFBLK:
            return {"device": f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"}
        case stat.S_IFREG if path not in sources.secret and status.st_mode & stat.S_IROTH:
            key = f"{status.st_ino} {status.st_size} {status.st_ctime_ns}"
            if key not in sources.known:
                sources.known[key] = sha256(root / path)
            return {"size": status.st_size, "sha256": sources.known[key]}
    return {}
