"""Drivers for the devices that are there, and the wait for what they find."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anemos.log import FAILED, die
from anemos.run import CommandFailed, run

_tried: set[str] = set()


def coldplug() -> None:
    """Load the module of every device that names one (kernel: modalias), as udev would.

    A bus's driver finds more devices: again and again, until no new name appears.
    """
    while new := modaliases() - _tried:
        with suppress(CommandFailed):  # status 1 as soon as one device has no driver here
            run(["modprobe", "--all", "--quiet", "--use-blacklist", *sorted(new)])
        _tried.update(new)


def modaliases() -> set[str]:
    files = Path("/sys/devices").rglob("modalias")
    return {alias for file in files if (alias := file.read_text().strip())}


def wait_for(what: str, condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    """Poll CONDITION, with drivers for what appears. Raises Failure: "no WHAT after 30 s"."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            die(f"no {what} after {deadline_s:.0f} s", status=FAILED)
        time.sleep(0.1)
        coldplug()
