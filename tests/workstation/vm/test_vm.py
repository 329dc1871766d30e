"""Local machines: how QEMU is called, and which process is theirs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from anemos.architecture import AMD64, ARM64, Architecture
from anemos.log import BAD_INPUT, Failure
from anemos.system import imgbuild
from anemos.workstation import places
from anemos.workstation.hosts import Host, VmSettings
from anemos.workstation.qemu import Drive
from anemos.workstation.vm import vm
from anemos.workstation.vm.vm import Vm

SETTINGS = VmSettings("stock", memory=768, forward=[443])
# A path of this process's own.
MACHINE = Vm("demo", Path(tempfile.gettempdir(), f"anemos-vm-{os.getpid()}"), SETTINGS)


def options(argv: list[str], name: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == name]


def command(accel: str = "tcg") -> list[str]:
    layout = (
        "disk system serial=demo-system\npart root fs=ext4 mount=/\ndisk data serial=demo-data\n"
    )
    words = {"target": "debian", "format": "disk", "layout": layout}
    disks = imgbuild.interpret(Path("hosts/stock"), words).layout.disks
    drives = [Drive(d.name, MACHINE.directory / f"stock-{d.name}.img", d.match) for d in disks]
    return vm.command(MACHINE, drives, {22: 2222, 443: 8443}, accel)


def test_disks_have_the_serials_of_the_layout() -> None:
    argv = command()

    assert options(argv, "-drive") == [
        f"file={MACHINE.directory}/stock-{name}.img,format=raw,if=none,id={name},"
        "cache=unsafe,discard=unmap"
        for name in ("system", "data")
    ]
    assert [each for each in options(argv, "-device") if "blk" in each] == [
        "virtio-blk-pci,drive=system,serial=demo-system",
        "virtio-blk-pci,drive=data,serial=demo-data",
    ]


def test_network_is_for_this_machine_alone() -> None:
    assert options(command(), "-netdev") == [
        "user,id=net,net=10.0.2.0/24,host=10.0.2.2,dns=10.0.2.3,dhcpstart=10.0.2.15,"
        "hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22,hostfwd=udp:127.0.0.1:2222-10.0.2.15:22,"
        "hostfwd=tcp:127.0.0.1:8443-10.0.2.15:443,hostfwd=udp:127.0.0.1:8443-10.0.2.15:443"
    ]


@pytest.mark.parametrize(("accel", "expected"), [("kvm", "kvm"), ("tcg", vm.EMULATION)])
def test_machine(accel: str, expected: str) -> None:
    argv = command(accel)

    assert argv[0] == "qemu-system-x86_64"
    assert options(argv, "-accel") == [expected]
    assert options(argv, "-m") == ["768"]
    assert options(argv, "-serial") == [f"file:{MACHINE.console}"]
    assert "-no-reboot" not in argv


def test_uefi() -> None:
    """The firmware's code is everybody's, what it remembers is the machine's own."""
    machine = replace(MACHINE, settings=VmSettings("stock", firmware="uefi"))
    code, variables, *_ = options(vm.command(machine, (), {}, "tcg"), "-drive")

    ovmf = vm.FIRMWARE / "OVMF"
    assert code == f"if=pflash,format=raw,readonly=on,file={ovmf}/OVMF_CODE_4M.fd"
    assert variables == f"if=pflash,format=raw,file={machine.directory}/variables.fd"
    assert not any("pflash" in each for each in options(command(), "-drive"))


def test_arm64() -> None:
    machine = replace(MACHINE, settings=VmSettings("stock", firmware="uefi"))
    argv = vm.command(machine, (), {}, vm.accelerator(ARM64), ARM64)

    assert (argv[0], *options(argv, "-machine")) == ("qemu-system-aarch64", "virt")
    assert options(argv, "-accel") == [vm.EMULATION]
    assert f"file={vm.FIRMWARE}/AAVMF/AAVMF_CODE.fd" in options(argv, "-drive")[0]


