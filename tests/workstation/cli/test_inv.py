"""./inv in a tree of its own: a real .venv from a lock that holds one package, made here."""

import hashlib
import os
import re
import shutil
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from anemos.run import CommandFailed, run
from tests.tree import ROOT

pytestmark = pytest.mark.real("run")


PRINTS = "import os, sys\nprint('{}', os.getcwd(), *sys.argv[1:], sep='|')\n"
# Builds the one wheel that lies beside it (PEP 517).
BACKEND = """
from pathlib import Path
from shutil import copy
def build_wheel(directory, *_):
    return Path(copy(next(Path().glob("*.whl")), directory)).name
"""
GIT = ["git", "-c", "user.name=Alice", "-c", "user.email=alice@example.org"]


def put_wheel(tree: Path, version: str, name: str = "stub") -> Path:
    """Its Anemos prints VERSION, its place and its words."""
    wheel = tree / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("stub.py", "")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("anemos/workstation/cli/program.py", PRINTS.format(version))
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nstub = stub:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def put_lock(tree: Path, version: str) -> None:
    """A requirements.lock with one wheel."""
    wheel = put_wheel(tree, version)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tree / "requirements.lock").write_text(f"./{wheel.name} --hash=sha256:{digest}\n")


def put_tree(tree: Path) -> Path:
    tree.mkdir(parents=True)
    shutil.copy2(ROOT / "inv", tree)
    (tree / "packages").write_text("alpha  # first letter\nbeta   # second letter\n")
    present = ["alpha", "beta", "git", "python3-venv"]
    put_program(tree, "dpkg-query", f"printf 'installed %s\\n' {' '.join(present)}")
    put_lock(tree, "1")
    return tree.resolve()


def put_program(tree: Path, name: str, script: str) -> None:
    """A program that stands before the system's; it notes its words in TREE/calls."""
    program = tree / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>"{tree}/calls"\n{script}\n')
    program.chmod(0o755)


