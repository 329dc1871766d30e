"""Package layers, unpacked: builds write above them, so that a warm build unpacks nothing.

Beside layer-KEY.tar.zst:

    layer-KEY/root          what is in it
    layer-KEY/state.json    of which file and which boot of this machine that is; see `State`
    layer-KEY/digests.json  SHA-256 of its files, for manifests

Nothing in it is flushed to the disk, so it is only good until the next boot. A build locks the
directory (flock(2)), shared; whoever replaces what is in it, exclusively.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anemos import files, log, mounts
from anemos.files import sha256
from anemos.image import reproducible
from anemos.run import CommandFailed, run
from anemos.system import bootstrap

SUFFIX = ".tar.zst"
# A hard link whose file is changed stays one, a directory can be renamed: without these, neither
# (kernel: filesystems/overlayfs.rst).
OPTIONS = "index=on,redirect_dir=on"


@dataclass(frozen=True)
class Unpacked:
    """A root file system to write to. NEWEST: time of the last change in the layer, seconds.

    CHANGED: what is not as in the layer, by the same paths (kernel: filesystems/overlayfs.rst).
    """

    root: Path
    changed: Path
    newest: int
    layer_sha256: str
    digests: dict[str, str]


@contextmanager
def writable(layer: Path, scratch: Path) -> Iterator[Unpacked]:
    """The content of LAYER, to be changed below SCRATCH."""
    with ExitStack() as stack:
        # Only such a root can remove that cache again.
        directory = stack.enter_context(kept(layer)) if mounts.privileged() else None
        root = stack.enter_context(overlay(directory / "root", scratch)) if directory else None
        if directory is None or root is None:
            yield plain(layer, scratch)
            return
        state, digests = load(directory / "state.json"), load(directory / "digests.json")
        upper = scratch / "upper"
        unpacked = Unpacked(root, upper, state["newest"], state["sha256"], dict(digests))
        yield unpacked
        if not digests:
            files.replace(directory / "digests.json", json.dumps(unpacked.digests))


def plain(layer: Path, scratch: Path) -> Unpacked:
    root = scratch / "root"
    root.mkdir(exist_ok=True)
    with log.step("Unpacking the package layer"):
        bootstrap.unpack(layer, root)
    return Unpacked(root, root, reproducible.newest(root), sha256(layer), {})


@contextmanager
def kept(layer: Path) -> Iterator[Path]:
    """The directory with LAYER's content, which does not change meanwhile."""
    directory = layer.with_name(layer.name.removesuffix(SUFFIX))
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while identity(layer) != load(directory / "state.json").get("of"):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if identity(layer) != load(directory / "state.json").get("of"):
                renew(directory, layer)
            fcntl.flock(lock, fcntl.LOCK_SH)  # not at once: somebody else may come between
        yield directory
    finally:
        os.close(lock)


def identity(layer: Path) -> list[object]:
    status = layer.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [status.st_size, status.st_mtime_ns, status.st_ino, boot]


def renew(directory: Path, layer: Path) -> None:
    for name in ("state.json", "digests.json"):
        (directory / name).unlink(missing_ok=True)
    if (directory / "root").exists():
        shutil.rmtree(directory / "root")
    (directory / "root").mkdir()
    known = identity(layer)
    with log.step("Unpacking the package layer"):
        bootstrap.unpack(layer, directory / "root")
    newest = reproducible.newest(directory / "root")
    state = {"of": known, "newest": newest, "sha256": sha256(layer)}
    files.replace(directory / "state.json", json.dumps(state))
    prune(directory.parent)


def prune(cache: Path) -> None:
    """Remove what belongs to no layer any more, unless a build still uses it."""
    for state in cache.glob("layer-*/state.json"):
        directory = state.parent
        if not directory.with_name(directory.name + SUFFIX).exists():
            lock = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)


def load(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


@contextmanager
def overlay(lower: Path, scratch: Path) -> Iterator[Path | None]:
    """LOWER with all changes in SCRATCH; None where the kernel does not mount that."""
    places = {name: scratch / name for name in ("lower", "upper", "work", "merged")}
    for place in places.values():
        place.mkdir()
    # Its status is that of the whole. copystat(3) knows everything but owners.
    os.chown(places["upper"], lower.stat().st_uid, lower.stat().st_gid)
    shutil.copystat(lower, places["upper"])
    # By another path, as a comma or a colon in LOWER's own would mean something to mount(8).
    with mounts.mounted("--bind", "-o", "ro", lower, at=places["lower"]):
        directories = ",".join(f"{name}dir={places[name]}" for name in ("lower", "upper", "work"))
        try:
            run(["mount", "-t", "overlay", "-o", f"{directories},{OPTIONS}", "o", places["merged"]])
        except CommandFailed as failed:
            log.info(f"No overlay here: {failed.message}")
            yield None
            return
        try:
            yield places["merged"]
        finally:
            run(["umount", places["merged"]])
