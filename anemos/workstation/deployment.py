"""The chain of all phases, and the demonstration of it."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from anemos import log
from anemos.log import die
from anemos.workstation import (
    outcome,
    phases,
    reach,
    report,
    scratch,
    staged,
    stock,
    verify,
    vm,
    watch,
)
from anemos.workstation.host import Host
from anemos.workstation.state import load_state

Phase = Callable[[Host], dict[str, Any]]


def follow(host: Host) -> dict[str, Any]:
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


def deploy(host: Host, yes: str = "", hold: bool = False) -> dict[str, Any]:
    """Run all phases; the report. YES: the host's name, as confirmation.

    HOLD: end with the initramfs up and nothing touched, for `recovery` to go on.

    Raises Failure with the exit statuses of log.py.
    """
    seconds: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    with phases.forgotten(host):
        for name, phase in plan_of(hold).items():
            start = time.monotonic()
            with log.step(f"{name} {host.name}"):
                result = phase(host)
            seconds.append({"name": name, "seconds": round(time.monotonic() - start, 1)})
            if name == "plan":
                confirm(host, yes)
    result["phases"] = seconds
    if not hold:
        report.show(result, f"{host.name} is deployed and verified")
    return result


def plan_of(hold: bool) -> dict[str, Phase]:
    """The phases; up to the jump when it is to be held there."""
    if not hold:
        return PHASES
    held = dict(list(PHASES.items())[: list(PHASES).index("kexec")])
    return held | {"kexec": partial(phases.kexec, hold=True)}


def kexec(host: Host, yes: str = "", hold: bool = False) -> dict[str, Any]:
    """The phase after which there is no way back, run alone."""
    phases.require_access(host)
    confirm(host, yes)
    with scratch.ending():
        return phases.kexec(host, hold)


def phase(host: Host, name: str) -> dict[str, Any]:
    """Run the phase NAME by itself: a signal, too, has it take back what it has done."""
    with scratch.ending():
        return PHASES[name](host)


def confirm(host: Host, yes: str) -> None:
    """Have the operator type the host's name, unless the machine is a throw-away one."""
    if host.local or yes == host.name:
        return
    if yes:
        die(f"--yes {yes} does not name the host {host.name}")
    if not os.isatty(0):
        die(f"not confirmed: the system disks of {host.name} are to be erased", hint="--yes NAME")
    log.info(f"This erases the system disks of {host.name}. Type its name to go on:")
    if sys.stdin.readline().strip() != host.name:  # at its end, too, unlike input()
        die("not confirmed; nothing was done")


def go(host: Host, yes: str = "") -> dict[str, Any]:
    """The word for an initramfs that was started by hand (see export)."""
    state = load_state(host, "stays", "export")
    confirm(host, yes)
    with outcome.following(host):
        return {"host": host.name, "boot_id": reach.go(host, state).boot_id}


def demo(host: Host, fresh: bool = False) -> dict[str, Any]:
    """Start the VM of HOST, and deploy HOST to it."""
    start(host, fresh)
    result = deploy(host)
    goodbye(host, vm.of(host))
    return result


def start(host: Host, fresh: bool = False) -> dict[str, Any]:
    """Start the VM of HOST, with a stock system when it is new.

    FRESH: what is on the VM's disks is made anew.
    """
    machine = vm.of(host)
    if fresh:
        vm.remove(machine)
    stock.create(host)
    vm.start(machine, machine.drives)
    with log.step("Waiting for the server"):
        reach.await_boot(host, reach.endpoint(host), lambda seen: True, host.timeouts.up, "server")
    return {"host": host.name}


def stop(host: Host) -> dict[str, Any]:
    """End the VM of HOST; its disks stay."""
    vm.stop(vm.of(host))
    return {"host": host.name}


def goodbye(host: Host, machine: vm.Vm) -> None:
    """How to look at the machine."""
    login = reach.login(reach.endpoint(host), machine.directory / "known_hosts")
    log.info(f"Log in:   {shlex.join(login)}")
    for guest in machine.settings.forward:
        log.info(f"Port {guest}: https://{host.name}:{machine.port(guest)}/")
        tls = ["curl", f"--resolve {host.name}:{machine.port(guest)}:127.0.0.1"]
        log.info(
            "          "
            + " ".join([*tls, "--insecure", f"https://{host.name}:{machine.port(guest)}/"])
        )
    log.info(f"End it:   ./inv demo --host {host.name} --stop")
