"""Local, throw-away machines under QEMU."""

import os
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anemos import log
from anemos.image import imgbuild
from anemos.image.layout import Disk
from anemos.log import Failure, die
from anemos.run import run
from anemos.workstation import images, places
from anemos.workstation.host import Host, VmSettings

PROBE_S = 20.0  # a guest that boots says so within 2 s under KVM
MAC = "52:54:00:a2:e0:05"
ADDRESS = "10.0.2.15"  # QEMU's user network: gateway 10.0.2.2, DNS 10.0.2.3


@dataclass(frozen=True)
class Vm:
    """The machine of a host: everything lies in one directory."""

    name: str
    settings: VmSettings

    @property
    def directory(self) -> Path:
        return places.state(self.name) / "vm"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def host_key(self) -> str:
        """The pinned public key: the stock system's."""
        return (self.directory / "host_key").read_text()

    @property
    def pid(self) -> int:
        """The process that runs it, 0 when none does (proc_pid_cmdline(5))."""
        file = self.directory / "pid"
        if not file.exists():
            return 0
        pid = int(file.read_text())
        cmdline = Path(f"/proc/{pid}/cmdline")
        ours = cmdline.exists() and os.fsencode(self.directory) in cmdline.read_bytes()
        return pid if ours else 0

    def port(self, guest: int) -> int:
        """The port on this machine that leads to port GUEST of the VM."""
        file = self.directory / f"port-{guest}"
        return int(file.read_text()) if file.exists() else 0


def of(host: Host) -> Vm:
    if host.vm is None:
        die(f"hosts/{host.name}/host.toml has no [vm]: {host.name} is a real machine")
    return Vm(host.name, host.vm)


def start(vm: Vm) -> None:
    """Start VM from its disks; they are made from the stock image when there are none."""
    if vm.pid:
        log.info(f"VM {vm.name} is running")
        return
    if not vm.directory.is_dir():
        die(f"VM {vm.name} has no disks", hint="./inv demo makes them")
    forward = {guest: free_port() for guest in (22, *vm.settings.forward)}
    for guest, port in forward.items():
        (vm.directory / f"port-{guest}").write_text(str(port))
    vm.console.unlink(missing_ok=True)
    disks = imgbuild.load(places.HOSTS / vm.settings.stock).layout.disks
    accel = accelerator()
    run(command(vm, disks, forward, accel))
    log.info(f"VM {vm.name} runs ({accel}); its console: {vm.console}")


def stop(vm: Vm) -> None:
    """End VM as a power cut does."""
    if pid := vm.pid:
        os.kill(pid, 15)
        log.info(f"VM {vm.name} is stopped")
    (vm.directory / "pid").unlink(missing_ok=True)


def install(vm: Vm, files: list[Path], host_key: str) -> None:
    """Make VM's disks from the image FILES of a stock system, which has the HOST_KEY."""
    fresh = vm.directory.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for file in files:
        run(["cp", "--sparse=always", file, fresh / file.name])
    (fresh / "host_key").write_text(host_key)
    fresh.rename(vm.directory)


def command(vm: Vm, disks: tuple[Disk, ...], forward: dict[int, int], accel: str) -> list[str]:
    """qemu(1)'s argv. Disks have the serials of the stock system's layout. Pure."""
    words = [*machine(accel), "-m", str(vm.settings.memory), "-smp", "2"]
    for disk in disks:
        file = vm.directory / f"{vm.settings.stock}-{disk.name}.img"
        words += [
            "-drive",
            f"file={file},format=raw,if=none,id={disk.name},cache=unsafe,discard=unmap",
        ]
        words += ["-device", f"virtio-blk-pci,drive={disk.name},serial={disk.match['serial']}"]
    ports = [f"hostfwd=tcp:127.0.0.1:{here}-{ADDRESS}:{guest}" for guest, here in forward.items()]
    words += ["-netdev", ",".join(["user", "id=net", *ports])]
    words += ["-device", f"virtio-net-pci,netdev=net,mac={MAC}", "-device", "virtio-rng-pci"]
    words += ["-serial", f"file:{vm.console}", "-daemonize", "-pidfile", str(vm.directory / "pid")]
    return words


def machine(accel: str) -> list[str]:
    acceleration = {"kvm": "kvm", "tcg": "tcg,thread=multi"}[accel]
    # No `-nographic`: it would share the terminal. Reset is a real one, for kexec and reboot.
    return ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35"] + [
        "-accel",
        acceleration,
        "-cpu",
        "max",
    ]


def accelerator() -> str:
    """ "kvm" where a guest really boots under it, else "tcg". The answer is remembered.

    /dev/kvm may exist, open, and still hang every guest: only a boot tells.
    """
    memory = places.cache() / "accelerator"
    if not memory.exists():
        memory.write_text("kvm" if kvm_works() else "tcg")
        log.info(f"QEMU: {memory.read_text()} (remembered in {memory})")
    return memory.read_text()


def kvm_works() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with suppress(Failure), images.boot_files() as (kernel, initrd):
        said = run(
            [*machine("kvm"), "-m", "512", "-no-reboot", "-serial", "stdio"]
            + ["-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 anemos.probe"],
            timeout=PROBE_S,
        )
        return "anemos: the machine works" in said
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
