"""A server with slots: deployed whole, then into the slot that does not run, and back.

Each deployment that fails on trial ends in the system that ran before.
"""

import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from anemos.log import FAILED
from anemos.workstation.ssh import Endpoint, connect
from tests import tree
from tests.story import Visitor
from tests.tree import DEMO_S, ROOT, Done, Tree

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

FIRST = "    chmod 700 /root/.ssh\n"  # of provision()
# The trial's kernel panics when all services have started.
PANIC = """
    printf '%s\\n' '[Unit]' After=ssh.service '[Service]' \\
        ExecStart='/bin/sh -c "echo c >/proc/sysrq-trigger"' \\
        '[Install]' WantedBy=multi-user.target >/etc/systemd/system/panic.service
    systemctl enable panic.service
"""


@dataclass
class Server:
    project: Tree
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.project.directory / "hosts/demo/IMGBUILD"

    @contextmanager
    def changed(self, old: str, new: str) -> Iterator[None]:
        """NEW for OLD, which must be there, in the definition for a while."""
        before = self.file.read_text()
        assert old in before
        self.file.write_text(before.replace(old, new, 1))
        yield
        self.file.write_text(before)

    def inv(self, *words: str) -> Done:
        return self.project.inv(*words, "--json", timeout=DEMO_S, cached=True)

    def deploy(self) -> None:
        """Also makes and starts the stock server, if nothing runs yet."""
        self.reports.append(json.loads(self.project.demo("demo").out))

    def slots(self) -> dict[str, dict[str, Any]]:
        told = json.loads(self.inv("status", "--host", "demo").out)
        return {each["name"]: each for each in told["slots"]}

    def sh(self, script: str) -> str:
        home = tree.where("state('demo')", self.project.directory, self.project.home)
        port = int((home / "vm/port-22").read_text())
        key = (home / "vm/host_key").read_text()
        with connect(Endpoint("127.0.0.1", port, key, home / "id_ed25519")) as remote:
            return remote.sh(["sh", "-ec", script], timeout=120)

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")

    @contextmanager
    def visited(self, directory: Path) -> Iterator[Visitor]:
        """By somebody who knows the certificate that it has now."""
        home = tree.where("state('demo')", self.project.directory, self.project.home)
        port = int((home / "vm/port-443").read_text())
        authority = directory / "authority.pem"
        authority.write_text(ssl.get_server_certificate(("127.0.0.1", port)))
        visitor = Visitor("demo", "/", port, authority)
        visitor.start()
        try:
            yield visitor
        finally:
            visitor.gone.set()
            visitor.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as project:
        for name in ("stock", "demo"):
            shutil.copytree(ROOT / "hosts" / name, project.directory / "hosts" / name)
        given = Server(project)
        toml = given.file.with_name("host.toml")
        toml.write_text(toml.read_text().replace("up = 1200\n", "up = 1200\ntrial = 1800\n"))
        try:
            given.deploy()
            yield given
        finally:
            project.inv("demo", "--stop")


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
def test_other_slot(
    server: Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The first deployment erases the disk, the next one fills the other slot; a visitor waits for
    its boot alone, and what the old system has is still there."""
    whole = server.slots()
    assert (whole["a"]["runs"], whole["a"]["default"], whole["b"]["state"]) == (True, True, "empty")
    key, machine = server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"), server.boot_id()
    with server.visited(tmp_path) as visitor:
        server.deploy()
    report, slots = server.reports[-1], server.slots()
    record_property("seen", f"slot: {visitor.outage:.0f} s without a page")
    assert [each["name"] for each in report["phases"]][-4:] == ["fill", "kexec", "verify", "commit"]
    assert (report["verified"], report["bytes_sent"]["base"]) == (True, 0)
    assert report["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
    assert (slots["b"]["runs"], slots["b"]["default"]) == (True, True)
    assert (slots["b"]["state"], slots["a"]["state"]) == ("good", "good")
    assert {answer for _, answer in visitor.seen if isinstance(answer, int)} == {200}
    assert (server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"), server.boot_id()) != (key, machine)
    assert server.sh("cat /proc/cmdline /run/anemos.word").count("anemos.trial=") == 1
    assert "anemos/trial" not in server.sh("ps -e -o args")


def test_definition_that_fails(server: Server) -> None:
    """Nobody notices; the slot is empty."""
    before = server.boot_id()
    with server.changed(FIRST, f"{FIRST}    rm /nothing\n"):
        done = server.inv("deploy", "--host", "demo")
    assert done.status != 0
    assert server.boot_id() == before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("    nginx -t\n", "    false\n", "fails: verify()"),
        (FIRST, f"{FIRST}{PANIC}", ""),
        (FIRST, f"{FIRST}    systemctl disable ssh\n", ""),
    ],
    ids=["verify", "panic", "no-sshd"],
)
def test_trial_that_fails(server: Server, old: str, new: str, told: str) -> None:
    """The old system is back by itself, and that is said."""
    runs = next(name for name, each in server.slots().items() if each["runs"])
    with server.changed(old, new):
        done = server.inv("deploy", "--host", "demo")
    assert done.status == FAILED, done.err
    error = json.loads(done.out)["error"]
    assert told in error
    assert "The old system runs again" in error
    slots = server.slots()
    assert (slots[runs]["runs"], slots[runs]["default"]) == (True, True)
    assert {each["state"] for each in slots.values()} == {"good", "bad"}
    assert server.sh("systemctl is-system-running --wait").strip() == "running"


def test_rollback(server: Server) -> None:
    """A good deployment into the other slot, and the way back."""
    server.deploy()
    before = next(name for name, each in server.slots().items() if each["runs"])
    done = server.inv("rollback", "--host", "demo", "--yes", "demo")
    assert done.status == 0, done.err
    slots = server.slots()
    assert not slots[before]["runs"]
    assert {each["state"] for each in slots.values()} == {"good"}
