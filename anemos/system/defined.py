"""The definition of a deployed system, as /var/lib/anemos/definition.json of that system says it.

Root alone may read it. Of secrets it has the names, and so of input files that not everybody may
read on the new system. By it `diff` and `plan` tell what a next deployment would change.
"""

import json
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from anemos.log import FAILED, Failure, die
from anemos.system import manifest, tree
from anemos.system.definition import PATCH
from anemos.system.manifest import Entry, Manifest, Table

FILE = "var/lib/anemos/definition.json"
ROOM = 2**20  # bytes of all texts: of what is beyond, there is the digest alone
Public = Callable[[str], bool]


@dataclass(frozen=True)
class Defined:
    files: Manifest  # of input files, templates rendered; its packages are those of the system
    beside: Table  # digests of IMGBUILD, pacman.conf and the like
    texts: Table  # of both, by path in the payload


def take(payload: Path, secrets: Iterable[str], public: Public, packages: Table) -> Defined:
    """What the unpacked PAYLOAD has. SECRETS: their paths. PUBLIC: tells whether everybody may read
    a path in the new system. Raises OSError."""
    inputs, beside = list(tree.inputs(payload / "files")), list(tree.inputs(payload / "host"))
    found = {path: entry(payload / "files", path, not public(path)) for path, _ in inputs}
    found |= {path: Entry(path, "file", 0o600, 0, 0, "", True, 0, "") for path in secrets}
    files = replace(manifest.of(payload / "files", [], [*found.values()]), packages=packages)
    shown = [(f"host/{path}", file) for path, file in beside]
    shown += [(f"files/{path}", file) for path, file in inputs if not found[path].secret]
    digests = {path: manifest.digest(f"{file}") for path, file in beside}
    return Defined(files, digests, texts(shown))


def entry(top: Path, path: str, hidden: bool) -> Entry:
    status = (top / path).lstat()
    secret = stat.S_ISREG(status.st_mode) and (hidden or not status.st_mode & stat.S_IROTH)
    return manifest.entry(top, path, status, secret, {})._replace(uid=0, gid=0, time=0)


def texts(files: Iterable[tuple[str, Path]]) -> Table:
    found, room = {}, ROOM
    for path, file in files:
        size = file.lstat().st_size
        if not file.is_symlink() and size <= room:
            with suppress(UnicodeDecodeError):
                found[path] = file.read_bytes().decode()
                room -= size
    return found


def readable(root: Path, path: str) -> bool:
    """Whether everybody may read PATH in the system ROOT; what is not there, nobody may. Of a
    patch: what it was for."""
    with suppress(OSError, Failure):
        place = tree.inside(root, path.removesuffix(PATCH))
        above = place.relative_to(root).parents
        ways = all((root / each).stat().st_mode & stat.S_IXOTH for each in above)
        return ways and bool(place.lstat().st_mode & stat.S_IROTH)
    return False


def write(defined: Defined, root: Path) -> None:
    tree.write(root, FILE, json.dumps(asdict(defined)), 0o600)


def read(text: str) -> Defined:
    """What `write` has left. Raises Failure."""
    try:
        given = json.loads(text)
        return Defined(manifest.made(given["files"]), given["beside"], given["texts"])
    except (LookupError, TypeError, ValueError) as error:
        die(f"/{FILE}: cannot be read: {error}", status=FAILED)
