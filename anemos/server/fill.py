"""Fills the slot that does not run, while the old system serves. A failure leaves it empty."""

import os
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from anemos import files, log, mounts
from anemos.log import FAILED, die
from anemos.run import run
from anemos.system import booting, filesystems, installation, layout, slots, tree
from anemos.system.installation import Installation
from anemos.system.slots import EMPTY, FILLED, FILLING, Record, Slot


def fill(given: Installation, slot: str, node: Path, record: Path) -> None:
    """Install what is GIVEN in SLOT, the block device NODE. The record in the file RECORD says of
    each step before it is taken what the slot holds then.

    Below GIVEN.root there is nothing yet. Raises Failure, OSError.
    """
    known = slots.read(record)
    check(given, slot, known, node)
    spec = replace(given.spec, layout=given.spec.layout.only(slot))
    uuid = layout.fs_uuid(spec.layout.root(), given.deployment)
    slots.write(record, known.holding(slot, Slot(FILLING)))
    try:
        install(replace(given, spec=spec), node, uuid)
    except BaseException:
        with suppress(Exception):  # the reason of it all is the other one; FILLING is as good
            slots.write(record, known.holding(slot, Slot(EMPTY)))
        raise
    filled = Slot(FILLED, uuid, given.deployment, int(time.time()))
    slots.write(record, known.holding(slot, filled))


def check(given: Installation, slot: str, known: Record, node: Path) -> None:
    """Die, before anything is changed, for what cannot be filled, and what must not be."""
    if slot == known.default:
        die(f"slot {slot} is the one that starts", status=FAILED)
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL))  # EBUSY: mounted, or below a volume
    except OSError as error:
        die(f"slot {slot}: {node}: {error.strerror}", status=FAILED)
    for volume in given.spec.layout.volumes:
        if volume.kind in ("raid", "luks"):  # their UUIDs are from the deployment that made them
            why = "the new crypttab or mdadm.conf would not name it"
            die(f"slot {slot}: {volume.kind} {volume.name!r}: {why}", status=FAILED)


def install(given: Installation, node: Path, uuid: str) -> None:
    fs = given.spec.layout.root().fs
    run(["wipefs", "--all", "--quiet", node])
    run(filesystems.make(fs, uuid, node))
    with mounts.mounted("-t", fs, node, at=given.root):
        with log.step("Package layer"):
            installation.package_layer(given)
        with log.step("Definition layer"):
            installation.definition_layer(given)
        booting.configure(given.spec, given.root, given.deployment)
        with log.step("Reading it back"):
            read_back(given.root)


def read_back(root: Path) -> None:
    """Die unless the disk has all files below ROOT, a file system, as they were written."""
    written = tree.digests(root)
    run(["sync", "--file-system", root])
    for path, status in tree.walk(root):
        if stat.S_ISREG(status.st_mode):
            files.forget(root / path)
    found = tree.digests(root)
    if wrong := [path for path in written if found.get(path) != written[path]]:
        hint = f"{len(wrong)} files differ: look at the disk"
        die(f"/{wrong[0]} is not what was written to the disk", hint=hint, status=FAILED)
