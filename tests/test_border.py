"""The border between the four places, and the one owner of processes, of SSH and of GPG."""

import ast
import os
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path, PurePath

import gnupg
import paramiko
import pytest

from anemos.run import run

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("anemos/**/*.py"))
# Each room of anemos/ -> the rooms that it may import from, besides what all share ("").
ROOMS = {
    "": "",
    "system": "",
    "border": "",
    "image": "system",
    "server": "system border",
    "initramfs": "system border",
    "workstation": "system border image server",
    "workstation.secrets": "workstation system",
    "workstation.deploy": "workstation workstation.secrets system border server",
    "workstation.vm": "workstation workstation.secrets workstation.deploy system border image",
    "workstation.skeleton": "workstation workstation.deploy system",
    "workstation.cli": "workstation workstation.skeleton workstation.secrets workstation.deploy"
    " workstation.vm",
    "workstation.skeleton.repository": "workstation.cli",
}

# Who may use what; nobody else may.
OWNERS = {
    "anemos/run.py": {"sh", "subprocess", "pty", "multiprocessing"},
    "anemos/workstation/ssh.py": {"fabric", "paramiko"},
    "anemos/workstation/secrets/gpg.py": {"gnupg"},
}
OWNED = set().union(*OWNERS.values())

# Functions of `os` that start processes. exec is allowed: it starts none.
STARTERS = ("system", "popen", "spawn", "posix_spawn")


def room(module: str) -> str:
    """The innermost room that the module of this dotted name is in."""
    name = module.removeprefix("anemos").removeprefix(".")
    while name not in ROOMS:
        name = name.rpartition(".")[0]
    return name


def imports(tree: ast.AST, path: PurePath) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, functions' and TYPE_CHECKING's imports too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                package = list(path.parent.parts[: len(path.parent.parts) - level + 1])
                base = ".".join([*(package if level else []), *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name),
                args=[ast.Constant(value=str(module)), *_],
            ) if name in {"import_module", "__import__"}:
                yield node.lineno, module


def may_import(path: PurePath, module: str) -> bool:
    top, _, rest = module.partition(".")
    if top in OWNED:
        return top in OWNERS.get(path.as_posix(), set())
    if top == "os":
        return not rest.startswith(STARTERS)
    here = room(".".join(path.with_suffix("").parts)) if path.parts[0] == "anemos" else None
    if top != "anemos":
        at_workstation = here is None or here.startswith(("workstation", "image"))
        return top in sys.stdlib_module_names or at_workstation
    return here is None or room(module) in {here, "", *ROOMS[here].split()}


def starters(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of the standard library's functions that start processes, imports apart."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name.startswith(STARTERS):
                yield node.lineno, f"os.{name}"
            case ast.Attribute(attr=name) if name.startswith("create_subprocess"):  # asyncio
                yield node.lineno, name


def violations(path: PurePath, source: str) -> list[str]:
    """What the file at PATH (relative to the root) does beyond its place."""
    tree = ast.parse(source)
    found = [(line, module) for line, module in imports(tree, path) if not may_import(path, module)]
    found += starters(tree)
    return [f"{path}:{line}: {what}" for line, what in sorted(found)]


def test_border() -> None:
    assert ROOT / "anemos/run.py" in FILES
    problems = [
        problem
        for file in [*FILES, ROOT / "tasks.py"]
        for problem in violations(file.relative_to(ROOT), file.read_text())
    ]
    assert not problems, "\n".join(problems)


def test_no_circle() -> None:
    assert list(TopologicalSorter({name: ROOMS[name].split() for name in ROOMS}).static_order())
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}
    packages = {name.removesuffix(".__init__") for name in names}
    uses = {}
    for file in FILES:
        path = file.relative_to(ROOT)
        used = {module for _, module in imports(ast.parse(file.read_text()), path)}
        used |= {module.rpartition(".")[0] for module in used - packages}
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        uses[name] = (used & packages) - {name}
    assert list(TopologicalSorter(uses).static_order())


