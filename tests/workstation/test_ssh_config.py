"""A server that your ssh_config(5) knows already."""

from pathlib import Path

import pytest

from anemos.log import Failure
from anemos.workstation import hosts, places, ssh_config
from anemos.workstation.deploy import reach
from anemos.workstation.ssh import connect
from tests import sshd
from tests.tree import HOST_KEY

pytestmark = pytest.mark.real("run", "ssh")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the user. ssh(1) looks for it where the user database has the home."""
    file = tmp_path / "config"
    monkeypatch.setattr(ssh_config, "YOURS", ("-F", f"{file}"))
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    (tmp_path / "hosts/mx").mkdir(parents=True)
    return file


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("HostName 192.0.2.1", {"address": "192.0.2.1"}),
        ("HostName %h.example.org", {"address": "mail.example.org"}),
        ("", {"address": "mail"}),
        (
            "HostName 2001:db8::1\nPort 2222\nUser someone\nIdentityFile /keys/mx",
            {"address": "2001:db8::1", "port": 2222, "user": "someone", "identity": "/keys/mx"},
        ),
        ("IdentityFile ~/.ssh/mx\nIdentityFile b", {"address": "mail", "identity": "~/.ssh/mx"}),
        ("ProxyJump a@one,two:2222", {"address": "mail", "proxy_jump": "a@one,two:2222"}),
        ("ProxyJump none\nHost *\nProxyJump one", {"address": "mail"}),
        ("Host *\nUser someone", {"address": "mail", "user": "someone"}),
    ],
)
def test_entry(config: Path, text: str, found: dict[str, str | int]) -> None:
    config.write_text(f"Host mail\n{text}\n")
    assert ssh_config.entry("mail") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ProxyCommand nc %h %p", "mail has a ProxyCommand"),
        ("IdentityFile /keys/%h", "IdentityFile /keys/%h"),
        ("Nonsense", "ssh"),
    ],
)
def test_what_cannot_be_followed(config: Path, text: str, message: str) -> None:
    config.write_text(f"Host mail\n{text}\n")
    with pytest.raises(Failure, match=message):
        ssh_config.entry("mail")


def test_what_host_toml_says_counts(config: Path) -> None:
    config.write_text("Host mail\nHostName 192.0.2.1\nPort 2222\nUser someone\n")
    text = f'ssh_config = "mail"\nport = 22\nhost_key = "{HOST_KEY}"\n'
    (places.HOSTS / "mx/host.toml").write_text(text)
    host = hosts.load("mx")
    assert (host.address, host.port, host.user) == ("192.0.2.1", 22, "someone")


@pytest.mark.parametrize("alias", ['"-oProxyCommand=x"', '"a b"', "7", '"mail*"'])
def test_no_entry(config: Path, alias: str) -> None:
    """Nothing is asked of ssh(1)."""
    (places.HOSTS / "mx/host.toml").write_text(f"ssh_config = {alias}\n")
    with pytest.raises(Failure, match="ssh_config is "):
        hosts.load("mx")


def test_connection(config: Path) -> None:
    """The pinned key counts, not known_hosts."""
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        where = server.endpoint
        config.write_text(
            f"Host mail\nHostName {where.address}\nPort {where.port}\nUser {where.user}\n"
            f"IdentityFile {where.identity}\n"
        )
        text = f'ssh_config = "mail"\nhost_key = "{where.host_key}"\n'
        (places.HOSTS / "mx/host.toml").write_text(text)
        found = reach.endpoint(hosts.load("mx"))
        with sshd.serving(server), connect(found) as remote:
            assert remote.sh(["echo", "here"]) == "here\n"
    assert (found.port, found.identity, found.sudo) == (where.port, where.identity, False)
