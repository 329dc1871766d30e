"""The tasks `secrets.*` as a user calls them, with the keys of her own home."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT
from anemos.workstation.secrets.gpg import Keyring
from tests import tree
from tests.tree import Tree

pytestmark = pytest.mark.real("run", "gpg")

NAMES = [f"secrets.{name}" for name in ("list", "edit", "set", "generate", "rekey", "check")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        copy.host("mx")
        (copy.home / ".gnupg").mkdir(0o700)
        fingerprint = Keyring(copy.home / ".gnupg").generate("Alice")
        (copy.directory / "secrets").mkdir()
        (copy.directory / "secrets/recipients").write_text(fingerprint)
        yield copy


def test_list_of_tasks(project: Tree) -> None:
    listed = json.loads(project.inv("--list", "-F", "json").out)

    (collection,) = listed["collections"]
    assert [f"secrets.{task['name']}" for task in collection["tasks"]] == sorted(NAMES)
    assert all(task["help"] for task in collection["tasks"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [[], ["--host", "mx"]], ids=["", "host"])
def test_help_runs_nothing(project: Tree, name: str, words: list[str]) -> None:
    before = project.files()

    done = project.inv(name, *words, "--help")

    assert done.status == 0
    assert done.out.startswith(f"Usage: inv [--core-opts] {name} [--options]")
    assert project.files() == before


@pytest.mark.parametrize("name", NAMES)
def test_unknown_host(project: Tree, name: str) -> None:
    kind = ["--kind", "ssh-host-key"] if name == "secrets.generate" else []
    done = project.inv(name, "--host", "../hosts/mx", *kind, "--json")

    assert done.status == BAD_INPUT
    assert json.loads(done.out)["error"] == (
        "unknown host '../hosts/mx': no such directory in hosts/"
    )


def test_a_day(project: Tree, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_bytes(b"\x00\xff\n")
    with password.open() as file:
        done = project.inv("secrets.set", "--host=mx", "--name=etc/x", stdin=file.fileno())
    assert done.err == "mx: new secret etc/x is encrypted and signed\n"

    words = ["secrets.generate", "--host=mx", "--kind=ssh-host-key"]
    line = project.inv(*words)
    assert line.out.startswith('host_key = "ssh-ed25519 AAAA')
    assert json.loads(project.inv(*words, "--json").out)["public"] + "\n" == line.out

    done = project.inv("secrets.edit", "--host=mx", "--name=etc/x", EDITOR="true")
    assert (done.status, done.out, done.err) == (0, "", "mx: etc/x is unchanged\n")

    found = json.loads(project.inv("secrets.list", "--json").out)["secrets"]
    assert {each["name"]: each["signature"] for each in found} == {
        "etc/x": "ok",
        "etc/ssh/ssh_host_ed25519_key": "ok",
    }
    assert "etc/ssh/ssh_host" in project.inv("secrets.list").out
    assert json.loads(project.inv("secrets.rekey", "--json").out) == {"rekeyed": []}


def test_check_as_a_git_hook(project: Tree) -> None:
    """As docs/secrets.md says it, in the environment that Git gives to a hook."""
    git = ["git", "-c", "user.name=Alice", "-c", "user.email=alice@example.org"]
    top = project.directory
    (top / "inv").write_text(f'#!/bin/sh\nexec {sys.executable} -m invoke "$@"\n')
    (top / "inv").chmod(0o755)
    environment = tree.environment(project.home)

    def commit() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*git, "commit", "--quiet", "--allow-empty", "--message=x"],
            cwd=top,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    subprocess.run([*git, "init", "--quiet"], cwd=top, env=environment, check=True)
    hook = top / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec ./inv secrets.check\n")
    hook.chmod(0o755)
    assert commit().returncode == 0
    (top / "secrets/mx/etc").mkdir(parents=True, exist_ok=True)
    (top / "secrets/mx/etc/plain.gpg").write_text("password")

    refused = commit()

    (top / "secrets/mx/etc/plain.gpg").unlink()
    assert refused.returncode == 1
    assert "secrets/mx/etc/plain.gpg is not encrypted" in refused.stderr
