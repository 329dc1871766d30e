"""Loads the initramfs of a deployment and its kernel for kexec; or another kernel."""

from pathlib import Path

from anemos import architecture, kexec, memory
from anemos.border import stage
from anemos.border.requests import Keys, Load
from anemos.log import FAILED, die

KERNEL = Path("/boot/vmlinuz")
SCREEN, SERIAL = "console=tty0", architecture.own().serial
# Until the point of no return a panic is the way back to the old system: after 10 s, for an oops,
# too (kernel-parameters.txt).
SAFETY = ("panic=10", "oops=panic")
LOADING = 8 << 20  # bytes, for kexec(8) itself; kernel and initramfs are there twice
DEADLINE = 900  # seconds, as in initramfs/init
DELIVERY = 1800  # what it gets more when something is still to come, as in initramfs/delivery.py


def cmdline(old: str, hold: int = 0, more: int = 0, serial: str = SERIAL) -> str:
    """The initramfs's kernel command line: the consoles of the OLD one's, and the way back.

    HOLD: seconds that the operator has to look around (border/boot.py, initramfs/init). MORE:
    seconds that are added to the deadline. SERIAL: a console where the old one has none.
    """
    consoles = [word for word in old.split() if word.startswith("console=")]
    consoles = consoles or [f"console={serial}"]
    if SCREEN not in consoles:  # the last is /dev/console, if its driver is there
        consoles.insert(0, SCREEN)
    held = [f"anemos.hold={hold}"] if hold else []
    late = [f"anemos.deadline={hold + more + DEADLINE}"] if hold + more else []
    return " ".join([*consoles, *SAFETY, *held, *late])


def load(asked: Load) -> Keys:
    """Returns no keys: the initramfs has them. Raises Failure."""
    words = cmdline(Path("/proc/cmdline").read_text(), asked.hold, DELIVERY if asked.late else 0)
    load_if_it_fits(KERNEL, stage.INITRAMFS, words)
    return {}


def load_if_it_fits(kernel: Path, initrd: Path, words: str) -> None:
    """Raises Failure, also when there is not enough memory any more."""
    images = kernel.stat().st_size + initrd.stat().st_size
    need, there = 2 * images + LOADING, memory.available()
    if need > there:
        die(f"memory: {need >> 20} MiB needed to load it, {there >> 20} available", status=FAILED)
    kexec.load(kernel, initrd, words)
