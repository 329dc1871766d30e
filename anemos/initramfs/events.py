"""The deployment's story, told three times: console, log file, events (JSON lines).

An event is one object a line: {"time": seconds since the epoch, "event": name, ...}. Names: log
(line), held (seconds), released, point-of-no-return, failed (message), done. The last two end the
stream; when the installation is resumed, it begins anew.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from anemos import log
from anemos.initramfs.boot import HERE
from anemos.log import FAILED, die

CONSOLE = 1  # standard output: init has opened it
EVENTS = HERE / "events"
LOG = HERE / "log"
PASSED = HERE / "point-of-no-return"  # init looks for it
STAY = HERE / "stay"  # there from the start where no old system waits: init looks for it
ABORT = HERE / "abort"  # why not to pass it: from the operator or from init
GO = HERE / "go"  # the operator's word, once the workstation has seen who answers here
# After the point of no return a machine in trouble is better than none (kernel: sysctl/kernel.rst).
PANICS = [Path("/proc/sys/kernel") / name for name in ("panic_on_oops", "softlockup_panic")]


def start() -> None:
    """From now on the log's lines go to console, log file and events."""
    log.sink = tell


def tell(line: str) -> None:
    """Raises nothing: a console that hung up, or memory that is full, ends no installation."""
    with suppress(OSError):
        os.write(CONSOLE, f"{line}\n".encode(errors="replace"))  # print() would keep what failed
    with suppress(OSError), LOG.open("a") as file:
        file.write(line + "\n")
    with suppress(OSError):
        emit("log", line=line)


def emit(event: str, **fields: str | float) -> None:
    with EVENTS.open("a") as file:
        file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")


def await_word(deadline_s: float, word: Path | None = None) -> None:
    """WORD: the file that is it, GO if none is named.

    Raises Failure when the operator says no, or nothing: both are a reason to go back.
    """
    end = time.monotonic() + deadline_s
    while not (word or GO).exists():
        check_abort()
        if time.monotonic() > end:
            die(f"no word from the operator after {deadline_s:.0f} s", status=FAILED)
        time.sleep(0.1)


def check_abort() -> None:
    if ABORT.exists():
        die(ABORT.read_text().strip(), status=FAILED)


def point_of_no_return() -> None:
    """Named in file system, log and events: then the first write may happen.

    Raises Failure when init is about to reboot, or the operator does not want it. All that fails
    here ends in the old system: nobody has heard yet that the point is passed.
    """
    PASSED.touch()
    try:
        check_abort()
        for panic in PANICS:
            panic.write_text("0")
        log.info("=== POINT OF NO RETURN: the system disks are being erased ===")
        emit("point-of-no-return")
    except BaseException:
        PASSED.unlink()
        raise


def failed(message: str) -> None:
    log.info(f"FAILED: {message}")
    emit("failed", message=message)


def done() -> None:
    emit("done")
