"""What somebody has changed here since the deployment: by its manifest. Nothing is written."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from anemos.run import run
from anemos.server import staging
from anemos.system import changes, manifest, packages, volatile
from anemos.system.changes import Change
from anemos.system.manifest import Manifest, Volatile


@dataclass(frozen=True)
class Drift:
    changes: list[Change]
    apart: list[str]  # where other file systems are mounted, or those of the manifest are not


def find(more: Sequence[str]) -> Drift:
    """MORE: volatile places. Raises Failure."""
    os.nice(19)  # behind all that serves, with its disk, too (ioprio_set(2))
    before = manifest.read(staging.HOST)
    for each in ("", *before.filesystems):
        if os.path.ismount(point := staging.HOST / each):
            run(["mount", "-o", "remount,bind,ro", point])  # in our own mount namespace
    apart: list[str] = []
    skip = volatile.matcher(more)
    after = look(before, skip, apart)
    return Drift(changes.between(before, after, skip, apart), [f"/{each}" for each in apart])


def look(before: Manifest, skip: Volatile, apart: list[str]) -> Manifest:
    """The manifest of the system as it is, as far as it is compared. A secret is not read, nor a
    file that was not there: it may be one."""
    root, owners, found = staging.HOST, packages.owners(staging.HOST), []
    known = {each.path: each for each in before.entries}
    for path, status in manifest.walk(root, before.filesystems, skip, apart):
        old = known.get(manifest.text(path))
        with suppress(FileNotFoundError):  # it was there a moment ago
            secret = old.secret if old else True
            found.append(manifest.entry(root, path, status, secret, owners, old))
    return manifest.of(root, before.filesystems, found)
