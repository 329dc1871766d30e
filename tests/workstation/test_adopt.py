"""Pinning a new machine's key, from a real sshd."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.workstation import adopt, hosts, places, ssh
from tests import sshd

pytestmark = pytest.mark.real("run", "ssh")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    (tmp_path / "mx").mkdir()
    return tmp_path


@pytest.fixture
def endpoint(tree: Path) -> Iterator[ssh.Endpoint]:
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        with sshd.serving(server):
            where = server.endpoint
            text = f'address = "127.0.0.1"\nport = {where.port}\n\n[timeouts]\nup = 9\n'
            (tree / "mx/host.toml").write_text(text)
            yield where


def test_pins_what_is_presented(tree: Path, endpoint: ssh.Endpoint) -> None:
    """The fingerprint is ssh-keygen's; afterwards host.toml is complete, and nothing is lost."""
    (tree / "key.pub").write_text(endpoint.host_key)
    expected = run(["ssh-keygen", "-lf", tree / "key.pub"]).split()[1]

    assert adopt.adopt("mx", expected)["fingerprint"] == expected
    loaded = hosts.load("mx")
    assert loaded.host_key.split()[:2] == endpoint.host_key.split()[:2]
    assert loaded.timeouts.up == 9
    assert adopt.adopt("mx", "")["fingerprint"] == expected  # pinned already


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [("", "mx: not confirmed"), ("SHA256:other", "mx presents SHA256:.*, not SHA256:other")],
)
def test_not_agreed(
    tree: Path,
    endpoint: ssh.Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    fingerprint: str,
    message: str,
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: False)
    before = (tree / "mx/host.toml").read_text()

    with pytest.raises(Failure, match=message) as failed:
        adopt.adopt("mx", fingerprint)
    assert failed.value.status == BAD_INPUT
    assert (tree / "mx/host.toml").read_text() == before


def test_fingerprint_of_a_pinned_key(tree: Path, endpoint: ssh.Endpoint) -> None:
    """It is compared although nothing is to be written."""
    file = tree / "mx/host.toml"
    file.write_text(f'host_key = "{endpoint.host_key}"\n{file.read_text()}')

    shown = str(adopt.adopt("mx", "")["fingerprint"])
    assert adopt.adopt("mx", shown)["fingerprint"] == shown
    with pytest.raises(Failure, match=r"mx presents SHA256:.*, not SHA256:other"):
        adopt.adopt("mx", "SHA256:other")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('port = "ssh"', "port is 'ssh': should be a valid integer"),
        ("port = 65536", "port is 65536: should be less"),
        ('host_key = "garbage"', "host_key is 'garbage': not a public key"),
        ('host_key = "ssh-ed25519 %%%%"', "not a public key"),
        ("host_key = 5", "host_key is 5: should be a valid string"),
    ],
)
def test_values_that_make_no_sense(tree: Path, entry: str, message: str) -> None:
    (tree / "mx/host.toml").write_text(f'address = "127.0.0.1"\n{entry}\n')

    with pytest.raises(Failure, match=message) as caught:
        adopt.adopt("mx", "")
    assert caught.value.status == BAD_INPUT


def test_other_key_than_the_pinned_one(tree: Path, endpoint: ssh.Endpoint) -> None:
    file = tree / "mx/host.toml"
    other = re.sub(r"^(\S+ \S{60}).{4}", r"\1AAAA", endpoint.host_key)
    file.write_text(f'host_key = "{other}"\n{file.read_text()}')

    with pytest.raises(Failure, match=r"hosts/mx/host\.toml pins another key: SHA256:"):
        adopt.adopt("mx", "")


def test_nobody_there(tree: Path) -> None:
    (tree / "mx/host.toml").write_text('address = "127.0.0.1"\nport = 1\n')

    with pytest.raises(
        Failure, match=r"root@127\.0\.0\.1:1: no SSH connection: Connection refused"
    ):
        adopt.adopt("mx", "")


def test_no_address(tree: Path) -> None:
    (tree / "mx/host.toml").write_text("port = 22\n")

    with pytest.raises(Failure, match="which machine"):
        adopt.adopt("mx", "")
