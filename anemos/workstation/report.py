"""What the operator is asked, and the table at the end of a deployment."""

import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anemos import log
from anemos.log import die

MIB = 2**20


def typed(name: str, what: str, hint: str) -> None:
    """Tell a person WHAT it is about, and have NAME typed. Raises Failure; HINT: for scripts."""
    if not os.isatty(0):
        die(f"{name}: not confirmed", hint=f"{what}; {hint}")
    log.info(f"{what}. Type {name} to go on:")
    if sys.stdin.readline().strip() != name:  # at its end, too, unlike input()
        die("not confirmed; nothing was done")


def show(report: dict[str, Any], title: str) -> None:
    """Print REPORT (see verify.conclude, with `phases`) on standard error.

    A local VM has neither downtime nor bytes that were sent.
    """
    table = Table(title=Text(title), title_justify="left")
    table.add_column("what")
    table.add_column("evidence", overflow="fold")
    for row in [*_summary(report), *_phases(report), *_checks(report)]:
        table.add_row(*map(plain, row))
    to_stderr(table)


def plain(data: str) -> Text:
    """A cell: what others say is neither markup nor a terminal's orders."""
    return Text(log.printable(data))


def to_stderr(table: Table) -> None:
    """Raises nothing, as everything that is said on the way to a result."""
    console = Console(stderr=True, highlight=False, color_system=None)
    with console.capture() as drawn:
        console.print(table)
    log.to_stderr(drawn.get().rstrip("\n"))


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kernel", report["kernel"]
    if report.get("downtime_s") is not None:
        yield "downtime", f"{report['downtime_s']} s"
    if sent := report.get("bytes_sent"):
        yield "sent", ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sent.items())


def _phases(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("phases", ", ".join(f"{each['name']} {each['seconds']} s" for each in report["phases"]))
    ]


def _checks(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["name"], f"ok: {each['evidence']}") for each in report["checks"]]
