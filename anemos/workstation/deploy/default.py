"""Which slot starts: the word for the one on trial, and the way back to the other one."""

from contextlib import suppress

from anemos import log
from anemos.border.requests import Commit, Return
from anemos.log import FAILED, UNVERIFIED, die
from anemos.system.slots import GOOD, Record
from anemos.workstation import Result
from anemos.workstation.deploy import consent, reach, status
from anemos.workstation.deploy.state import load_state
from anemos.workstation.deploy.status import SlotSeen, Status
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import ConnectionLost, Remote, TimedOut, connect


def commit(host: Host) -> Result:
    """The word for the system of HOST on trial: its slot is the default. It may be done again.

    Raises Failure: status 1 where the word was refused, 4 when nobody knows.
    """
    state = load_state(host, "deployment", "pack")
    with connect(reach.endpoint(host), status=FAILED) as remote:
        base = own_base(remote, status.ask(remote))
        try:
            record = reach.answer(remote, base, Commit(state.deployment), Record)
        except (ConnectionLost, TimedOut) as failure:
            hint = f"whether it is done: ./inv status --host {host.name}"
            die(failure.message, hint=hint, status=UNVERIFIED)
    log.info(f"Slot {record.default} is the default: deployment {state.deployment}")
    return {"host": host.name, "deployment": state.deployment, "default": record.default}


def own_base(remote: Remote, seen: Status) -> str:
    """The base image that the running system has from its deployment. Raises Failure."""
    if not seen.stamp.base or not reach.present(remote, seen.base):
        die(f"{remote.endpoint}: the base image of its deployment is not there", status=FAILED)
    return seen.base


def rollback(host: Host, yes: str = "") -> Result:
    """Start the other slot of HOST, now and from now on. YES: the host's name, as confirmation.

    Raises Failure: status 2 or 1 when nothing was changed, 4 after that.
    """
    where = reach.endpoint(host)
    with connect(where) as remote:
        seen = status.ask(remote)
        to = other(host, seen)
        for line in meaning(host, to):
            log.info(line)
        consent.typed(host, yes, f"This reboots {host.name} into slot {to.name}")
        reach.answer(remote, own_base(remote, seen), Return(to.deployment), Record)
        with suppress(ConnectionLost):  # it may be that quick
            reach.script(remote, "reboot.sh")
    name, fresh = f"system in slot {to.name}", reach.rebooted_from(seen.boot_id)
    up = reach.await_boot(host, where, fresh, host.timeouts.up, name, code=UNVERIFIED)
    if up.in_initramfs or up.deployment != to.deployment:
        what = f"{host.name} runs deployment {up.deployment or 'unknown'}, not {to.deployment}"
        die(what, hint=f"./inv status --host {host.name}", status=UNVERIFIED)
    status.old_system(host, up.deployment)
    return {"host": host.name, "slot": to.name, "deployment": up.deployment, "boot_id": up.boot_id}


def other(host: Host, seen: Status) -> SlotSeen:
    """The slot that can be gone back to. Raises Failure (status 2)."""
    there = [each for each in seen.slots if not each.runs]
    if len(there) != 1:
        why = "cannot tell which slot runs" if there else "has no slots"
        die(f"{host.name} {why}", hint=f"./inv status --host {host.name}")
    (to,) = there
    if to.state != GOOD or not to.deployment:
        die(f"{host.name}: there is no way back to slot {to.name}: {status.told_of(to)}")
    return to


def meaning(host: Host, to: SlotSeen) -> list[str]:
    """What it means for data that was written since."""
    spec = host.imgbuild()
    shared = spec.layout.shared()
    both = sorted(spec.mount_points() - {"/", shared.mount if shared else ""})
    lines = [f"Slot {to.name}: {status.told_of(to)}", "What was written to / since is not there"]
    return [*lines, *([f"What was written to {', '.join(both)} stays"] if both else [])]
