"""The report of a deployment: what is in it, what is not, and that it hides no failure."""

import json
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anemos import log
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure, Step
from anemos.workstation import places
from anemos.workstation.deploy import chain, page, reports
from anemos.workstation.deploy.account import Account, Line, Span
from anemos.workstation.deploy.state import State
from anemos.workstation.deploy.verify import Check, Disproved
from anemos.workstation.hosts import Host
from tests import leaks
from tests.tree import ROOT, Tree

HOST = Host("mx", Path("hosts/mx"), address="192.0.2.1", host_key="ssh-ed25519 AAAA")
SECRETS = {
    "files/etc/ssl/mx.key": "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIE\n-----END KEY-----\n",
    "values/TOKEN": 'a "very" <secret> täken',
}
MARKERS = {"key": b"MC4CAQAwBQYDK2VwBCIE", "token": SECRETS["values/TOKEN"].encode()}
CHECKS = [Check("port 22", True, "listens"), Check("verify()", False, "nginx: <inactive>")]
T = 1_800_000_000.0


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)


def newest() -> Path:
    return Path(reports.report(HOST)["report"])


def plan(host: Host) -> dict[str, Any]:
    log.info("ERASE    vda <b>x</b> \x1b[2J")
    return {"plan": [["ERASE", "vda <b>x</b>"]]}


def reveal(host: Host) -> dict[str, Any]:
    for name, text in SECRETS.items():
        file = places.memory("mx") / "secrets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {}


def jump(host: Host) -> dict[str, Any]:
    state = State("mx", "d-1", last_answer=time.time(), sent={"base": 0, "payload": 7})
    state.save()
    for text in SECRETS.values():  # the host's own provision() prints them
        for line in text.splitlines():
            log.info(f"| + echo {line}")
    return {}


def verify(host: Host) -> dict[str, Any]:
    State("mx", "d-1", last_answer=T, first_answer=T + 20).save()
    return {"kernel": "6.1", "checks": [asdict(CHECKS[0])]}


def failing(end: BaseException) -> Callable[[Host], dict[str, Any]]:
    def phase(host: Host) -> dict[str, Any]:
        raise end

    return phase


def deploy(monkeypatch: pytest.MonkeyPatch, **given: chain.Phase) -> None:
    work: Mapping[str, chain.Phase] = {
        "plan": plan, "reveal-secrets": reveal, "kexec": jump, "verify": verify, **given
    }  # fmt: skip
    monkeypatch.setattr(chain, "PHASES", work)
    chain.deploy(HOST, yes="mx")


def test_report_of_a_deployment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(monkeypatch)

    told = reports.report(HOST)
    file = newest()
    text = file.read_text()
    assert f"Report: {file}\n" in capsys.readouterr().err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    for words in (
        "deployed and verified",
        "vda &lt;b&gt;x&lt;/b&gt; \\x1b[2J",
        "ok: listens",
        "6.1",
    ):
        assert words in text
    assert "downtime: 20.0 s" in text
    assert [each["name"] for each in told["spans"]] == [
        f"{name} mx" for name in ("plan", "reveal-secrets", "kexec", "verify")
    ]
    assert (told["status"], told["deployment"], told["plan"]) == (
        0,
        "d-1",
        [("ERASE", "vda <b>x</b>")],
    )


def test_no_secret_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the host's own commands have printed them, and a failure names one."""
    with pytest.raises(Failure):
        said = "; ".join(SECRETS.values())
        deploy(monkeypatch, verify=failing(Failure(said, status=UNVERIFIED)))

    files = [file for file in places.state("mx").rglob("*") if file.is_file()]
    assert {newest().name, "report.json", "history.jsonl"} <= {file.name for file in files}
    assert leaks.hits(files, MARKERS) == []
    assert leaks.hits(files, {"escaped": b"&lt;secret&gt;"}) == []
    assert "| + echo [secret]" in newest().read_text()


