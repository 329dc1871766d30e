"""What the operator is asked, and the table at the end of a deployment."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anemos import log
from anemos.log import die
from anemos.workstation import Result

MIB = 2**20
UNFOLDED = 1000  # columns, where no terminal ends them


def typed(name: str, what: str, hint: str) -> None:
    """Tell a person WHAT it is about, and have NAME typed. Raises Failure; HINT: for scripts."""
    if not os.isatty(0):
        die(f"{name}: not confirmed", hint=f"{what}; {hint}")
    log.info(f"{what}. Type {name} to go on:")
    if sys.stdin.readline().strip() != name:  # at its end, too, unlike input()
        die("not confirmed; nothing was done")


def show(report: Result, title: str) -> None:
    """Tell REPORT (see verify.conclude, with `phases`).

    A local VM has neither downtime nor bytes that were sent.
    """
    phases = ", ".join(f"{each['name']} {each['seconds']} s" for each in report["phases"])
    checks = [(each["name"], f"ok: {each['evidence']}") for each in report["checks"]]
    table({"what": True, "evidence": False}, [*summary(report), ("phases", phases), *checks], title)


def table(columns: Mapping[str, bool], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """COLUMNS: whether they stay on one line while there is room; the others are folded, on a
    terminal.

    Cells are neither markup nor a terminal's orders. Raises nothing, as everything that is said on
    the way to a result.
    """
    grid = Table(title=Text(title) if title else None, title_justify="left")
    for name, whole in columns.items():
        least = max(map(len, name.split()))
        grid.add_column(name, overflow="fold", no_wrap=whole, min_width=least)
    for row in rows:
        grid.add_row(*(Text(log.printable(cell)) for cell in row))
    wide = None if sys.stdout.isatty() else UNFOLDED
    console = Console(highlight=False, color_system=None, width=wide)
    with console.capture() as drawn:
        console.print(grid)
    log.tell(drawn.get().rstrip("\n"))


def summary(report: Result) -> Iterator[tuple[str, str]]:
    yield "kernel", report["kernel"]
    if report.get("downtime_s") is not None:
        yield "downtime", f"{report['downtime_s']} s"
    if sent := report.get("bytes_sent"):
        yield "sent", ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in sent.items())
