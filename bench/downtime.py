"""How long a visitor waits: .venv/bin/python -m bench.downtime [RUNS]

One hosts/demo in a local VM. RUNS times (5) it reboots, is deployed into its other slot, started by
kexec or by GRUB, and to its whole disks, while a visitor asks for a page. Prints for each the
median, the minimum and the maximum of the time without a page, in seconds, and the median as a part
of the reboot's.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.story import Story
from tests.whole.test_slot_vm import by_grub, certificate, served


def whole(server: Story) -> None:
    done = server.inv("deploy", "--whole")
    assert done.status == 0, done.err


WAYS: dict[str, Callable[[Story], None]] = {
    "reboot": Story.reboot,
    "slot": Story.deploy,
    "slot, once": by_grub,
    "whole disks": whole,
}


def outage(server: Story, way: Callable[[Story], None]) -> float:
    with server.visited("demo", authority=certificate(server)) as visitor:
        way(server)
    return visitor.outage


def measured(server: Story, runs: int) -> dict[str, list[float]]:
    """By way. One after the other, so that a busy hour of this machine meets all of them."""
    rounds = [{name: outage(server, way) for name, way in WAYS.items()} for _ in range(runs)]
    return {name: [each[name] for each in rounds] for name in WAYS}


if __name__ == "__main__":
    with TemporaryDirectory() as name, served(Path(name)) as server:
        found = measured(server, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    for way, seconds in found.items():
        part = median(seconds) / median(found["reboot"])
        spread = f"{min(seconds):.0f} to {max(seconds):.0f}"
        print(f"{way}: {median(seconds):.0f} s ({spread}), {part:.2f} x reboot")
