"""The chain of all phases."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from anemos import log
from anemos.workstation import Result, report, scratch
from anemos.workstation.deploy import (
    consent,
    ending,
    hooks,
    outcome,
    phases,
    reach,
    reports,
    staged,
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


def deploy(host: Host, yes: str = "", hold: bool = False, plan: str = "") -> Result:
    """Run all phases; the report. YES: the host's name, as confirmation. PLAN: the id of a plan, if
    it is that one and no other.

    HOLD: end with the initramfs up and nothing touched, for `recovery` to go on.

    Raises Failure with the exit statuses of log.py.
    """
    hooks.check(host)
    with (
        ending.recorded(host, "deploy") as run,
        phases.forgotten(host),
        reports.told(host, "deploy") as told,
    ):
        run.result = follow_all(run, told, plan_of(hold), yes, plan)
    if not hold:
        report.show(run.result, f"{host.name} is deployed and verified")
    return run.result


def follow_all(run: Run, told: Account, chain: Mapping[str, Phase], yes: str, plan: str) -> Result:
    """What the last phase says, and how long each has taken."""
    host, seconds, result = run.host, [], {}
    lines: list[list[str]] = []
    for name, phase in chain.items():
        if name == "kexec":
            announce(run)
        start = time.monotonic()
        with log.step(f"{name} {host.name}", asks=name == "reveal-secrets"):
            result = phase(host)
        told.take(result)
        seconds.append({"name": name, "seconds": round(time.monotonic() - start, 1)})
        lines = result.get("plan", lines)
        if plan and name in ("plan", "pack"):  # which read the definition one after the other
            consent.require_same(host, plan, lines)
        if name == "plan":
            consent.confirm(host, yes)
    return result | {"phases": seconds}


def announce(run: Run) -> None:
    """Call before-deploy: the last moment at which nothing has happened to the server."""
    run.hooked = True
    with staged.undone(run.host):
        hooks.before(run.host, load_state(run.host).deployment)


def plan_of(hold: bool) -> dict[str, Phase]:
    """The phases; up to the jump when it is to be held there."""
    if not hold:
        return PHASES
    held = dict(list(PHASES.items())[: list(PHASES).index("kexec")])
    return held | {"kexec": partial(phases.kexec, hold=True)}


def kexec(host: Host, yes: str = "", hold: bool = False) -> Result:
    """The phase after which there is no way back, run alone."""
    with ending.recorded(host, "kexec") as run:
        phases.require_access(host)
        consent.confirm(host, yes)
        with scratch.ending():
            run.result = phases.kexec(host, hold)
    return run.result


def alone(host: Host, name: str, phase: Phase) -> Result:
    """PHASE, called NAME, run alone: it may be the deployment's end."""
    with ending.recorded(host, name) as run:
        run.result = phase(host)
    return run.result


def fill(host: Host, yes: str = "") -> Result:
    """Write a slot while the old system serves. No other phase goes on from there yet."""
    phases.require_access(host)
    consent.confirm(host, yes, f"This overwrites the slot of {host.name} that does not run")
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
