"""The workflow, one task a step: `./inv TASK --host NAME`.

Every task may be run alone; `deploy` runs them all. With --json one JSON document goes to standard
output at every end. Exit statuses: docs/recovery.md. A task imports what it needs when it runs:
`inv --list` stays quick.
"""

import sys
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context

from anemos.log import die
from anemos.workstation import Result
from anemos.workstation.cli import secret_tasks
from anemos.workstation.cli.command import command

if TYPE_CHECKING:
    from anemos.workstation.hosts import Host


def load(host: str, adopt: bool = False, build_on: str = "", server: bool = True) -> "Host":
    from anemos.workstation import hosts
    from anemos.workstation.vm import vm

    found = hosts.load(host, adopt=adopt, build_on=build_on, server=server)
    return vm.at_home(found) if server else found


def alone(host: str, **options: Any) -> "Host":
    """The same, for tasks of which only one may work for a host."""
    from anemos.workstation import lock

    found = load(host, **options)
    lock.take(found.name)
    return found


@command
def plan(
    c: Context,
    host: str = "",
    whole: bool = False,
    adopt: bool = False,
    build_on: str = "",
    json: bool = False,
) -> Result:
    """Tell what deploying HOST would do, and everything that stands in its way."""
    from anemos.workstation.deploy import phases

    return phases.make_plan(load(host, adopt, build_on), whole)


@command
def reveal_secrets(c: Context, host: str = "", json: bool = False) -> Result:
    """Decrypt the secrets of HOST, into memory only."""
    from anemos.workstation.deploy import phases

    return phases.reveal(alone(host))


@command
def pack(
    c: Context, host: str = "", deployment: str = "", build_on: str = "", json: bool = False
) -> Result:
    """Make the payload of HOST; base image and package layer, unless they are cached."""
    from anemos.workstation.deploy import phases

    return phases.pack(alone(host, build_on=build_on), deployment)


@command
def upload(c: Context, host: str = "", adopt: bool = False, json: bool = False) -> Result:
    """Send the payload, and what else the server lacks, into its memory."""
    from anemos.workstation.deploy import chain

    return chain.phase(alone(host, adopt=adopt), "upload")


@command
def fill(
    c: Context,
    host: str = "",
    yes: str = "",
    adopt: bool = False,
    build_on: str = "",
    json: bool = False,
) -> Result:
    """OVERWRITE the slot of HOST that does not run with what was packed, while the other serves."""
    from anemos.workstation.deploy import chain

    return chain.fill(alone(host, adopt=adopt, build_on=build_on), yes)


@command
def build_initramfs(
    c: Context, host: str = "", adopt: bool = False, build_on: str = "", json: bool = False
) -> Result:
    """Put the initramfs together on the server."""
    from anemos.workstation.deploy import chain

    return chain.phase(alone(host, adopt=adopt, build_on=build_on), "build-initramfs")


@command
def kexec(
    c: Context, host: str = "", yes: str = "", hold: bool = False, json: bool = False
) -> Result:
    """Jump into the initramfs, which ERASES the system disks of HOST; or into the filled slot."""
    from anemos.workstation.deploy import chain

    return chain.kexec(alone(host), yes, hold)


@command
def watch(c: Context, host: str = "", json: bool = False) -> Result:
    """Follow the installation of HOST to its end."""
    from anemos.workstation.deploy import chain, watch

    return chain.alone(load(host), "watch", watch.watch)


@command
def verify(c: Context, host: str = "", tests: bool = False, json: bool = False) -> Result:
    """Prove that HOST runs what was deployed."""
    from anemos.workstation.deploy import chain, verify

    return chain.alone(load(host), "verify", lambda each: verify.verify(each, tests))


@command
def commit(c: Context, host: str = "", json: bool = False) -> Result:
    """Give the system of HOST on trial the word: its slot is the default from now on."""
    from anemos.workstation.deploy import default

    return default.commit(alone(host))


@command
def deploy(
    c: Context,
    host: str = "",
    yes: str = "",
    plan: str = "",
    whole: bool = False,
    hold: bool = False,
    adopt: bool = False,
    build_on: str = "",
    json: bool = False,
) -> Result:
    """Replace the running system of HOST by what hosts/HOST describes: all phases."""
    from anemos.workstation.deploy import chain

    found = alone(host, adopt=adopt, build_on=build_on)
    return chain.deploy(found, yes, hold, plan, whole)


@command
def status(
    c: Context,
    host: str = "",
    exit_status: bool = False,
    drift: bool = False,
    json: bool = False,
) -> Result:
    """Tell what runs on HOST now, and how far it is; or what runs on all servers."""
    from anemos.workstation.deploy import fleet, status

    if host and not (exit_status or drift):
        return status.status(load(host))
    return fleet.show(load, host, exit_status, drift)


@command
def report(c: Context, host: str = "", open: bool = False, json: bool = False) -> Result:
    """Print where the report of HOST's last deployment is."""
    from anemos.workstation.deploy import reports

    result = reports.report(load(host), open)
    if not json:
        print(result["report"])
    return result


