"""The deployment's story, told three times: console, log file, events."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from anemos import log
from anemos.border import events, stage
from anemos.log import FAILED, Observer, Step, die

CONSOLE = 1  # standard output: init has opened it
# After the point of no return a machine in trouble is better than none (kernel: sysctl/kernel.rst).
PANICS = [Path("/proc/sys/kernel") / name for name in ("panic_on_oops", "softlockup_panic")]


def start() -> None:
    """From now on the log's lines go to console, log file and events, its steps to the events."""
    log.sink = tell
    log.observers.append(Steps())


def tell(line: str) -> None:
    """Raises nothing: a console that hung up, or memory that is full, ends no installation."""
    with suppress(OSError):
        os.write(CONSOLE, f"{line}\n".encode(errors="replace"))  # print() would keep what failed
    with suppress(OSError), stage.LOG.open("a") as file:
        file.write(line + "\n")
    with suppress(OSError):
        emit(events.LOG, line=line)


class Steps(Observer):
    def began(self, step: Step) -> None:
        with suppress(OSError):
            emit(events.BEGAN, line=step.name)

    def ended(self, step: Step, end: float, done: bool) -> None:
        with suppress(OSError):
            emit(events.ENDED, line=step.name, message="" if done else "failed")

    def reached(self, done: int, total: int) -> None:
        with suppress(OSError):
            emit(events.REACHED, done=done, total=total)


def emit(event: str, **fields: str | float) -> None:
    with stage.EVENTS.open("a") as file:
        file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")


def await_word(deadline_s: float, word: Path | None = None) -> None:
    """WORD: the file that is it, stage.GO if none is named.

    Raises Failure when the operator says no, or nothing: both are a reason to go back.
    """
    end = time.monotonic() + deadline_s
    while not (word or stage.GO).exists():
        check_abort()
        if time.monotonic() > end:
            die(f"no word from the operator after {deadline_s:.0f} s", status=FAILED)
        time.sleep(0.1)


def check_abort() -> None:
    if stage.ABORT.exists():
        die(stage.ABORT.read_text().strip(), status=FAILED)


def point_of_no_return() -> None:
    """Named in file system, log and events: then the first write may happen.

    Raises Failure when init is about to reboot, or the operator does not want it. All that fails
    here ends in the old system: nobody has heard yet that the point is passed.
    """
    stage.PASSED.touch()
    try:
        check_abort()
        for panic in PANICS:
            panic.write_text("0")
        log.info("=== POINT OF NO RETURN: the system disks are being erased ===")
        emit(events.PASSED)
    except BaseException:
        stage.PASSED.unlink()
        raise


def failed(message: str) -> None:
    log.info(f"FAILED: {message}")
    emit(events.FAILED, message=log.printable(message))


def done() -> None:
    emit(events.DONE)
