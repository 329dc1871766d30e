"""A repository of one's own, with Anemos as an ordinary package from a wheel."""

import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT
from anemos.run import Argv, CommandFailed, run
from anemos.system import imgbuild
from anemos.workstation import images
from tests.tree import ROOT

pytestmark = pytest.mark.real("run", "gpg")

PROGRAM = [sys.executable, "-m", "anemos.workstation.cli.program"]
OWN_TASK = """
from invoke.tasks import task

@task
def greet(c):
    "Say hello."
    print("hello")

ns.add_task(greet)
"""
PLACES = "from anemos.workstation import places; print(places.state('web'), places.memory('web'))"
KEY = """
from pathlib import Path
from tempfile import mkdtemp
from anemos.workstation import images
print(images.BASE, images.key(images.BASE / "IMGBUILD", images.collect(Path(mkdtemp()))))
"""


def begin(top: Path, name: str) -> Path:
    """A repository, as somebody in TOP makes it with the clone."""
    run([*PROGRAM, "new", "--repo", name], cwd=ROOT, env={"ANEMOS_CALLER": os.fspath(top)})
    return top / name


def install(wheel: Path, repository: Path) -> None:
    """What ./inv does, without a network: the packages that Anemos needs are those of this run."""
    venv = repository / ".venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    (library,) = venv.glob("lib/python3.*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (library / "others.pth").write_text("\n".join(others))
    pip: Argv = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    run([*pip, "--prefix", venv, wheel])
    (venv / "anemos").mkdir()
    (venv / "anemos/packages").touch()
    python = (venv / "bin/python").resolve()
    pin = (repository / "anemos.pin").read_text()
    (venv / "origin").write_text(f"{repository}\n{python}\n{pin}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--wheel-dir", out, ROOT])
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def infra(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = begin(tmp_path_factory.mktemp("own").resolve(), "infra")
    install(wheel, repository)
    return repository


@pytest.fixture
def short_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of gpg-agent's socket in it must be shorter than 108 bytes."""
    home = Path(tempfile.mkdtemp(prefix="anemos-home-", dir="/tmp"))
    monkeypatch.setenv("HOME", os.fspath(home))
    yield home
    run(["gpgconf", "--kill", "all"])
    shutil.rmtree(home, ignore_errors=True)


def inv(repository: Path, *words: str) -> str:
    """As a user types it in a directory of the repository that is not its root."""
    below = repository / "notes"
    below.mkdir(exist_ok=True)
    return run([repository / "inv", *words], cwd=below)


def refused(repository: Path, *words: str) -> str:
    with pytest.raises(CommandFailed) as caught:
        inv(repository, *words)
    assert caught.value.returncode == BAD_INPUT
    return caught.value.output


def test_wheel_has_what_git_has(wheel: Path) -> None:
    """Contents, and who may be run; a link has become the file that it leads to."""
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others"]
    listed = run([*git, "--exclude-standard", "anemos"], cwd=ROOT).splitlines()
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            each.filename: (archive.read(each), bool(each.external_attr >> 16 & 0o100))
            for each in archive.infolist()
            if ".dist-info/" not in each.filename
        }
    files = {name: ROOT / name for name in listed if (ROOT / name).exists()}
    assert packed == {
        name: (file.read_bytes(), os.access(file, os.X_OK)) for name, file in files.items()
    }


def test_tasks_of_the_package_and_own_ones(infra: Path) -> None:
    tasks = infra / "tasks.py"
    before = tasks.read_text()
    tasks.write_text(before + OWN_TASK)
    listed, said = inv(infra), inv(infra, "greet")
    tasks.write_text(before)
    assert listed.rpartition("This repository's own:\n\n")[2] == "  greet   Say hello.\n\n"
    assert "Replace the running system of HOST" in listed
    assert said == "hello\n"


def test_what_is_in_it(infra: Path) -> None:
    """All that lies there would be committed, without .venv and the like."""
    commit, url = (infra / "anemos.pin").read_text().split(" ", 1)
    assert run(["git", "-c", "safe.directory=*", "cat-file", "-t", commit], cwd=ROOT) == "commit\n"
    assert url.strip()
    seen = run(["git", "ls-files", "--others", "--exclude-standard"], cwd=infra).split()
    assert {"inv", "tasks.py", "anemos.pin", ".gitignore", "secrets/recipients"} <= set(seen)
    assert not [name for name in seen if name.startswith(".venv") or "__pycache__" in name]


def test_host(infra: Path) -> None:
    words = ["--address", "198.51.100.7/24", "--gateway", "198.51.100.1", "--dns", "9.9.9.9"]
    inv(infra, "new", "--host", "web", *words)
    host = infra / "hosts/web"
    assert imgbuild.load(host).name == "web"
    assert "address 198.51.100.7/24\n" in (host / "files/etc/network/interfaces").read_text()
    assert (host / "files/etc/resolv.conf").read_text() == "nameserver 9.9.9.9\n"
    assert not [file for file in host.rglob("*") if file.is_file() and "@" in file.read_text()]
    assert "./inv adopt --host web pins it" in refused(infra, "plan", "--host", "web")


def test_secrets(infra: Path, short_home: Path) -> None:
    inv(infra, "new", "--host", "vault")
    with (infra / "hosts/vault/IMGBUILD").open("a") as file:
        file.write("secrets='PASSWORD password'\n")
    key = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "Alice"]
    run(key)
    fingerprints = re.findall(r"\b[0-9A-F]{40}\b", run(["gpg", "--list-keys"]))
    (infra / "secrets/recipients").write_text(fingerprints[0])
    inv(infra, "secrets.generate", "--host", "vault")
    assert (infra / "secrets/vault/PASSWORD.gpg").is_file()
    assert run([infra / "inv", "secrets.check"], cwd=Path("/")) == ""


def test_output_is_where_the_user_is(infra: Path) -> None:
    (infra / "notes/out").mkdir(parents=True)
    (infra / "notes/out/file").touch()
    inv(infra, "new", "--host", "out")
    toml = infra / "hosts/out/host.toml"
    toml.write_text('[vm]\nstock = "out"\n')
    said = refused(infra, "export", "--host", "out", "--output", "out")
    assert f"{infra}/notes/out is not empty" in said


def test_repositories_are_apart(infra: Path, tmp_path: Path) -> None:
    other = begin(tmp_path, "other")
    python = infra / ".venv/bin/python"
    mine, theirs = (set(run([python, "-c", PLACES], cwd=at).split()) for at in (infra, other))
    assert len(mine | theirs) == 4
    for place in mine | theirs:
        Path(place).rmdir()


def test_base_image_is_the_same_from_everywhere(infra: Path, tmp_path: Path) -> None:
    """The package lies elsewhere, its files have other modes, and pip compiles them."""
    place, key = run(
        ["sh", "-c", 'umask 077; exec "$0" -c "$1"', infra / ".venv/bin/python", KEY], cwd=infra
    ).split()
    assert Path(place).is_relative_to(infra)
    assert any(Path(place).parent.rglob("*.pyc"))
    assert key == images.key(images.BASE / "IMGBUILD", images.collect(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what is to begin? --host NAME, or --repo DIR"),
        (["--host", "a", "--repo", "b"], "what is to begin?"),
        (["--repo", ".."], "is there already"),
        (["--host", "../x"], "'../x' is no name for a host"),
        (["--host", "x", "--address", "::1"], "network: "),
    ],
)
def test_bad_input(infra: Path, words: list[str], message: str) -> None:
    assert message in refused(infra, "new", *words)
    assert not (infra / "hosts/x").exists()
