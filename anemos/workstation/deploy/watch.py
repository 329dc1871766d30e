"""Follows the events of the initramfs."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep

from anemos import log
from anemos.border import events, records, stage
from anemos.border.events import Event
from anemos.log import FAILED, IN_INITRAMFS, Step, die
from anemos.run import CommandFailed
from anemos.workstation import Result
from anemos.workstation.deploy import facts, outcome, reach, status
from anemos.workstation.deploy.outcome import Witnessed
from anemos.workstation.deploy.state import DONE, PASSED, State, load_state
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import connect

MOST = 2**60  # bytes that a server may tell of
QUIET_S = 120.0  # nothing heard for so long is told, and the connection made anew


class Ended(Exception):
    """The stream of events has ended: with its last event."""


class Watch:
    """What was seen of one deployment, over several connections."""

    def __init__(self, host: Host, state: State, alive: Callable[[], bool]) -> None:
        self.host = host
        self.state = state
        self.alive = alive
        self.seen = 0
        self.last = Event()
        self.steps: list[Step] = []  # of the initramfs, that have begun
        self.stays = state.stays
        self.then: str | None = None  # the deployment of the system that came after it
        self.spoke = monotonic()

    def follow(self) -> None:
        """Read events until the stream or the initramfs ends. Tell when nothing is heard."""
        end = monotonic() + self.host.timeouts.install
        while monotonic() < end:
            why = "its log does not go on"
            try:
                self.listen()
            except CommandFailed:
                pass  # timeout(1)'s, or killed with all the others
            except reach.GONE as failure:
                why = failure.message
                log.noted(why)
                if not self.state.deployment:
                    die(f"{why}; and no deployment is known here", hint="./inv status")
            if self.then is not None or self.last.event in (events.FAILED, events.DONE):
                return
            if not self.alive():
                die(f"{self.host.name}: the machine is off", status=FAILED)
            if (silent := monotonic() - self.spoke) >= QUIET_S:
                log.info(f"Nothing heard for {silent:.0f} s, still waiting: {why}")
                self.spoke = monotonic()
            sleep(reach.POLL_S)
        hint = f"it may still go on: ./inv watch --host {self.host.name}"
        die(f"{self.host.name}: no end of the installation in sight", hint=hint, status=FAILED)

    def listen(self) -> None:
        """One connection: see what runs there, and hear its events."""
        with suppress(Ended), connect(reach.endpoint(self.host), status=FAILED) as remote:
            seen = status.ask(remote)
            if not seen.in_initramfs:
                self.then = seen.deployment
                return
            self.state = status.known(self.host, seen)
            self.stays = self.stays or seen.stays
            if seen.passed:
                self.state.reach(PASSED)
            tail = ["timeout", f"{QUIET_S:g}", "tail", "-n", f"+{self.seen + 1}", "-f"]
            remote.sh([*tail, f"{stage.EVENTS}"], timeout=QUIET_S + facts.ANSWER_S, log=self.hear)

    def hear(self, line: str) -> None:
        try:
            self.last = records.parse(Event, line)
        except ValueError:  # cut off with the connection: it is asked for again
            return
        self.seen += 1
        self.spoke = monotonic()
        event = self.last.event
        if event == events.PASSED:
            self.state.reach(PASSED)
            self.begin("point of no return")
            self.end("point of no return", True)
        if event == events.LOG:
            log.info(f"| {self.last.line}")
        elif event == events.BEGAN:
            self.begin(log.printable(self.last.line))
        elif event == events.ENDED:
            self.end(log.printable(self.last.line), not self.last.message)
        elif event == events.REACHED and 0 <= self.last.done <= self.last.total < MOST:
            log.reached(self.last.done, self.last.total)
        elif event == events.HELD:
            log.info(f"Held for {self.last.seconds:.0f} s: ./inv resume, or ./inv abort")
        elif event in (events.FAILED, events.DONE):
            raise Ended

    def begin(self, name: str) -> None:
        self.steps.append(Step(name, self.last.time, there=True))
        log.began(self.steps[-1])

    def end(self, name: str, done: bool) -> None:
        """The step NAME, and those in it, of which nothing was heard."""
        while name in (each.name for each in self.steps):
            step = self.steps.pop()
            log.ended(step, self.last.time, done and step.name == name)
            if step.name == name:
                return

    @property
    def passed(self) -> bool:
        return self.state.reached in (PASSED, DONE)


def watch(host: Host, alive: Callable[[], bool] = lambda: True) -> Result:
    """Follow the installation of HOST to its end. ALIVE: whether waiting for it makes sense.

    Raises Failure: status 1 when the machine goes back to the old system, 3 when it waits in the
    initramfs, or nobody knows.
    """
    with outcome.following(host):
        watching = Watch(host, load_state(host), alive)
        try:
            watching.follow()
        finally:
            for step in reversed(watching.steps):
                log.ended(step, watching.last.time, False)
        if watching.last.event == events.FAILED:
            failed(host, watching)
        ours = watching.state.deployment
        if watching.last.event != events.DONE and (not ours or watching.then != ours):
            ended(host, watching)
        watching.state.reach(DONE)
    return {"host": host.name, "events": watching.seen}


def ended(host: Host, watching: Watch) -> None:
    """Another system answers, and nothing was heard of an end."""
    if not watching.state.deployment:
        raise Witnessed(f"{host.name} is not being installed", hint="./inv status")
    if watching.passed:
        die(f"{host.name}: a system answers that is not the new one", status=IN_INITRAMFS)
    status.old_system(host, str(watching.then))
    raise Witnessed(f"{host.name} runs the old system: nothing was installed", status=FAILED)


def failed(host: Host, watching: Watch) -> None:
    message = watching.last.message
    if watching.passed or watching.stays:
        hint = f"it waits in the initramfs: ./inv rescue --host {host.name}, then ./inv resume"
        code = IN_INITRAMFS if watching.passed else FAILED
        raise Witnessed(f"{host.name}: {message}", hint=hint, status=code)
    back = reach.await_boot(
        host,
        reach.endpoint(host),
        lambda seen: not seen.in_initramfs,
        host.timeouts.up,
        "old system",
    )
    status.old_system(host, back.deployment)
    raise Witnessed(f"{host.name} runs the old system again: {message}", status=FAILED)
