"""What code beside the running system can reach: its slot, what it was given, and nothing else."""

import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from anemos import mounts, namespaces
from anemos.log import Failure, die
from anemos.run import CommandFailed, run
from anemos.server import confined
from anemos.system import grammar, installation
from anemos.system.layout import MIB
from tests import tiny
from tests.imaging import attached
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

LIBC = ctypes.CDLL(None, use_errno=True)
CAD_OFF = 0  # reboot(2): harmless, and no command of a namespace's own reboot, EINVAL
INIT_MODULE, KEXEC_LOAD = 175, 246  # system calls of x86_64; a kernel may be without (ENOSYS)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, mounted."""
    disk, point = tmp_path / "disk", tmp_path / "root"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    run(["mkfs.ext4", "-q", disk])
    point.mkdir()
    with attached(disk) as node, mounts.mounted(node, at=point):
        yield point


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """A disk that is none of the slot's."""
    (tmp_path / "kept").write_bytes(bytes(MIB))
    with attached(tmp_path / "kept") as node:
        yield node


def refused(work: Callable[[], object], *numbers: int) -> None:
    """Assert that WORK ends with one of NUMBERS (errno(3)), which are told where they differ."""
    try:
        number = -1 if work() == -1 else 0
    except OSError as error:
        number = error.errno or 0
    number = ctypes.get_errno() if number == -1 else number
    assert number in numbers, (work, number)


def write_to(path: str) -> None:
    os.write(os.open(path, os.O_WRONLY), b"0")


def test_the_slot(root: Path, tmp_path: Path) -> None:
    """Owners, modes and capabilities are on the disk as root has made them."""
    (tmp_path / "given").write_text("secret")
    (tmp_path / "given").chmod(0o600)
    confined.give(tmp_path / "given")

    def work() -> None:
        assert {each.name for each in tmp_path.iterdir()} == {"root", "given"}
        (root / "file").write_text((tmp_path / "given").read_text())
        os.chown(root / "file", 5, 65534)
        (root / "file").chmod(0o4755)
        run(["setcap", "cap_net_raw+ep", root / "file"])

    confined.call(work, [tmp_path / "given"], root)
    found = (root / "file").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (5, 65534, 0o4755)
    assert run(["getcap", root / "file"]).split()[-1] == "cap_net_raw=ep"
    assert (root / "file").read_text() == "secret"


def test_the_running_system(root: Path, kept: Path) -> None:
    """All that a hostile root may try, by the kernel's calls."""
    number = kept.stat().st_rdev
    hostname, bytes_before = socket.gethostname(), kept.read_bytes()
    outsider = os.fork()
    if not outsider:
        namespaces.die_with_parent()
        signal.pause()
        os._exit(1)

    def work() -> None:
        assert not kept.exists()
        refused(partial(os.mknod, root / "disk", 0o60600, number), errno.EPERM)
        run(["mkdir", root / "dev"])
        for kind in ("devtmpfs", "debugfs", "ext4"):
            with pytest.raises(CommandFailed):
                run(["mount", "-t", kind, "none", root / "dev"])
        refused(partial(write_to, "/proc/sys/kernel/panic"), errno.EACCES)
        refused(partial(write_to, "/proc/sysrq-trigger"), errno.EACCES, errno.ENOENT)
        refused(partial(write_to, "/sys/kernel/mm/ksm/run"), errno.EACCES, errno.ENOENT)
        refused(partial(LIBC.reboot, CAD_OFF), errno.EINVAL)
        now = time.clock_gettime(time.CLOCK_REALTIME)
        refused(partial(time.clock_settime, time.CLOCK_REALTIME, now), errno.EPERM)
        refused(partial(LIBC.syscall, INIT_MODULE, b"", 0, b""), errno.EPERM, errno.ENOSYS)
        refused(partial(LIBC.syscall, KEXEC_LOAD, 0, 0, None, 0), errno.EPERM, errno.ENOSYS)
        refused(partial(os.kill, outsider, 9), errno.ESRCH)
        run(["sh", "-c", "kill -KILL -1 || :"])
        socket.sethostname("hostile")
        run(["sh", "-c", "setsid sleep 98765 >/dev/null 2>&1 &"])

    confined.call(work, [], root)
    assert os.waitpid(outsider, os.WNOHANG) == (0, 0)
    os.kill(outsider, 9)
    os.waitpid(outsider, 0)
    assert socket.gethostname() == hostname
    assert kept.read_bytes() == bytes_before
    assert not left("98765")


def test_killed(root: Path) -> None:
    """Nothing goes on when the one who waits for it is gone."""
    caller = os.fork()
    if not caller:
        namespaces.die_with_parent()
        confined.call(partial(run, ["sleep", "98764"]), [], root)  # type: ignore[arg-type]
        os._exit(0)
    until(lambda: bool(left("98764")))
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    until(lambda: not left("98764"))


def left(word: str) -> list[str]:
    """The command lines with WORD among all processes."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes().decode(errors="replace").split("\0"))
        except OSError:  # it has ended
            continue
    return [" ".join(words) for words in found if word in words]


def test_in_a_changed_root(root: Path) -> None:
    """As on a server: the base image is entered by chroot(2). Its way out leads nowhere."""

    def work() -> None:
        os.chroot(root)
        os.chdir("../" * 20)  # as we are outside of our root now
        os.chroot(".")
        assert root.is_dir()
        assert not Path("/srv/outside").exists()

    def entered() -> None:
        run(["mount", "--rbind", "/", "/mnt"])
        run(["mount", "-t", "tmpfs", "tmpfs", "/srv"])
        Path("/srv/outside").touch()
        run(["mount", "--bind", root, f"/mnt{root}"])
        os.chroot("/mnt")
        os.chdir("/")
        confined.call(work, [], root)

    namespaced(entered)


def namespaced(work: Callable[[], None]) -> None:
    """WORK in a process with mounts of its own."""

    def alone() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        flags = namespaces.MS_REC | namespaces.MS_PRIVATE
        namespaces.mount("none", "/", "", flags)
        work()

    confined.forked(alone)


def test_initramfs_is_made_there(root: Path) -> None:
    """Its hooks see what they see in the initramfs of a deployment, but no disk."""
    hook = tiny.make(root) / "usr/sbin/update-initramfs"
    hook.write_text('#!/bin/sh\nls /proc/self/mounts /sys/block >/dev/null && echo "$@" >/made\n')
    hook.chmod(0o755)
    plain = grammar.parse("disk d serial=s\npart r fs=xfs mount=/")
    confined.call(partial(installation.rebuild_initramfs, root, plain), [], root)
    assert (root / "made").read_text() == "-u -k all\n"


def test_ends(root: Path) -> None:
    """What goes wrong there is told here; a process that was killed has done nothing."""
    with pytest.raises(Failure, match="no such thing") as told:
        confined.call(partial(die, "no such thing", hint="look"), [], root)
    assert (told.value.hint, told.value.status) == ("look", 1)
    with pytest.raises(Failure, match="ZeroDivisionError"):
        confined.call(lambda: [1 // 0], [], root)  # type: ignore[arg-type]
    with pytest.raises(Failure, match="was killed"):
        confined.call(partial(os._exit, 0), [], root)
