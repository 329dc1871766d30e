"""SSH in the initramfs: the old system's host keys, its root's authorized keys, nothing else."""

import os
import signal
from pathlib import Path

from anemos.border import stage
from anemos.initramfs import daemons, hardware

KEYS = stage.SSH
PID = Path("/run/sshd.pid")


def config(port: int, host_keys: list[Path]) -> str:
    """sshd_config(5)."""
    return "\n".join(
        [
            f"Port {port}",
            *(f"HostKey {key}" for key in host_keys),
            f"AuthorizedKeysFile {KEYS}/authorized_keys",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            f"PidFile {PID}",
            "",
        ]
    )


def start(port: int) -> None:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    keys = [key for key in sorted(KEYS.glob("ssh_host_*_key")) if key.is_file()]
    (KEYS / "sshd_config").write_text(config(port, keys))
    daemons.start(["/usr/sbin/sshd", "-f", KEYS / "sshd_config"])


def restart(port: int) -> None:
    """The same with the keys that are there now; sessions go on. Raises Failure.

    PID is there while it listens, and gone when nobody does any more (sshd(8)).
    """
    os.kill(int(PID.read_text()), signal.SIGTERM)
    hardware.wait_for("end of sshd", lambda: not PID.exists())
    start(port)
    hardware.wait_for("sshd", PID.exists)
