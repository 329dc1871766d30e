"""What a deployment has made, as /var/lib/anemos/manifest.json.gz of the new system says it.

Root alone may read it. Of what is or may be secret it has neither digest nor size: of secrets,
of templates that are not for everybody, of all that not everybody may read. It has the time of the
last write to such a file instead. Volatile places are left out (volatile.py).
"""

import gzip
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from anemos.log import FAILED, die
from anemos.system import packages, tree, volatile

FILE = "var/lib/anemos/manifest.json.gz"
TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW  # a fifo or a link may have come in between
CHUNK = 2**20
Volatile = Callable[[str], bool]
Table = dict[str, str]


class Entry(NamedTuple):
    path: str  # below the root, "." for itself; no UTF-8 in it stands there as \\xff
    type: str  # one of TYPES
    mode: int
    uid: int
    gid: int
    content: str  # SHA-256 of a file, target of a link, number of a device; "" of a secret
    secret: bool
    time: int  # ns: of the last write to a secret; of the last change of any kind to another file
    package: str  # that it belongs to, or ""


@dataclass(frozen=True)
class Manifest:
    filesystems: list[str]  # where some are mounted that are a part of it: "var"
    packages: Table  # versions by name
    users: Table
    groups: Table
    entries: list[Entry]


def take(root: Path, filesystems: Sequence[str], secrets: Set[str]) -> Manifest:
    """The manifest of the new system ROOT. FILESYSTEMS: mounted in it; SECRETS: paths of some."""
    closed: set[str] = set()  # directories that not everybody may enter
    owners, found = packages.owners(root), []
    for path, status in walk(root, filesystems, volatile.matcher(), []):
        shut = parent(path) in closed
        directory, file = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
        if directory and (shut or not status.st_mode & stat.S_IXOTH):
            closed.add(path)
        secret = shut or path in secrets or not status.st_mode & stat.S_IROTH
        found.append(entry(root, path, status, file and secret, owners))
    return of(root, filesystems, found)


def of(root: Path, filesystems: Sequence[str], entries: list[Entry]) -> Manifest:
    versions: Table = {}
    for name, version, _ in packages.installed(root):  # one of each architecture
        versions[name] = f"{versions[name]}, {version}" if name in versions else version
    tables = (versions, accounts(root, "etc/passwd"), accounts(root, "etc/group"))
    return Manifest([*filesystems], *tables, entries)


def accounts(root: Path, path: str) -> Table:
    """All but the password of each line (passwd(5), group(5)), by the first field."""
    lines = [line.split(":") for line in packages.read(root, path).splitlines() if ":" in line]
    return {text(name): text(":".join(rest)) for name, _, *rest in lines}


def walk(
    root: Path, filesystems: Sequence[str], skip: Volatile, apart: list[str]
) -> Iterator[tree.Entry]:
    """All below ROOT that is not to be SKIPped, directories before what is in them. What vanishes
    meanwhile was not there. Other file systems than FILESYSTEMS, and those of them that are not
    mounted, go to APART."""
    top = root.lstat()
    yield ".", top
    todo = [("", top.st_dev)]
    while todo:
        prefix, device = todo.pop()
        for path, status in sorted(below(root, prefix)):
            if skip(path):
                continue
            directory = stat.S_ISDIR(status.st_mode)
            if directory and (status.st_dev != device) != (path in filesystems):
                apart.append(path)
                continue
            yield path, status
            if directory:
                todo.append((f"{path}/", status.st_dev))


def below(root: Path, prefix: str) -> Iterator[tree.Entry]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{root}/{prefix}") as found:
        for each in found:
            with suppress(FileNotFoundError, PermissionError):  # the latter: a user's FUSE
                yield prefix + each.name, each.stat(follow_symlinks=False)


def entry(
    root: Path,
    path: str,
    status: os.stat_result,
    secret: bool,
    owners: Mapping[str, str],
    known: Entry | None = None,
) -> Entry:
    """KNOWN: what it was. Only what has changed since is read."""
    kind, place = stat.S_IFMT(status.st_mode), f"{root}/{path}"
    content, time = "", 0
    if kind == stat.S_IFLNK:
        content = text(f"{Path(place).readlink()}")
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        content = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    elif kind == stat.S_IFREG:
        time = status.st_mtime_ns if secret else status.st_ctime_ns
        if not secret:
            content = known.content if known and known.time == time else digest(place)
    mode = stat.S_IMODE(status.st_mode)
    where, owner = (status.st_uid, status.st_gid), owners.get(path, "")
    return Entry(text(path), TYPES[kind], mode, *where, content, secret, time, owner)


def digest(file: str) -> str:
    """SHA-256. (hashlib's file_digest() fills a large buffer for a small file.) Raises OSError."""
    found = sha256()
    fd = os.open(file, READ)
    try:
        while data := os.read(fd, CHUNK):
            found.update(data)
    finally:
        os.close(fd)
    return found.hexdigest()


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def text(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


def read(root: Path) -> Manifest:
    """What `write` has left. Raises Failure."""
    try:
        return made(json.loads(gzip.decompress((root / FILE).read_bytes())))
    except (OSError, EOFError, LookupError, TypeError, ValueError) as error:
        die(f"/{FILE}: cannot be read: {error}", status=FAILED)


def made(given: Mapping[str, Any]) -> Manifest:
    """Raises LookupError, TypeError, ValueError. (By records.py it would take seconds.)"""
    return Manifest(**{**given, "entries": [Entry(*each) for each in given["entries"]]})


def write(manifest: Manifest, root: Path) -> None:
    # vars(): asdict() would copy each field of each entry.
    data = json.dumps(vars(manifest)).encode()
    tree.write(root, FILE, gzip.compress(data, 6, mtime=0), 0o600)
