"""Fills the slot that does not run, while the old system serves. A failure leaves it empty."""

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from anemos import files, log, mounts, volumes
from anemos.border import payload, stage
from anemos.border.boot import Stamp, base_hash
from anemos.border.payload import Manifest
from anemos.border.requests import Fill, Filled
from anemos.log import FAILED, die
from anemos.run import run
from anemos.server import carry, confined, layer, logins, running, staging, stream
from anemos.server.running import Running
from anemos.system import (
    booting,
    bootstrap,
    fetch,
    filesystems,
    imgbuild,
    installation,
    layout,
    slots,
    tree,
)
from anemos.system.bootloader import LOADERS, kernels
from anemos.system.bootstrap.common import FETCHED
from anemos.system.imgbuild import Imgbuild
from anemos.system.installation import Installation
from anemos.system.slots import EMPTY, FILLED, FILLING, Record, Slot

# On the tmpfs of enter.sh: what a bootstrap reads, the slot, packages of the running system.
ROOM, ROOT, PACKAGES = (Path(f"/tmp/{name}") for name in ("anemos", "slot", "packages"))  # noqa: S108
KEYS = stage.UNPACKED / "keys"
IDLE = 19  # nice(1)
RELEASED_S = 30.0


def answer(asked: Fill) -> Filled:
    """Fill the slot that does not run with the payload that is staged, which stays, and with the
    package layer that follows the request. Raises Failure."""
    give_way()
    try:
        spec, given = unpack(asked)
        with running.found(spec, staging.HOST) as here, layer_of(asked):
            if given.agreed.slot != here.other:
                die(f"slot {here.other} is not what the plan has shown", status=FAILED)
            return beside(asked, spec, given, here)
    finally:
        shutil.rmtree(stage.UNPACKED, ignore_errors=True)


def layer_of(asked: Fill) -> AbstractContextManager[None]:
    if not asked.layer:
        return nullcontext()
    return stream.arriving(sys.stdin.buffer, asked.layer, stage.LAYER)


def give_way() -> None:
    """Work when nobody else wants to."""
    os.nice(IDLE)
    run(["ionice", "--class=idle", f"--pid={os.getpid()}"])


def unpack(asked: Fill) -> tuple[Imgbuild, Manifest]:
    """The definition, in memory that is never swapped out. Raises Failure."""
    staging.check(stage.PAYLOAD, asked.payload)
    payload.unpack(stage.PAYLOAD, stage.UNPACKED)
    payload.check(stage.UNPACKED)
    given = payload.unpacked(stage.UNPACKED)
    spec = imgbuild.load(stage.UNPACKED / "host", name=given.host)
    # An IMGBUILD is a script: what it says here must be what it said when the plan was shown.
    if given.agreed.layout != layout.digest(spec.layout, spec.kept):
        die("layout or keep is not what the plan has shown", status=FAILED)
    if asked.layer:
        return spec, given
    if spec.target == "arch":
        why = "pacstrap(8) mounts a devtmpfs, which nobody may beside a running system"
        die(f"target=arch: {why}", hint='host.toml: build_on = "workstation"', status=FAILED)
    bootstrap.check(spec)
    return spec, given


def beside(asked: Fill, spec: Imgbuild, given: Manifest, here: Running) -> Filled:
    """SPEC, as it was packed, into the slot of HERE that does not run."""
    base = staging.old(asked.base)
    kept, elements = volumes.fingerprints(given.keep), layout.elements(spec.layout, spec.kept)
    words = (given.deployment, given.host, base_hash(base), kept, elements, given.commit)
    stamp = Stamp(*words)
    KEYS.mkdir(mode=0o700)
    for name, key in logins.host_keys(staging.HOST).items():
        (KEYS / name).write_bytes(key)
    for each in (ROOM, ROOT):
        each.mkdir(exist_ok=True)
    layer.resolve_names(ROOM)
    return fill(
        Installation(
            here.spec,
            ROOT,
            given.deployment,
            stamp.text,
            stage.LAYER if asked.layer else None,
            (base, stamp.base),
            KEYS,
            here.shared(kept),
            layout.kept_arrays(spec.kept_volumes, kept),
            packages(),
        ),
        here.other,
        here.node,
        here.top,
    )


def packages() -> Path:
    """Where packages of the running system are seen: nothing is there if it has none."""
    there = staging.HOST / FETCHED
    PACKAGES.mkdir(exist_ok=True)
    if there.is_dir():
        run(["mount", "--bind", there, PACKAGES])
    return PACKAGES


