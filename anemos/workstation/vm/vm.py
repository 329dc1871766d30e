"""Local, throw-away machines under QEMU."""

import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which

from anemos import architecture, log
from anemos.architecture import AMD64, Architecture
from anemos.image import disk
from anemos.log import FAILED, Failure, die
from anemos.run import run
from anemos.system import imgbuild
from anemos.workstation import images, places, qemu
from anemos.workstation.hosts import Host, VmSettings
from anemos.workstation.qemu import Drive
from anemos.workstation.secrets import throwaway

PROBE_S = 20.0  # a guest that boots says so within 2 s under KVM
END_S = 10.0
# UEFI firmware and its variables, fresh ones (Debian: ovmf, qemu-efi-aarch64). With Secure Boot,
# the firmware alone may write to them: in system management mode (edk2, OvmfPkg/README).
FIRMWARE = Path("/usr/share")
FLASH = {
    ("amd64", "uefi"): ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
    ("amd64", "secure-boot"): ("OVMF/OVMF_CODE_4M.secboot.fd", "OVMF/OVMF_VARS_4M.ms.fd"),
    ("arm64", "uefi"): ("AAVMF/AAVMF_CODE.fd", "AAVMF/AAVMF_VARS.fd"),
}
PROTECTED = ["-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"]
# tb-size, in MiB, bounds how much translated code QEMU keeps (qemu(1)). Its default is up to 1024:
# QEMU 7.2 then walked through so much of it, for each byte that a kernel started by kexec unpacked
# over such pages, that the jump took more than ten minutes.
EMULATION = "tcg,thread=multi,tb-size=128"
# An emulated PC is without SSSE3: with it, Rspamd would compile patterns for Hyperscan at its
# first start, seconds on a real processor, ten minutes here. It is without cmpxchg16b: Linux
# allocates memory by it, and QEMU 7.2 seems to leave a pointer in the flags now and then. Such a
# kernel ends in a double fault. neoverse-n1 is what many rent; newer ones sign pointers, which is
# slow to emulate.
CPU = {"amd64": "qemu64,rdrand=on,cx16=off", "arm64": "neoverse-n1"}
MACHINE = {"amd64": "q35", "arm64": "virt"}
# What each needs besides what all need (Debian's packages).
PACKAGES = {"amd64": "qemu-system-x86 ovmf", "arm64": "qemu-system-arm qemu-efi-aarch64"}


@dataclass(frozen=True)
class Vm:
    """A machine: everything lies in one directory."""

    name: str
    directory: Path
    settings: VmSettings

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def variables(self) -> Path | None:
        """What its UEFI firmware remembers."""
        return self.directory / "variables.fd" if self.settings.firmware != "bios" else None

    @property
    def host_key(self) -> str:
        """The pinned public key: the stock system's."""
        file = self.directory / "host_key"
        if not file.exists():
            die(f"there is no VM {self.name} yet", hint=f"./inv demo --host {self.name} makes it")
        return file.read_text()

    @property
    def pid(self) -> int:
        """The process that runs it, 0 when none does (proc_pid_cmdline(5))."""
        with suppress(OSError):  # either file may go while it is looked at
            pid = int((self.directory / "pid").read_text())
            if os.fsencode(self.directory) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0

    @property
    def drives(self) -> list[Drive]:
        """The disks of the stock system that it was made from."""
        spec = imgbuild.load(places.HOSTS / self.settings.stock)
        files = disk.names(spec)
        disks = spec.layout.disks
        return [Drive(d.name, self.directory / files[d.name], d.match) for d in disks]

    def port(self, guest: int) -> int:
        """The port on this machine that leads to port GUEST of the VM."""
        file = self.directory / f"port-{guest}"
        return int(file.read_text()) if file.exists() else 0

    @property
    def ports(self) -> dict[str, int]:
        """Those of the VM that are forwarded, and where they are on this machine."""
        return {str(guest): self.port(guest) for guest in (22, *self.settings.forward)}


def of(host: Host) -> Vm:
    if not host.local:
        die(f"hosts/{host.name}/host.toml has no stock in [vm]: {host.name} is a real machine")
    return Vm(host.name, places.state(host.name) / "vm", host.vm)


def at_home(host: Host) -> Host:
    """HOST; while it runs as a local VM, with the address, host key and login of that."""
    if not host.local or not (machine := of(host)).pid:
        return host
    key = os.fspath(places.state(host.name) / throwaway.OPERATOR_KEY)
    there = replace(host, address="127.0.0.1", forwarded=machine.ports)
    return replace(there, host_key=machine.host_key, identity=key)


def start(
    vm: Vm, drives: Sequence[Drive], words: Sequence[str | Path] = (), arch: Architecture = AMD64
) -> None:
    """Start VM with its disks DRIVES; WORDS: more of qemu(1)'s arguments."""
    if vm.pid:
        log.info(f"VM {vm.name} is running")
        return
    if not vm.directory.is_dir():
        die(f"VM {vm.name} has no disks", hint="./inv demo makes them")
    forward = {guest: free_port() for guest in (22, *vm.settings.forward)}
    for guest, port in forward.items():
        (vm.directory / f"port-{guest}").write_text(str(port))
    vm.console.unlink(missing_ok=True)
    if vm.variables and not vm.variables.exists():
        shutil.copy(FIRMWARE / FLASH[arch.name, vm.settings.firmware][1], vm.variables)
    accel = accelerator(arch)
    daemon = ["-daemonize", "-pidfile", str(vm.directory / "pid")]
    run([*command(vm, drives, forward, accel, arch), *daemon, *words])
    log.info(f"VM {vm.name} runs ({accel}); its console: {vm.console}")


