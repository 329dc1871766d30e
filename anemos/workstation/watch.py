"""Follows the events of the initramfs (initramfs/events.py tells what they are)."""

import json
from contextlib import AbstractContextManager, suppress
from time import monotonic, sleep
from typing import Any

from anemos import log
from anemos.log import FAILED, IN_INITRAMFS, die
from anemos.workstation import facts, phases
from anemos.workstation.host import Host
from anemos.workstation.ssh import ConnectionLost, Remote, Unreachable, connect

EVENTS = "/run/anemos/events"


class Ended(Exception):
    """The stream of events has ended: with its last event."""


class Watch:
    """What was seen of one deployment, over several connections."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.seen = 0
        self.passed = False  # the point of no return
        self.last: dict[str, Any] = {}

    def follow(self) -> None:
        """Read events until the stream or the initramfs ends."""
        end = monotonic() + self.host.timeouts.install
        while monotonic() < end:
            with suppress(Unreachable, ConnectionLost, Ended), self.connected() as remote:
                if not facts.identify(remote).in_initramfs:
                    return
                tail = ["tail", "-n", f"+{self.seen + 1}", "-f", EVENTS]
                remote.sh(tail, timeout=self.host.timeouts.install, log=self.hear)
            if self.last.get("event") in ("failed", "done"):
                return
            sleep(phases.POLL_S)
        die(f"{self.host.name}: no end of the installation in sight", status=self.status)

    def connected(self) -> AbstractContextManager[Remote]:
        return connect(phases.endpoint(self.host), status=self.status)

    def hear(self, line: str) -> None:
        self.seen += 1
        self.last = json.loads(line)
        event = self.last["event"]
        self.passed = self.passed or event == "point-of-no-return"
        if event == "log":
            log.info(f"| {self.last['line']}")
        elif event in ("failed", "done"):
            raise Ended

    @property
    def status(self) -> int:
        return IN_INITRAMFS if self.passed else FAILED


def watch(host: Host) -> dict[str, Any]:
    """Follow the installation of HOST to its end.

    Raises Failure: status 1 when the machine goes back to the old system, 3 when it waits in the
    initramfs.
    """
    watching = Watch(host)
    watching.follow()
    if watching.last.get("event") == "failed":
        failed(host, watching)
    return {"host": host.name, "events": watching.seen}


def failed(host: Host, watching: Watch) -> None:
    message = watching.last["message"]
    if watching.passed:
        where = phases.endpoint(host)
        hint = f"it waits in the initramfs: ssh -p {where.port} root@{where.address}"
        die(f"{host.name}: {message}", hint=hint, status=IN_INITRAMFS)
    with log.step("Waiting for the old system"):
        phases.await_boot(
            host,
            phases.endpoint(host),
            lambda seen: not seen.in_initramfs,
            host.timeouts.up,
            "old system",
        )
    die(f"{host.name} runs the old system again: {message}", status=FAILED)
