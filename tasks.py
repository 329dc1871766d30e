"""The workflow, one task a step: `./inv TASK --host NAME`.

Every task may be run alone; `deploy` runs them all. With --json one JSON document goes to standard
output at every end. Exit statuses: docs/recovery.md.
"""

import os
import sys
from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from anemos.workstation.cli import secret_tasks
from anemos.workstation.cli.command import HELP, command, workstation


def load(host: str, adopt: bool = False, build_on: str = "", server: bool = True) -> Any:
    found = workstation("hosts").load(host, adopt=adopt, build_on=build_on, server=server)
    return workstation("vm.vm").at_home(found) if server else found


def alone(host: str, **options: Any) -> Any:
    """The same, for tasks of which only one may work for a host."""
    found = load(host, **options)
    workstation("lock").take(found.name)
    return found


@command
def plan(
    c: Context, host: str = "", adopt: bool = False, build_on: str = "", json: bool = False
) -> Any:
    """Tell what deploying HOST would do, and everything that stands in its way."""
    return workstation("deploy.phases").make_plan(load(host, adopt, build_on))


@command
def reveal_secrets(c: Context, host: str = "", json: bool = False) -> Any:
    """Decrypt the secrets of HOST, into memory only."""
    return workstation("deploy.phases").reveal(alone(host))


@command
def pack(
    c: Context, host: str = "", deployment: str = "", build_on: str = "", json: bool = False
) -> Any:
    """Make the payload of HOST; base image and package layer, unless they are cached."""
    return workstation("deploy.phases").pack(alone(host, build_on=build_on), deployment)


@command
def upload(c: Context, host: str = "", adopt: bool = False, json: bool = False) -> Any:
    """Send the payload, and what else the server lacks, into its memory."""
    return workstation("deploy.chain").phase(alone(host, adopt=adopt), "upload")


@command
def build_initramfs(
    c: Context, host: str = "", adopt: bool = False, build_on: str = "", json: bool = False
) -> Any:
    """Put the initramfs together on the server."""
    return workstation("deploy.chain").phase(
        alone(host, adopt=adopt, build_on=build_on), "build-initramfs"
    )


@command
def kexec(c: Context, host: str = "", yes: str = "", hold: bool = False, json: bool = False) -> Any:
    """Jump into the initramfs, which ERASES the system disks and installs HOST."""
    return workstation("deploy.chain").kexec(alone(host), yes, hold)


@command
def watch(c: Context, host: str = "", json: bool = False) -> Any:
    """Follow the installation of HOST to its end."""
    return workstation("deploy.watch").watch(load(host))


@command
def verify(c: Context, host: str = "", tests: bool = False, json: bool = False) -> Any:
    """Prove that HOST runs what was deployed."""
    return workstation("deploy.verify").verify(load(host), tests)


@command
def deploy(
    c: Context,
    host: str = "",
    yes: str = "",
    hold: bool = False,
    adopt: bool = False,
    build_on: str = "",
    json: bool = False,
) -> Any:
    """Replace the running system of HOST by what hosts/HOST describes: all phases."""
    return workstation("deploy.chain").deploy(
        alone(host, adopt=adopt, build_on=build_on), yes, hold
    )


@command
def status(c: Context, host: str = "", json: bool = False) -> Any:
    """Tell what runs on HOST now, and how far it is."""
    return workstation("deploy.status").status(load(host))


@command
def rescue(c: Context, host: str = "", json: bool = False) -> Any:
    """Open a shell on HOST, in the initramfs too."""
    return workstation("deploy.recovery").rescue(load(host))


@command
def resume(
    c: Context, host: str = "", repack: bool = False, step: str = "", json: bool = False
) -> Any:
    """Go on with an installation that is held, or that failed after the point of no return."""
    return workstation("deploy.recovery").resume(alone(host), repack, step)


@command
def abort(c: Context, host: str = "", json: bool = False) -> Any:
    """Before the point of no return: back to the old system."""
    return workstation("deploy.recovery").abort(load(host))


@command
def build(
    c: Context,
    host: str = "",
    format: str = "",
    output: str = "",
    check: bool = False,
    json: bool = False,
) -> Any:
    """Build the image of HOST as files, with throw-away secrets."""
    return workstation("build").build(host, format, output, check)


@command
def demo(
    c: Context,
    host: str = "demo",
    fresh: bool = False,
    start: bool = False,
    stop: bool = False,
    json: bool = False,
) -> Any:
    """Deploy HOST to a stock server in a local VM, and prove it."""
    demo = workstation("vm.demo")
    if stop:
        return demo.stop(load(host))
    return demo.start(alone(host), fresh) if start else demo.demo(alone(host), fresh)


@command
def test(
    c: Context,
    host: str = "",
    keep: bool = False,
    reuse: bool = False,
    redeploy: bool = False,
    stop: bool = False,
    json: bool = False,
) -> Any:
    """Install HOST, or each one, in a local VM, with throw-away secrets, and prove it."""
    local = workstation("vm.rehearsal")
    if stop:
        return local.stop(load(host, server=False))
    options = local.Options(keep, reuse, redeploy)
    return local.test(load(host, server=False), options) if host else local.test_all(options)


@command
def export(
    c: Context,
    host: str = "",
    output: str = "",
    plaintext_on_disk: bool = False,
    mac: str = "",
    address: str = "",
    gateway: str = "",
    dns: str = "",
    json: bool = False,
) -> Any:
    """Write kernel, initrd and command line that install HOST on a machine started by hand."""
    export = workstation("deploy.export")
    options = export.Options(output, plaintext_on_disk, mac, address, gateway, dns)
    return export.export(alone(host), options)


@command
def go(c: Context, host: str = "", yes: str = "", json: bool = False) -> Any:
    """Let the initramfs that was started by hand ERASE the system disks and install HOST."""
    return workstation("deploy.chain").go(alone(host), yes)


@command
def adopt(c: Context, host: str = "", fingerprint: str = "", json: bool = False) -> Any:
    """Show the key that a new machine presents, and pin it in its host.toml."""
    return workstation("adopt").adopt(host, fingerprint)


@command
def clean(c: Context, host: str = "", yes: str = "", json: bool = False) -> Any:
    """Remove what an interrupted run left in memory: here, and with --host on that server."""
    return workstation("deploy.clean").clean(alone(host) if host else None, yes)


@task(auto_shortflags=False, help={"expression": HELP["expression"], "all": HELP["all"]})
def check(c: Context, expression: str = "", all: bool = False) -> None:
    """Run the project's own tests."""
    only = [*(["-k", expression] if expression else []), *(["--all"] if all else [])]
    # In the order of conftest.py: those with VMs, which take their time, come first.
    order = ["--dist", "loadfile", "--no-loadscope-reorder"]
    options = ["-n", "2", *order, "--durations", "10"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *only])


ns = Collection.from_module(sys.modules[__name__])
ns.add_collection(secret_tasks.collection)
