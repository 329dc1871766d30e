"""`./inv test`: a host in a local VM, from blank disks to verified, with throw-away secrets.

The real secrets, the real GPG key and the real server are never touched. Payload and initramfs are
those of a deployment; the VM starts with the initramfs, and then from its disk.
"""

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anemos import log
from anemos.image.bootloader.places import disks_below
from anemos.image.layout import Disk, Layout
from anemos.workstation import (
    blank,
    initramfs,
    machine,
    phases,
    places,
    plan,
    reach,
    report,
    scratch,
    secrets,
    stock,
    vm,
    watch,
)
from anemos.workstation import verify as proof
from anemos.workstation.host import Host
from anemos.workstation.initramfs import Parts
from anemos.workstation.machine import Machine
from anemos.workstation.payload import AUTHORIZED
from anemos.workstation.qemu import Drive
from anemos.workstation.state import load_state, payload_file
from anemos.workstation.vm import Vm

EXIT_S = 120.0  # from the last event to the reboot
HOST_KEY = "ssh_host_ed25519_key"


@dataclass
class Trial:
    """HOST's test: its DOUBLE is a host of its own, with the same IMGBUILD, at home in MACHINE."""

    host: Host
    machine: Vm
    double: Host
    drives: list[Drive] = field(default_factory=list)
    keys: dict[str, bytes | Path] = field(default_factory=dict)
    seconds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return places.state(self.double.name)

    @property
    def memory(self) -> Path:
        return places.memory(self.double.name)

    @property
    def revealed(self) -> Path:
        return self.memory / "secrets"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        with log.step(f"{name} {self.host.name}"):
            yield
        self.seconds.append({"name": name, "seconds": round(time.monotonic() - start, 1)})

    def start(self, *words: str | Path) -> None:
        """Start the VM; its double answers at another port each time."""
        vm.start(self.machine, self.drives, words)
        self.double = replace(self.double, port=self.machine.port(self.host.port))


def prepare(host: Host) -> Trial:
    """Nothing is made yet, and what an earlier test kept is still there."""
    name = f"{host.name}@test"
    forward = [host.port, *host.vm.forward]
    local = Vm(name, places.state(name) / "vm", replace(host.vm, stock="", forward=forward))
    double = replace(host, name=name, vm=local.settings, address="127.0.0.1", identity="")
    return Trial(host, local, double)


def test(host: Host, keep: bool = False) -> dict[str, Any]:
    """Install HOST in a VM of its own and verify it; the report.

    Without KEEP the VM is gone afterwards. Raises Failure with the exit statuses of log.py.
    """
    phases.refuse(host, list(plan.bootable(host.imgbuild())))
    trial = prepare(host)
    discard(trial)
    with scratch.ending():
        try:
            result = install(trial)
        finally:
            phases.forget(trial.double)
            shutil.rmtree(trial.memory / "boot", ignore_errors=True)
            if keep:
                stay(trial)
            else:
                discard(trial)
    report.show(result, f"{host.name} was installed in a local VM and verified")
    return result


def install(trial: Trial) -> dict[str, Any]:
    with trial.step("secrets"):
        reveal(trial)
    with trial.step("pack"):
        phases.pack(trial.double)
    with trial.step("disks"):
        prints = make_disks(trial)
    with trial.step("initramfs"):
        boot(trial, prints)
    with trial.step("in RAM"):
        watch.watch(trial.double, lambda: bool(trial.machine.pid))
        if trial.host.finish == "reboot":  # kexec never leaves the machine
            vm.await_exit(trial.machine, EXIT_S)
            trial.start()
    with trial.step("verify"):
        result = proof.verify(trial.double)
    with trial.step("own tests"):
        count = machine.check(trial.host.directory, as_machine(trial), log.info)
        log.info(f"{count} files of tests" if count else "none beside the IMGBUILD")
    gone = ("downtime_s", "bytes_sent")  # there was no server
    result = {key: value for key, value in result.items() if key not in gone}
    return result | {"host": trial.host.name, "phases": trial.seconds}