def inv(
    tree: Path, *words: str, program: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    path = f"{tree}/bin:{os.environ['PATH']}"
    return run([program or tree / "inv", *words], cwd=Path("/"), env={"PATH": path, **(env or {})})


def calls(tree: Path, name: str) -> list[str]:
    lines = (tree / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{name} ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with spaces in its name, and with .venv."""
    tree = put_tree(tmp_path_factory.mktemp("inv") / "my tree")
    assert inv(tree, "deploy", "--host", "a b") == f"1|{tree}|deploy|--host|a b\n"
    return tree


def test_venv_is_made_once(made: Path) -> None:
    origin = made / ".venv/origin"
    before = origin.stat().st_ino, origin.stat().st_mtime_ns
    assert inv(made, "x") == f"1|{made}|x\n"
    assert (origin.stat().st_ino, origin.stat().st_mtime_ns) == before


def test_tasks_are_listed_without_words(made: Path) -> None:
    assert inv(made) == f"1|{made}|--list\n"


def test_symlink_from_anywhere(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(made / "inv")
    assert inv(made, "x", program=link) == f"1|{made}|x\n"


def test_without_home(made: Path) -> None:
    path = f"PATH={made}/bin:{os.environ['PATH']}"
    assert run(["env", "-i", path, made / "inv", "x"]) == f"1|{made}|x\n"


def test_venv_is_repaired_and_updated(made: Path, tmp_path: Path) -> None:
    # The scripts in .venv name its place: the copy's would run the first tree's packages.
    tree = tmp_path / "copy"
    shutil.copytree(made, tree, symlinks=True)
    lock = tree / "requirements.lock"
    good = lock.read_text()
    lock.write_text(re.sub("sha256:.{8}", "sha256:00000000", good))
    with pytest.raises(CommandFailed, match="DO NOT MATCH THE HASHES"):
        inv(tree, "x")
    lock.write_text(good)  # beside it, a .venv without packages
    assert inv(tree, "x") == f"1|{tree}|x\n"
    assert (tree / ".venv/bin/stub").read_text().startswith(f"#!{tree}/.venv/bin/python")
    put_lock(tree, "2")
    assert inv(tree, "x") == f"2|{tree}|x\n"


def test_old_python_is_refused(tmp_path: Path) -> None:
    tree = put_tree(tmp_path / "tree")
    put_program(tree, "python3", "echo 3.9.2; exit 1")
    with pytest.raises(
        CommandFailed, match=r"needs Python 3\.11 .*bin/python3 is 3\.9\.2"
    ) as error:
        inv(tree, "x")
    assert error.value.returncode == 2


# A repository of one's own


def commit(clone: Path, version: str) -> str:
    """The next commit of an Anemos of this VERSION: its id. It needs no other Python package."""
    for file in clone.glob("*.whl"):
        file.unlink()
    put_wheel(clone, version, "anemos")
    (clone / "backend.py").write_text(BACKEND)
    system = 'requires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (clone / "pyproject.toml").write_text(f"[build-system]\n{system}")
    (clone / "requirements.lock").write_text("# nothing\n")
    (clone / "packages").write_text("alpha  # first letter\n")
    run([*GIT, "add", "--all"], cwd=clone)
    run([*GIT, "commit", "--quiet", f"--message={version}"], cwd=clone)
    return run([*GIT, "rev-parse", "HEAD"], cwd=clone).strip()


def test_pinned_commit_is_installed(tmp_path: Path) -> None:
    """Also from a Git hook, whose variables lead to the repository that it is in."""
    clone, own = tmp_path / "its clone", put_tree(tmp_path / "own")
    run([*GIT, "init", "--quiet", clone])
    old = commit(clone, "1")
    new = commit(clone, "2")
    for name in ("packages", "requirements.lock"):
        (own / name).unlink()
    pin = own / "anemos.pin"
    pin.write_text(f"{old} {clone}")
    assert inv(own, "x", env={"GIT_DIR": f"{own}/.git"}) == f"1|{own}|x\n"
    pin.write_text(f"{new} {clone}\n")
    assert inv(own, "x") == f"2|{own}|x\n"
    assert calls(own, "dpkg-query")[-1].endswith(" alpha")
    pin.write_text(f"{new[:12]} {clone}\n")
    with pytest.raises(CommandFailed, match=f"{new[:12]} is no full commit id"):
        inv(own, "x")


# Debian's packages

IF_INSTALL = 'case "$*" in *" install "*)'
IF_UPDATE = 'case "$*" in *" update")'


@pytest.fixture
def lacking(made: Path, tmp_path: Path) -> Path:
    """Programs of a system that lacks beta (removed, but not purged) until apt-get installs it."""
    put_program(tmp_path, "dpkg-query", f'cat "{tmp_path}/status"; exit 1')
    (tmp_path / "status").write_text("installed alpha\nconfig-files beta\n")
    done = f'echo installed alpha >"{tmp_path}/status"; echo installed beta >>"{tmp_path}/status"'
    put_program(tmp_path, "apt-get", f"{IF_INSTALL} {done};; esac; echo noise")
    put_program(tmp_path, "id", "echo 0")
    put_program(tmp_path, "sudo", '"$@"')
    return tmp_path


def inv_on(system: Path, made: Path) -> str:
    return inv(made, "x", env={"PATH": f"{system}/bin:{os.environ['PATH']}"})


def test_present_packages_need_no_apt(lacking: Path, made: Path) -> None:
    (lacking / "status").write_text("installed alpha\ninstalled beta\n")
    assert inv_on(lacking, made) == f"1|{made}|x\n"
    assert calls(lacking, "apt-get") == []
    assert calls(lacking, "dpkg-query")[0].endswith(" alpha beta")


def test_missing_package_is_explained_and_installed(lacking: Path, made: Path) -> None:
    lines: list[str] = []
    path = f"{lacking}/bin:{os.environ['PATH']}"
    run([made / "inv", "x"], env={"PATH": path}, log=lines.append)
    assert lines == [
        "inv: installing Debian packages: beta",
        "beta   # second letter",
        "noise",
        f"1|{made}|x",
    ]
    (call,) = calls(lacking, "apt-get")
    assert call.endswith(" install beta")
    assert "--no-install-recommends" in call
    assert calls(lacking, "sudo") == []
    inv_on(lacking, made)
    assert len(calls(lacking, "apt-get")) == 1


def test_package_lists_are_fetched_once_after_a_failure(lacking: Path, made: Path) -> None:
    put_program(
        lacking,
        "apt-get",
        f'{IF_UPDATE} touch "{lacking}/fresh";; esac; test -e "{lacking}/fresh"',
    )
    assert inv_on(lacking, made) == f"1|{made}|x\n"
    assert [call.split()[-1] for call in calls(lacking, "apt-get")] == ["beta", "update", "beta"]


def test_package_that_cannot_be_installed(lacking: Path, made: Path) -> None:
    put_program(lacking, "apt-get", f"{IF_INSTALL} exit 100;; esac")
    with pytest.raises(CommandFailed, match="cannot install beta") as error:
        inv_on(lacking, made)
    assert error.value.returncode == 2


def test_sudo_when_not_root(lacking: Path, made: Path) -> None:
    put_program(lacking, "id", "echo 1000")
    inv_on(lacking, made)
    (call,) = calls(lacking, "sudo")
    assert call.endswith(" install beta")


# The real lists


def test_packages_have_reasons() -> None:
    lines = (ROOT / "packages").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9.+-]+ +# \S.*", line)] == []
    assert lines == sorted(lines)


def test_lock_is_complete_and_pinned() -> None:
    """Every dependency of pyproject.toml is in the lock, in a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, project["dependencies"] + project["optional-dependencies"]["check"])
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+) \\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    locked = dict(entries)
    for requirement in wanted:
        assert locked[requirement.name] in requirement.specifier
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
