"""Runs code of packages and of the definition beside the running system, which it cannot change.

It is root of a user namespace whose ids nobody has outside (user_namespaces(7)). So devices and
files of the kernel (/proc/sys, /proc/sysrq-trigger) are closed to it in every mount. Modules, the
clock, kexec and a reboot need a root from outside. It sees the base image and what it is given:
the mounts of the running system are gone from its namespace. Its processes end with it. Network,
memory and processors are the same for all.
"""

import ctypes
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from anemos import namespaces
from anemos.log import FAILED, Failure, die
from anemos.namespaces import check, libc
from anemos.run import run
from anemos.system import chroot

# systemd gives these ids to nobody ("Users, Groups, UIDs and GIDs on systemd Systems").
FIRST, COUNT = 0x70000000, 0x10000000
NEW = "/mnt"  # any directory of the base image: it becomes the root
# $1: the root; the rest: what is seen there under the same names. /sys has no other mount in it.
PREPARE = f"""
set -e
mount --bind / "$1"
{chroot.DEV}
shift
mount --bind /sys "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
for each; do
    mkdir -p "$root${{each%/*}}"
    if [ -d "$each" ]; then mkdir -p "$root$each"; else : >"$root$each"; fi
    mount --bind "$each" "$root$each"
done
"""
# open_tree(2), mount_setattr(2), move_mount(2): their numbers are the same everywhere.
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
AT_FDCWD, AT_EMPTY_PATH, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
MOUNT_ATTR_IDMAP = 0x100000

Work = Callable[[], None]


class Attributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def call(work: Work, seen: Sequence[Path], root: Path | None = None) -> None:
    """Call WORK. It sees SEEN, and may change what `give` has given to it. It is root to the file
    system that is mounted at ROOT. Raises Failure: WORK's, or that it did not come to its end.
    """
    users = user_namespace()
    try:
        forked(partial(outside, work, [os.fspath(each) for each in seen], root, users))
    finally:
        os.close(users)


def give(top: Path) -> None:
    """Make TOP, and all below it, WORK's own."""
    for each in (top, *top.rglob("*")):
        os.chown(each, FIRST, FIRST, follow_symlinks=False)


def forked(work: Work) -> None:
    """Call WORK in a process that dies with ours. Raises Failure."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        namespaces.die_with_parent()
        tell(theirs, work)
    os.close(theirs)
    try:
        with os.fdopen(ours) as pipe:
            end = json.loads(pipe.read() or "null")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if end is None:
        die("the process in the slot was killed", hint="out of memory? dmesg", status=FAILED)
    if end:
        raise Failure(end[0], hint=end[1], status=FAILED)


def tell(pipe: int, work: Work) -> NoReturn:
    """End this process; what WORK ends with goes into PIPE."""
    end: list[str] = []
    try:
        work()
    except Failure as failure:
        end = [failure.message, failure.hint]
    except BaseException:
        end = [traceback.format_exc(), ""]
    with suppress(OSError):
        os.write(pipe, json.dumps(end).encode())
    os._exit(0)  # at once: nothing of the process that we are a copy of is ours to close


def user_namespace() -> int:
    """A file descriptor of a new one, with the ids from FIRST on. Raises Failure."""
    made, say = os.pipe()
    holder = os.fork()
    if not holder:
        hold(say)
    os.close(say)
    try:
        if not os.read(made, 1):
            die("no user namespace", hint="sysctl user.max_user_namespaces", status=FAILED)
        for file in ("uid_map", "gid_map"):
            Path(f"/proc/{holder}/{file}").write_text(f"0 {FIRST} {COUNT}\n")
        return os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
    finally:
        os.close(made)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def hold(say: int) -> NoReturn:
    """Be in a user namespace until we are killed."""
    try:
        namespaces.die_with_parent()
        leave_chroot()
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        os.write(say, b".")
        signal.pause()
    finally:
        os._exit(1)


def leave_chroot() -> None:
    """Whoever has changed his root gets no user namespace, nor another root (unshare(2)). To join
    one's own mount namespace leads back to its root (setns(2))."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    check(libc.setns(own, namespaces.CLONE_NEWNS), "root of the mount namespace")
    os.close(own)


def outside(work: Work, seen: Sequence[str], root: Path | None, users: int) -> None:
    """Make the place for WORK, then call it there."""
    os.umask(0o022)
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", "", namespaces.MS_REC | namespaces.MS_PRIVATE)
    tree = mapped(root, users) if root else None
    # In a process of its own: commands take threads, and then there is no PID namespace any more.
    forked(partial(prepare, seen))
    if root and tree is not None:
        attach(tree, Path(f"{NEW}{root}"))
    change_root()
    namespaces.unshare(namespaces.CLONE_NEWPID)
    forked(partial(inside, work, users))


def mapped(root: Path, users: int) -> int:
    """The file system at ROOT, in which 0 is FIRST to everybody; it is mounted nowhere yet."""
    clone = OPEN_TREE_CLONE | os.O_CLOEXEC
    tree: int = libc.syscall(OPEN_TREE, AT_FDCWD, os.fsencode(root), clone)
    check(tree, f"{root}: open_tree(2)")
    how = Attributes(attr_set=MOUNT_ATTR_IDMAP, userns_fd=users)
    words = (tree, b"", AT_EMPTY_PATH, ctypes.byref(how), ctypes.sizeof(how))
    check(libc.syscall(MOUNT_SETATTR, *words), f"{root}: mount_setattr(2), as of Linux 5.12")
    return tree


def prepare(seen: Sequence[str]) -> None:
    run(["sh", "-c", PREPARE, "sh", NEW, *seen])


def attach(tree: int, point: Path) -> None:
    point.mkdir(parents=True, exist_ok=True)
    words = (tree, b"", AT_FDCWD, os.fsencode(point), MOVE_MOUNT_F_EMPTY_PATH)
    check(libc.syscall(MOVE_MOUNT, *words), f"mount at {point}")
    os.close(tree)


def change_root() -> None:
    """Have NEW as root, and nothing else mounted (pivot_root(2), "pivot_root(".", ".")")."""
    new = os.open(NEW, os.O_PATH)
    leave_chroot()
    os.fchdir(new)
    os.close(new)
    check(libc.pivot_root(b".", b"."), "another root")
    check(libc.umount2(b".", namespaces.MNT_DETACH), "end of the old root")
    os.chdir("/")


def inside(work: Work, users: int) -> None:
    """The first process of its namespace: when it ends, the kernel kills all others."""
    namespaces.mount("proc", "/proc", "proc")
    check(libc.setns(users, namespaces.CLONE_NEWUSER), "the user namespace")
    os.close(users)
    # Mounts of a namespace that is the user namespace's own cannot be taken away there, if they are
    # from outside (mount_namespaces(7)). Its own processes let it mount a /proc.
    own = namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID
    namespaces.unshare(own | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS)
    os.setgroups([])
    os.setgid(0)
    os.setuid(0)
    namespaces.die_with_parent()  # which a change of ids has undone
    forked(partial(begin, work))


def begin(work: Work) -> None:
    namespaces.mount("proc", "/proc", "proc")
    os.environ["HOME"] = "/tmp"  # noqa: S108 (root's own is closed to it)
    work()
