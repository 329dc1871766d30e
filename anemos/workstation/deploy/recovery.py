"""What the operator does with a machine that waits in the initramfs."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from anemos import log
from anemos.border import records, stage
from anemos.border.resuming import STEPS, Request
from anemos.files import sha256
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, die
from anemos.workstation import Result, places
from anemos.workstation.deploy import (
    ending,
    outcome,
    phases,
    reach,
    reports,
    sending,
    staged,
    status,
    verify,
    watch,
)
from anemos.workstation.deploy.outcome import Witnessed
from anemos.workstation.deploy.state import PASSED, State, payload_file
from anemos.workstation.deploy.status import Status
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Remote, connect

WAITS = (status.HELD, status.FAILED_THERE)


def resume(host: Host, repack: bool = False, step: str = "") -> Result:
    """Go on with an installation that is held or has failed, to its end; the verification's result.

    Of one that was started by hand, and has erased nothing yet, only to where it asks for the word.
    REPACK: with a payload made anew from what hosts/ and secrets/ hold now. STEP: the first one of
    STEPS to be done again, instead of the one that follows from what was done.
    """
    if step and step not in STEPS:
        die(f"--step {step}: unknown", hint=f"one of: {', '.join(STEPS)}")
    with (
        ending.recorded(host, "resume") as run,
        phases.forgotten(host),
        reports.told(host, "resume") as told,
        outcome.following(host),
    ):
        run.result = proceed(host, repack, step)
        told.take(run.result)
    return run.result


def proceed(host: Host, repack: bool, step: str) -> Result:
    with connect(reach.endpoint(host)) as remote:
        seen = waiting(host, remote)
        state = status.known(host, seen)
        if seen.passed:
            state.reach(PASSED)
        if seen.state == status.HELD:
            go_on(host, state, repack, step)
        else:
            request = Request(step=step)
            again(remote, correct(host, state, seen, remote, request) if repack else request)
    if not seen.passed and seen.state == status.FAILED_THERE:
        log.info(f"The preflight runs again: ./inv watch; then ./inv go --host {host.name}")
        return {"host": host.name, "deployment": state.deployment}
    watch.watch(host)
    return verify.verify(host)


def waiting(host: Host, remote: Remote) -> Status:
    """Raises Failure for a machine that does not wait for the operator."""
    seen = status.ask(remote)
    if seen.state not in WAITS:
        refuse(seen, f"{host.name} does not wait in the initramfs: {seen.state}")
    return seen


def refuse(seen: Status, message: str) -> NoReturn:
    code = IN_INITRAMFS if seen.passed else BAD_INPUT
    raise Witnessed(message, hint="./inv status, ./inv watch", status=code)


def go_on(host: Host, state: State, repack: bool, step: str) -> None:
    """Give a held machine the word."""
    if repack or step:
        die(f"{host.name} is held: nothing has failed yet", hint="./inv abort, and deploy anew")
    reach.give_word(reach.endpoint(host), state)


def correct(host: Host, state: State, seen: Status, remote: Remote, asked: Request) -> Request:
    """Send a new payload, and another package layer where it needs one."""
    phases.reveal(host)
    asked = replace(asked, payload=phases.make_payload(host, state))
    sending.send(remote, payload_file(host), stage.PAYLOAD)
    if state.layer:
        asked = replace(asked, layer=sha256(Path(state.layer)))
        if asked.layer != seen.stamp.layer:
            remote.sh(["rm", "-f", f"{stage.LAYER}"])  # memory is dear
            sending.send(remote, Path(state.layer), stage.LAYER)
    state.save()
    return asked


def again(remote: Remote, request: Request) -> None:
    """Have init run the brain again. The events of the failure go first: `watch` ends with them."""
    fresh = f"{stage.RESUME}.new"
    remote.put(records.text(request).encode(), fresh, mode=0o600)
    remote.sh(["sh", "-c", f"rm -f {stage.EVENTS} && mv {fresh} {stage.RESUME}"])


def abort(host: Host) -> Result:
    """Send a machine that has not passed the point of no return back to the old system."""
    with ending.recorded(host, "abort") as run, outcome.following(host):
        run.result = go_back(host)
    return run.result


def go_back(host: Host) -> Result:
    where = reach.endpoint(host)
    with connect(where) as remote:
        seen = status.ask(remote)
        if seen.stays or seen.state not in (status.HELD, status.GOING):
            refuse(seen, f"{host.name} cannot go back: {seen.state}")
        remote.put(b"the operator wants the old system back\n", f"{stage.ABORT}", mode=0o600)
    back = reach.await_boot(
        host, where, reach.rebooted_from(seen.boot_id), host.timeouts.up, "old system"
    )
    if back.in_initramfs or back.deployment == seen.deployment:
        die(f"{host.name} did not go back: ./inv status", status=FAILED)
    status.old_system(host, back.deployment)
    staged.leave_nothing(host)  # the boot entry, if there was one
    told = {"boot_id": back.boot_id, "deployment": back.deployment}
    return {"host": host.name, "aborted": True, **told}


def rescue(host: Host) -> NoReturn:
    """Become ssh(1), logged in to HOST as root, which must hold the pinned key."""
    with outcome.following(host), connect(reach.endpoint(host)) as remote:
        where = remote.endpoint
        in_initramfs = not where.sudo and status.ask(remote).in_initramfs
    argv = reach.login(where, places.memory(host.name) / "known_hosts")
    if in_initramfs:
        tail = f"tail -n 20 {stage.LOG}; exec bash -l"
        argv = [*argv, "-t", shlex.join(["sh", "-c", tail])]
    elif where.sudo:
        argv = [*argv, "-t", "sudo -i"]
    os.execvp("ssh", argv)
