"""anemos.workstation.ssh against a real sshd."""

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PosixPath
from typing import BinaryIO

import pytest

from anemos import log, namespaces
from anemos.log import BAD_INPUT, FAILED, UNVERIFIED, Failure
from anemos.run import CommandFailed, run
from anemos.workstation import ssh
from anemos.workstation.deploy import facts, reach
from anemos.workstation.ssh import (
    ConnectionLost,
    Endpoint,
    LoginRefused,
    NotRun,
    Remote,
    Unreachable,
    WrongHostKey,
    connect,
)
from tests import sshd
from tests.waiting import until

pytestmark = pytest.mark.real("run", "ssh")

# Finds the sshd process that serves the session it runs in; ends it. Where sshd is gone: fails.
SESSION = """
pid=$$
until grep -q ^sshd /proc/$pid/comm; do
    [ $pid -gt 1 ] || exit 1
    pid=$(cut -d' ' -f4 /proc/$pid/stat)
done
"""
DROP = SESSION + "kill -9 $pid"

BLOB = bytes(range(256)) * 20_000  # 5 MB: more than the window


@pytest.fixture(scope="module")
def module_server() -> Iterator[sshd.Server]:
    with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
        yield server


@pytest.fixture
def server(module_server: sshd.Server) -> Iterator[sshd.Server]:
    yield module_server
    for program in module_server.bin.iterdir():
        program.unlink()


class Seen(log.Observer):
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def reached(self, done: int, total: int) -> None:
        self.told.append((done, total))


