"""The stock system that a local VM starts with."""

from tempfile import TemporaryDirectory

from anemos import log
from anemos.workstation.hosts import Host
from anemos.workstation.vm import build, vm


def create(host: Host) -> None:
    """Build HOST's stock system and make the disks of its VM from it, when it has none."""
    machine = vm.of(host)
    if machine.directory.is_dir():
        return
    stock = machine.settings.stock
    with log.step(f"Building the stock server hosts/{stock}"), TemporaryDirectory() as out:
        files, given = build.image(stock, host.name, "stock", [f"--output={out}"])
        vm.install(machine, files, given["host_key"])
