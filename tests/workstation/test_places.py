"""Where things lie on the workstation."""

import stat
from pathlib import Path

import pytest

from anemos.log import FAILED, Failure
from anemos.workstation import places


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/shm."""
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_root_is_the_repository() -> None:
    assert (places.ROOT / "tasks.py").is_file()
    assert places.HOSTS.parent == places.SECRETS.parent == places.ROOT


def test_private(shared: Path) -> None:
    for directory in (places.cache(), places.state("mx"), places.memory("mx")):
        assert directory.is_dir()
        assert mode(directory) == 0o700
    assert mode(places.memory("mx").parent) == 0o700
    assert places.memory("mx").is_relative_to(shared)


def test_base_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.cache() == Path.home() / ".cache/anemos"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    assert places.cache() == tmp_path / "cache/anemos"
    assert places.state("mx").is_relative_to(tmp_path / "state/anemos")


def test_hosts_and_repositories_are_apart(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {places.memory("a"), places.memory("b"), places.state("a"), places.state("b")}
    monkeypatch.setattr(places, "REPOSITORY", "another")
    theirs = {places.memory("a"), places.memory("b"), places.state("a"), places.state("b")}

    assert len(mine | theirs) == 8


def test_memory_is_made_once(shared: Path) -> None:
    (places.memory("mx") / "file").touch()

    assert (places.memory("mx") / "file").exists()


@pytest.mark.parametrize("kind", ["open", "group", "link", "dangling link", "file"])
def test_memory_of_somebody_else(shared: Path, kind: str) -> None:
    """/dev/shm is everybody's: who comes first there, may have prepared our directory's name."""
    top = places.memory("mx").parent
    (top / "mx").rmdir()
    top.rmdir()
    match kind:
        case "open" | "group":
            top.mkdir()
            top.chmod(0o777 if kind == "open" else 0o750)
        case "link":
            (shared / "elsewhere").mkdir(mode=0o700)
            top.symlink_to(shared / "elsewhere")
        case "dangling link":
            top.symlink_to(shared / "nowhere")
        case _:
            top.touch(0o600)

    with pytest.raises(Failure, match=f"{top}: belongs to somebody else") as caught:
        places.memory("mx")

    assert caught.value.status == FAILED
    assert not (top / "mx").exists()


def test_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workstation's own; a file that is damaged is named."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert places.mirror() == ""

    (tmp_path / "anemos").mkdir()
    (tmp_path / "anemos/config.toml").write_text('mirror = "http://127.0.0.1/debian"\n')
    assert places.mirror() == "http://127.0.0.1/debian"

    (tmp_path / "anemos/config.toml").write_text("mirror")
    with pytest.raises(Failure, match=r"config\.toml: "):
        places.mirror()