@pytest.mark.parametrize("size", [ssh.CHUNK, ssh.CHUNK * 2 + 1])
def test_observers_see_how_much_was_sent(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Of what is worth a bar."""
    monkeypatch.setattr(log, "observers", [seen := Seen()])
    assert b"".join(ssh.chunks(BytesIO(bytes(size)), size, "/file")) == bytes(size)
    steps = [] if size == ssh.CHUNK else [ssh.CHUNK, 2 * ssh.CHUNK, size]
    assert seen.told == [(each, size) for each in steps]


def log_in(endpoint: Endpoint) -> None:
    with connect(endpoint):
        pass


@pytest.fixture
def remote(server: sshd.Server) -> Iterator[Remote]:
    with connect(server.endpoint) as remote:
        yield remote


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


# Connecting


def test_command(remote: Remote) -> None:
    argv = ["printf", "%s\n", "two  words", "$HOME", "it's", "", "ä"]

    assert remote.sh(argv) == "two  words\n$HOME\nit's\n\nä\n"


def test_script(remote: Remote) -> None:
    assert remote.sh(["sh", "-c", 'echo "$1"; echo lost >&2', "sh", "a b"]) == "a b\n"


def test_standard_input_is_empty(remote: Remote) -> None:
    assert remote.sh(["cat"]) == ""


def test_user_configuration_has_no_say(server: sshd.Server) -> None:
    config = Path("~/.ssh/config").expanduser()
    config.parent.mkdir()
    config.write_text("Host *\n User nobody\n Port 1\n HostName 192.0.2.1\n ProxyCommand false\n")
    Path("~/.fabric.yaml").expanduser().write_text(
        "user: nobody\nport: 1\ngateway: 'false'\nconnect_kwargs: {key_filename: x}\n"
    )

    with connect(server.endpoint) as remote:
        assert remote.sh(["echo", "here"]) == "here\n"
        assert (remote.host, remote.port) == (server.endpoint.address, server.endpoint.port)
        assert "key_filename" not in remote.connect_kwargs


def test_default_keys(server: sshd.Server) -> None:
    home_key = Path("~/.ssh/id_ed25519").expanduser()
    home_key.parent.mkdir()
    home_key.write_bytes((server.directory / "identity").read_bytes())

    log_in(replace(server.endpoint, identity=None))


def test_identity_is_the_only_key(server: sshd.Server, tmp_path: Path) -> None:
    test_default_keys(server)
    sshd.make_key(tmp_path / "other")

    with pytest.raises(LoginRefused, match=f"{tmp_path}/other"):
        log_in(replace(server.endpoint, identity=tmp_path / "other"))


def fingerprint(public_key: Path) -> str:
    return run(["ssh-keygen", "-l", "-f", public_key]).split()[1]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_wrong_host_key(server: sshd.Server, tmp_path: Path, kind: str) -> None:
    pinned = sshd.make_key(tmp_path / "pinned", kind)

    with pytest.raises(WrongHostKey) as caught, connect(replace(server.endpoint, host_key=pinned)):
        pass

    assert caught.value.status == BAD_INPUT
    assert f"{server.endpoint.address}:{server.endpoint.port}" in caught.value.message
    assert f"{pinned.split()[0]} {fingerprint(tmp_path / 'pinned')}" in caught.value.message
    assert fingerprint(server.directory / "host_key") in caught.value.message


@pytest.mark.parametrize(
    "host_key",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 Ä",
        "ssh-quantum AAAAC3NzaC1lZDI1NTE5AAAAIBpL",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpL",
        "mx ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpL",
    ],
)
def test_unusable_pinned_key(server: sshd.Server, host_key: str) -> None:
    with pytest.raises(Failure, match="not a public key of a known type") as caught:
        log_in(replace(server.endpoint, host_key=host_key))

    assert caught.value.status == BAD_INPUT


def test_pinned_key_of_another_type_than_the_identity(tmp_path: Path) -> None:
    """The server also has an ed25519 key, which paramiko would prefer."""
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        server.settings = [f"HostKey {tmp_path}/rsa"]
        pinned = sshd.make_key(tmp_path / "rsa", "rsa")
        with sshd.serving(server):
            log_in(replace(server.endpoint, host_key=pinned))
            log_in(server.endpoint)


def test_no_algorithm_in_common() -> None:
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        server.settings = ["Ciphers chacha20-poly1305@openssh.com"]
        with sshd.serving(server), pytest.raises(Failure, match="no SSH algorithm in common"):
            log_in(server.endpoint)


def garbage(path: Path) -> None:
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nno\n-----END OPENSSH PRIVATE KEY-----\n")


def dsa(path: Path) -> None:
    run(["openssl", "genpkey", "-genparam", "-algorithm", "DSA", "-out", f"{path}.parameters"])
    run(["openssl", "genpkey", "-paramfile", f"{path}.parameters", "-out", path])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.write_bytes(b""), "is not a private key"),
        (lambda path: path.write_bytes(b"\xff\x00"), "is not a private key"),
        (garbage, "is not a private key"),
        (dsa, "is not a private key of a known type"),
        (lambda path: sshd.make_key(path, passphrase="x" * 8), "locked by a passphrase"),
        (lambda path: sshd.make_key(path, "rsa", "x" * 8), "locked by a passphrase"),
    ],
)
def test_unusable_identity(
    server: sshd.Server, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    identity = tmp_path / "id"
    make(identity)

    with pytest.raises(Failure, match=message) as caught:
        log_in(replace(server.endpoint, identity=identity))

    assert str(identity) in caught.value.message
    assert caught.value.status == BAD_INPUT


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_login_refused(server: sshd.Server, tmp_path: Path, kind: str) -> None:
    sshd.make_key(tmp_path / "id", kind)

    with pytest.raises(LoginRefused) as caught:
        log_in(replace(server.endpoint, identity=tmp_path / "id"))

    assert f"{server.endpoint}: login refused" in caught.value.message
    assert f"{tmp_path}/id" in caught.value.hint


def test_no_key_at_all(server: sshd.Server) -> None:
    with pytest.raises(LoginRefused, match="login refused"):
        log_in(replace(server.endpoint, identity=None))


def test_too_many_keys() -> None:
    """The server hangs up, as it does while it goes down: told apart by the hint only."""
    Path("~/.ssh").expanduser().mkdir()
    for kind in ("ecdsa", "ed25519"):
        sshd.make_key(Path(f"~/.ssh/id_{kind}").expanduser(), kind)
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        server.settings = ["MaxAuthTries 1"]
        endpoint = replace(server.endpoint, identity=None)
        with sshd.serving(server), pytest.raises(Unreachable) as caught, connect(endpoint):
            pass
    assert "too many keys" in caught.value.hint


def test_refused_port(server: sshd.Server) -> None:
    endpoint = replace(server.endpoint, port=sshd.free_port())

    with pytest.raises(Unreachable, match=f"{endpoint}.*Connection refused"), connect(endpoint):
        pass


@pytest.mark.parametrize("address", ["nowhere.invalid", "127.0.0.1:22", "me@127.0.0.1", "a..b"])
def test_unknown_name(server: sshd.Server, address: str) -> None:
    with pytest.raises(Unreachable), connect(replace(server.endpoint, address=address)):
        pass


def test_silent_server(
    server: sshd.Server, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "ANSWER_S", 0.2)
    endpoint = replace(server.endpoint, port=listener.getsockname()[1])

    with pytest.raises(Unreachable, match="banner"), connect(endpoint):
        pass


def test_status_of_the_caller(server: sshd.Server) -> None:
    endpoint = replace(server.endpoint, port=sshd.free_port())

    with pytest.raises(Unreachable) as caught, connect(endpoint, status=UNVERIFIED):
        pass

    assert caught.value.status == UNVERIFIED == caught.value.code


# Commands


def test_failing_command(remote: Remote) -> None:
    with pytest.raises(CommandFailed) as caught:
        remote.sh(["sh", "-c", "echo out; echo err >&2; exit 3"])

    assert (caught.value.returncode, caught.value.status) == (3, FAILED)
    assert caught.value.output == "out\nerr\n"
    assert caught.value.message.startswith(f"{remote.endpoint}: sh -c 'echo out")
    assert "exit status 3\n  | out\n  | err" in caught.value.message


def test_command_killed_by_signal_is_no_lost_connection(
    server: sshd.Server, remote: Remote
) -> None:
    server.program("sh", 'exec bash "$@"')  # which becomes its last command, where dash forks
    with pytest.raises(CommandFailed, match="killed by signal 9"):
        remote.sh(["sh", "-c", "kill -9 $$"])

    assert remote.sh(["echo", "still here"]) == "still here\n"


def test_exit_status_255_is_no_signal(remote: Remote) -> None:
    with pytest.raises(CommandFailed, match="exit status 255"):
        remote.sh(["sh", "-c", "exit 255"])


NOISE = {
    "a line": "echo Welcome",
    "no line": "printf Welcome",
    "errors": "echo Welcome >&2; set -v",
    "much": "seq 200000",
    "at the end": "trap 'echo Bye' EXIT",
    "like facts": "echo boot_id=no; echo '{}'",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_of_the_login_shell(noise: str, tmp_path: Path) -> None:
    """bash reads root's .bashrc for ssh's commands, too. What it prints is no answer."""
    lines: list[str] = []
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        (directory / "noise").write_text(f"{noise}\n")
        forced = f'. {directory}/noise; eval "$SSH_ORIGINAL_COMMAND"'
        server.settings = [f"ForceCommand bash -c '{forced}'"]
        with sshd.serving(server), connect(server.endpoint) as remote:
            assert remote.sh(["echo", "here"]) == "here\n"
            assert remote.sh(["printf", "<half>"]) == "<half>"
            said = remote.sh(["sh", "-c", "echo one; printf two >&2"], log=lines.append)
            assert said == "one\ntwo"
            assert remote.put(b"data", f"{tmp_path}/file", mode=0o600) == 4
            with pytest.raises(CommandFailed, match=r"exit status 3\n  \| out"):
                remote.sh(["sh", "-c", "echo out; exit 3"])

    assert lines == ["one", "two"]
    assert (tmp_path / "file").read_bytes() == b"data"


CLOUD = """echo 'Please login as the user "debian" rather than "root".'; echo; sleep 0; exit 142"""


@pytest.mark.parametrize(
    ("command", "said"),
    [(CLOUD, 'Please login as the user "debian"'), ("true", "was not run"), ("exit 3", "not run")],
)
def test_command_that_is_not_run(command: str, said: str) -> None:
    """A forced command, or a shell like nologin(8): no signal and no answer."""
    with sshd.scratch() as directory:
        server = sshd.prepare(directory)
        (directory / "instead").write_text(command)
        server.settings = [f"ForceCommand sh {directory}/instead"]
        with sshd.serving(server), connect(server.endpoint) as remote:
            for ask in (lambda: remote.sh(["true"]), lambda: facts.identify(remote)):
                with pytest.raises(NotRun, match=said) as caught:
                    ask()
                assert caught.value.status == BAD_INPUT
                assert "signal" not in caught.value.message
                assert "forced command" in caught.value.hint


def test_missing_program(remote: Remote) -> None:
    with pytest.raises(CommandFailed, match=r"exit status 127\n.*no-such-program.*not found"):
        remote.sh(["no-such-program"])


def test_more_output_than_the_window(remote: Remote) -> None:
    script = "head -c 5000000 /dev/zero | tr '\\0' e >&2; head -c 5000000 /dev/zero | tr '\\0' o"

    assert remote.sh(["sh", "-c", script]) == "o" * 5_000_000


def test_timeout(remote: Remote) -> None:
    with pytest.raises(Failure, match=f"{remote.endpoint}: sleep 5: no end after 0 s") as caught:
        remote.sh(["sleep", "5"], timeout=0.2)

    assert not isinstance(caught.value, ConnectionLost)
    assert caught.value.status == FAILED


def test_timeout_of_endless_output(remote: Remote) -> None:
    with pytest.raises(Failure, match="no end after"):
        remote.sh(["yes"], timeout=0.3)


def test_lines_come_while_the_command_runs(remote: Remote, tmp_path: Path) -> None:
    """The command ends only because its first line has arrived here."""
    go = tmp_path / "go"
    lines = []

    def sink(line: str) -> None:
        lines.append(line)
        go.touch()

    script = 'echo begun; until [ -e "$1" ]; do sleep 0.05; done; echo "bad: \\377" >&2; printf end'
    output = remote.sh(["sh", "-c", script, "sh", str(go)], log=sink, timeout=300)

    assert lines == ["begun", "bad: \ufffd", "end"]
    assert output == "begun\nbad: \ufffd\nend"


def test_output_of_a_failed_command_that_was_followed(remote: Remote) -> None:
    lines: list[str] = []

    with pytest.raises(CommandFailed, match=r"\| why$"):
        remote.sh(["sh", "-c", "echo why >&2; exit 1"], log=lines.append)

    assert lines == ["why"]


@pytest.mark.parametrize("log", [None, lambda line: None])
def test_connection_dropped_in_the_middle_of_a_command(
    remote: Remote, log: Callable[[str], None] | None
) -> None:
    with pytest.raises(ConnectionLost, match=rf"(?s){remote.endpoint}: sh -c .*lost$") as caught:
        remote.sh(["sh", "-c", f"echo begun; {DROP}; sleep 1"], log=log, timeout=300)
    assert caught.value.status == FAILED

    with pytest.raises(ConnectionLost):  # instead of silently dialling again
        remote.sh(["true"])


@pytest.mark.root
@pytest.mark.parametrize(
    "act",
    [
        lambda remote, _: remote.sh(["cat"]),  # we only listen
        lambda remote, path: remote.put(BLOB, path, mode=0o600),  # nobody acknowledges our data
    ],
)
def test_peer_that_falls_silent(
    act: Callable[[Remote, str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that panics, or jumps into another kernel: no packet ever says goodbye.

    In a thread with a network of its own, whose loopback device goes down.
    """
    monkeypatch.setattr(ssh, "SILENCE_S", 3)
    pids = tmp_path / "pids"
    pids.touch()

    def scene() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        run(["ip", "link", "set", "lo", "up"])
        with (
            sshd.scratch() as directory,
            sshd.serving(sshd.prepare(directory)) as server,
            connect(server.endpoint) as remote,
            pytest.raises(ConnectionLost),
        ):
            cut = f"{SESSION} echo $pid $$ >{pids}; ip link set lo down; exec sleep 300"
            server.program("cat", cut)
            act(remote, str(tmp_path / "file"))

    try:
        with ThreadPoolExecutor() as pool:
            pool.submit(scene).result()
    finally:
        for pid in pids.read_text().split():  # nothing else tells them that we are gone
            os.kill(int(pid), signal.SIGKILL)


def test_key_that_logged_in(server: sshd.Server) -> None:
    mine = " ".join(server.directory.joinpath("identity.pub").read_text().split()[:2])
    with connect(server.endpoint) as remote:
        assert remote.login_key == mine


# Files


def test_put_binary(remote: Remote, tmp_path: Path) -> None:
    target = tmp_path / "a 'file'"

    assert remote.put(BLOB, str(target), mode=0o600) == len(BLOB)

    assert target.read_bytes() == BLOB
    assert list(tmp_path.iterdir()) == [target]


def test_put_file_and_replace(remote: Remote, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(BLOB)
    target.write_text("older")
    target.chmod(0o644)

    assert remote.put(source, str(target), mode=0o400) == len(BLOB)

    assert target.read_bytes() == BLOB
    assert target.stat().st_mode & 0o7777 == 0o400


def test_put_empty(remote: Remote, tmp_path: Path) -> None:
    assert remote.put(b"", str(tmp_path / "empty"), mode=0o644) == 0
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644, 0o755])
def test_put_is_never_wider_than_its_mode(
    server: sshd.Server, remote: Remote, tmp_path: Path, mode: int
) -> None:
    """chmod, the first program that sees the new file, and cat, the next, tell what they see."""
    seen = server.directory / f"seen-{mode:o}"

    tell = f'for f in {tmp_path}/*part; do stat -c "%a %s" "$f" >>{seen}; done; exec '
    server.program("chmod", tell + '/bin/chmod "$@"')
    score = "cat /proc/self/oom_score_adj"
    server.program("cat", f"/bin/{score} >{seen}.oom; {tell}/bin/cat")
    assert remote.sh(["sh", "-c", "umask"]).strip() == "0022"

    remote.put(b"secret", str(tmp_path / "file"), mode=mode)

    assert seen.read_text().splitlines() == ["600 0", f"{mode:o} 0"]
    assert Path(f"{seen}.oom").read_text() == "1000\n"  # it ends before anything that serves
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


