"""SSH in the initramfs: the old system's host keys, its root's authorized keys, nothing else."""

from pathlib import Path

from anemos.initramfs import daemons
from anemos.initramfs.boot import HERE

KEYS = HERE / "ssh"


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
            "PidFile none",
            "",
        ]
    )


def start(port: int) -> None:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    keys = [key for key in sorted(KEYS.glob("ssh_host_*_key")) if key.is_file()]
    (KEYS / "sshd_config").write_text(config(port, keys))
    daemons.start(["/usr/sbin/sshd", "-f", KEYS / "sshd_config"])
