"""Follows the events of the initramfs (initramfs/events.py tells what they are)."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from time import monotonic, sleep
from typing import Any

from anemos import log
from anemos.log import FAILED, IN_INITRAMFS, Failure, die
from anemos.workstation import facts, reach
from anemos.workstation.host import Host
from anemos.workstation.ssh import Remote, connect
from anemos.workstation.state import load_state

EVENTS = "/run/anemos/events"


class Ended(Exception):
    """The stream of events has ended: with its last event."""


class Watch:
    """What was seen of one deployment, over several connections."""

    def __init__(self, host: Host, alive: Callable[[], bool]) -> None:
        self.host = host
        self.alive = alive
        self.seen = 0
        self.passed = False  # the point of no return
        self.last: dict[str, Any] = {}
        self.then = ""  # the deployment of the system that came after it

    def follow(self) -> None:
        """Read events until the stream or the initramfs ends."""
        end = monotonic() + self.host.timeouts.install
        while monotonic() < end:
            with suppress(*reach.GONE, Ended), self.connected() as remote:
                seen = facts.identify(remote)
                if not seen.in_initramfs:
                    self.then = seen.deployment
                    return
                tail = ["tail", "-n", f"+{self.seen + 1}", "-f", EVENTS]
                remote.sh(tail, timeout=self.host.timeouts.install, log=self.hear)
            if self.last.get("event") in ("failed", "done"):
                return
            if not self.alive():
                die(f"{self.host.name}: the machine is off", status=self.status)
            sleep(reach.POLL_S)
        die(f"{self.host.name}: no end of the installation in sight", status=self.status)

    def connected(self) -> AbstractContextManager[Remote]:
        return connect(reach.endpoint(self.host), status=self.status)

    def hear(self, line: str) -> None:
        try:
            self.last = json.loads(line)
        except ValueError:  # cut off with the connection: it is asked for again
            return
        self.seen += 1
        event = self.last["event"]
        self.passed = self.passed or event == "point-of-no-return"
        if event == "log":
            log.info(f"| {self.last['line']}")
        elif event == "held":
            log.info(f"Held for {self.last['seconds']:.0f} s: ./inv resume, or ./inv abort")
        elif event in ("failed", "done"):
            raise Ended

    @property
    def status(self) -> int:
        return IN_INITRAMFS if self.passed else FAILED


def watch(host: Host, alive: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Follow the installation of HOST to its end. ALIVE: whether waiting for it makes sense.

    Raises Failure: status 1 when the machine goes back to the old system, 3 when it waits in the
    initramfs.
    """
    watching = Watch(host, alive)
    deployment = load_state(host, "deployment", "pack").deployment
    try:
        watching.follow()
    except Failure as failure:
        die(failure.message, hint=failure.hint, status=watching.status)
    if watching.last.get("event") == "failed":
        failed(host, watching)
    if watching.last.get("event") != "done" and watching.then != deployment:
        die(f"{host.name} runs the old system: the installation did not end", status=FAILED)
    return {"host": host.name, "events": watching.seen}


def failed(host: Host, watching: Watch) -> None:
    message = watching.last["message"]
    if watching.passed or load_state(host).stays:
        hint = f"it waits in the initramfs: ./inv rescue --host {host.name}, then ./inv resume"
        die(f"{host.name}: {message}", hint=hint, status=watching.status)
    with log.step("Waiting for the old system"):
        reach.await_boot(
            host,
            reach.endpoint(host),
            lambda seen: not seen.in_initramfs,
            host.timeouts.up,
            "old system",
        )
    die(f"{host.name} runs the old system again: {message}", status=FAILED)
