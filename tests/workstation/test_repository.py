"""Which commit a definition is packed from, as a real git tells it."""

from pathlib import Path

import pytest

from anemos.border.deployment import Revision
from anemos.run import run
from anemos.workstation import repository

pytestmark = pytest.mark.real("run")
WHO = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]


def commit(top: Path) -> str:
    run(["git", "-C", top, "add", "--all"])
    run(["git", "-C", top, *WHO, "commit", "--quiet", "--message", "hosts: mx"])
    return run(["git", "-C", top, "rev-parse", "HEAD"]).strip()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """In a repository whose only commit has it."""
    host = tmp_path / "hosts/mx"
    host.mkdir(parents=True)
    (host / "IMGBUILD").touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    run(["git", "init", "--quiet", tmp_path])
    return host


def test_commit(host: Path) -> None:
    made = commit(host.parents[1])
    (host.parents[1] / ".venv").mkdir()
    (host.parents[1] / ".venv/ignored").touch()
    assert repository.revision(host) == Revision(made)


@pytest.mark.parametrize("name", ["hosts/mx/IMGBUILD", "hosts/mx/files", "secrets"])
def test_changed(host: Path, name: str) -> None:
    made = commit(host.parents[1])
    (host.parents[1] / name).write_text("changed")
    assert repository.revision(host) == Revision(made, changed=True)


def test_not_in_the_commit(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(host.parents[1])
    new = host.with_name("new")
    new.mkdir()
    assert repository.revision(new) == Revision()
    assert f"commit of {new} is unknown: git" in capsys.readouterr().err


def test_no_commit_and_no_repository(host: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert repository.revision(host) == Revision()
    assert repository.revision(tmp_path_factory.mktemp("elsewhere")) == Revision()


def test_words() -> None:
    shown = [Revision(), Revision("0123456789abcdef"), Revision("0123456789abcdef", changed=True)]
    said = ["unknown", "0123456789ab", "0123456789ab and changes"]
    assert [str(each) for each in shown] == said
