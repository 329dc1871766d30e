"""A laboratory for quick VM tests: the base image's kernel and initramfs with disks of one's own.

    with lab.opened() as room:
        disk = room.drive("system", serial="S")
        guest = room.boot(room.parts(IMGBUILD), [disk])
        guest.await_ssh()                # the initramfs answers; it waits for the operator's word
        guest.sh("lsblk")
        guest.go()                       # past the point of no return
        guest.await_end()                # it has rebooted: QEMU ends
        room.start([disk])               # from the disk, as the firmware would

All files lie in memory; whatever still runs ends with the `with`. Mark such a test
`vm`, `root` and `real("run", "ssh")`.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pytest

from anemos.system import imgbuild
from anemos.workstation import images
from anemos.workstation.deploy import byhand, facts, payload, reach
from anemos.workstation.deploy.byhand import Parts
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.hosts import VmSettings
from anemos.workstation.qemu import Drive, Network
from anemos.workstation.ssh import Endpoint, connect
from anemos.workstation.vm import vm
from tests.sshd import make_key

MIB = 2**20
DEPLOYMENT = "20260101T000000Z-1ab0de"


@dataclass
class Guest:
    """A running machine."""

    process: subprocess.Popen[bytes]
    console: Path
    endpoint: Endpoint

    def serial(self) -> str:
        """What the serial console has shown so far."""
        if not self.console.exists():  # QEMU has only just begun
            return ""
        return self.console.read_text(errors="replace").replace("\r", "")

    def await_line(self, text: str, timeout: float = 240) -> None:
        """Wait until the serial console has shown TEXT."""
        end = time.monotonic() + timeout
        while text not in self.serial():
            assert self.process.poll() is None, f"ended without {text!r}:\n{self.serial()[-4000:]}"
            assert time.monotonic() < end, f"no {text!r}:\n{self.serial()[-4000:]}"
            time.sleep(0.2)

    def await_ssh(self, *, initramfs: bool = True, timeout: float = 240) -> Identity:
        """Wait until the initramfs, or else the installed system, answers."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(*reach.GONE), connect(self.endpoint) as remote:
                seen = facts.identify(remote)
                if seen.in_initramfs == initramfs:
                    return seen
            time.sleep(0.5)
        raise AssertionError(f"no answer:\n{self.serial()[-4000:]}")

    def sh(self, script: str, timeout: float = 60) -> str:
        """Run a script of the shell as root over there; its standard output."""
        with connect(self.endpoint) as remote:
            return remote.sh(["sh", "-c", script], timeout=timeout)

    def go(self) -> None:
        """The operator's word: the system disks may be erased."""
        self.sh("touch /run/anemos/go")

    def cut(self) -> None:
        """A power cut: what the guest had not flushed is lost, as far as cache=unsafe can tell."""
        self.process.kill()
        self.process.wait()

    def await_end(self, timeout: float = 240) -> None:
        """Wait until the machine is off, or has rebooted out of the initramfs."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs:\n{self.serial()[-4000:]}") from None


@dataclass
class Room:
    """Files, keys and guests of one test or test module."""

    directory: Path
    guests: list[Guest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host_key = make_key(self.directory / "ssh_host_ed25519_key")
        make_key(self.directory / "operator")

    def drive(self, name: str, size: int = 1024 * MIB, **match: str) -> Drive:
        """A blank disk of SIZE bytes, a sparse file. MATCH: serial=..., wwn=... as in a layout."""
        file = self.directory / f"{name}.img"
        file.touch()
        os.truncate(file, size)
        return Drive(name, file, match)

    def payload(
        self,
        text: str,
        files: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        values: Mapping[str, str] | None = None,
    ) -> Path:
        """The payload of a host `mx` whose IMGBUILD is TEXT, with input files and secrets."""
        top = Path(tempfile.mkdtemp(dir=self.directory))
        tree = {"mx/IMGBUILD": text}
        tree |= {f"mx/files/{path}": data for path, data in (files or {}).items()}
        tree |= {f"secrets/{path}": data for path, data in (secrets or {}).items()}
        (top / "secrets").mkdir()
        for path, data in tree.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_text(data)
        spec = imgbuild.load(top / "mx")
        payload.write(top / "payload", spec, DEPLOYMENT, values or {}, top / "secrets")
        return top / "payload"

    def parts(self, text: str, **options: Any) -> Parts:
        """What an initramfs for the IMGBUILD TEXT is made of. OPTIONS: other fields of Parts."""
        keys = {
            "ssh_host_ed25519_key": self.directory / "ssh_host_ed25519_key",
            "authorized_keys": self.directory / "operator.pub",
        }
        given = {"payload": self.payload(text)} if "payload" not in options else {}
        network = Network().capture()
        defaults = {"base": images.base(), "layer": None, "keys": keys, "network": network}
        return Parts(**{**defaults, **given, **options})

    def boot(self, parts: Parts, drives: Sequence[Drive], *words: str, memory: int = 1024) -> Guest:
        """Start the initramfs. WORDS: more of qemu(1)'s arguments, a watchdog, say."""
        top = Path(tempfile.mkdtemp(dir=self.directory))
        byhand.write(top, parts)
        return self.start(drives, *map(str, byhand.qemu_words(top)), *words, memory=memory)

    def start(
        self, drives: Sequence[Drive], *words: str, memory: int = 1024, port: int = 22
    ) -> Guest:
        """Start a machine from its first disk, unless WORDS say something else.

        PORT: of its sshd; any but 22 is the one on this machine, too.
        """
        top = Path(tempfile.mkdtemp(dir=self.directory))
        machine = vm.Vm("lab", top, VmSettings(memory=memory))
        here = vm.free_port() if port == 22 else port
        argv = vm.command(machine, drives, {port: here}, vm.accelerator())
        process = subprocess.Popen([*argv, *words], stdin=subprocess.DEVNULL)
        where = Endpoint("127.0.0.1", here, self.host_key, self.directory / "operator")
        self.guests.append(Guest(process, machine.console, where))
        return self.guests[-1]


def sha256(drive: Drive) -> str:
    """The SHA-256 of a disk's raw bytes."""
    with drive.file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@contextmanager
def opened() -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="anemos-lab-", dir="/dev/shm") as name:
        room = Room(Path(name))
        try:
            yield room
        finally:
            for guest in room.guests:
                guest.cut()


def first_in_check(faults: Mapping[str, object]) -> list[Any]:
    """The names of FAULTS for a test: the first in every check, the others with --all."""
    first, *others = faults
    return [first, *(pytest.param(name, marks=pytest.mark.all) for name in others)]