def require(vm: Vm, arch: Architecture) -> None:
    """Raises Failure where this machine cannot be VM."""
    firmware = FLASH.get((arch.name, vm.settings.firmware))
    if vm.settings.firmware != "bios" and not firmware:
        die(f"VM {vm.name}: no {vm.settings.firmware} for arch={arch.name}")
    files = [FIRMWARE / each for each in firmware or ()]
    if not which(f"qemu-system-{arch.machine}") or not all(each.exists() for each in files):
        hint = f"apt-get install {PACKAGES[arch.name]}"
        die(f"VM {vm.name}: no QEMU for arch={arch.name}", hint=hint)


def stop(vm: Vm) -> None:
    """End VM as a power cut does."""
    if pid := vm.pid:
        os.kill(pid, 15)
        await_exit(vm, END_S)
        log.info(f"VM {vm.name} is stopped")
    (vm.directory / "pid").unlink(missing_ok=True)


def remove(vm: Vm) -> None:
    """End VM and remove its disks."""
    stop(vm)
    shutil.rmtree(vm.directory, ignore_errors=True)


def await_exit(vm: Vm, timeout: float) -> None:
    """Wait until VM has ended by itself. Raises Failure after TIMEOUT seconds."""
    end = time.monotonic() + timeout
    while vm.pid:
        if time.monotonic() > end:
            die(f"VM {vm.name} still runs after {timeout:.0f} s", status=FAILED)
        time.sleep(0.1)


def install(vm: Vm, files: list[Path], host_key: str) -> None:
    """Make VM's disks from the image FILES of a stock system, which has the HOST_KEY."""
    fresh = vm.directory.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for file in files:
        run(["cp", "--sparse=always", file, fresh / file.name])
    (fresh / "host_key").write_text(host_key)
    fresh.rename(vm.directory)


def command(
    vm: Vm,
    drives: Sequence[Drive],
    forward: dict[int, int],
    accel: str,
    arch: Architecture = AMD64,
) -> list[str]:
    """qemu(1)'s argv. FORWARD: the guest's port -> this machine's. Pure. Raises Failure."""
    words = [*machine(accel, arch), "-m", str(vm.settings.memory), "-smp", "2"]
    if vm.variables:
        words += flash(vm.variables, vm.settings.firmware, arch)
    try:
        words += qemu.drives(drives)
    except ValueError as error:
        die(str(error))
    words += [*vm.settings.network.words(forward), "-device", "virtio-rng-pci"]
    return [*words, "-serial", f"file:{vm.console}"]


def machine(accel: str, arch: Architecture = AMD64) -> list[str]:
    """A PC with a BIOS, or an ARM server that starts a given kernel; unless `flash` adds more."""
    how, cpu = ("kvm", "max") if accel == "kvm" else (EMULATION, CPU[arch.name])
    # No `-nographic`: it would share the terminal. Reset is a real one, for kexec and reboot.
    words = [f"qemu-system-{arch.machine}", "-nodefaults", "-display", "none"]
    return [*words, "-machine", MACHINE[arch.name], "-accel", how, "-cpu", cpu]


def flash(variables: Path, firmware: str, arch: Architecture = AMD64) -> list[str]:
    """FIRMWARE of FLASH, which keeps its VARIABLES in this file."""
    code = FIRMWARE / FLASH[arch.name, firmware][0]
    both = (f"readonly=on,file={code}", f"file={variables}")
    words = [word for each in both for word in ("-drive", f"if=pflash,format=raw,{each}")]
    return [*words, *(PROTECTED if firmware == "secure-boot" else [])]


def accelerator(arch: Architecture = AMD64) -> str:
    """ "kvm" where a guest really boots under it, else "tcg". The answer is remembered.

    /dev/kvm may exist, open, and still hang every guest: only a boot tells.
    """
    if arch != architecture.own():
        return "tcg"
    memory = places.cache() / "accelerator"
    if not memory.exists():
        memory.write_text("kvm" if kvm_works() else "tcg")
        log.info(f"QEMU: {memory.read_text()} (remembered in {memory})")
    return memory.read_text()


def kvm_works() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    own = architecture.own()
    with suppress(Failure), images.boot_files(images.base(own)) as (kernel, initrd):
        words = f"console={own.serial} anemos.probe"
        said = run(
            [*machine("kvm", own), "-m", "512", "-no-reboot", "-serial", "stdio"]
            + ["-kernel", kernel, "-initrd", initrd, "-append", words],
            timeout=PROBE_S,
        )
        return "anemos: the machine works" in said
    return False


def free_port() -> int:
    """One that is free over TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with suppress(OSError):  # something has that number over UDP
                udp.bind(tcp.getsockname())
                return int(tcp.getsockname()[1])
