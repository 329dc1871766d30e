"""The chain of all phases."""

import time
from collections.abc import Callable
from functools import partial

from anemos import log
from anemos.log import die
from anemos.workstation import Result, report, scratch
from anemos.workstation.deploy import (
    consent,
    default,
    ending,
    hooks,
    outcome,
    phases,
    reach,
    reports,
    staged,
    trial,
    verify,
    watch,
)
from anemos.workstation.deploy.account import Account
from anemos.workstation.deploy.ending import Run
from anemos.workstation.deploy.state import load_state
from anemos.workstation.hosts import Host

Phase = Callable[[Host], Result]


def follow(host: Host) -> Result:
    """Where it leads back into the old system, the boot entry is still there, if there was one."""
    with staged.undone(host):
        return watch.watch(host)


PHASES: dict[str, Phase] = {
    "plan": phases.make_plan,
    "reveal-secrets": phases.reveal,
    "pack": phases.pack,
    "upload": phases.upload,
    "build-initramfs": phases.build_initramfs,
    "kexec": phases.kexec,
    "in RAM": follow,
    "verify": verify.verify,
}
# Into the slot that does not run. What fails before the last one leads back to the running slot.
SLOT_PHASES: dict[str, Phase] = {
    "reveal-secrets": phases.reveal,
    "pack": phases.pack,
    "fill": phases.fill,
    "kexec": trial.start,
    "verify": trial.verify,
    "commit": default.commit,
}


def deploy(
    host: Host, yes: str = "", hold: bool = False, plan: str = "", whole: bool = False
) -> Result:
    """Run all phases; the report. YES: the host's name, as confirmation. PLAN: the id of a plan, if
    it is that one and no other. WHOLE: erase disks even where a slot could be filled.

    HOLD: end with the initramfs up and nothing touched, for `recovery` to go on; or with the slot
    filled.

    Raises Failure with the exit statuses of log.py.
    """
    hooks.check(host)
    with (
        ending.recorded(host, "deploy") as run,
        phases.forgotten(host),
        reports.told(host, "deploy") as told,
    ):
        first = partial(phases.make_plan, whole=True) if whole else PHASES["plan"]
        run.result = follow_all(run, told, first, yes, plan, hold)
    if not hold:
        report.show(run.result, f"{host.name} is deployed and verified")
    return run.result


def follow_all(run: Run, told: Account, first: Phase, yes: str, plan: str, hold: bool) -> Result:
    """What the last phase says, and how long each has taken. FIRST: makes the plan."""
    host, seconds = run.host, []

    def follow(name: str, phase: Phase) -> Result:
        start = time.monotonic()
        with log.step(f"{name} {host.name}", asks=name == "reveal-secrets"):
            result = phase(host)
        told.take(result)
        seconds.append({"name": name, "seconds": round(time.monotonic() - start, 1)})
        return result

    shown = follow("plan", first).get("plan", [])
    if plan:
        consent.require_same(host, plan, shown)
    slot = consent.recall(host).slot
    consent.confirm(host, yes, slot)
    result: Result = {}
    for name, phase in rest(slot, hold).items():
        if name == "kexec":
            announce(run)
        result = follow(name, phase) | (result if name == "commit" else {})
        if plan and name == "pack":  # it has read the definition anew
            consent.require_same(host, plan, shown)
    return result | {"phases": seconds}


def announce(run: Run) -> None:
    """Call before-deploy: the last moment at which nothing has happened to the server."""
    run.hooked = True
    with staged.undone(run.host):
        hooks.before(run.host, load_state(run.host).deployment)


def rest(slot: str, hold: bool) -> dict[str, Phase]:
    """The phases after the plan, into SLOT if there is one; up to the jump when it is to be held
    there."""
    chain = SLOT_PHASES if slot else {k: v for k, v in PHASES.items() if k != "plan"}
    if not hold:
        return chain
    held = dict(list(chain.items())[: list(chain).index("kexec")])
    return held if slot else held | {"kexec": partial(phases.kexec, hold=True)}


def kexec(host: Host, yes: str = "", hold: bool = False) -> Result:
    """The phase after which there is no way back, run alone."""
    with ending.recorded(host, "kexec") as run:
        slot = load_state(host).agreed.slot
        if slot and hold:
            die("a slot that is filled waits by itself", hint="leave --hold away to start it")
        phases.require_access(host)
        consent.confirm(host, yes, slot)
        with scratch.ending():
            run.result = trial.start(host) if slot else phases.kexec(host, hold)
    return run.result


def alone(host: Host, name: str, phase: Phase) -> Result:
    """PHASE, called NAME, run alone: it may be the deployment's end."""
    with ending.recorded(host, name) as run:
        run.result = phase(host)
    return run.result


def fill(host: Host, yes: str = "") -> Result:
    """Write a slot while the old system serves."""
    phases.require_access(host)
    consent.confirm(host, yes, load_state(host).agreed.slot)
    with scratch.ending():
        return phases.fill(host)


def phase(host: Host, name: str) -> Result:
    """Run the phase NAME by itself: a signal, too, has it take back what it has done."""
    with scratch.ending():
        return PHASES[name](host)


def go(host: Host, yes: str = "") -> Result:
    """The word for an initramfs that was started by hand (see export)."""
    state = load_state(host, "stays", "export")
    consent.confirm(host, yes)
    with outcome.following(host):
        return {"host": host.name, "boot_id": reach.go(host, state).boot_id}