@pytest.mark.parametrize(
    ("arch", "firmware", "message"),
    [
        (ARM64, "secure-boot", "no secure-boot for arch=arm64"),
        (ARM64, "bios", "apt-get install qemu-system-arm qemu-efi-aarch64"),
        (AMD64, "uefi", "apt-get install qemu-system-x86 ovmf"),
    ],
)
def test_what_this_machine_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arch: Architecture,
    firmware: Any,
    message: str,
) -> None:
    """It is told before anything is made."""
    monkeypatch.setattr(vm, "FIRMWARE", tmp_path)
    monkeypatch.setattr(vm, "which", lambda name: name if "x86" in name else None)
    with pytest.raises(Failure) as caught:
        vm.require(replace(MACHINE, settings=VmSettings("stock", firmware=firmware)), arch)
    assert message in str(caught.value)


def test_no_vm() -> None:
    with pytest.raises(Failure, match=r"hosts/mx/host.toml has no stock in \[vm\]") as caught:
        vm.of(Host("mx", Path("hosts/mx"), "192.0.2.1", "key"))

    assert caught.value.status == BAD_INPUT


# Which process


@pytest.fixture
def directory() -> Iterator[Path]:
    MACHINE.directory.mkdir()
    yield MACHINE.directory
    shutil.rmtree(MACHINE.directory)


def test_nothing_runs(directory: Path) -> None:
    assert (MACHINE.pid, MACHINE.port(22)) == (0, 0)
    vm.stop(MACHINE)


@pytest.mark.parametrize("words", [[], ["-pidfile", "{}/pid"]])
def test_only_our_process_is_ended(directory: Path, words: list[str]) -> None:
    """The number in an old file may belong to somebody else by now."""
    ours = bool(words)
    argv = [sys.executable, "-c", "input()", *(word.format(directory) for word in words)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        (directory / "pid").write_text(f"{process.pid}\n")
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(argv[0].encode()):
            pass

        assert MACHINE.pid == (process.pid if ours else 0)
        vm.stop(MACHINE)

        assert not (directory / "pid").exists()
        process.communicate(b"\n")
    assert process.returncode == (-signal.SIGTERM if ours else 0)


def test_process_that_is_gone(directory: Path) -> None:
    (directory / "pid").write_text("4194304\n")  # more than any pid

    assert MACHINE.pid == 0


def test_remove(directory: Path) -> None:
    (directory / "stock-system.img").touch()

    vm.remove(MACHINE)

    assert not directory.exists()
    vm.remove(MACHINE)
    directory.mkdir()


def test_start_without_disks(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="VM demo has no disks") as caught:
        vm.start(MACHINE, [])

    assert caught.value.hint == "./inv demo makes them"


@pytest.mark.real("run")
def test_install(tmp_path: Path) -> None:
    """An interrupted copy leaves no machine: its directory appears at once, whole."""
    image = tmp_path / "stock-system.img"
    with image.open("wb") as stream:
        stream.write(b"boot")
        os.truncate(stream.fileno(), 2**30)
    stale = MACHINE.directory.with_suffix(".new")
    stale.mkdir()
    (stale / "half").touch()

    vm.install(MACHINE, [image], "ssh-ed25519 AAAA")

    assert MACHINE.host_key == "ssh-ed25519 AAAA"
    with pytest.raises(Failure, match="there is no VM other yet"):
        _ = replace(MACHINE, name="other", directory=MACHINE.directory / "other").host_key
    (disk,) = MACHINE.directory.glob("*.img")
    assert (disk.name, disk.stat().st_size) == ("stock-system.img", 2**30)
    assert disk.stat().st_blocks * 512 < 2**20
    assert not stale.exists()
    shutil.rmtree(MACHINE.directory)


# KVM or not


def test_accelerator_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "kvm_works", lambda: True)
    assert vm.accelerator() == "kvm"
    monkeypatch.setattr(vm, "kvm_works", lambda: pytest.fail("asked again"))

    assert vm.accelerator() == "kvm"
    assert (places.cache() / "accelerator").read_text() == "kvm"


def test_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert vm.accelerator() == "tcg"


def test_free_port() -> None:
    assert 1024 < vm.free_port() < 65536
