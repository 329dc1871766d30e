"""What became of each deployment: a line of JSON for each, here and on the system that it left.

The workstation's file is the one that lasts, as a deployment erases the server's. So each new
system gets a copy of it.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from anemos import files, log
from anemos.border import records
from anemos.border.deployment import Revision
from anemos.log import Failure
from anemos.workstation import Result, places, report
from anemos.workstation.deploy import reach
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import connect

THERE = "/var/lib/anemos/history.jsonl"
COLUMNS = {  # as of report.table
    "when": False,
    "who": False,
    "task": True,
    "commit": False,
    "end": False,
    "took": False,
}


@dataclass(frozen=True)
class Line:
    """The end of a task. What is not known, or was not reached, is empty."""

    time: float  # when it began: seconds since the epoch
    who: str
    task: str
    deployment: str
    commit: Revision
    way: str
    status: int  # as in docs/recovery.md
    end: str  # "verified", "held", "aborted", or the first line of what went wrong
    seconds: float
    downtime: float | None = None  # seconds

    @property
    def short(self) -> str:
        return f"{self.status}: {self.end}" if self.status else self.end


def file(name: str) -> Path:
    """That of the host NAME."""
    return places.state(name) / "history.jsonl"


def add(name: str, line: Line) -> None:
    """Raises OSError."""
    with files.named(file(name)), file(name).open("a") as lines:
        lines.write(records.text(line) + "\n")
    files.sync(file(name))


def read(name: str) -> list[Line]:
    """The oldest first. A line that was cut off, by a power cut perhaps, is left out."""
    return list(lines(name)) if file(name).exists() else []


def lines(name: str) -> Iterator[Line]:
    for line in file(name).read_text(errors="replace").splitlines():
        with suppress(ValueError):
            yield records.parse(Line, line)


def send(host: Host) -> None:
    """Put the history on the new system. That it cannot be is no failure."""
    try:
        with connect(reach.endpoint(host)) as remote:
            remote.put(file(host.name).read_bytes(), THERE, mode=0o600)
    except (OSError, Failure) as error:
        log.info(f"The history could not be written on {host.name}: {error}")


def show(name: str) -> Result:
    """Tell the history of the host NAME, the oldest first."""
    known = read(name)
    if known:
        report.table(COLUMNS, map(row, known))
    else:
        log.tell(f"No deployment of {name} has ended on this workstation")
    return {"host": name, "history": [asdict(each) for each in known]}


def row(line: Line) -> list[str]:
    """LINE as it is shown, by COLUMNS."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.time))
    way = line.way and f"by {line.way}"
    task = "\n".join(filter(None, [line.task, line.deployment, way]))
    down = "" if line.downtime is None else f", {line.downtime:.0f} s down"
    took = f"{line.seconds:.0f} s{down}"
    return [when, line.who, task, str(line.commit), line.short, took]
