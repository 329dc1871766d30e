"""The way over jump hosts: ssh(1) leads there, as it does for ProxyJump of ssh_config(5).

The user's ssh_config and known_hosts count for jump hosts. ssh(1) asks nothing and accepts no key
that is not known. The server at the end is checked by its pinned key, as without jump hosts.
"""

import socket
import tempfile
from collections.abc import Sequence

from anemos.run import beside, end_beside, quote

OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "StrictHostKeyChecking=yes"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ForwardAgent=no"),
)


def through(jumps: Sequence[str], target: str) -> list[str]:
    """ssh(1)'s argv that connects standard input and output with TARGET, "[HOST]:PORT", by way of
    JUMPS, "USER@HOST:PORT", the first one first."""
    *before, last = jumps
    way = ["-o", f"ProxyCommand={proxy_command(before)}"] if before else []
    return ["ssh", *OPTIONS, *way, "-W", target, f"ssh://{last}"]


def proxy_command(jumps: Sequence[str]) -> str:
    """The same as ProxyCommand of ssh_config(5); it leads where ssh(1) connects to."""
    *words, target, last = through(jumps, "[%h]:%p")
    return quote([*(word.replace("%", "%%") for word in words), target, last])


class Tunnel(socket.socket):
    """A connection with PORT at ADDRESS by way of JUMPS."""

    def __init__(self, jumps: Sequence[str], address: str, port: int) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (it is read after the end)
        with theirs:
            argv = through(jumps, f"[{address}]:{port}")
            self.process = beside(argv, theirs.fileno(), self.said.fileno())

    def close(self) -> None:
        """End ssh(1), too."""
        super().close()
        end_beside(self.process)

    @property
    def words(self) -> str:
        """What ssh(1) said on standard error; it has ended by then."""
        self.close()
        self.said.seek(0)
        return self.said.read().decode(errors="replace").strip()
