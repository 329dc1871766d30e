"""The table at the end of a deployment."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 2**20


def show(report: dict[str, Any], title: str) -> None:
    """Print REPORT (see verify.conclude, with `phases`) on standard error.

    A local VM has neither downtime nor bytes that were sent.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("evidence", overflow="fold")
    for what, evidence in [*_summary(report), *_phases(report), *_checks(report)]:
        table.add_row(what, evidence)
    Console(stderr=True, highlight=False).print(table)


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
