"""The page of an account: one HTML file that loads nothing and runs nothing.

All that others have said stands in it escaped.
"""

import re
import time
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED
from anemos.workstation import places
from anemos.workstation.deploy.account import Account, Span

TEMPLATE = Path(__file__).with_name("page.html")
# In a clone, and in a repository of one's own.
RECOVERY = [
    each / "docs/recovery.md" for each in (places.PACKAGE.parent, places.ROOT / ".venv/anemos")
]
# Exit status -> how it ended, and the chapter of docs/recovery.md about it.
ENDS = {
    FAILED: (
        "failed: the server runs the old system, or goes back to it",
        "The old system is back",
    ),
    BAD_INPUT: ("refused: nothing was started", "By exit status"),
    IN_INITRAMFS: ("failed after the word to erase", "It waits in the initramfs"),
    UNVERIFIED: ("deployed, not verified", "The new system is up, and something is wrong"),
}
ENDED = ("the task was ended, the server was not", "By exit status")
BAD = re.compile(r"[ |]*(\(.* failed after |FAIL)")  # lines of the log
TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600)
TICKS = 6  # at most
# Heights in the timeline, in pixels.
AXIS, TITLE, ROW, BAR = 24, 30, 30, 9
Row = tuple[str, str]


class Bar(NamedTuple):
    name: str
    start: float
    end: float
    kind: str  # a class of page.html


def page(account: Account) -> str:
    proven = "deployed and verified" if account.checks else "done; nothing is verified yet"
    how, chapter = ENDS.get(account.status, ENDED) if account.status else (proven, "")
    return Template(TEMPLATE.read_text()).substitute(
        title=escape(f"{account.task} {account.host}"),
        good="bad" if account.status else "good",
        how=escape(how),
        facts=table(facts(account)),
        faults=faults(account, chapter),
        timeline=timeline(account),
        plan=section("Plan", table(account.plan)),
        evidence=section("Evidence", table(evidence(account))),
        log=log_of(account),
    )


def facts(account: Account) -> Iterator[Row]:
    yield "began", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(account.start))
    yield "took", span_of_time(account.end - account.start)
    if account.deployment:
        yield "deployment", account.deployment
    if account.kernel:
        yield "kernel", account.kernel
    if down := downtime(account):
        yield "downtime", down.name
    for name, size in account.sent.items():
        yield f"sent: {name}", f"{size / 2**20:.2f} MiB ({size} bytes)" if size else "nothing"
    yield "exit status", str(account.status)


def evidence(account: Account) -> Iterator[Row]:
    for each in account.checks:
        yield each.name, f"{'ok' if each.passed else 'FAILS'}: {each.evidence}"


def faults(account: Account, chapter: str) -> str:
    if not account.status:
        return ""
    broken = [each.name for each in account.spans if not each.done]
    told = [f"<pre>{escape(account.message)}</pre>"]
    if account.hint:
        told.append(f"<p>{escape(account.hint)}</p>")
    if broken:
        told.append(f"<p>Not finished: {escape(', '.join(broken))}.</p>")
    told.append(f"<p>What to do: {link(chapter)}.</p>")
    return section("Fault", "".join(told))


def link(chapter: str) -> str:
    """To a chapter of docs/recovery.md, if that is here."""
    name = f"docs/recovery.md, “{chapter}”"
    file = next((each for each in RECOVERY if each.is_file()), None)
    return f'<a href="{escape(f"{file.as_uri()}#{slug(chapter)}")}">{name}</a>' if file else name


def slug(chapter: str) -> str:
    return chapter.lower().replace(",", "").replace(" ", "-")


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def table(rows: Iterable[Row]) -> str:
    made = []
    for what, which in rows:
        bad = what in ("ERASE", "warning") or which.startswith("FAILS: ")
        mark = ' class="bad"' if bad else ""
        cells = f'<th scope="row">{escape(what)}</th><td>{escape(which)}</td>'
        made.append(f"<tr{mark}>{cells}</tr>")
    return f"<table>{''.join(made)}</table>" if made else ""


def log_of(account: Account) -> str:
    lines = []
    for when, text in account.lines:
        kind = (
            ' class="bad"'
            if BAD.match(text)
            else ' class="point"'
            if "POINT OF NO RETURN" in text
            else ""
        )
        at = clock(when - account.start)
        lines.append(f"<div{kind}><i>{at}</i><code>{escape(text)}</code></div>")
    return section("Log", f'<div class="log">{"".join(lines)}</div>' if lines else "")