def test_put_follows_no_link(server: sshd.Server, remote: Remote, tmp_path: Path) -> None:
    """Somebody guessed the temporary name (here: `sh` makes the link under its own process id)."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    real = run(["sh", "-c", "command -v sh"]).strip()
    server.program("sh", f'[ -z "$5" ] || ln -s {victim} {tmp_path}/file.$$.part; exec {real} "$@"')

    with pytest.raises(CommandFailed):
        remote.put(b"secret", str(tmp_path / "file"), mode=0o600)

    assert victim.read_text() == "precious"
    assert not (tmp_path / "file").exists()


def test_bytes_that_did_not_arrive(server: sshd.Server, remote: Remote, tmp_path: Path) -> None:
    server.program("cat", "head -c 1000")
    (tmp_path / "file").write_text("older")

    with pytest.raises(
        CommandFailed, match=f"put {tmp_path}/file: .*\n.*1000 of {len(BLOB)} bytes"
    ):
        remote.put(BLOB, str(tmp_path / "file"), mode=0o600)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "older"}


def test_put_that_cannot_be_written(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=f"put {tmp_path}/none/file"):
        remote.put(BLOB, f"{tmp_path}/none/file", mode=0o600)
    with pytest.raises(CommandFailed):
        remote.put(BLOB, str(tmp_path), mode=0o600)
    assert list(tmp_path.iterdir()) == []


class Broken(PosixPath):
    """A file on a disk that fails after the first part."""

    def open(self, *_: object) -> BinaryIO:  # type: ignore[override]
        class Stream(BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= ssh.CHUNK:
                    raise OSError(errno.EIO, "Input/output error")
                return super().read(size)

        return Stream(BLOB)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (Path("/none"), "No such file"),
        (Path("/proc/self/mem"), ""),
        (Path("/proc/self/attr/exec"), "Invalid arg"),  # its size is 0, too
        (Broken("/later"), "Input/output error"),
    ],
)
def test_file_that_cannot_be_read(remote: Remote, tmp_path: Path, file: Path, why: str) -> None:
    """Neither before its first byte nor later: it is not the connection's fault."""
    for send in (
        lambda: remote.put(file, str(tmp_path / "file"), mode=0o600),
        lambda: remote.sh(["cat"], file=file),
    ):
        with pytest.raises(Failure, match=f"^{file}: {why}") as caught:
            send()
        assert not isinstance(caught.value, ConnectionLost)
    until(lambda: not list(tmp_path.iterdir()))  # the server takes away what has come


