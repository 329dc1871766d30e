"""What each end of a deployment leaves, a failure's, too: a line of history, a report, a hook."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anemos import files, log
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure
from anemos.workstation import Result, places
from anemos.workstation.deploy import history, hooks, outcome, reports
from anemos.workstation.deploy.history import Line
from anemos.workstation.deploy.state import State, known
from anemos.workstation.hosts import Host

REST = ("resume", "abort")  # of a deployment that was held, or has failed
ENDS = ("verified", "held", "aborted")  # as results have them; nothing else is an end


@dataclass
class Run:
    """A task as it goes."""

    host: Host
    task: str
    earlier: str = ""  # the deployment of the run before, if this is to be another one
    hooked: bool = False  # what before-deploy has done is to be undone
    began: float = field(default_factory=time.time)
    result: Result = field(default_factory=dict)


@contextmanager
def recorded(host: Host, task: str) -> Iterator[Run]:
    """Whoever is inside gives Run its result. Raises Failure for all that is raised there."""
    run = Run(host, task, hooked=task in REST)
    run.earlier = known(host).deployment if task == "deploy" else ""
    try:
        yield run
    except (Exception, Failure, KeyboardInterrupt) as raised:
        failure = reports.hidden(outcome.explained(raised), host)
        run.result = {"error": failure.message, "status": failure.status}
        conclude(run, failure.status, failure.message.partition("\n")[0])
        raise failure from None
    end = next((each for each in ENDS if run.result.get(each)), "")
    if end:
        conclude(run, FAILED if end == "aborted" else 0, end)  # the old system runs


def conclude(run: Run, status: int, end: str) -> None:
    """Raises nothing: the deployment's own end counts."""
    if status == BAD_INPUT and (run.task in REST or not run.hooked):
        return  # nothing was started
    name, line = run.host.name, made(run, status, end)
    try:
        if run.task in ("deploy", *REST) or news(name, line):
            history.add(name, line)
            report = places.state(name) / "report.json"
            files.replace(report, json.dumps(run.result), 0o600)
        if end == "verified" or status == UNVERIFIED:
            history.send(run.host)
    except OSError as error:
        log.info(f"The history could not be written: {error.filename}: {error.strerror}")
    if run.hooked and end != "held":
        hooks.after(run.host, line.deployment, status, places.state(name) / "report.json")


def made(run: Run, status: int, end: str) -> Line:
    """What is known of an earlier deployment is not this one's."""
    state = known(run.host)
    if run.earlier and state.deployment == run.earlier:
        state = State(run.host.name)
    who = places.who().partition(":")[0]
    way = state.way if state.sent else ""  # chosen with the upload
    downtime = state.downtime if state.first_answer else None
    seconds = round(time.time() - run.began, 1)
    words = (state.deployment, state.commit, way, status, end, seconds, downtime)
    return Line(run.began, who, run.task, *words)


def news(name: str, line: Line) -> bool:
    """Whether a part of a deployment, run alone, has ended it, and not as it is known already."""
    last = next((e for e in reversed(history.read(name)) if e.deployment == line.deployment), None)
    told = last is not None and last.status == line.status
    return line.status in (0, FAILED, IN_INITRAMFS, UNVERIFIED) and not told
