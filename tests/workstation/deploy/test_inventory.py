"""Many servers: what Ansible is told of them, by the documented form and by the real program."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import CommandFailed, run
from anemos.workstation import hosts, places
from anemos.workstation.deploy import inventory
from tests import sshd
from tests.tree import HOST_KEY, ROOT, TOML, Tree

EXAMPLE = ROOT / "docs/examples/ansible"


@pytest.fixture(autouse=True)
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path / "state"))
    return tmp_path


def host(top: Path, name: str, more: str = "", toml: str = TOML) -> None:
    (top / "hosts" / name).mkdir(parents=True)
    (top / "hosts" / name / "host.toml").write_text(toml + more)


def test_form(top: Path) -> None:
    """As Ansible's developer guide has it, with the variables in it: Ansible asks once."""
    host(top, "web1", 'tags = ["web", "eu"]\nidentity = "/key"\n')
    host(top, "web2", 'tags = ["web"]\n')
    host(top, "mx")
    host(top, "paper", toml="")
    host(top, "demo", toml='[vm]\nstock = "stock"\n')

    listed = inventory.listed()

    variables = listed.pop("_meta")["hostvars"]
    assert listed == {
        "all": {"children": ["eu", "ungrouped", "web"]},
        "eu": {"hosts": ["web1"]},
        "ungrouped": {"hosts": ["mx"]},
        "web": {"hosts": ["web1", "web2"]},
    }
    assert variables == {n: inventory.variables(hosts.load(n)) for n in ("mx", "web1", "web2")}
    assert variables["web1"]["ansible_ssh_private_key_file"] == "/key"
    assert "ansible_ssh_private_key_file" not in variables["mx"]


def test_pinned_key(top: Path) -> None:
    """Whatever Ansible's own configuration says."""
    host(top, "mx")
    found = inventory.variables(hosts.load("mx"))
    known = top / "state/anemos" / places.REPOSITORY / "mx/known_hosts"
    assert (found["ansible_host"], found["ansible_port"]) == ("127.0.0.1", 1)
    assert (found["ansible_user"], found["ansible_connection"]) == ("root", "ssh")
    assert found["ansible_host_key_checking"] is True
    words = str(found["ansible_ssh_common_args"])
    assert "StrictHostKeyChecking=yes" in words
    assert f"UserKnownHostsFile={known}" in words
    assert known.read_text() == f"[127.0.0.1]:1 {HOST_KEY}\n"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (TOML + "tags = 1\n", "tags is 1"),
        (TOML + 'tags = ["a-b"]\n', "tags.0 is 'a-b': write small letters"),
        (TOML + 'tags = ["all"]\n', "tags.0 is 'all': write small letters"),
        (TOML + 'tags = ["mx"]\n', "mx is a tag and a host"),
        ('address = "192.0.2.1"\n', "no host_key"),
    ],
)
def test_refused(top: Path, toml: str, message: str) -> None:
    """A server that is not complete would be missing in `all`, without a word."""
    host(top, "fine")
    host(top, "mx", toml=toml)
    with pytest.raises(Failure, match=message) as caught:
        inventory.listed()
    assert caught.value.status == BAD_INPUT


@pytest.mark.real("run")
def test_tasks(module_tree: Tree) -> None:
    """Always JSON, on standard output alone."""
    module_tree.host("mx")
    done = module_tree.inv("inventory", "--list")
    assert done.status == 0, done.err
    (variables,) = json.loads(done.out)["_meta"]["hostvars"].values()
    assert json.loads(module_tree.inv("inventory", "--host", "mx").out) == variables
    for words in ([], ["--list", "--host", "mx"]):
        assert module_tree.inv("inventory", *words).status == BAD_INPUT


# The real one

real = [
    pytest.mark.all,
    pytest.mark.root,
    pytest.mark.real("run"),
    pytest.mark.skipif(not shutil.which("ansible-playbook"), reason="needs ansible-core"),
]


