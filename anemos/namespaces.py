"""Namespaces and mounts of our own process, by the kernel's calls (namespaces(7)).

A command could only make some for itself; a process for each mount would take 1/100 s.
"""

import ctypes
import os
import signal

from anemos.log import FAILED, die

PR_SET_PDEATHSIG = 1  # prctl(2)
# unshare(2)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # mount(2)
MNT_DETACH = 2  # umount(2)

libc = ctypes.CDLL(None, use_errno=True)


def check(failed: int, what: str) -> None:
    if failed < 0:
        die(f"{what}: {os.strerror(ctypes.get_errno())}", status=FAILED)


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "namespaces of our own")


def mount(source: str, point: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises Failure."""
    words = [os.fsencode(word) for word in (source, point, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), f"mount at {point}")


def die_with_parent() -> None:
    """Be killed as soon as our parent is."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
