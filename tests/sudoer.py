"""An sshd where an ordinary user logs in whom a real sudo makes root, in a mount namespace.

Nothing of it is in this machine's own /etc and /run. Mark such a test `root` and `real("run")`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from anemos.run import Argv, run
from anemos.workstation.ssh import Login
from tests import sshd

USER = "debian"
PASSWORD = "it's \\ a pä$$ word"  # noqa: S105
# Makes the user, sudoers and the tokens known in an /etc of its own. $1: the directory of sudoers,
# $2: a line of passwd(5), $3: one of shadow(5).
KNOWN = """
[ ! -d /var/lib/sudo ] || mount -t tmpfs tmpfs /var/lib/sudo
echo "$2" >>/etc/passwd
echo "$3" >>/etc/shadow
echo "127.0.0.1 $(uname -n)" >>/etc/hosts
rm /etc/sudoers
(umask 337; echo "@include $1/sudoers" >/etc/sudoers)
cat >/etc/pam.d/sudo <<END
auth required pam_unix.so
auth optional pam_exec.so seteuid expose_authtok quiet $1/token
account required pam_unix.so
session required pam_permit.so
END
shift 3
"""
APART = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir /run/sshd /run/upper /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /etc
{KNOWN}
"$@"
"""


class Server(sshd.Server):
    """TOKENS: what was given to PAM as a password of sudo's."""

    @property
    def tokens(self) -> list[str]:
        file = self.directory / "tokens"
        return file.read_text().splitlines() if file.exists() else []

    def allow(self, *lines: str) -> None:
        """Make LINES the sudoers(5) of the server."""
        file = self.directory / "sudoers"
        file.unlink(missing_ok=True)
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o440)

    def _launch(self, argv: Argv) -> None:
        apart = ["unshare", "--mount", "--propagation=private", "sh", "-c", APART, "sh"]
        run([*apart, *words(self.directory), *argv])


def words(directory: Path) -> list[str | Path]:
    """For KNOWN."""
    hashed = run(["openssl", "passwd", "-6", "-stdin"], data=PASSWORD.encode()).strip()
    account = f"{USER}:x:2000:2000::{directory}/home:/bin/bash"
    return [directory, account, f"{USER}:{hashed}:1:0:99999:7:::"]


def prepare(directory: Path) -> Server:
    """A server that is not running yet; its endpoint is the ordinary user's."""
    server = Server(directory, replace(sshd.prepare(directory).endpoint, user=USER, sudo=True))
    furnish(server)
    return server


def furnish(server: Server) -> None:
    """Make what the user needs in the server's directory."""
    directory = server.directory
    directory.chmod(0o755)
    (directory / "home").mkdir(exist_ok=True)
    os.chown(directory / "home", 2000, 2000)
    server.allow(f"{USER} ALL=(ALL:ALL) ALL")
    keep = f"{{ cat; echo; }} | tr -d '\\0' >>{directory}/tokens"
    (directory / "token").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{keep}\n")
    (directory / "token").chmod(0o755)


@contextmanager
def serving(settings: Sequence[str] = ()) -> Iterator[Server]:
    with sshd.scratch() as directory:
        server = prepare(directory)
        server.settings = settings
        with sshd.serving(server):
            yield server


def root_too(server: Server) -> Login:
    """The login of the initramfs at the same place."""
    return Login(server.endpoint.address, server.endpoint.port, "root", sudo=False)
