"""Jump hosts: real sshd processes on the loopback device, and ssh(1) between them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from anemos.log import Failure
from anemos.run import run
from anemos.workstation import jump, ssh
from anemos.workstation.deploy import reach
from anemos.workstation.hosts import After, Host
from anemos.workstation.ssh import Endpoint, Unreachable, WrongHostKey, connect
from tests import sshd

pytestmark = pytest.mark.real("run", "ssh")
BLOB = bytes(range(256)) * 4_000


@dataclass(frozen=True)
class Road:
    """NEAR and FAR: jump hosts, which are known. SERVER: behind both."""

    near: Endpoint
    far: Endpoint
    server: Endpoint
    known_hosts: Path

    @property
    def jumps(self) -> tuple[str, str]:
        return str(self.near), str(self.far)


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Road]:
    """Jump hosts let another key in than the server does: that of the user's ssh_config."""
    with ExitStack() as stack:
        servers = [sshd.prepare(stack.enter_context(sshd.scratch())) for _ in range(3)]
        for each in servers:
            stack.enter_context(sshd.serving(each))
        near, far, server = (each.endpoint for each in servers)
        other = servers[0].directory / "identity"
        servers[1].directory.joinpath("authorized_keys").write_text(
            other.with_suffix(".pub").read_text()
        )
        known = tmp_path / "known_hosts"
        known.write_text("".join(f"{e.known_as} {e.host_key}\n" for e in (near, far)))
        config = f"IdentityFile {other}\nIdentitiesOnly yes\nUserKnownHostsFile {known}\n"
        alias = f"Host bastion\nHostName 127.0.0.1\nPort {near.port}\nUser {near.user}\nHost *\n"
        (tmp_path / "config").write_text(alias + config)
        monkeypatch.setattr(jump, "OPTIONS", ("-F", f"{tmp_path}/config", *jump.OPTIONS))
        yield Road(near, far, server, known)


@pytest.mark.proves(login="through a jump host")
@pytest.mark.parametrize("way", ["one", "two", "alias"])
def test_over_jump_hosts(road: Road, tmp_path: Path, way: str) -> None:
    jumps = {"one": road.jumps[:1], "two": road.jumps, "alias": ("bastion", road.jumps[1])}[way]
    where = replace(road.server, jumps=jumps)

    with connect(where) as remote:
        assert remote.sh(["echo", "here"]) == "here\n"
        assert remote.put(BLOB, f"{tmp_path}/file", mode=0o600) == len(BLOB)
        came_by = remote.sh(["sh", "-c", "echo $SSH_CONNECTION"])
    assert (tmp_path / "file").read_bytes() == BLOB
    assert came_by.split()[3] == str(road.server.port)
    assert ssh.presented_key(where).split() == road.server.host_key.split()[:2]


@pytest.mark.parametrize("number", [0, 1])
def test_jump_host_that_is_not_known(road: Road, number: int) -> None:
    """Neither is it believed, nor is anything asked."""
    lines = road.known_hosts.read_text().splitlines(keepends=True)
    road.known_hosts.write_text("".join(line for line in lines if line != lines[number]))
    with (
        pytest.raises(Unreachable, match=r"(?s)host key is known.*verification failed") as caught,
        connect(replace(road.server, jumps=road.jumps)),
    ):
        pass
    assert "in your known_hosts" in caught.value.hint


def test_jump_host_with_another_key(road: Road) -> None:
    road.known_hosts.write_text(f"{road.near.known_as} {road.far.host_key}\n")
    with (
        pytest.raises(Unreachable, match="IDENTIFICATION HAS CHANGED"),
        connect(replace(road.server, jumps=road.jumps[:1])),
    ):
        pass


def test_server_with_another_key(road: Road) -> None:
    """known_hosts has no say in this, even if the key is there."""
    with (
        pytest.raises(WrongHostKey),
        connect(replace(road.server, jumps=road.jumps[:1], host_key=road.near.host_key)),
    ):
        pass


def test_nobody_answers_behind_the_jump_host(road: Road) -> None:
    where = replace(road.server, port=sshd.free_port(), jumps=road.jumps[:1])
    with pytest.raises(Unreachable, match="Connection refused"), connect(where):
        pass
    with pytest.raises(Failure, match="Connection refused"):
        ssh.presented_key(where)


def test_nothing_is_left(road: Road) -> None:
    """No ssh(1) of ours, and no connection of it."""
    with connect(replace(road.server, jumps=road.jumps)) as remote:
        (process,) = [
            each
            for each in Path("/proc").glob("[0-9]*")
            if f"[127.0.0.1]:{road.server.port}".encode() in cmdline(each)
        ]
        assert remote.sh(["true"]) == ""
    assert not process.exists()


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("count", [1, 2])
def test_operators_own_client(road: Road, tmp_path: Path, count: int) -> None:
    """`rescue` takes the same way, under the same keys."""
    where = replace(road.server, jumps=road.jumps[:count])
    argv = reach.login(where, tmp_path / "pinned")
    assert run([*argv, "echo", "in"]) == "in\n"


# Another place in the new system


def test_new_port(road: Road, tmp_path: Path) -> None:
    """Whatever answers at the old one has another key: that is no reason not to look further."""
    old, new = road.near, road.server
    host = Host("mx", tmp_path, old.address, new.host_key, old.port, identity=f"{new.identity}")
    host = replace(host, after=After(port=new.port))

    with connect(reach.endpoint(host)) as remote:
        assert (remote.endpoint.port, remote.endpoint.user) == (new.port, "root")
    with (
        pytest.raises(WrongHostKey, match=str(old.port)),
        connect(reach.endpoint(replace(host, after=After(port=sshd.free_port())))),
    ):
        pass
