"""What makes two builds of the same inputs equal: one time for all, no traces of one build.

SOURCE_DATE_EPOCH (reproducible-builds.org) is the newest time that an image has in it, in seconds
since 1970. Where the environment does not say it, it is the newest time in the package layer.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from anemos.log import die
from anemos.system import template, tree
from anemos.system.definition import Definition

VARIABLE = "SOURCE_DATE_EPOCH"
# Traces, as globs below the root. What the definition brings itself is none.
REMOVED = (
    "etc/ssh/ssh_host_*_key",  # every machine would have them
    "etc/ssh/ssh_host_*_key.pub",
    "run/*",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/cache/pacman/pkg/*",
    "var/lib/apt/lists/*_*",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
)
# Emptied. An empty machine-id is made new at the first boot (machine-id(5)).
EMPTIED = ("etc/machine-id", "var/lib/dbus/machine-id", "var/log/**/*")


def given(otherwise: int) -> int:
    """The environment's SOURCE_DATE_EPOCH, or OTHERWISE. Raises Failure if that is no number."""
    text = os.environ.get(VARIABLE, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 12):
        die(f"{VARIABLE} is {text!r}, no number of seconds")
    return int(text) if text else otherwise


@contextmanager
def environment(epoch: int) -> Iterator[None]:
    """All that is run meanwhile has EPOCH as its SOURCE_DATE_EPOCH."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(epoch)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def brought_in(root: Path, given: Definition) -> tuple[frozenset[str], frozenset[str]]:
    """Where below ROOT the definition's own files are; those of them that hold secret values."""
    files = [path for path, _ in tree.inputs(*given.inputs)]
    secret = [path for path, _ in tree.inputs(given.secrets)] if given.secrets else []
    secret += [p.removesuffix(template.SUFFIX) for p in files if p.endswith(template.SUFFIX)]

    def places(paths: Iterable[str]) -> frozenset[str]:
        return frozenset(os.fspath(tree.inside(root, path).relative_to(root)) for path in paths)

    return places([*files, *secret]), places(secret)


def newest(root: Path) -> int:
    """The newest time of change of anything below ROOT, a whole second that it does not exceed."""
    return max(ceil(status.st_mtime) for _, status in tree.walk(root))


def forget(root: Path, kept: Set[str]) -> None:
    """Remove what one build or one machine left below ROOT; KEPT: paths that stay as they are."""
    for pattern in REMOVED:
        for file in traces(root, pattern, kept):
            # The public half of a key that stays, stays.
            if file.suffix != ".pub" or os.fspath(file.relative_to(root))[:-4] not in kept:
                file.unlink()
    for pattern in EMPTIED:
        for file in traces(root, pattern, kept):
            if file.stat().st_size:
                os.truncate(file, 0)


def traces(root: Path, pattern: str, kept: Set[str]) -> list[Path]:
    # No link on the way leads out of the tree.
    fixed = pattern.partition("*")[0].rpartition("/")[0]
    if tree.inside(root, f"{fixed}/x").parent != root / fixed:
        return []
    found = [file for file in root.glob(pattern) if file.is_file() and not file.is_symlink()]
    return [file for file in found if os.fspath(file.relative_to(root)) not in kept]


def clamp(root: Path, changed: Path, epoch: int) -> None:
    """Set every time of change below ROOT that is newer than EPOCH to EPOCH.

    CHANGED: a tree of what may be newer, by the same paths; overlayfs marks there what is gone.
    """
    for path, status in tree.walk(changed):
        if status.st_mtime > epoch and not (stat.S_ISCHR(status.st_mode) and not status.st_rdev):
            os.utime(root / path, (epoch, epoch), follow_symlinks=False)