def test_connection_dropped_in_the_middle_of_a_file(
    server: sshd.Server, remote: Remote, tmp_path: Path
) -> None:
    server.program("cat", f"head -c 1000; {DROP}; exec /bin/cat")

    with pytest.raises(ConnectionLost, match=f"put {tmp_path}/file"):
        remote.put(BLOB, str(tmp_path / "file"), mode=0o600)

    assert not (tmp_path / "file").exists()


def test_stalled_put(server: sshd.Server, remote: Remote, tmp_path: Path) -> None:
    server.program("cat", "sleep 2")

    with pytest.raises(Failure, match="no end after"):
        remote.put(BLOB, str(tmp_path / "file"), mode=0o600, timeout=0.5)


@pytest.mark.root
def test_operators_own_client_on_port_22(tmp_path: Path) -> None:
    """What `rescue` becomes on a real server; the agent holds more keys than sshd looks at."""
    others = [tmp_path / f"other{number}" for number in range(7)]
    for other in others:
        sshd.make_key(other)

    def scene() -> str:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        run(["ip", "link", "set", "lo", "up"])
        with sshd.scratch() as directory:
            there = sshd.prepare(directory)
            there.endpoint = replace(there.endpoint, port=22)
            with sshd.serving(there):
                log_in(there.endpoint)
                argv = reach.login(there.endpoint, tmp_path / "known_hosts")
                agent = ["ssh-agent", "sh", "-c", 'ssh-add -q "$0"? && exec "$@"']
                return run([*agent, tmp_path / "other", *argv, "echo", "in"])

    with ThreadPoolExecutor() as pool:
        assert pool.submit(scene).result() == "in\n"