class Ansible:
    """Ansible, with an inventory of ours, and a program in the place of ./inv."""

    def __init__(self, top: Path) -> None:
        self.top, self.calls = top, top / "calls"
        self.program("inventory", f"cat {top}/listed.json")
        self.program("inv", f'echo "$1 $3 $5" >>{self.calls}; ! grep -qx "$3" {top}/failing')
        (top / "failing").touch()

    def program(self, name: str, script: str) -> None:
        (self.top / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.top / name).chmod(0o755)

    def run(self, program: str, *words: str, env: Mapping[str, str] | None = None) -> str:
        (self.top / "listed.json").write_text(json.dumps(inventory.listed()))
        quiet = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": os.fspath(self.top)}
        argv = [program, "-i", os.fspath(self.top / "inventory"), *words]
        return run(argv, env=quiet | dict(env or {}), cwd=self.top)

    def play(self, *words: str) -> list[str]:
        self.calls.write_text("")
        self.run("ansible-playbook", os.fspath(EXAMPLE / "redeploy.yml"), *words)
        return self.done()

    def done(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def ansible(top: Path) -> Ansible:
    for number in range(1, 4):
        host(top, f"web{number}", 'tags = ["web"]\n')
    host(top, "mx")
    return Ansible(top)


class TestAnsible:
    pytestmark = real

    def test_batches(self, ansible: Ansible) -> None:
        """Those of a tag, one after the other; checking runs the plan, and no more."""
        words = ["-e", f"inv={ansible.top}/inv", "-e", "targets=web"]
        assert ansible.play(*words) == [f"deploy web{n} web{n}" for n in (1, 2, 3)]
        assert ansible.play(*words, "--check") == [f"plan web{n} " for n in (1, 2, 3)]

    def test_many(self, ansible: Ansible) -> None:
        """500 servers: one, then a tenth, then the others, each once; a failure spares the rest."""
        names = [f"eu{number:03}" for number in range(500)]
        for name in names:
            host(ansible.top, name, 'tags = ["eu"]\n')
        words = ["-e", f"inv={ansible.top}/inv", "-e", "targets=eu", "--forks=50"]
        done = [line.split()[1] for line in ansible.play(*words)]
        batches = [done[:1], done[1:51], done[51:]]
        assert [sorted(each) for each in batches] == [names[:1], names[1:51], names[51:]]
        (ansible.top / "failing").write_text(f"{names[7]}\n")
        with pytest.raises(CommandFailed):
            ansible.play(*words)
        assert len(ansible.done()) == 51

    def test_first_failure_ends_it(self, ansible: Ansible) -> None:
        (ansible.top / "failing").write_text("web2\n")
        with pytest.raises(CommandFailed):
            ansible.play("-e", f"inv={ansible.top}/inv", "-e", "targets=web")
        assert ansible.done() == ["deploy web1 web1", "deploy web2 web2"]

    def test_nobody_is_meant(self, ansible: Ansible) -> None:
        """All servers have to be named."""
        with pytest.raises(CommandFailed, match="'targets' is undefined"):
            ansible.play("-e", f"inv={ansible.top}/inv")
        assert ansible.done() == []

    def test_pinned_key(self, ansible: Ansible, tmp_path: Path) -> None:
        """It is checked where Ansible's configuration turns that off."""
        off = {"ANSIBLE_HOST_KEY_CHECKING": "False"}
        with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
            other = sshd.make_key(tmp_path / "other")
            for name, key in (("good", server.endpoint.host_key), ("bad", other)):
                where = server.endpoint
                toml = f'address = "127.0.0.1"\nport = {where.port}\nhost_key = "{key}"\n'
                host(tmp_path, name, f'identity = "{where.identity}"\n', toml)
            # The wrong one first: the connection of the other one, to the same address, persists.
            with pytest.raises(CommandFailed, match=r"(?s)UNREACHABLE.*verification failed"):
                ansible.run("ansible", "bad", "-m", "raw", "-a", "true", env=off)
            call = ["-m", "raw", "-a", "echo it-is-$((40+2))"]
            assert "it-is-42" in ansible.run("ansible", "good", *call, env=off)


def test_playbook_is_careful() -> None:
    """Read as text: what must not be lost, wherever there is no Ansible."""
    text = (EXAMPLE / "redeploy.yml").read_text()
    for line in ('serial: [1, "10%", "100%"]', "max_fail_percentage: 0", 'hosts: "{{ targets }}"'):
        assert f"\n  {line}\n" in text
    assert os.access(EXAMPLE / "inventory", os.X_OK)
