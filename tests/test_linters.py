"""Linters are tests. A linter that is missing is a failure: ./inv installs them all."""

import os
import re
import sys
from pathlib import Path

import pytest

from anemos.run import run

pytestmark = pytest.mark.real("run")

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
SHELL = re.compile(rb"#!.*\b(sh|dash|bash)\b")


def project_files() -> list[Path]:
    """Every file that git has or would take."""
    # Root may check the tree of a user (safe.directory: git-config(1)).
    listing = run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        + ["--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
    )
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".sh" or bool(SHELL.match(file.readline(100)))


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(arguments: list[str]) -> None:
    run([TOOLS / "ruff", *arguments, "."], cwd=ROOT, log=print)


def test_mypy() -> None:
    run([TOOLS / "mypy"], cwd=ROOT, log=print)


def test_shell_scripts() -> None:
    scripts = [path for path in project_files() if is_shell(path) and path.name != "IMGBUILD"]
    assert {ROOT / "inv", ROOT / ".ci/run"} <= set(scripts)
    run(["shellcheck", *scripts], cwd=ROOT, log=print)


def test_imgbuilds() -> None:
    imgbuilds = [path for path in project_files() if path.name == "IMGBUILD"]
    assert imgbuilds
    # SC2034, unused variables: Anemos reads them.
    run(["shellcheck", "--shell=sh", "--exclude=SC2034", *imgbuilds], cwd=ROOT, log=print)


def test_spelling() -> None:
    run([TOOLS / "codespell", *map(os.fspath, project_files())], cwd=ROOT, log=print)