@pytest.mark.parametrize(
    ("phase", "end", "words"),
    [
        (
            "plan",
            Failure("mx cannot be deployed:\n  - <no> disk", status=BAD_INPUT),
            "&lt;no&gt; disk",
        ),
        ("kexec", Failure("lost", hint="look", status=FAILED), "By exit status"),
        ("kexec", KeyboardInterrupt(), "interrupted"),
        ("verify", Failure("in provision()", status=IN_INITRAMFS), "It waits in the initramfs"),
        ("verify", Disproved("mx fails: verify()", CHECKS), "FAILS: nginx: &lt;inactive&gt;"),
        ("verify", KeyError("boot"), "KeyError: &#x27;boot&#x27;"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_report_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, phase: str, end: BaseException, words: str
) -> None:
    with pytest.raises(Failure) as caught:
        deploy(monkeypatch, **{phase: failing(end)})

    text = newest().read_text()
    told = reports.report(HOST)
    assert told["status"] == caught.value.status != 0
    assert told["message"] == caught.value.message
    assert f"Not finished: {phase} mx." in text
    if phase != "kexec" or told["status"] == 130:
        assert words in text


def test_former_deployment_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(monkeypatch)
    with pytest.raises(Failure):
        deploy(monkeypatch, plan=failing(Failure("no")))

    told = reports.report(HOST)
    assert (told["deployment"], told["last_answer"], told["sent"]) == ("", 0, {})


def test_report_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure is the deployment's."""
    monkeypatch.setattr(reports, "page", lambda _: 1 / 0)
    with pytest.raises(Failure, match="the reason"):
        deploy(monkeypatch, verify=failing(Failure("the reason", status=FAILED)))

    assert "No report was written: division by zero\n" in capsys.readouterr().err
    assert not list(places.memory("mx").rglob("mx.key"))


def test_old_reports_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "KEPT", 2)
    top = reports.directory(HOST)
    for number in range(3):
        for kind in ("json", "html"):
            (top / f"2020010{number}T000000Z-deploy.{kind}").touch()
    deploy(monkeypatch)
    assert len(list(top.iterdir())) == 4
    assert (top / "20200102T000000Z-deploy.html").exists()


def test_clock_of_the_initramfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an hour slow here; what was heard at once tells how much."""

    def ram(host: Host) -> dict[str, Any]:
        now = time.time() - 3600
        for name, start, end in (("Preflight", now - 30, now - 20), ("Disks", now - 10, now)):
            step = Step(name, start, there=True)
            log.began(step)
            log.ended(step, end, True)
        return {}

    deploy(monkeypatch, kexec=ram)

    preflight, disks = reports.report(HOST)["spans"][-2:]
    assert disks["there"]
    assert abs(disks["end"] - time.time()) < 60
    assert disks["start"] - preflight["start"] == pytest.approx(20)


def test_no_report_yet() -> None:
    with pytest.raises(Failure, match="mx: no report yet") as caught:
        reports.report(HOST)
    assert caught.value.status == BAD_INPUT


# The page


class Page(HTMLParser):
    """Elements that are open, and all attributes. Raises AssertionError for what is not closed."""

    EMPTY = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.values: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [(name, value or "") for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = '</pre><script src="http://192.0.2.1/x">&"\''
ACCOUNT = Account(
    "mx",
    "deploy",
    T,
    T + 100,
    status=IN_INITRAMFS,
    message=HOSTILE,
    hint=HOSTILE,
    deployment=HOSTILE,
    kernel=HOSTILE,
    last_answer=T + 40,
    plan=[("ERASE", HOSTILE)],
    sent={"base": 0, "layer": 5 << 20},
    checks=[Check(HOSTILE, False, HOSTILE)],
    spans=[
        Span("plan mx", T, T + 10, True, 0, False),
        Span(HOSTILE, T + 90, T + 100, False, 0, True),
        Span("within", T + 91, T + 92, True, 1, True),
    ],
    lines=[Line(T + 1, HOSTILE), Line(T + 65, "(x failed after 2.0 s)")],
)


def test_page_runs_and_loads_nothing() -> None:
    made = Page(page.page(ACCOUNT))

    assert made.tags.isdisjoint({"script", "link", "img", "iframe", "object", "style=", "base"})
    assert {name for name, _ in made.values if name.startswith("on")} == set()
    assert [value for name, value in made.values if name in ("src", "href")] == [
        f"{(ROOT / 'docs/recovery.md').as_uri()}#it-waits-in-the-initramfs"
    ]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in made.values
    assert "url(" not in page.TEMPLATE.read_text() and "@import" not in page.TEMPLATE.read_text()


def test_timeline() -> None:
    text = page.page(ACCOUNT)

    assert '<rect class="here" x="0.00%"' in text
    assert '<rect class="ram broken" x="90.00%"' in text
    assert '<rect class="down" x="40.00%" y="24" width="60.00%"' in text
    assert "downtime: 1 min 00 s so far" in text
    assert ">within" not in text
    assert "<i>01:05</i>" in text
    back = page.page(replace(ACCOUNT, first_answer=T + 70))
    assert '<rect class="down" x="40.00%" y="24" width="30.00%"' in back
    assert '<rect class="new" x="70.00%"' in back
    assert "down" not in page.timeline(replace(ACCOUNT, last_answer=0))


@pytest.mark.parametrize("seconds", [0, 0.5, 7, 130, 4000, 90000])
def test_ticks(seconds: float) -> None:
    assert 1 <= len(page.ticks(seconds)) <= page.TICKS


@pytest.mark.parametrize("status", [*page.ENDS, 130])
def test_chapters_are_there(status: int) -> None:
    _, chapter = page.ENDS.get(status, page.ENDED)
    assert f"\n## {chapter}\n" in (ROOT / "docs/recovery.md").read_text()
    # tests/test_docs.py makes the same anchors.
    assert page.slug(chapter).replace("-", "").isalpha()


@pytest.mark.real("run")
def test_task(module_tree: Tree) -> None:
    """As a user has it: of a deployment that was refused, in her browser."""
    module_tree.host("mx")
    assert module_tree.inv("report", "--host", "mx").status == BAD_INPUT
    assert module_tree.inv("deploy", "--host", "mx", "--yes", "mx").status == BAD_INPUT

    done = module_tree.inv("report", "--host", "mx")
    file = Path(done.out.removesuffix("\n"))
    assert (done.status, done.err, file.suffix) == (0, "", ".html")
    told = json.loads(module_tree.inv("report", "--host", "mx", "--json").out)
    assert (told["report"], told["status"], told["task"]) == (f"{file}", BAD_INPUT, "deploy")
    assert "no SSH connection" in told["message"]
    opened = module_tree.home / "opened"
    browser = f"sh -c 'echo %s >{opened}'"
    assert module_tree.inv("report", "--host", "mx", "--open", BROWSER=browser).status == 0
    assert opened.read_text().strip() == file.as_uri()
    shows = module_tree.inv("report", "--host", "mx", "--open", BROWSER="false")
    assert (shows.status, shows.out) == (BAD_INPUT, "")
    assert f"no browser for {file}" in shows.err