@command
def support(c: Context, host: str = "", json: bool = False) -> Result:
    """Write one file about HOST for a bug report, without secrets."""
    from anemos.workstation.deploy import support

    result = support.support(load, host)
    if not json:
        print(result["support"])
    return result


@command
def history(c: Context, host: str = "", json: bool = False) -> Result:
    """Tell how the deployments of HOST ended, those that failed, too."""
    from anemos.workstation import hosts
    from anemos.workstation.deploy import history

    return history.show(hosts.find(host).name)


@command
def inventory(c: Context, list: bool = False, host: str = "", json: bool = True) -> Result:
    """Print the servers for Ansible, in groups by the tags of host.toml."""
    from anemos.workstation import hosts
    from anemos.workstation.deploy import inventory

    if list == bool(host):
        die("whom does Ansible ask for? --list, or --host NAME")
    return inventory.listed() if list else inventory.variables(hosts.load(host))


@command
def diff(c: Context, host: str = "", json: bool = False) -> Result:
    """Tell what a deployment would change, and what somebody has changed on HOST since the last."""
    from anemos.workstation.deploy import drift

    return drift.diff(load(host))


@command
def rescue(c: Context, host: str = "", json: bool = False) -> Result:
    """Open a shell on HOST, in the initramfs too."""
    from anemos.workstation.deploy import recovery

    return recovery.rescue(load(host))


@command
def resume(
    c: Context, host: str = "", repack: bool = False, step: str = "", json: bool = False
) -> Result:
    """Go on with an installation that is held, or that failed after the point of no return."""
    from anemos.workstation.deploy import recovery

    return recovery.resume(alone(host), repack, step)


@command
def abort(c: Context, host: str = "", json: bool = False) -> Result:
    """Before the point of no return: back to the old system."""
    from anemos.workstation.deploy import recovery

    return recovery.abort(load(host))


@command
def rollback(c: Context, host: str = "", yes: str = "", json: bool = False) -> Result:
    """Reboot HOST into its other slot, for good."""
    from anemos.workstation.deploy import default

    return default.rollback(alone(host), yes)


@command
def build(
    c: Context,
    host: str = "",
    format: str = "",
    output: str = "",
    check: bool = False,
    json: bool = False,
) -> Result:
    """Build the image of HOST as files, with throw-away secrets."""
    from anemos.workstation.vm import build

    return build.build(host, format, output, check)


@command
def demo(
    c: Context,
    host: str = "",
    arch: str = "",
    fresh: bool = False,
    start: bool = False,
    stop: bool = False,
    json: bool = False,
) -> Result:
    """Deploy HOST to a stock server in a local VM, and prove it."""
    from anemos.workstation.vm import demo

    host = demo.name(host, arch)
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
) -> Result:
    """Install HOST, or each one, in a local VM, with throw-away secrets, and prove it."""
    from anemos.workstation.vm import rehearsal

    if stop:
        return rehearsal.stop(load(host, server=False))
    options = rehearsal.Options(keep, reuse, redeploy)
    return (
        rehearsal.test(load(host, server=False), options) if host else rehearsal.test_all(options)
    )


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
) -> Result:
    """Write kernel, initrd and command line that install HOST on a machine started by hand."""
    from anemos.workstation.deploy import export

    options = export.Options(output, plaintext_on_disk, mac, address, gateway, dns)
    return export.export(alone(host), options)


@command
def go(c: Context, host: str = "", yes: str = "", json: bool = False) -> Result:
    """Let the initramfs that was started by hand ERASE the system disks and install HOST."""
    from anemos.workstation.deploy import chain

    return chain.go(alone(host), yes)


@command
def new(
    c: Context,
    host: str = "",
    repo: str = "",
    address: str = "",
    gateway: str = "",
    dns: str = "",
    from_: str = "",
    identity: str = "",
    fingerprint: str = "",
    json: bool = False,
) -> Result:
    """Begin hosts/HOST, perhaps from a server that runs; or a repository of your own."""
    from anemos.workstation import skeleton

    if bool(host) == bool(repo):
        die("what is to begin? --host NAME, or --repo DIR")
    if from_:
        if repo or address or gateway or dns:
            die("--from goes with --host alone: the server tells its network")
        from anemos.workstation.skeleton import draft

        return draft.begin(host, from_, identity, fingerprint)
    network = skeleton.Network(address, gateway, dns)
    return skeleton.repository(repo) if repo else skeleton.host(host, network)


@command
def adopt(c: Context, host: str = "", fingerprint: str = "", json: bool = False) -> Result:
    """Show the key that a new machine presents, and pin it in its host.toml."""
    from anemos.workstation import adopt

    return adopt.adopt(host, fingerprint)


@command
def clean(c: Context, host: str = "", yes: str = "", json: bool = False) -> Result:
    """Remove what an interrupted run left in memory: here, and with --host on that server."""
    from anemos.workstation.deploy import clean

    return clean.clean(alone(host) if host else None, yes)


ns = Collection.from_module(sys.modules[__name__])
ns.add_collection(secret_tasks.collection)
