"""Tests fail closed: without `@pytest.mark.real("run", "ssh", "gpg")` a test starts no process,
opens no SSH connection and touches no GPG key; and none reads the developer's own home.

`inv check` runs everything; `pytest -m 'not vm'` is the quick way.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import gnupg
import paramiko
import pytest
import sh

from anemos import mounts, namespaces
from tests import tree
from tests.tree import Tree

# What a test opens up with its marker -> where that is closed. The lowest place, because
# `from anemos.run import run` takes a name along that no patch of anemos.run would reach.
REAL: dict[str, list[tuple[Any, str]]] = {
    "run": [(sh.Command, "__call__"), (os, "execv"), (os, "execve")],
    "ssh": [(paramiko.SSHClient, "connect")],
    "gpg": [(gnupg.GPG, "__init__")],
}

# Variables that lead to the developer's keys and files.
PERSONAL = ["GNUPGHOME", "SSH_AUTH_SOCK"] + [
    f"XDG_{each}_HOME" for each in ("CACHE", "CONFIG", "DATA", "STATE")
]

SENT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}


class Forbidden(BaseException):
    """No Exception: no `except Exception` hides it."""


def forbidden(name: str) -> Callable[..., NoReturn]:
    def refuse(*arguments: object, **_options: object) -> NoReturn:
        raise Forbidden(f'this test is not marked real("{name}"), but does {arguments[1:]}')

    return refuse


def opened(item: pytest.Item) -> set[str]:
    """The names in ITEM's `real` markers. A name that does not exist is an error."""
    names = {name for mark in item.iter_markers("real") for name in mark.args or ("",)}
    if unknown := names - REAL.keys():
        raise pytest.UsageError(f"{item.nodeid}: real({unknown}) is none of {list(REAL)}")
    return names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests that take long")


def pytest_configure() -> None:
    """The mounts of this process are its own. Else what other tests start meanwhile in namespaces
    of their own would have copies of them, and keep their devices busy."""
    if mounts.privileged():
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.mount("none", "/", "", namespaces.MS_REC | namespaces.MS_PRIVATE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        opened(item)
        if item.get_closest_marker("all") and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="takes long: inv check --all"))
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
    items.sort(key=short)


def short(item: pytest.Item) -> tuple[bool, bool]:
    """Sorts by how long it takes: whole servers, other VMs, then what needs none."""
    return not item.get_closest_marker("vm"), item.path.parent.name != "whole"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures: what came of each fault in test_faults.py, and what clients in test_story.py saw."""
    ended = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    told = [(each.nodeid, dict(each.user_properties)) for each in ended if each.when == "call"]
    for line in (words["seen"] for _, words in told if "seen" in words):
        terminalreporter.write_line(line)
    rows = [(name, words["fault"]) for name, words in told if "fault" in words]
    if not rows:
        return
    terminalreporter.section("faults")
    for name, (outcome, kept) in rows:
        terminalreporter.write_line(f"{outcome:10} {name.partition('::')[2]} {kept}")
    good = sum(outcome != "FAILED" for _, (outcome, _) in rows)
    changed = sum(bool(kept) for _, (_, kept) in rows)
    line = f"{len(rows)} faults, {good} came back or went on, kept bytes changed in {changed}"
    terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def closed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REAL.keys() - opened(request.node):
        for owner, attribute in REAL[name]:
            monkeypatch.setattr(owner, attribute, forbidden(name))


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Tests send these, and a run in the background, or under nohup(1), ignores them."""
    ignored = [each for each in SENT if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, SENT[each])
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty HOME, but for tests that need the shared cache there."""
    if request.node.get_closest_marker("vm") or request.node.get_closest_marker("root"):
        return
    tmp_path_factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    directory: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", os.fspath(directory))
    for variable in PERSONAL:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def module_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A copy of the project, for all tests of a module."""
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        yield copy