def as_machine(trial: Trial) -> Machine:
    """The VM as the host's own tests are given it."""
    where = reach.endpoint(trial.double)
    ports = {str(guest): trial.machine.port(guest) for guest in trial.machine.settings.forward}
    return Machine(where.address, login(trial), ports)


def login(trial: Trial) -> list[str]:
    return reach.login(reach.endpoint(trial.double), trial.machine.directory / "known_hosts")


def reveal(trial: Trial) -> None:
    """Throw-away secrets, an operator's key, and host keys where there are none among them."""
    name = trial.host.directory.name
    secrets.reveal(stock.source(name, trial.double.name), name, trial.revealed)
    operator = stock.operator_key(trial.double.name)
    let_in(trial, operator.with_suffix(".pub").read_text())
    keys = initramfs.host_keys(trial.revealed)
    if not keys:
        stock.make_key(trial.home / HOST_KEY, "throw-away")
        keys = {each: trial.home / each for each in (HOST_KEY, f"{HOST_KEY}.pub")}
    public = initramfs.public_key(next(iter(keys.values())))
    trial.double = replace(trial.double, host_key=public, identity=os.fspath(operator))
    trial.keys = {**keys, "authorized_keys": operator.with_suffix(".pub")}


def let_in(trial: Trial, public: str) -> None:
    """Have the new system accept the operator's throw-away key PUBLIC, too.

    A template for authorized_keys is left alone: it has the value operator_key.
    """
    given = trial.host.directory / "files" / AUTHORIZED
    if given.with_name(f"{given.name}.makeimg.template").exists():
        return
    target = trial.revealed / "files" / AUTHORIZED
    before = next((each.read_text() for each in (target, given) if each.is_file()), "")
    target.unlink(missing_ok=True)
    scratch.write_private(trial.revealed, f"files/{AUTHORIZED}", f"{before}\n{public}".encode())


def make_disks(trial: Trial) -> list[dict[str, Any]]:
    """Blank disks for the layout, used ones for `keep`; the fingerprints of these."""
    spec = trial.host.imgbuild()
    directory = trial.machine.directory
    directory.mkdir(mode=0o700)
    made = [blank.disk(each, spec.keep, directory) for each in boot_first(spec.layout)]
    made += [blank.kept_disk(each, directory) for each in spec.keep if not each.disk]
    trial.drives = [drive for drive, _ in made]
    return [found for _, prints in made for found in prints]


def boot_first(layout: Layout) -> list[Disk]:
    """The disks, those that the new system starts from first, as the firmware wants them."""
    first = disks_below(layout, "/boot")
    return sorted(layout.disks, key=lambda disk: disk not in first)


def boot(trial: Trial, prints: list[dict[str, Any]]) -> None:
    """Start the initramfs, and give it the word to go on."""
    state = load_state(trial.double)
    parts = Parts(
        base=Path(state.base),
        layer=Path(state.layer) if state.layer else None,
        payload=payload_file(trial.double),
        keys=trial.keys,
        network=trial.machine.settings.network.capture(),
        kept=prints,
        port=trial.host.port,
    )
    directory = trial.memory / "boot"
    directory.mkdir(mode=0o700)
    initramfs.write(directory, parts)
    trial.start(*initramfs.qemu_words(directory))
    state.kept, state.stays = prints, True
    reach.go(trial.double, state)


def discard(trial: Trial) -> None:
    """Remove what a test has made."""
    vm.stop(trial.machine)
    for each in (trial.home, trial.memory):
        scratch.remove(each)


def stay(trial: Trial) -> None:
    if trial.machine.pid:
        log.info(f"Log in:   {shlex.join(login(trial))}")
        for guest in trial.host.vm.forward:
            log.info(f"Port {guest}: 127.0.0.1:{trial.machine.port(guest)}")
        log.info(f"End it:   ./inv test --host {trial.host.name} --stop")


def stop(host: Host) -> dict[str, Any]:
    """Remove the VM that a test of HOST kept."""
    discard(prepare(host))
    return {"host": host.name}
