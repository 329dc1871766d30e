"""A process of our own for a build: nothing outlives it, not even after kill -9.

Mounts, processes and scratch memory end with their namespaces (mount_namespaces(7),
pid_namespaces(7)); loop devices of `mount -o loop` with their mounts.
"""

import os
import pwd
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType

from anemos import log, memory
from anemos.image import build
from anemos.log import FAILED, die
from anemos.namespaces import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_PRIVATE,
    MS_REC,
    die_with_parent,
    libc,
    mount,
    unshare,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (only a fresh directory is made in it)
SUBORDINATES = (Path("/etc/subuid"), Path("/etc/subgid"))

ended = ""  # what ended the build, when that was a signal
pending: list[str] = []


def enter(module: str, arguments: Sequence[str]) -> None:
    """Go on in namespaces of our own: our process forks.

    Without root, the module is started again in a user namespace, which makes us root of our own
    files (user_namespaces(7)).
    """
    if os.geteuid() != 0:
        again = [sys.executable, "-m", module, *arguments]
        os.execvp("unshare", ["unshare", *subordinates(), *again])
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID)
    socket.sethostname("localhost")  # packages' scripts ask for it, and write it into files
    # Nobody knows its name before, as everybody may write there. Only our namespace fills it.
    place = Path(mkdtemp(prefix="anemos-build-", dir=SHARED_MEMORY))
    fork(place)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc")
    take_memory(place)
    log.sink = sink


def subordinates() -> list[str]:
    """Options of unshare(1) that map the user's subordinate ids. Raises Failure without any."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    for file in SUBORDINATES:
        owners = [line.partition(":")[0] for line in file.read_text().splitlines()]
        if not {user, str(os.geteuid())} & set(owners):
            hint = (
                f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            )
            die(f"{file} has no ids for {user}: no build without root", hint=hint)
    return ["--map-root-user", "--map-auto"]


def fork(place: Path) -> None:
    """Return in a child, the first process of the new namespace. We wait, hand signals on, and
    remove PLACE.

    The first process of a namespace ignores all signals that it has no handler for. The process
    outside of it can start no thread any more.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        die_with_parent()
    for number in SIGNALS:
        signal.signal(number, (lambda n, _: os.kill(child, n)) if child else end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        libc.umount2(os.fsencode(place), MNT_DETACH)
        with suppress(OSError):
            place.rmdir()
        os._exit(status if status >= 0 else FAILED)  # at once: we have nothing to close or say


def end(number: int, _frame: FrameType | None) -> None:
    """Kill what runs: a command that fails. All signals that follow are ignored.

    No exception: it could be lost in library code that is running. `sink` raises one.
    """
    global ended  # noqa: PLW0603 (one end a process)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    ended = f"ended by {signal.Signals(number).name}"
    pending.append(ended)
    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.1)


def kill(_number: int, _frame: FrameType | None) -> None:
    """Kill all others in our namespace, again and again: one may be about to start."""
    if not pending:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def sink(line: str) -> None:
    """Where log lines go. After a signal, the first one is the end, wherever we are."""
    log.to_stderr(line)
    if pending:
        die(pending.pop(), status=FAILED)


def take_memory(place: Path) -> None:
    """Mount a file system in memory at PLACE, if there is enough of it."""
    if memory.available() > build.ROOM:
        mount("anemos", os.fspath(place), "tmpfs", options="mode=755,size=90%")
        build.memory = place
