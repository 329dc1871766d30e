"""A host's image, started in namespaces: its own systemd and its own units in seconds, no kernel.

    with container.far("192.0.2.1/24") as far:  # a network namespace, and the gateway's address
        with container.booted(image, kept, far) as host:
            host.run("systemctl", "is-active", "nginx")

The root file system is the image with an empty layer of memory above it, so each start has a new
one. KEPT, a directory, is /srv. Mark such a test `root` and `real("run")`.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos.run import CommandFailed, run
from anemos.system.chroot import DEV
from tests.waiting import LIMIT_S, until

NUMBERS = count()
# $1: the image, $2: the kept directory, $3: an empty one for the new root file system, $4: PID 1.
BOOT = f"""
set -e
init=$4
mount -t tmpfs tmpfs "$3"
mkdir "$3/upper" "$3/work" "$3/root"
mount -t overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" overlay "$3/root"
mount --bind "$2" "$3/root/srv"
set -- "$3/root"
{DEV}
mount -t proc proc "$1/proc"
# Of the kernel's settings only those of the network are not this machine's own.
mount -o bind,ro "$1/proc/sys" "$1/proc/sys"
mount --bind /proc/sys/net "$1/proc/sys/net"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
cd "$1"
pivot_root . mnt
umount -l /mnt
exec env --ignore-environment container=other "$init"
"""
NAMESPACES = ("mount", "pid", "net", "cgroup", "uts", "ipc")


@dataclass(frozen=True)
class Far:
    """The network namespace at the other end of a host's cable."""

    name: str
    address: str

    def argv(self, *argv: str | Path) -> list[str | Path]:
        """ARGV in it. What runs there ends with these tests, however they end."""
        return ["setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", self.name, *argv]


@dataclass(frozen=True)
class Container:
    """PID: of the host's process 1, as this machine sees it."""

    pid: int

    def run(self, *argv: str) -> str:
        """Standard output of ARGV, as root there. Raises CommandFailed."""
        options = [f"--{name}" for name in (*NAMESPACES, "root", "wd")]
        return run(["nsenter", f"--target={self.pid}", *options, *argv])


def ip(*commands: str) -> None:
    for words in commands:
        run(["ip", *words.split()])


@contextmanager
def far(address: str) -> Iterator[Far]:
    name = f"anemos-{os.getpid()}-far"
    ip(f"netns add {name}", f"-n {name} link set lo up")
    try:
        yield Far(name, address)
    finally:
        ip(f"netns delete {name}")


@contextmanager
def cable(far: Far) -> Iterator[str]:
    """A new network namespace, whose eth0 leads to FAR; its name."""
    near = f"anemos-{os.getpid()}-{next(NUMBERS)}"
    ip(f"netns add {near}")
    try:
        ip(
            f"-n {near} link add eth0 type veth peer name cable netns {far.name}",
            f"-n {far.name} address add {far.address} dev cable",
            f"-n {far.name} link set cable up",
        )
        yield near
        ip(f"-n {far.name} link delete cable")
    finally:
        ip(f"netns delete {near}")


@contextmanager
def cgroup() -> Iterator[Path]:
    """A cgroup of its own (cgroups(7)): two hosts have units of the same names."""
    words = ["--first-only", "--noheadings", "--output=TARGET", "--types=cgroup2"]
    top = Path(run(["findmnt", *words]).strip()) / f"anemos-{os.getpid()}-{next(NUMBERS)}"
    top.mkdir()
    try:
        yield top
    finally:
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()


@contextmanager
def booted(image: Path, kept: Path, far: Far, init: str = "/sbin/init") -> Iterator[Container]:
    with TemporaryDirectory() as room, cable(far) as near, cgroup() as group:
        # First, as in `ip netns exec` /sys is another one.
        enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        own = [f"--{name}" for name in NAMESPACES if name != "net"]
        argv: list[str | Path] = ["setpriv", "--pdeathsig=KILL", "sh", "-c", enter, group]
        argv += ["ip", "netns", "exec", near, "unshare", *own, "--fork", "--kill-child"]
        argv += ["--propagation=private", "sh", "-c", BOOT, "sh", image, kept, room, init]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            yield ready(process)
        finally:
            process.kill()
            process.wait()
            await_end(group)


def ready(process: subprocess.Popen[bytes]) -> Container:
    """The host as soon as its systemd has started what every system has, with its network."""
    end = time.monotonic() + LIMIT_S
    while True:
        assert process.poll() is None, "the host has ended"
        with suppress(AssertionError, CommandFailed, OSError, ValueError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            host = Container(int(children))
            # Until its root is another one, it would be this machine that is asked.
            assert not Path(f"/proc/{host.pid}/root").samefile("/")
            host.run("systemctl", "is-active", "basic.target")
            host.run("ifup", "eth0")  # no udev does it here
            return host
        assert time.monotonic() < end, "the host does not start"
        time.sleep(0.2)


def await_end(group: Path) -> None:
    """Wait until the host's last process is gone: they are killed with its process 1."""
    until(lambda: "populated 1" not in (group / "cgroup.events").read_text())
