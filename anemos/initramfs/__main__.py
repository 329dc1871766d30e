"""The brain of the initramfs: everything between the jump and the reboot.

Its exit status is init's cue: 0 reboots into the new system; anything else reboots into the old
one before the point of no return, and after it keeps the machine here, reachable over SSH.
"""

import math
import sys
import tarfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace

from anemos import disks, log
from anemos.digest import sha256
from anemos.image import bootstrap, imgbuild
from anemos.image.imgbuild import Imgbuild
from anemos.initramfs import (
    boot,
    events,
    fetch,
    hardware,
    install,
    kept,
    network,
    sshd,
    storage,
)
from anemos.initramfs.boot import HERE, Boot
from anemos.log import FAILED, Failure, die
from anemos.run import no_core_dumps

PAYLOAD = HERE / "unpacked"
OPERATOR_S = 300.0
GRACE_S = 3.0  # for whoever reads the events, before the machine is gone


def main() -> None:
    no_core_dumps()
    events.start()
    given = boot.load()
    log.info(f"anemos: deployment {given.deployment} of {given.host}")
    with log.step("Hardware and network"):
        hardware.coldplug()
        network.up(given.network)
        sshd.start(given.ssh_port)
    with log.step("Preflight"):
        spec = definition(given)
        await_disks(spec)
        found = disks.devices()
        erase = {d.name: disks.resolve(d.name, d.match, found) for d in spec.layout.disks}
        fetch.fetch(spec, PAYLOAD / "secrets")
        plan = storage.check(spec.layout, spec.keep, erase, PAYLOAD / "secrets")
        spec = replace(spec, layout=plan)
        mounts = kept.secure(spec.keep, given.kept)
    for device in erase.values():
        log.info(f"To be erased: {device.describe()}")
    # A lost operator is a reason to go back (init does that when this fails), if there is a way.
    patience = math.inf if events.STAY.exists() else OPERATOR_S
    hardware.wait_for("word from the operator", events.GO.exists, patience)
    events.point_of_no_return()
    install.install(given, spec, erase, mounts)


def definition(given: Boot) -> Imgbuild:
    """Check and unpack the payload and load the IMGBUILD in it."""
    check("payload", given.payload)
    if given.layer:
        check("layer", given.layer)
    with tarfile.open(HERE / "payload") as archive:
        archive.extractall(PAYLOAD)
    spec = imgbuild.load(PAYLOAD / "host")
    if not given.layer:
        bootstrap.check(spec)
    return spec


def check(name: str, digest: str) -> None:
    if sha256(HERE / name) != digest:
        die(f"{name}: damaged on the way", status=FAILED)


def await_disks(spec: Imgbuild) -> None:
    """Controllers take their time. Whatever is missing then, `resolve` tells."""
    matches = [d.match for d in spec.layout.disks] + [k.match for k in spec.keep]

    def present() -> bool:
        found = disks.devices()
        return all(any(disks.matches(device, match) for device in found) for match in matches)

    with suppress(Failure):
        hardware.wait_for("disk", present)


def report() -> int:
    """Run, and tell how it ended; the exit status."""
    try:
        main()
    except Failure as failure:
        events.failed(str(failure))
    except Exception:
        events.failed(traceback.format_exc())
    else:
        log.info("Rebooting into the new system")
        events.done()
        time.sleep(GRACE_S)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(report())
