"""Writing into a root file system from outside without leaving it."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from anemos.files import crc32, encoded
from anemos.log import die

MAX_LINKS = 40  # path_resolution(7)
Entry = tuple[str, os.stat_result]  # path below a root, lstat(2)


def inside(root: Path, path: str | os.PathLike[str]) -> Path:
    """Where PATH, seen by a process with root ROOT, lies outside; its last component not followed.

    Symbolic links on the way are followed within ROOT: /var/run -> /run stays there.
    """
    done, todo, links = root, [*Path(path).parts], 0
    while todo:
        part = todo.pop(0)
        if part.startswith(os.sep):  # "//" is a root of its own to pathlib
            done = root
        elif part == "..":
            done = done.parent if done != root else root
        elif todo and (done / part).is_symlink():
            links += 1
            if links > MAX_LINKS:
                die(f"{path}: too many symbolic links in the image")
            todo = [*(done / part).readlink().parts, *todo]
        else:
            done = done / part
    return done


def resolved(root: Path, path: str | os.PathLike[str]) -> Path:
    """The same, its last component followed, too."""
    return inside(root, Path(path, "_")).parent


def write(root: Path, path: str, data: str | bytes, mode: int = 0o644) -> Path:
    """Replace PATH below ROOT by a file with DATA, created with MODE, owned by root."""
    target = place(root, path)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(encoded(data))
    return target


def copy(source: Path, root: Path, path: str, mode: int | None = None) -> Path:
    """Copy SOURCE (regular file or symbolic link) to PATH below ROOT; MODE: the source's."""
    target = place(root, path)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with source.open("rb") as reader, os.fdopen(fd, "wb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            os.fchmod(fd, stat.S_IMODE(source.stat().st_mode) if mode is None else mode)
    return target


def place(root: Path, path: str) -> Path:
    """PATH below ROOT, its parents made, a file that was there removed."""
    target = inside(root, path)
    directories(root, target.parent)
    if target.is_dir() and not target.is_symlink():
        die(f"/{path}: is a directory in the image, a file among the inputs")
    target.unlink(missing_ok=True)
    return target


def directories(root: Path, directory: Path) -> None:
    """Make DIRECTORY and its parents below ROOT, mode 0755 under any umask."""
    for parent in [*reversed(directory.parents), directory]:
        if parent.is_relative_to(root) and not parent.is_dir():
            try:
                parent.mkdir()
            except FileExistsError:
                where = parent.relative_to(root)
                die(f"/{where}: is a file in the image, a directory among the inputs")
            parent.chmod(0o755)


def walk(root: Path) -> Iterator[Entry]:
    """Everything below ROOT, "." first, directory by directory, in the order of names."""
    yield ".", root.lstat()
    todo = [""]
    while todo:
        prefix = todo.pop()
        with os.scandir(root / prefix) as entries:
            below = sorted(entries, key=lambda entry: entry.name)
        for entry in below:
            yield prefix + entry.name, entry.stat(follow_symlinks=False)
        todo += [f"{prefix}{e.name}/" for e in reversed(below) if e.is_dir(follow_symlinks=False)]


def checksums(root: Path) -> dict[str, int | str]:
    """CRC-32 of all regular files below ROOT, targets of all symbolic links, by path. It finds what
    a disk damages, and slow processors are quick at it."""
    found: dict[str, int | str] = {}
    for path, status in walk(root):
        if stat.S_ISREG(status.st_mode):
            found[path] = crc32(root / path)
        elif stat.S_ISLNK(status.st_mode):
            found[path] = os.fspath((root / path).readlink())
    return found


def inputs(*directories: Path) -> Iterator[tuple[str, Path]]:
    """The input files below each of DIRECTORIES, sorted: (path in the image, file).

    Regular files and symbolic links count, directories are implied. Raises Failure for the rest.
    """
    for directory in directories:
        for parent, below, files in os.walk(directory, onerror=unreadable):
            below.sort()
            links = [name for name in below if (Path(parent) / name).is_symlink()]
            for file in (Path(parent) / name for name in sorted(files + links)):
                check_input(file)
                yield os.fspath(file.relative_to(directory)), file


def check_input(file: Path) -> None:
    if not file.is_symlink() and not file.is_file():
        die(f"{file}: neither a regular file nor a symbolic link")
    if not file.is_symlink() and not os.access(file, os.R_OK, effective_ids=True):
        die(f"{file}: cannot be read")


def unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no input directory: no inputs
        die(f"{error.filename}: {error.strerror}")
