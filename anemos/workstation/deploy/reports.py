"""Leaves a report of each deployment, to be looked at: an Account, and the page made of it.

Both lie in the host's state directory, on a disk: no secret may be in them.
"""

import time
import webbrowser
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from anemos import files, log
from anemos.border import records
from anemos.log import Failure, Observer, Step, die
from anemos.workstation import Result, places
from anemos.workstation.deploy import outcome
from anemos.workstation.deploy.account import Account, Line, Span
from anemos.workstation.deploy.page import page
from anemos.workstation.deploy.state import known
from anemos.workstation.hosts import Host

KEPT = 20  # reports of a host; the older ones go
LINES = 20_000  # of the log: the last ones
SAVED = "[secret]"  # stands for one
SECRET = 6  # characters: what is shorter may stand anywhere


class Recorder(Observer):
    """Steps and lines, as they come. The initramfs has a clock of its own, which is BEHIND ours by
    at most the time that its quickest event took."""

    def __init__(self) -> None:
        self.open: list[Step] = []
        self.spans: list[Span] = []
        self.lines: deque[Line] = deque(maxlen=LINES)
        self.behind: float | None = None
        self.sink = log.sink

    def line(self, text: str) -> None:
        self.lines.append(Line(time.time(), text))
        self.sink(text)

    def began(self, step: Step) -> None:
        self.open.append(step)
        self.compare(step, step.start)

    def ended(self, step: Step, end: float, done: bool) -> None:
        self.compare(step, end)
        if step in self.open:
            depth = sum(each.there == step.there for each in self.open) - 1
            self.open.remove(step)
            self.spans.append(Span(step.name, step.start, end, done, depth, step.there))

    def compare(self, step: Step, when: float) -> None:
        if step.there:
            came = time.time() - when
            self.behind = came if self.behind is None else min(self.behind, came)

    def steps(self) -> Iterator[Span]:
        """By our clock, in the order in which they began."""
        for each in sorted(self.spans, key=lambda each: (each.there, each.start)):
            late = self.behind or 0.0 if each.there else 0.0
            yield each._replace(start=each.start + late, end=each.end + late)


@contextmanager
def told(host: Host, task: str) -> Iterator[Account]:
    """Leave an account of what happens inside, at every end of it.

    Raises Failure, as outcome.explained makes it; nothing because of the account itself.
    """
    account, recorder, before = Account(host.name, task, time.time()), Recorder(), known(host)
    log.sink = recorder.line
    log.observers.append(recorder)
    try:
        yield account
    except BaseException as end:
        failure = hidden(outcome.explained(end), host)
        account.fail(failure)
        raise failure from None
    finally:
        log.sink = recorder.sink
        log.observers.remove(recorder)
        state = known(host)
        if task != "deploy" or state.deployment != before.deployment:  # else a former one's
            account.know(state)
        account.end, account.spans = time.time(), list(recorder.steps())
        account.lines = list(recorder.lines)
        leave(host, account)


def leave(host: Host, account: Account) -> None:
    """Write ACCOUNT and its page. Raises nothing: another failure may be under way."""
    try:
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(account.start))}-{account.task}"
        account = scrubbed(account, secrets(host))
        top = directory(host)
        files.replace(top / f"{name}.html", page(account), 0o600)
        files.replace(top / f"{name}.json", records.text(account), 0o600)  # `report` looks for it
        for old in sorted(top.iterdir())[: -2 * KEPT]:
            old.unlink()
        log.info(f"Report: {top / name}.html")
    except (Failure, Exception) as error:
        log.info(f"No report was written: {error}")


def directory(host: Host) -> Path:
    top = places.state(host.name) / "reports"
    top.mkdir(mode=0o700, exist_ok=True)
    return top


def secrets(host: Host) -> list[str]:
    """What of the revealed secrets could stand in a line of the log: their values and lines."""
    top = places.memory(host.name) / "secrets"
    found = [each.read_bytes().decode(errors="ignore") for each in top.rglob("*") if each.is_file()]
    lines = {log.printable(line.strip()) for text in found for line in text.splitlines()}
    return sorted((line for line in lines if len(line) >= SECRET), key=len, reverse=True)


def hidden(failure: Failure, host: Host) -> Failure:
    """FAILURE without the revealed secrets: its message goes to files that stay."""
    with suppress(OSError):
        failure.message = without(failure.message, secrets(host))
    return failure


def without(text: str, secrets: Iterable[str]) -> str:
    for each in secrets:
        text = text.replace(each, SAVED)
    return text


def scrubbed(account: Account, secrets: list[str]) -> Account:
    """ACCOUNT as text that gives no orders, and without SECRETS: the definition's own commands may
    have printed them."""

    def clean(value: object) -> object:
        if isinstance(value, str):
            return without(log.printable(value), secrets)
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        return [clean(each) for each in value] if isinstance(value, list | tuple) else value

    made: Account = records.make(Account, clean(asdict(account)), "the account")
    return made


def report(host: Host, browse: bool = False) -> Result:
    """The newest report of HOST: where it is, and what it tells, except the log.

    BROWSE: show it in a browser, too. Raises Failure when there is none.
    """
    found = sorted(directory(host).glob("*.json"))
    if not found:
        die(f"{host.name}: no report yet", hint="each deployment leaves one")
    told = records.load(Account, found[-1].read_bytes(), f"{found[-1]}")
    file = found[-1].with_suffix(".html")
    if browse and not webbrowser.open(file.as_uri()):
        die(f"no browser for {file}", hint="xdg-utils opens the desktop's; BROWSER names another")
    facts = {key: value for key, value in asdict(told).items() if key != "lines"}
    spans = [each._asdict() for each in told.spans]
    return {"report": f"{file}", **facts, "spans": spans}
