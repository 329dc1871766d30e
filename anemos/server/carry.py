"""Copies what `carry` names from the running system into a slot.

The running system is seen through a mount of / alone. So no other file system is in reach, kept or
not. Who may write to what is carried may also put symbolic links there meanwhile. None is followed:
neither on the way to it, nor by tar(1), which opens each name below the directory that it reads.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anemos import log, mounts
from anemos.log import FAILED, die
from anemos.run import run
from anemos.server import staging
from anemos.system import carry, tree

VIEW = Path("/tmp/running")  # noqa: S108 (on the tmpfs of enter.sh)
# $1: a name; $2, $3: the directories that have it. The first tar's status is 1 when a file has
# changed, or is gone, while it was read. It tells which.
COPY = """
set -ef
kept='--xattrs --xattrs-include=* --acls'
status=$({
    { tar --create $kept --sparse --directory="$2" -- "./$1" && echo 0 >&3 || echo $? >&3; } |
        tar --extract $kept --numeric-owner --preserve-permissions --directory="$3" >&2
} 3>&1)
[ "$status" = 0 ] || [ "$status" = 1 ]
"""


def check(paths: Iterable[str]) -> None:
    """Die, before anything is changed, for what is not on the running system's own /."""
    root = staging.HOST
    points = [each.point for each in mounts.listed() if each.point.is_relative_to(root)]
    inside = [f"/{each.relative_to(root)}" for each in points if each != root]
    for path in paths:
        if tree.inside(root, path) != root / path:
            die(f"carry: /{path} is behind a symbolic link", status=FAILED)
        for point in carry.overlapping(f"/{path}", inside):
            die(f"carry: /{path}: {point} is another file system", status=FAILED)


def copy(paths: Iterable[str], root: Path) -> None:
    """PATHS take the place of what ROOT has there. What does not exist is told."""
    VIEW.mkdir(exist_ok=True)
    with mounts.mounted("-o", "bind,ro", staging.HOST, at=VIEW):
        for path in paths:
            try:
                copy_one(path, root)
            except FileNotFoundError:
                log.info(f"/{path}: not carried, the running system has none")


def copy_one(path: str, root: Path) -> None:
    """Raises FileNotFoundError, before anything is changed."""
    with directory(Path(path).parent) as source:
        os.stat(Path(path).name, dir_fd=source, follow_symlinks=False)
        place = cleared(root, path)
        words = (place.name, f"/proc/{os.getpid()}/fd/{source}", place.parent)
        run(["sh", "-c", COPY, "sh", *words], log=log.info)
        log.info(f"/{path}: carried")


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """A file descriptor of the directory PATH of the running system."""
    fd = os.open(VIEW, os.O_PATH)
    try:
        for part in path.parts:
            above = fd
            fd = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            os.close(above)
        yield fd
    finally:
        os.close(fd)


def cleared(root: Path, path: str) -> Path:
    """Where PATH of ROOT is, with nothing there."""
    place = tree.inside(root, path)
    tree.directories(root, place.parent)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    return place