def fill(given: Installation, slot: str, node: Path, top: Path) -> Filled:
    """Install what is GIVEN in SLOT, the block device NODE. What both slots share is mounted at
    TOP; the record there says of each step before it is taken what the slot holds then.

    Below GIVEN.root there is nothing yet. Raises Failure, OSError.
    """
    loader = LOADERS[given.spec.bootloader]
    record = top / loader.RECORD
    known = slots.read(record)
    check(given, slot, known, node)
    fetch_secrets(given)
    spec = replace(given.spec, layout=given.spec.layout.only(slot))
    uuid = layout.fs_uuid(spec.layout.root(), given.deployment)
    slots.write(record, known.holding(slot, Slot(FILLING)))
    try:
        loader.clear(slot, top)
        kernel = install(replace(given, spec=spec), node, uuid, top)
    except BaseException:
        with suppress(Exception):  # the reason of it all is the other one; FILLING is as good
            loader.clear(slot, top)
            slots.write(record, known.holding(slot, Slot(EMPTY)))
        raise
    filled = Slot(FILLED, uuid, given.deployment, int(time.time()))
    slots.write(record, known.holding(slot, filled))
    return Filled(slot, uuid, kernel)


def check(given: Installation, slot: str, known: Record, node: Path) -> None:
    """Die, before anything is changed, for what cannot be filled, and what must not be."""
    if slot == known.default:
        die(f"slot {slot} is the one that starts", status=FAILED)
    require_free(node)
    carry.check(given.spec.carry)


def require_free(node: Path, patience: float = 0) -> None:
    """Die when NODE is mounted, or below a volume, and still is after PATIENCE (seconds)."""
    end = time.monotonic() + patience
    while True:
        try:
            return os.close(os.open(node, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                die(f"{node}: {error.strerror}", status=FAILED)
        time.sleep(0.1)


def fetch_secrets(given: Installation) -> None:
    """While the slot is as it was: a service that does not answer must not cost the way back."""
    if given.spec.server_secrets:
        confined.call(
            partial(fetch.fetch, given.spec, unpacked_at(given) / "secrets"), handed(given)
        )


def install(given: Installation, node: Path, uuid: str, top: Path) -> str:
    """The name of its kernel."""
    fs = given.spec.layout.root().fs
    run(["wipefs", "--all", "--quiet", node])
    run(filesystems.make(fs, uuid, node))
    try:
        with noted() as lines, mounts.mounted("-t", fs, node, at=given.root):
            confined.call(partial(write, given), handed(given), given.root)
            if given.spec.carry:
                carry.copy(given.spec.carry, given.root)
            installation.leave_tools(given)
            leave_log(lines, given.root)
            installation.leave_manifest(given)
            share(given, top)
            with log.step("Reading it back"):
                read_back(given.root)
                read_back(top)
            return kernels.newest(given.root).name
    finally:  # a mount namespace ends a little later than its last process
        require_free(node, RELEASED_S)


def share(given: Installation, top: Path) -> None:
    try:
        booting.share(given.spec, given.root, given.deployment, top)
    except OSError as error:
        die(f"what both slots share: {error.strerror}", status=FAILED)


@contextmanager
def noted() -> Iterator[TextIO]:
    """A file in memory that gets the log's lines, also of processes that are started meanwhile."""
    before = log.sink
    with TemporaryFile("w+", buffering=1) as file:

        def tell(line: str) -> None:
            before(line)
            file.write(f"{line}\n")

        log.sink = tell
        try:
            yield file
        finally:
            log.sink = before


def leave_log(lines: TextIO, root: Path) -> None:
    lines.seek(0)
    tree.write(root, installation.LOG, lines.read(), 0o400)


def unpacked_at(given: Installation) -> Path:
    """Where the payload was unpacked."""
    return given.spec.directory.parent


def handed(given: Installation) -> list[Path]:
    """What packages and definition see beside the slot: their own, the name service, and packages
    of the running system."""
    fetched = [given.fetched] if given.fetched else []
    own = [unpacked_at(given), given.keys, *([given.layer] if given.layer else [])]
    for each in own:
        confined.give(each)
    return [*own, layer.ETC, *fetched]


def write(given: Installation) -> None:
    """All that runs code of packages, or of the definition."""
    with log.step("Package layer"):
        installation.package_layer(given)
    with log.step("Definition layer"):
        installation.definition_layer(given)
    booting.configure(given.spec, given.root, given.deployment)


def read_back(root: Path) -> None:
    """Die unless the disk has all files below ROOT, a file system, as they were written."""
    written = tree.checksums(root)
    run(["sync", "--file-system", root])
    for path, status in tree.walk(root):
        if stat.S_ISREG(status.st_mode):
            files.forget(root / path)
    found = tree.checksums(root)
    if wrong := [path for path in written if found.get(path) != written[path]]:
        hint = f"{len(wrong)} files differ: look at the disk"
        die(f"/{wrong[0]} is not what was written to the disk", hint=hint, status=FAILED)