# --- the timeline


def downtime(account: Account) -> Bar | None:
    """From the old system's last answer to the new one's first, or to the end of what is known."""
    if not account.last_answer:
        return None
    end = account.first_answer or account.end
    took = span_of_time(end - account.last_answer)
    if account.first_answer:
        name = took
    elif account.status == FAILED:
        name = f"at most {took}"  # the old system has come back
    else:
        name = f"{took} so far"
    return Bar(name, account.last_answer, end, "down")


def lanes(account: Account) -> Iterator[tuple[str, list[Bar]]]:
    """The machines, and what they did."""
    tops = [each for each in account.spans if each.depth == 0]
    here = [each._replace(name=each.name.removesuffix(f" {account.host}")) for each in tops]
    yield "Workstation", [bar(each, "here") for each in here if not each.there]
    old = Bar("answers", account.start, account.last_answer or account.end, "old")
    known = account.plan or account.last_answer
    yield "Server: old system", [old] if known and old.end > old.start else []
    yield "Server: initramfs", [bar(each, "ram") for each in tops if each.there]
    new = Bar("answers", account.first_answer, account.end, "new")
    yield "Server: new system", [new] if account.first_answer else []


def bar(span: Span, kind: str) -> Bar:
    return Bar(span.name, span.start, span.end, kind if span.done else f"{kind} broken")


def timeline(account: Account) -> str:
    """SVG whose widths are percentages, and whose letters keep their size on a narrow screen."""
    whole = max(account.end - account.start, 0.1)

    def percent(when: float) -> float:
        return min(max(100 * (when - account.start) / whole, 0), 100)

    drawn, y = [], AXIS
    for title, bars in lanes(account):
        if not bars:
            continue
        y += TITLE
        drawn.append(f'<text class="lane" x="0" y="{y - 8}">{title}</text>')
        for each in bars:
            drawn.append(drawing(each, percent(each.start), percent(each.end), y))
            y += ROW
    down = downtime(account)
    under = shade(down, percent(down.start), percent(down.end), y) if down else ""
    axis = "".join(tick(each, percent(account.start + each), y) for each in ticks(whole))
    body = f"{under}{axis}{''.join(drawn)}"
    return f'<svg role="img" aria-label="Timeline" width="100%" height="{y + ROW}">{body}</svg>'


def drawing(each: Bar, start: float, end: float, y: int) -> str:
    """A bar, and above it what it is: written to the right from its start, or left from its end."""
    took = f", {span_of_time(each.end - each.start)}" if each.end > each.start else ""
    place = beside(start, end)
    name = escape(each.name + took + (", FAILED" if "broken" in each.kind else ""))
    width = max(end - start, 0.5)
    start = min(start, 100 - width)
    return (
        f'<text {place} y="{y + 10}">{name}</text><rect class="{each.kind}" x="{start:.2f}%"'
        f' y="{y + 14}" width="{width:.2f}%" height="{BAR}" rx="2"/>'
    )


def beside(start: float, end: float) -> str:
    """Where words about this part stand: they must not leave the page."""
    return f'x="{start:.2f}%"' if start < 50 else f'x="{end:.2f}%" text-anchor="end"'


def shade(down: Bar, start: float, end: float, height: int) -> str:
    place = beside(start, end)
    return (
        f'<rect class="down" x="{start:.2f}%" y="{AXIS}" width="{max(end - start, 0.5):.2f}%"'
        f' height="{height - AXIS}"/><text class="down" {place} y="{height + 18}">'
        f"downtime: {escape(down.name)}</text>"
    )


def ticks(whole: float) -> range:
    """Seconds to be marked."""
    apart = next((each for each in TICKS_S if whole / each < TICKS), 86400)
    return range(0, int(whole) + 1, apart)


def tick(seconds: int, x: float, height: int) -> str:
    anchor = "start" if x < 5 else "end" if x > 95 else "middle"
    return (
        f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{AXIS - 6}" y2="{height}"/>'
        f'<text class="tick" x="{x:.2f}%" y="12" text-anchor="{anchor}">{clock(seconds)}</text>'
    )


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes:02}:{rest:02}"


def span_of_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
