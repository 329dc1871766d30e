"""The demonstration: a host that is a local VM and no more."""

import shlex

from anemos import log
from anemos.architecture import AMD64, ARCHITECTURES
from anemos.log import die
from anemos.workstation import Result
from anemos.workstation.deploy import reach
from anemos.workstation.deploy.chain import deploy
from anemos.workstation.hosts import Host
from anemos.workstation.vm import stock, vm


def name(host: str, arch: str) -> str:
    """HOST, or the one that shows a deployment on ARCH. Raises Failure."""
    if host and arch:
        die("--host or --arch, not both: the IMGBUILD of a host says its `arch`")
    if host:
        return host
    if arch not in ("", *ARCHITECTURES):
        die(f"--arch {arch}: not one of {', '.join(ARCHITECTURES)}")
    return "demo" if arch in ("", AMD64.name) else f"demo-{arch}"


def demo(host: Host, fresh: bool = False) -> Result:
    """Start the VM of HOST, and deploy HOST to it."""
    start(host, fresh)
    host = vm.at_home(host)
    result = deploy(host)
    goodbye(host, vm.of(host), f"./inv demo --host {host.name} --stop")
    return result


def start(host: Host, fresh: bool = False) -> Result:
    """Start the VM of HOST, with a stock system when it is new.

    FRESH: what is on the VM's disks is made anew.
    """
    machine, arch = vm.of(host), host.imgbuild().arch
    vm.require(machine, arch)
    if fresh:
        vm.remove(machine)
    stock.create(host)
    vm.start(machine, machine.drives, arch=arch)
    where = reach.endpoint(vm.at_home(host))
    reach.await_boot(host, where, lambda seen: True, host.timeouts.up, "server")
    return {"host": host.name}


def stop(host: Host) -> Result:
    """End the VM of HOST; its disks stay."""
    vm.stop(vm.of(host))
    return {"host": host.name}


def goodbye(host: Host, machine: vm.Vm, end: str) -> None:
    """How to look at the MACHINE that HOST is, and how to END it."""
    login = reach.login(reach.endpoint(host), machine.directory / "known_hosts")
    log.info(f"Log in:   {shlex.join(login)}")
    for guest in machine.settings.forward:
        log.info(f"Port {guest}: 127.0.0.1:{machine.port(guest)}")
    log.info(f"End it:   {end}")
