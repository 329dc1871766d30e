"""Loads the initramfs of a deployment and its kernel for kexec; or another kernel."""

from pathlib import Path

from anemos import kexec, memory
from anemos.border import stage
from anemos.border.requests import Keys, Load
from anemos.log import FAILED, die

KERNEL = Path("/boot/vmlinuz")
CONSOLES = ("console=tty0", "console=ttyS0")
# Until the point of no return a panic is the way back to the old system: after 10 s, for an oops,
# too (kernel-parameters.txt).
SAFETY = ("panic=10", "oops=panic")
LOADING = 24 << 20  # bytes: kexec(8) and, twice, the kernel image; the initramfs twice, too
DEADLINE = 900  # seconds, as in initramfs/init
DELIVERY = 1800  # what it gets more when something is still to come, as in initramfs/delivery.py


def cmdline(old: str, hold: int = 0, more: int = 0) -> str:
    """The initramfs's kernel command line: the consoles of the OLD one's, and the way back.

    HOLD: seconds that the operator has to look around (border/boot.py, initramfs/init). MORE:
    seconds that are added to the deadline.
    """
    consoles = [word for word in old.split() if word.startswith("console=")]
    if consoles and CONSOLES[0] not in consoles:  # the last is /dev/console, if its driver is there
        consoles.insert(0, CONSOLES[0])
    held = [f"anemos.hold={hold}"] if hold else []
    late = [f"anemos.deadline={hold + more + DEADLINE}"] if hold + more else []
    return " ".join([*(consoles or CONSOLES), *SAFETY, *held, *late])


def load(asked: Load) -> Keys:
    """Returns no keys: the initramfs has them. Raises Failure."""
    words = cmdline(Path("/proc/cmdline").read_text(), asked.hold, DELIVERY if asked.late else 0)
    load_if_it_fits(KERNEL, stage.INITRAMFS, words)
    return {}


def load_if_it_fits(kernel: Path, initrd: Path, words: str) -> None:
    """Raises Failure, also when there is not enough memory any more."""
    need, there = 2 * initrd.stat().st_size + LOADING, memory.available()
    if need > there:
        die(f"memory: {need >> 20} MiB needed to load it, {there >> 20} available", status=FAILED)
    kexec.load(kernel, initrd, words)
