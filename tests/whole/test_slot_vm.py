"""A server with slots: deployed whole, then into the slot that does not run, and back.

Each deployment that fails on trial ends in the system that ran before.
"""

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anemos.log import FAILED
from tests import story
from tests.story import Story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

FIRST = "    chmod 700 /root/.ssh\n"  # of provision()
# The trial's kernel panics when all services have started.
PANIC = """
    printf '%s\\n' '[Unit]' After=ssh.service '[Service]' \\
        ExecStart='/bin/sh -c "echo c >/proc/sysrq-trigger"' \\
        '[Install]' WantedBy=multi-user.target >/etc/systemd/system/panic.service
    systemctl enable panic.service
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """It carries a directory along, and lets in nothing but SSH until the commit."""
    with served(tmp_path_factory.mktemp("demo")) as given:
        given.change("host.toml", "[22, 443]\n", "[22, 443]\nhold_ports = true\n")
        given.change("IMGBUILD", "\nnginx-light\n", "\nnftables\nnginx-light\n")
        given.change("IMGBUILD", "\nkeep='\n", "\ncarry=var/lib/count\nkeep='\n")
        yield given


@contextmanager
def served(directory: Path) -> Iterator[Story]:
    """hosts/demo, deployed whole."""
    with story.begun("demo", directory) as given:
        given.change("host.toml", "up = 1200\n", "up = 1200\ntrial = 1800\n")
        given.deploy()
        yield given


def certificate(server: Story) -> Path:
    """That it has now, and after the next deployment."""
    file = server.directory / "certificate.pem"
    file.write_text(ssl.get_server_certificate(("127.0.0.1", server.port(443))))
    return file


def by_grub(server: Story) -> None:
    """Deploy it into the other slot, which GRUB starts once."""
    with server.changed("host.toml", "[22, 443]\n", '[22, 443]\nstart = "once"\n'):
        server.deploy()


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
def test_other_slot(server: Story, record_property: Callable[[str, object], None]) -> None:
    """The first deployment erases the disk, the next one fills the other slot; a visitor waits for
    its boot alone, and what the old system has is still there."""
    whole = server.slots()
    assert (whole["a"]["runs"], whole["a"]["default"], whole["b"]["state"]) == (True, True, "empty")
    server.sh("echo 7 >/var/lib/count")
    key, machine = server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"), server.boot_id()
    with server.visited("demo", authority=certificate(server)) as visitor:
        server.deploy()
    report, now = server.reports[-1], server.slots()
    record_property("seen", f"slot: {visitor.outage:.0f} s without a page")
    assert [each["name"] for each in report["phases"]][-4:] == ["fill", "kexec", "verify", "commit"]
    assert (report["verified"], report["bytes_sent"]["base"]) == (True, 0)
    assert report["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
    assert (now["b"]["runs"], now["b"]["default"]) == (True, True)
    assert (now["b"]["state"], now["a"]["state"]) == ("good", "good")
    assert {answer for _, answer in visitor.seen if isinstance(answer, int)} == {200}
    assert (server.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"), server.boot_id()) != (key, machine)
    assert server.sh("cat /var/lib/count") == "7\n"
    assert server.sh("cat /proc/cmdline /run/anemos.word").count("anemos.trial=") == 1
    assert "anemos/trial" not in server.sh("ps -e -o args")


def test_packages_are_fetched_once(server: Story) -> None:
    """The server makes the package layer, twice: then it has the packages, and fetches lists."""
    with server.changed("host.toml", '"workstation"', '"server"'):
        server.deploy()
        assert server.reports[-1]["bytes_sent"]["layer"] == 0
        fetched = server.sh("du -b -s /var/lib/anemos/packages")
        before = received(server)
        done = server.inv("deploy", "--yes", "demo", "--hold")
        assert done.status == 0, done.err
    assert received(server) - before < int(fetched.split()[0]) / 2


def received(server: Story) -> int:
    """Bytes, since the boot."""
    return int(server.sh("cat /sys/class/net/eth0/statistics/rx_bytes"))


def test_definition_that_fails(server: Story) -> None:
    """Nobody notices; the slot is empty."""
    before = server.boot_id()
    with server.changed("IMGBUILD", FIRST, f"{FIRST}    rm /nothing\n"):
        done = server.inv("deploy", "--json")
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
def test_trial_that_fails(server: Story, old: str, new: str, told: str) -> None:
    """The old system is back by itself, and that is said."""
    runs = next(name for name, each in server.slots().items() if each["runs"])
    with server.changed("IMGBUILD", old, new):
        done = server.inv("deploy", "--json")
    assert done.status == FAILED, done.err
    error = json.loads(done.out)["error"]
    assert told in error
    assert "The old system runs again" in error
    now = server.slots()
    assert (now[runs]["runs"], now[runs]["default"]) == (True, True)
    assert {each["state"] for each in now.values()} == {"good", "bad"}
    assert server.sh("systemctl is-system-running --wait").strip() == "running"


def test_word_of_its_own(server: Story) -> None:
    """The workstation only looks on: the new system commits itself, and opens its ports."""
    with server.changed("host.toml", "[22, 443]\n", '[22, 443]\nconfirm = "self"\n'):
        server.deploy()
    (runs,) = [each for each in server.slots().values() if each["runs"]]
    assert (runs["default"], runs["state"]) == (True, "good")
    assert "anemos.confirm" in server.sh("cat /proc/cmdline").split()


def test_rollback(server: Story) -> None:
    """A good deployment into the other slot, which GRUB starts once; and the way back."""
    by_grub(server)
    assert json.loads(server.inv("history", "--json").out)["history"][-1]["way"] == "slot, once"
    before = next(name for name, each in server.slots().items() if each["runs"])
    done = server.inv("rollback", "--yes", "demo")
    assert done.status == 0, done.err
    now = server.slots()
    assert not now[before]["runs"]
    assert {each["state"] for each in now.values()} == {"good"}
