"""What runs on all hosts, asked at the same time. One that hangs or refuses hides no other."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

from anemos import log
from anemos.border.deployment import Revision
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure, die
from anemos.system import changes
from anemos.system.changes import Change
from anemos.workstation import Result, hosts, report
from anemos.workstation.deploy import drift, history, outcome, reach, status
from anemos.workstation.deploy.history import Line
from anemos.workstation.deploy.state import PASSED, WORD, load_state
from anemos.workstation.deploy.status import Known, Status
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Remote, connect

AT_ONCE = 16  # connections
LIMIT_S = 120.0  # for one host; apt takes ten seconds on a slow machine
DRIFT_S = 600.0  # the same, where all files are looked at
UPDATES_S = 90.0
COLUMNS = {  # as of report.table
    "host": True,
    "runs": True,
    "age": True,
    "commit": False,
    "kernel": False,
    "security updates": False,
    "last end here": False,
}
DRIFT = {"drift": False}  # one more, only where it is asked for
DAY_S = 86400.0
UNASKED = "not asked"  # instead of a state
# A host's state counts for the exit status; the last one of WORST is the worst.
COUNTS = {
    status.DEPLOYED: 0,
    status.SYSTEM: FAILED,
    # The initramfs before the word to erase: it leads back by itself.
    status.GOING: FAILED,
    status.HELD: FAILED,
    status.FAILING: FAILED,
    status.INSTALLING: IN_INITRAMFS,
    status.FAILED_THERE: IN_INITRAMFS,  # nobody answers: see `silent`
}
WORST = (0, FAILED, UNVERIFIED, BAD_INPUT, IN_INITRAMFS)
Load = Callable[[str], Host]


@dataclass(frozen=True)
class Updates:
    security: int | None = None  # pending; None: not known
    lists: float = 0.0  # when the server's lists were new, at the latest


@dataclass(frozen=True)
class Row:
    host: str
    state: str  # see status.py, or UNASKED
    status: int  # that it counts for
    deployment: str = ""
    deployed: float | None = None  # when, by the deployment's id
    commit: Revision = field(default_factory=Revision)
    kernel: str = ""
    boot_id: str = ""
    updates: Updates = field(default_factory=Updates)
    message: str = ""  # why nothing was said, or what failed there
    last_known: Known = field(default_factory=Known)
    last: Line | None = None  # the last deployment that ended on this workstation
    drift: list[Change] | None = None  # None: not asked for, or not known


def show(load: Load, host: str, exit_status: bool, drifts: bool = False) -> Result:
    """Tell what runs on HOST, "" for all of them. EXIT_STATUS: end with the worst one. DRIFTS: look
    for drift, too."""
    volatile: dict[str, Sequence[str]] = {}

    def described(name: str) -> Host:
        found = load(name)
        if drifts:
            volatile[found.name] = found.imgbuild().changing
        return found

    # Not in the threads: pydantic reads our source, and Python's parser is not made for several.
    names = [host] if host else [name for name in hosts.known() if asked(load, name)]
    if not names:
        die("there is nobody to ask", hint=f"known: {', '.join(hosts.known())}")
    found = [loaded(described, name) for name in names]
    rows = [each for each in found if isinstance(each, Row)]
    ask = partial(look, volatile=volatile if drifts else None)
    limit = DRIFT_S if drifts else LIMIT_S
    rows += gather({each.name: each for each in found if isinstance(each, Host)}, ask, limit=limit)
    rows.sort(key=lambda each: each.host)
    columns = COLUMNS | (DRIFT if drifts else {})
    report.table(columns, (cells(row)[: len(columns)] for row in rows))
    for row in rows:
        if row.message:
            log.tell(f"{row.host}: {row.message}")
    worst = max((each.status for each in rows), key=WORST.index, default=0)
    result: Result = {"hosts": [asdict(each) for each in rows], "worst": worst}
    return result | ({"exit_status": worst} if exit_status else {})


def asked(load: Load, name: str) -> bool:
    """Whether the host NAME is a machine: it has an address, or is a local VM that runs. What is
    wrong with its host.toml has to be told, too."""
    try:
        local = hosts.is_local(name)
        there = load(name).address if local else hosts.incomplete(name).get("address")
    except Failure:
        return True
    if not there:
        log.info(f"{name} is not asked: {'its VM does not run' if local else 'no address'}")
    return bool(there)


def loaded(load: Load, name: str) -> Host | Row:
    try:
        return load(name)
    except Failure as failure:
        return silent(name, str(failure), UNASKED)


def gather(
    asked: Mapping[str, Host],
    ask: Callable[[Host], Row],
    at_once: int = AT_ONCE,
    limit: float = LIMIT_S,
) -> list[Row]:
    """What ASK says of each host. One that takes longer than LIMIT (seconds) is left alone: a
    thread cannot be ended, but it ends with us."""
    waiting, ends, rows = list(asked), dict[str, float](), list[Row]()
    answers: SimpleQueue[Row] = SimpleQueue()

    def answer(name: str) -> None:
        answers.put(ask(asked[name]))

    while waiting or ends:
        while waiting and len(ends) < at_once:
            name = waiting.pop(0)
            ends[name] = time.monotonic() + limit
            Thread(target=answer, args=[name], daemon=True).start()
        with suppress(Empty):
            row = answers.get(timeout=max(0, min(ends.values()) - time.monotonic()))
            if ends.pop(row.host, None):  # else it is too late
                rows.append(row)
        for name in [each for each, end in ends.items() if end <= time.monotonic()]:
            del ends[name]
            rows.append(silent(name, f"no answer within {limit:g} s"))
    return rows


def look(host: Host, volatile: Mapping[str, Sequence[str]] | None = None) -> Row:
    """VOLATILE: by host, where drift is asked for. Raises nothing."""
    drifted, why = None, ""
    try:
        with connect(reach.endpoint(host), status=FAILED) as remote:
            seen = status.ask(remote)
            found = Updates() if seen.in_initramfs else pending(remote)
            if volatile is not None:
                drifted, why = drift_of(host, volatile[host.name], seen, remote)
        known = status.remember(host, seen)
        row = judged(host.name, seen, found, known, last(host.name))
        return replace(row, drift=drifted, message=row.message or why)
    except (Exception, Failure) as end:
        return silent(host.name, str(outcome.explained(end)))


def drift_of(
    host: Host, volatile: Sequence[str], seen: Status, remote: Remote
) -> tuple[list[Change] | None, str]:
    """None, and why, where nobody knows it."""
    try:
        return drift.find(host, volatile, seen, remote).changes, ""
    except Failure as failure:
        return None, failure.message


def pending(remote: Remote) -> Updates:
    with suppress(Failure, ValueError):
        said = reach.script(remote, "updates.sh", timeout=UPDATES_S)
        one = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if one:
            return Updates(int(one["security"]), float(one["lists"]))
    return Updates()


def judged(name: str, seen: Status, found: Updates, known: Known, last: Line | None) -> Row:
    """Pure."""
    code = COUNTS[seen.state]
    # The last word about the system that runs there.
    if not code and last and last.deployment == seen.deployment and last.status == UNVERIFIED:
        code = UNVERIFIED
    stamp = (seen.deployment, deployed(seen.deployment), seen.stamp.commit)
    system = (seen.kernel, seen.boot_id)
    return Row(name, seen.state, code, *stamp, *system, found, seen.message, known, last)


def silent(name: str, why: str, state: str = status.UNREACHABLE) -> Row:
    """That nothing is heard of a host which got the word to erase is more than an unmet
    precondition."""
    code, known, ended = BAD_INPUT, Known(), None
    with suppress(Failure, OSError):
        host = Host(name, hosts.find(name))
        known, ended = status.last_known(host), last(name)
        code = IN_INITRAMFS if load_state(host).reached in (WORD, PASSED) else code
    return Row(name, state, code, message=why, last_known=known, last=ended)


def last(name: str) -> Line | None:
    lines = history.read(name)
    return lines[-1] if lines else None


def deployed(deployment: str) -> float | None:
    """When the DEPLOYMENT began; its id may be the operator's own."""
    found = re.match(r"\d{8}T\d{6}Z", deployment)
    with suppress(ValueError):
        return found and datetime.strptime(f"{found[0]}+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    return None


def cells(row: Row) -> list[str]:
    """ROW as it is shown, by COLUMNS and DRIFT."""
    runs = "\n".join(filter(None, [row.state, row.deployment]))
    age = f"{(time.time() - row.deployed) / DAY_S:.0f} d" if row.deployed else ""
    commit = str(row.commit) if row.deployment else ""
    ended = f"{row.last.short}, {day(row.last.time)}" if row.last else ""
    drifted = "unknown" if row.drift is None else changes.summary(row.drift)
    return [row.host, runs, age, commit, row.kernel, updates(row.updates), ended, drifted]


def updates(found: Updates) -> str:
    if found.security is None:
        return "unknown"
    return f"{found.security}, lists of {day(found.lists)}"


def day(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")
