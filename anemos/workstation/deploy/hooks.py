"""Programs of a host that run on the workstation: hosts/NAME/hooks."""

import os
from pathlib import Path

from anemos import log
from anemos.log import FAILED, Failure, die
from anemos.run import run
from anemos.workstation import places
from anemos.workstation.hosts import Host

BEFORE, AFTER = "before-deploy", "after-deploy"


def check(host: Host) -> None:
    """Raises Failure for a hook that would never run."""
    for each in sorted(path for path in (host.directory / "hooks").glob("*") if path.is_file()):
        where = f"hosts/{host.directory.name}/hooks/{each.name}"
        runs = os.access(each, os.X_OK)
        if each.name in (BEFORE, AFTER) and not runs:
            die(f"{where} cannot be executed", hint=f"chmod +x {where}")
        if each.name not in (BEFORE, AFTER) and runs:
            die(f"{where}: no hook is called so", hint=f"{BEFORE} or {AFTER}")


def before(host: Host, deployment: str) -> None:
    """Raises Failure (status 1) when the hook does not succeed: DEPLOYMENT must not go on."""
    try:
        call(host, BEFORE, deployment)
    except Failure as failure:
        die(f"{host.name}: {BEFORE} failed: {failure.message}", status=FAILED)


def after(host: Host, deployment: str, status: int, report: Path) -> None:
    """STATUS, REPORT: how the deployment has ended. Raises nothing: it has ended."""
    try:
        call(host, AFTER, deployment, ANEMOS_STATUS=str(status), ANEMOS_REPORT=os.fspath(report))
    except Failure as failure:
        log.info(f"{AFTER} failed, which changes nothing on {host.name}: {failure.message}")


def call(host: Host, name: str, deployment: str, **more: str) -> None:
    program = host.directory / "hooks" / name
    if not program.exists():
        return
    told = {"HOST": host.name, "ADDRESS": host.address, "DEPLOYMENT": deployment}
    given = {f"ANEMOS_{key}": value for key, value in told.items()} | more
    if agent := os.environ.get("SSH_AUTH_SOCK"):
        given["SSH_AUTH_SOCK"] = agent
    with log.step(f"hooks/{name}"):
        limit = host.timeouts.hooks
        run([program], cwd=places.ROOT, env=given, timeout=limit, log=log.info)
