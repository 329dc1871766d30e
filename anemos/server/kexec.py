"""Loads the initramfs of a deployment and its kernel for kexec."""

from pathlib import Path

from anemos import log
from anemos.log import FAILED, die
from anemos.run import Argv, CommandFailed, run
from anemos.server.staging import INITRAMFS

KERNEL = Path("/boot/vmlinuz")
LOADED = Path("/sys/kernel/kexec_loaded")
CONSOLES = ("console=tty0", "console=ttyS0")
# Until the point of no return a panic is the way back to the old system: after 10 s, for an oops,
# too (kernel-parameters.txt).
SAFETY = ("panic=10", "oops=panic")
DEADLINE = 900  # seconds, as in initramfs/init


def cmdline(old: str, hold: int = 0) -> str:
    """The initramfs's kernel command line: the consoles of the OLD one's, and the way back.

    HOLD: seconds that the operator has to look around (initramfs/boot.py, initramfs/init).
    """
    consoles = [word for word in old.split() if word.startswith("console=")]
    held = [f"anemos.hold={hold}", f"anemos.deadline={hold + DEADLINE}"] if hold else []
    return " ".join([*(consoles or CONSOLES), *SAFETY, *held])


def load_argv(method: str, line: str) -> Argv:
    return [
        "kexec",
        method,
        "--load",
        KERNEL,
        f"--initrd={INITRAMFS}",
        f"--command-line={line}",
    ]


def load(hold: int) -> None:
    """Load by kexec_file_load(2), which checks signatures, or else by kexec_load(2)."""
    line = cmdline(Path("/proc/cmdline").read_text(), hold)
    try:
        run(load_argv("--kexec-file-syscall", line))
    except CommandFailed as refused:
        log.info(f"kexec_file_load refused: {refused.output.strip()}; trying kexec_load")
        run(load_argv("--kexec-syscall", line))
    if LOADED.read_text().strip() != "1":
        die("kexec: the kernel says that nothing is loaded", status=FAILED)
