"""`inv build`: a host's image, made of a tiny package layer."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from anemos.run import run
from anemos.system import imgbuild
from tests import imaging, tiny, tree
from tests.tree import Tree
from tests.waiting import until

pytestmark = [pytest.mark.real("run", "gpg"), pytest.mark.root]

IMGBUILD = """
target=debian
imgname=web
format=dir
provision() { cat /etc/motd; chmod 440 /etc/key; }
test_secrets() {
    mkdir etc
    echo throw-away >etc/key
    echo secret >PASSWORD
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Tree]:
    """A host that has no host.toml yet, and its package layer in the cache."""
    with tree.copied(tmp_path / "tree") as copy:
        host = copy.host("web", imgbuild=IMGBUILD)
        (host / "host.toml").unlink()
        (host / "files/root/.ssh/authorized_keys").unlink()
        (host / "files/etc").mkdir(parents=True)
        (host / "files/etc/motd.makeimg.template").write_text("{{ host }}: {{ PASSWORD }}\n")
        (copy.directory / "secrets/web").mkdir(parents=True)
        (copy.directory / "secrets/web/OTHER.gpg").write_bytes(b"of the real one")
        cache = copy.home / ".cache/anemos"
        cache.mkdir(parents=True)
        imaging.store(tiny.make(tmp_path / "layer"), imgbuild.load(host), cache)
        yield copy
        for keyring in copy.home.glob(".local/state/anemos/*/*/gnupg"):
            run(["gpgconf", "--homedir", keyring, "--kill", "all"])


def test_build(project: Tree) -> None:
    """Twice, as another format the second time: the same throw-away secrets, nobody's real ones."""
    out = project.directory / "images/web"
    done = project.inv("build", "--host", "web", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out) == {"host": "web", "format": "dir", "files": [os.fspath(out)]}
    assert "web: secret\n" in done.err
    assert "Neither declared nor made by test_secrets(): OTHER\n" in done.err
    assert (out / "etc/key").read_text() == "throw-away\n"
    assert stat.S_IMODE((out / "etc/key").stat().st_mode) == 0o440

    words = ["--format", "tar gz", "--output", os.fspath(project.home / "new/out")]
    done = project.inv("build", "--host", "web", *words)
    assert (done.status, done.out) == (0, ""), done.err
    motd = run(["tar", "-xOf", project.home / "new/out/web.tar.gz", "./etc/motd"])
    assert motd == "web: secret\n"
    assert not list(project.memory.rglob("secrets"))


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted")]
)
def test_signal(project: Tree, number: int, said: str) -> None:
    """It ends the builder, too, and takes the revealed secrets away."""
    file = project.directory / "hosts/web/IMGBUILD"
    file.write_text(f"{IMGBUILD}provision() {{ echo begun; sleep 600; }}\n")
    argv = [sys.executable, "-m", "anemos.workstation.cli.program", "build", "--host", "web"]
    where, home = project.directory, tree.environment(project.home)
    with subprocess.Popen(argv, cwd=where, env=home, stderr=subprocess.PIPE, text=True) as inv:
        assert inv.stderr is not None
        assert any("begun" in line for line in inv.stderr)
        inv.send_signal(number)
        assert f"error: {said}" in inv.stderr.read()
    assert inv.returncode == 128 + number
    assert not list(project.memory.rglob("secrets"))
    until(lambda: not builders(project), lambda: builders(project))


def builders(project: Tree) -> list[bytes]:
    """The processes that work on something in the PROJECT."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # gone
            found.append(file.read_bytes())
    return [each for each in found if os.fsencode(project.directory) in each]


@pytest.mark.parametrize(
    ("text", "words", "status", "message"),
    [
        ("format=dir", ["--format", "iso"], 2, "IMGBUILD: format is 'iso'"),
        ("format=dir", ["--output", "tasks.py/x"], 2, "tasks.py/x: Not a directory"),
        ("provision() { ls /none; }", [], 1, "in provision(): `provision() { ls /none; }`: exit "),
        ("test_secrets() { false; }", [], 1, "in test_secrets(): `test_secrets() { false; }`: ex"),
        ("bootloader=grub", [], 2, "web: nobody could log in to the new system as root"),
        ("test_secrets() { :; }", [], 2, "motd.makeimg.template: line 1: undefined name 'PASSWO"),
    ],
)
def test_failures(project: Tree, text: str, words: list[str], status: int, message: str) -> None:
    """The builder's message becomes that of the task: said once."""
    file = project.directory / "hosts/web/IMGBUILD"
    file.write_text(f"{IMGBUILD}{text}\n")
    done = project.inv("build", "--host", "web", *words)
    assert (done.status, done.out) == (status, "")
    assert done.err.count("error: ") == 1
    assert message in done.err.partition("error: ")[2].splitlines()[0]
    assert not (project.directory / "images/web").exists()
