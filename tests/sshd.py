"""A real OpenSSH server of one's own on the loopback device, without an sftp-server."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anemos.run import Argv, run
from anemos.workstation.ssh import Endpoint
from tests.waiting import until

SSHD = "/usr/sbin/sshd"
# As of OpenSSH 9.8, a session that a test kills would keep all others of this machine out.
KNOWN = b"persourcepenalties" in Path(SSHD).read_bytes()
PENALTIES = ["PerSourcePenalties no"] if KNOWN else []


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Make a key pair at PATH, return its public half."""
    run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", path])
    return path.with_name(f"{path.name}.pub").read_text().strip()


@dataclass
class Server:
    """SETTINGS: more lines for sshd_config(5). Programs in `bin` come first in PATH there.

    Its HOME is its directory: the start files of this machine's own shell stay out, which may
    change PATH, or wait for a lock that a test's kill(1) left behind.
    """

    directory: Path
    endpoint: Endpoint
    settings: Sequence[str] = ()

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    def program(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def start(self) -> None:
        config = self.directory / "sshd_config"
        config.write_text("\n".join([*self.settings, *self._settings()]) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty chroot
        self._launch([SSHD, "-f", config, "-E", self.directory / "log"])
        self._wait_for_pid_file(there=True)  # written when sshd listens, after it has detached

    def _launch(self, argv: Argv) -> None:
        run(argv)

    def _settings(self) -> list[str]:
        return [
            f"ListenAddress {self.endpoint.address}:{self.endpoint.port}",
            f"HostKey {self.directory}/host_key",
            f"PidFile {self._pid_file}",
            f"AuthorizedKeysFile {self.directory}/authorized_keys",
            f"SetEnv HOME={self.directory} PATH={self.bin}:{os.environ['PATH']}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            *PENALTIES,
        ]

    @property
    def _pid_file(self) -> Path:
        return self.directory / "pid"

    def stop(self) -> None:
        """End the listener; sessions go on."""
        os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
        self._wait_for_pid_file(there=False)

    def _wait_for_pid_file(self, *, there: bool) -> None:
        log = self.directory / "log"
        until(lambda: self._pid_file.exists() == there, log.read_text)


def free_port() -> int:
    """None that the kernel may give to another process meanwhile (ip(7), ip_local_port_range)."""
    while True:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", secrets.choice(range(10000, 32768))))
            return int(sock.getsockname()[1])


def prepare(directory: Path) -> Server:
    """A server that is not running yet, with one ed25519 host key and one ed25519 user key."""
    (directory / "bin").mkdir()
    host_key = make_key(directory / "host_key")
    (directory / "authorized_keys").write_text(make_key(directory / "identity") + "\n")
    identity = directory / "identity"
    return Server(
        directory, Endpoint("127.0.0.1", free_port(), host_key, identity, getpass.getuser())
    )


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sshd-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
