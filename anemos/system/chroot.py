"""Runs commands inside an image.

They get namespaces of their own: mounts and processes are gone when the command is, even after
SIGKILL (mount_namespaces(7), pid_namespaces(7)). /dev holds bound nodes on a tmpfs, and no disk.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from anemos import log
from anemos.run import CommandFailed, run
from anemos.system import tree

# Gives the image $1 a /dev of its own.
DEV = """
set -e
root=$1
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"; ln -s fd/1 "$root/dev/stdout"; ln -s fd/2 "$root/dev/stderr"
"""

# $1: the image; $2: a directory that becomes /run/anemos; the rest: the command.
ENTER = f"""
{DEV}
shared=$2; shift 2
mount -t proc proc "$root/proc"
# Read-only: cgroups and EFI variables survive `rm -rf /`. A user namespace gets no sysfs of its
# own, but has no rights in the one outside either.
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/lock" "$root/run/anemos"
mount --bind "$shared" "$root/run/anemos"
exec chroot "$root" "$@"
"""


def call(root: Path, argv: Sequence[str], *, shared: Path, timeout: float | None = None) -> None:
    """Run ARGV in the image ROOT, its lines in the log. SHARED is /run/anemos there, writable.

    No daemon is started by package scripts, names resolve as they do outside.
    Raises CommandFailed.
    """
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    enter = ["sh", "-c", ENTER, "sh", os.fspath(root), os.fspath(shared)]
    with visitor(root):
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        env |= {"HOME": "/root", "TERM": "dumb"}
        try:
            run([*namespaces, *enter, *argv], env=env, log=log.info, timeout=timeout)
        except CommandFailed as failed:  # the user knows ARGV, not how we run it
            raise CommandFailed(argv, failed.returncode, failed.output) from None


@contextmanager
def visitor(root: Path) -> Iterator[None]:
    """Files that an image needs only while commands run in it."""
    resolver = Path("/etc/resolv.conf")
    guests = {
        # invoke-rc.d(8): 101 forbids the action.
        "usr/sbin/policy-rc.d": (b"#!/bin/sh\nexit 101\n", 0o755),
        "etc/resolv.conf": (resolver.read_bytes() if resolver.exists() else b"", 0o644),
    }
    saved = {path: _displace(tree.inside(root, path)) for path in guests}
    try:
        for path, (data, mode) in guests.items():
            tree.write(root, path, data, mode)
        yield
    finally:
        for path, original in saved.items():
            _restore(root, path, original, guests[path][0])


def _displace(file: Path) -> Path | None:
    """Move FILE aside, if there is one."""
    aside = file.with_name(file.name + ".anemos-aside")
    with suppress(FileNotFoundError):
        return file.rename(aside)
    return None


def _restore(root: Path, path: str, original: Path | None, guest: bytes) -> None:
    """Undo the visit; a file that a command wrote in the guest's place stays."""
    file = tree.inside(root, path)
    changed = file.is_symlink() or (file.exists() and file.read_bytes() != guest)
    if not changed:
        file.unlink(missing_ok=True)
    if original is not None:
        with suppress(FileNotFoundError):  # the command removed it, too
            original.unlink() if changed else original.rename(file)