PLANTED = [
    ("anemos/log.py", "import rich"),
    ("anemos/log.py", "from anemos.workstation import ssh"),
    ("anemos/log.py", "from . import server"),
    ("anemos/system/tree.py", "from ..server.facts import facts"),
    ("anemos/system/tree.py", "import sh"),
    ("anemos/border/boot.py", "from anemos.system.layout import Kept"),
    ("anemos/system/layout.py", "from anemos.border import boot"),
    ("anemos/server/facts.py", "def f():\n    import subprocess"),
    ("anemos/server/facts.py", "import anemos.initramfs.disks"),
    ("anemos/server/facts.py", "from anemos import initramfs"),
    ("anemos/server/facts.py", "__import__('paramiko')"),
    ("anemos/initramfs/init.py", "from importlib import *\nimport_module('yaml')"),
    ("anemos/initramfs/init.py", "from os import system"),
    ("anemos/initramfs/init.py", "import os\nos.system('x')"),
    ("anemos/initramfs/init.py", "import os\nstart = os.posix_spawnp"),
    ("anemos/initramfs/init.py", "import asyncio\nasyncio.create_subprocess_exec('x')"),
    ("anemos/run.py", "import gnupg"),
    ("anemos/workstation/deploy/reach.py", "from anemos.workstation.vm import vm"),
    ("anemos/workstation/images.py", "from anemos.workstation.secrets import sources"),
    ("anemos/workstation/ssh.py", "from anemos.workstation.deploy import plan"),
    ("anemos/workstation/upload.py", "from fabric import Connection"),
    ("anemos/workstation/ssh.py", "from subprocess import Popen"),
    ("anemos/workstation/sub/ssh.py", "import paramiko"),
    ("tasks.py", "import gnupg"),
]


@pytest.mark.parametrize(("path", "source"), PLANTED)
def test_planted_violation_is_found(path: str, source: str) -> None:
    found = violations(PurePath(path), source)
    assert len(found) == 1
    assert found[0].startswith(f"{path}:{len(source.splitlines())}: ")


ALLOWED = [
    ("anemos/log.py", "import os, json\nfrom .run import run\nos.execvp('a', ['a'])"),
    ("anemos/run.py", "import sh, subprocess"),
    ("anemos/system/tree.py", "from . import layout\nfrom ..log import die\nimport anemos.run"),
    ("anemos/initramfs/init.py", "from anemos.system.layout import plan\nfrom anemos import log"),
    ("anemos/workstation/ssh.py", "import fabric, paramiko, rich"),
    ("anemos/workstation/secrets/gpg.py", "import gnupg"),
    ("tasks.py", "from invoke import task\nfrom anemos.workstation import ssh"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_allowed_is_allowed(path: str, source: str) -> None:
    assert violations(PurePath(path), source) == []


# The border around the tests themselves (conftest.py).


def test_unmarked_test_starts_no_process() -> None:
    with pytest.raises(BaseException, match=r'not marked real\("run"\)') as caught:
        run(["true"])
    assert not isinstance(caught.value, Exception)
    with pytest.raises(BaseException, match=r'not marked real\("run"\)'):
        os.execvp("true", ["true"])


def test_unmarked_test_reaches_no_ssh_and_no_gpg() -> None:
    with pytest.raises(BaseException, match=r'not marked real\("ssh"\)'):
        paramiko.SSHClient().connect("localhost")
    with pytest.raises(BaseException, match=r'not marked real\("gpg"\)'):
        gnupg.GPG()


def test_home_is_empty() -> None:
    assert list(Path.home().iterdir()) == []
    assert "SSH_AUTH_SOCK" not in os.environ


@pytest.mark.real("run")
def test_misspelled_marker_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    test = tmp_path / "test_it.py"
    test.write_text('import pytest\n@pytest.mark.real("rum")\ndef test_it(): pass\n')
    argv: list[str | Path] = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    argv += ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, test]
    with pytest.raises(SystemExit, match=r"'rum'.* is none of"):
        run(argv, cwd=ROOT)
    test.write_text(test.read_text().replace("rum", "run"))
    assert "1 passed" in run(argv, cwd=ROOT)
