"""The brain of the initramfs: everything between the jump and the reboot.

Its exit status is init's cue: 0 leaves for the new system; anything else reboots into the old one
before the point of no return. After it, and where there is no old one, the machine stays here,
reachable over SSH, until init is asked to run this again.
"""

import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from anemos import disks, log
from anemos.border import boot, payload, stage
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed
from anemos.border.events import HELD, PASSED, RELEASED
from anemos.border.resuming import Request
from anemos.disks import Device
from anemos.files import sha256
from anemos.initramfs import (
    delivery,
    events,
    hardware,
    install,
    kept,
    network,
    progress,
    sshd,
    storage,
)
from anemos.log import FAILED, Failure, die
from anemos.run import no_core_dumps
from anemos.system import bootstrap, fetch, imgbuild, layout
from anemos.system.bootstrap import TARGETS, fetching
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Kept, Mounted

OPERATOR_S = 300.0
GRACE_S = 3.0  # for whoever reads the events, before the machine is gone
TOLD = 3  # exit status; see init
CLOCK_S = 600.0  # how far the clock may be off: mirrors and certificates are valid for days


def main() -> None:
    """From the jump to the end."""
    no_core_dumps()
    given = boot.load()
    log.info(f"anemos: deployment {given.deployment} of {given.host}")
    with log.step("Hardware and network"):
        hardware.coldplug()
        network.up(given.network)
        sshd.start(given.ssh_port)
        set_clock(given.time)
    if given.late:
        delivery.receive(given.ssh_port)
    if seconds := boot.held():
        hold(seconds)
    begin(given)


def begin(given: Boot) -> None:
    """From the preflight to the end."""
    with log.step("Preflight"):
        spec = definition(given)
        await_disks(spec)
        check_layout(spec, given.agreed)
        erase = resolve(spec, given.agreed)
        spec = planned(spec, spec.keep, erase)
        if not given.layer:
            check_mirror(spec)
        given, mounts = secured(spec, given)
    for device in erase.values():
        log.info(f"To be erased: {device.describe()}")
    before = disks.named_by(matches(spec))
    # A lost operator is a reason to go back (init does that when this fails), if there is a way.
    events.await_word(math.inf if stage.STAY.exists() else OPERATOR_S)
    changed = disks.named_by(matches(spec)) != before
    if changed or resolve(spec, given.agreed) != erase:
        die("a disk came or went while the word was awaited", hint="look again", status=FAILED)
    reached = progress.begin(spec, mounts)
    events.point_of_no_return()
    install.install(given, spec, erase, reached)


def secured(spec: Imgbuild, given: Boot) -> tuple[Boot, list[Mounted]]:
    """All that SPEC keeps, compared and out of reach; its file systems.

    Started by hand, `verify` compares with what is there now.
    """
    known = given.kept
    before = disks.fingerprints(each.wanted for each in spec.keep) if known is None else known
    mounts = kept.secure(spec.keep, before)
    more, found = kept.secure_volumes(spec.keep, spec.kept_volumes, known)
    if known is None:
        given = replace(given, kept=[*before, *found])
        boot.save(given)
    return given, [*mounts, *more]


def resume() -> None:
    """Go on after a failure, as resuming.Request says."""
    no_core_dumps()
    asked = progress.request()
    given = boot.load()
    given = replace(given, payload=asked.payload or given.payload, layer=asked.layer or given.layer)
    boot.save(given)  # what lies there now, whether it is of use or not
    if stage.PASSED.exists():
        go_on(given, asked)
    else:
        begin(given)


def go_on(given: Boot, asked: Request) -> None:
    """Past the point of no return."""
    events.emit(PASSED)
    spec = definition(given)
    reached = progress.load(spec)
    if asked.layer:
        reached.packages = bootstrap.key(spec)
        reached.save()
    elif reached.packages != bootstrap.key(spec):
        log.info("Other packages: they are bootstrapped here")
        given = replace(given, layer="")
        boot.save(given)
    erase = resolve(spec, given.agreed)
    # Kept disks are out of reach by now, kept partitions are still there.
    spec = planned(spec, [each for each in spec.keep if each.disk], erase)
    first = reached.first_step(given.payload, asked.step)
    log.info(f"anemos: resuming deployment {given.deployment} of {given.host} with: {first}")
    install.install(given, spec, erase, reached, first)


