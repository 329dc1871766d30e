"""The deployment's story, told three times: console, log file, events (JSON lines).

An event is one object a line: {"time": seconds since the epoch, "event": name, ...}. Names: log
(line), point-of-no-return, failed (message), done. The last two end the stream.
"""

import json
import time

from anemos import log
from anemos.initramfs.boot import HERE

EVENTS = HERE / "events"
LOG = HERE / "log"
PASSED = HERE / "point-of-no-return"  # init looks for it
STAY = HERE / "stay"  # there from the start where no old system waits: init looks for it
GO = HERE / "go"  # the operator's word, once the workstation has seen who answers here


def start() -> None:
    """From now on the log's lines go to console, log file and events."""
    log.sink = tell


def tell(line: str) -> None:
    print(line, flush=True)
    with LOG.open("a") as file:
        file.write(line + "\n")
    emit("log", line=line)


def emit(event: str, **fields: str) -> None:
    with EVENTS.open("a") as file:
        file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")


def point_of_no_return() -> None:
    """Named in log, events and file system, in this order: then the first write may happen."""
    log.info("=== POINT OF NO RETURN: the system disks are being erased ===")
    emit("point-of-no-return")
    PASSED.touch()


def failed(message: str) -> None:
    log.info(f"FAILED: {message}")
    emit("failed", message=message)


def done() -> None:
    emit("done")
