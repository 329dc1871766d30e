"""Loads a kernel for kexec(8)."""

from pathlib import Path

from anemos import log
from anemos.log import FAILED, die
from anemos.run import Argv, CommandFailed, run

LOADED = Path("/sys/kernel/kexec_loaded")


def load_argv(method: str, kernel: Path, initrd: Path, line: str) -> Argv:
    words = [f"--initrd={initrd}", f"--command-line={line}"]
    return ["kexec", method, "--load", kernel, *words]


def load(kernel: Path, initrd: Path, line: str) -> None:
    """Load by kexec_file_load(2), which checks signatures, or else by kexec_load(2).

    Raises Failure when neither does it.
    """
    try:
        run(load_argv("--kexec-file-syscall", kernel, initrd, line))
    except CommandFailed as refused:
        log.info(f"kexec_file_load refused: {refused.output.strip()}; trying kexec_load")
        run(load_argv("--kexec-syscall", kernel, initrd, line))
    if LOADED.read_text().strip() != "1":
        die("kexec: the kernel says that nothing is loaded", status=FAILED)


def unload() -> None:
    """Have the kernel forget what was loaded. Raises CommandFailed."""
    try:
        run(["kexec", "--kexec-file-syscall", "--unload"])
    except CommandFailed:
        run(["kexec", "--kexec-syscall", "--unload"])