def hold(seconds: float) -> None:
    """Touch nothing until the operator, who looks around, says so."""
    log.info(f"Held: nothing is touched. Back to the old system in {seconds:.0f} s")
    events.emit(HELD, seconds=seconds)
    events.await_word(seconds)
    events.emit(RELEASED)


def set_clock(real: float) -> None:
    """REAL: the workstation's, shortly before the jump, in seconds since the epoch; 0: unknown."""
    if real and abs(time.time() - real) > CLOCK_S:
        log.info(f"The clock said {time.ctime()}: set to {time.ctime(real)}")
        time.clock_settime(time.CLOCK_REALTIME, real)


def definition(given: Boot) -> Imgbuild:
    """Check and unpack the payload and load the IMGBUILD in it.

    Once only: beside what was packed lies what was fetched, perhaps by a token that is void now.
    """
    check(stage.PAYLOAD, given.payload)
    if given.layer:
        check(stage.LAYER, given.layer)
    mark = stage.UNPACKED / "digest"
    if not mark.is_file() or mark.read_text() != given.payload:
        payload.unpack(stage.PAYLOAD, stage.UNPACKED)
        mark.write_text(given.payload)
    payload.check(stage.UNPACKED)
    spec = imgbuild.load(stage.UNPACKED / "host", name=given.host)
    if not given.layer:
        bootstrap.check(spec)
    return spec


def check(file: Path, digest: str) -> None:
    if not file.is_file():
        die(f"{file.name}: not there", status=FAILED)
    if sha256(file) != digest:
        die(f"{file.name}: damaged on the way ({file.stat().st_size} bytes)", status=FAILED)


def await_disks(spec: Imgbuild) -> None:
    """Controllers take their time. What is missing then, `resolve` tells."""

    def present() -> bool:
        found = disks.devices()
        return all(any(disks.matches(device, match) for device in found) for match in matches(spec))

    with suppress(Failure):
        hardware.wait_for("disk", present)


def matches(spec: Imgbuild) -> list[Mapping[str, str]]:
    return [disk.match for disk in spec.layout.disks] + [kept.match for kept in spec.keep]


def check_layout(spec: Imgbuild, agreed: Agreed) -> None:
    """An IMGBUILD is a script: what it says here must be what it said when the plan was shown."""
    if agreed.layout and agreed.layout != layout.digest(spec.layout, spec.kept):
        die("layout or keep is not what the plan has shown", status=FAILED)


def resolve(spec: Imgbuild, agreed: Agreed) -> dict[str, Device]:
    """The disks to erase, which must be those that the plan has shown."""
    found = disks.devices()
    erase = {disk.name: disks.resolve(disk.name, disk.match, found) for disk in spec.layout.disks}
    for name, shown in agreed.erase.items():
        if not shown.same(erase[name]):
            told = f"{erase[name].describe()}, the plan has shown {shown.describe()}"
            die(f"disk {name!r} is {told}", status=FAILED)
    return erase


def planned(spec: Imgbuild, keep: Sequence[Kept], erase: Mapping[str, Device]) -> Imgbuild:
    """SPEC with its layout around what is kept, when all of it can be done; and all its secrets."""
    for name, device in erase.items():
        if disks.read_only(device):
            die(f"disk {name!r}: the kernel says that it is read-only", status=FAILED)
    fetch.fetch(spec, stage.UNPACKED / "secrets")
    spec = replace(spec, layout=storage.check(spec.layout, keep, erase, stage.UNPACKED / "secrets"))
    if spec.bootloader:
        imgbuild.check_loader(os.fspath(spec.file), spec.bootloader, spec.layout, spec.cmdline)
    return spec


def check_mirror(spec: Imgbuild) -> None:
    """Where packages are still to be fetched, the mirror's indexes must be there."""
    for url in TARGETS[spec.target].indexes(spec):
        hardware.wait_for(f"answer from the mirror: {url}", partial(answers, url))


def answers(url: str) -> bool:
    try:
        with fetching.opened(url, timeout=10, method="HEAD"):
            return True
    except (OSError, ValueError) as error:
        log.info(f"{url}: {error}")
        time.sleep(2)
        return False


def report() -> int:
    """Run, and tell how it ended; the exit status."""
    events.start()
    try:
        resume() if stage.RESUMING.exists() else main()
    except Failure as failure:
        events.failed(str(failure))
    except Exception:
        events.failed(traceback.format_exc())
    else:
        log.info("Rebooting into the new system")
        events.done()
        time.sleep(GRACE_S)
        return 0
    return TOLD


if __name__ == "__main__":
    sys.exit(report())
