"""An ordinary user with a real sudo: no byte of the payload is taken for the password, nor the
password for a byte of the payload."""

import getpass
import os
import pty
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import CommandFailed, run
from anemos.workstation import machine, places, ssh, sudo
from anemos.workstation.deploy import facts, recovery
from anemos.workstation.hosts import Host
from anemos.workstation.machine import Machine
from anemos.workstation.ssh import LoginRefused, NotRun, Remote, TimedOut, connect
from tests import leaks, sudoer
from tests.sudoer import PASSWORD, USER

pytestmark = [pytest.mark.root, pytest.mark.real("run", "ssh")]

BLOB = bytes(range(256)) * 20_000  # more than the window
LIKE_A_PASSWORD = f"{PASSWORD}\n{PASSWORD}\nthe rest".encode()
Typed = Callable[..., list[str]]


class Became(Exception):
    """Another program."""


@pytest.fixture(scope="module")
def module_server() -> Iterator[sudoer.Server]:
    with sudoer.serving() as server:
        yield server


@pytest.fixture
def server(
    module_server: sudoer.Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sudoer.Server]:
    monkeypatch.setattr(sudo, "_known", {})
    monkeypatch.setattr(ssh, "_last", None)
    yield module_server
    module_server.allow(f"{USER} ALL=(ALL:ALL) ALL")
    for file in (module_server.directory / "tokens", *module_server.bin.iterdir()):
        file.unlink(missing_ok=True)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """A person who types the given words, and nothing else; what was asked."""

    def typist(*words: str) -> list[str]:
        left, questions = list(words), []

        def answer(question: str) -> str:
            questions.append(question)
            return left.pop(0)

        monkeypatch.setattr(sudo, "asked", answer)
        return questions

    typist()
    return typist


@pytest.fixture
def remote(server: sudoer.Server) -> Iterator[Remote]:
    with connect(server.endpoint) as remote:
        yield remote


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_mode & 0o7777


@pytest.mark.proves(login="sudo")
@pytest.mark.parametrize("defaults", ["", "Defaults use_pty", "Defaults !env_reset"])
def test_without_a_password(
    server: sudoer.Server, typed: Typed, remote: Remote, tmp_path: Path, defaults: str
) -> None:
    """A password that is known all the same does not get into the data."""
    server.allow(defaults, f"{USER} ALL=(ALL) NOPASSWD: ALL")
    sudo.learn(f'{{"{server.endpoint}": "known"}}')

    assert remote.sh(["id", "-u"]) == "0\n"
    assert remote.sh(["cat"], data=b"known\ndata") == "known\ndata"
    assert remote.sh(["sh", "-c", "echo $SSH_CONNECTION"]).split()[2] == "127.0.0.1"
    for data in (BLOB, b"", b"known\n"):
        assert remote.put(data, f"{tmp_path}/file", mode=0o600) == len(data)
        assert (tmp_path / "file").read_bytes() == data
    assert owner(tmp_path / "file") == (0, 0o600)
    assert typed() == server.tokens == []


@pytest.mark.parametrize("defaults", ["", "Defaults use_pty", 'Defaults passprompt="Passwort: "'])
def test_password_is_typed_once(
    server: sudoer.Server, typed: Typed, remote: Remote, tmp_path: Path, defaults: str
) -> None:
    server.allow(defaults, f"{USER} ALL=(ALL) ALL")
    questions = typed(PASSWORD)
    lines: list[str] = []

    assert remote.sh(["id", "-u"]) == "0\n"
    for data in (BLOB, b"", LIKE_A_PASSWORD):
        assert remote.put(data, f"{tmp_path}/file", mode=0o600) == len(data)
        assert (tmp_path / "file").read_bytes() == data
    assert remote.sh(["sh", "-c", "echo one; echo two >&2"], log=lines.append) == "one\ntwo\n"
    with pytest.raises(CommandFailed, match=r"exit status 3\n  \| why$"):
        remote.sh(["sh", "-c", "echo why >&2; exit 3"])
    with connect(server.endpoint) as again:
        assert again.sh(["cat"], data=b"more") == "more"

    assert lines == ["one", "two"]
    assert len(questions) == 1
    assert set(server.tokens) == {PASSWORD}


def test_credentials_that_sudo_remembers(
    server: sudoer.Server, typed: Typed, remote: Remote
) -> None:
    """It would not read the line with the password: the data would begin with it."""
    server.allow("Defaults timestamp_type=global", f"{USER} ALL=(ALL) ALL")
    with connect(replace(server.endpoint, sudo=False)) as plain:
        plain.sh(["sudo", "-S", "-p", "", "-v"], data=f"{PASSWORD}\n".encode())
        assert plain.sh(["sudo", "-n", "id", "-u"]) == "0\n"
    typed(PASSWORD)

    assert remote.sh(["cat"], data=b"data") == "data"


def test_wrong_password_then_the_right_one(
    server: sudoer.Server, typed: Typed, remote: Remote
) -> None:
    questions = typed("wrong", PASSWORD)

    assert remote.sh(["cat"], data=LIKE_A_PASSWORD).encode() == LIKE_A_PASSWORD
    assert remote.sh(["echo", "again"]) == "again\n"

    assert len(questions) == 2
    assert server.tokens == ["wrong", PASSWORD, PASSWORD]


def test_wrong_password_only(server: sudoer.Server, typed: Typed, remote: Remote) -> None:
    """What was to be sent is no password of any try, and the wrong one is not kept."""
    typed("wrong", "bad", "no", PASSWORD)

    with pytest.raises(NotRun, match="3 incorrect password attempts") as caught:
        remote.sh(["cat"], data=LIKE_A_PASSWORD)

    assert caught.value.status == BAD_INPUT
    assert server.tokens == ["wrong", "bad", "no"]
    assert remote.sh(["echo", "right"]) == "right\n"


@pytest.mark.parametrize(
    ("sudoers", "said"),
    [
        (["Defaults requiretty", f"{USER} ALL=(ALL) NOPASSWD: ALL"], "must have a tty"),
        (["root ALL=(ALL) ALL"], "not in the sudoers file"),
        ([f"{USER} ALL=(ALL) /bin/true"], "not allowed to execute"),
    ],
)
def test_sudo_refuses(
    server: sudoer.Server, typed: Typed, remote: Remote, sudoers: list[str], said: str
) -> None:
    server.allow(*sudoers)
    typed(PASSWORD)

    with pytest.raises(NotRun, match=said) as caught:
        remote.sh(["cat"], data=b"data")

    assert caught.value.status == BAD_INPUT
    assert f"sudo has to let {USER} run all commands, without a terminal" in caught.value.hint


def test_no_sudo(server: sudoer.Server, remote: Remote) -> None:
    """As on Alpine."""
    server.program("sudo", "echo 'sudo: not found' >&2; exit 127")
    with pytest.raises(NotRun, match="sudo: not found") as caught:
        remote.sh(["true"])
    assert "doas does not do" in caught.value.hint


def test_sudo_that_asks_for_more(server: sudoer.Server, remote: Remote) -> None:
    server.program("sudo", "printf 'Verification code: ' >&2; exec sleep 60")
    with pytest.raises(TimedOut, match="Verification code:"):
        remote.sh(["true"], timeout=3)


def test_prompt_of_sudo_rs(server: sudoer.Server, typed: Typed, remote: Remote) -> None:
    """Older ones ask with words of their own."""
    ask = "printf '[sudo: authenticate] Password: ' >&2; read -r word"
    check = f'[ "$word" = "{"secret"}" ] || exit 1; shift 3; echo >&2; exec "$@"'
    server.program("sudo", f"{ask}; {check}")
    typed("secret")
    assert remote.sh(["cat"], data=b"secret\ndata") == "secret\ndata"


@pytest.mark.parametrize("noise", ['echo "$SSH_ORIGINAL_COMMAND"', "set -v", "set -x"])
def test_login_shell_that_shows_the_command(noise: str, typed: Typed) -> None:
    """Neither the question nor the mark is in what it shows, or it does no harm."""
    typed(PASSWORD, PASSWORD)
    with sudoer.serving() as server:
        (server.directory / "noise").write_text(f'{noise}\neval "$SSH_ORIGINAL_COMMAND"\n')
        server.stop()
        server.settings = [f"ForceCommand bash {server.directory}/noise"]
        server.start()
        with connect(server.endpoint) as remote:
            assert remote.sh(["cat"], data=LIKE_A_PASSWORD).encode() == LIKE_A_PASSWORD
        assert server.tokens == [PASSWORD]


def test_no_leak(server: sudoer.Server, typed: Typed, remote: Remote, tmp_path: Path) -> None:
    """Neither the arguments and environments of all processes, nor the user, see a secret."""
    typed(PASSWORD)
    (tmp_path / "kept").mkdir(mode=0o700)
    with leaks.sampled_processes() as seen:
        remote.sh(["sleep", "1"])
        remote.put(b"PAYLOAD" * 100_000, f"{tmp_path}/kept/file", mode=0o600)
        remote.sh(["sleep", "1"], data=b"PAYLOAD")

    assert any(b"sleep" in each for each in seen)
    assert not any(PASSWORD.encode() in each or b"PAYLOAD" in each for each in seen)
    with (
        connect(replace(server.endpoint, sudo=False)) as plain,
        pytest.raises(CommandFailed, match="Permission denied"),
    ):
        plain.sh(["cat", f"{tmp_path}/kept/file"])


@pytest.mark.parametrize(
    ("sudoers", "logs"),
    [
        ([f"{USER} ALL=(ALL) NOPASSWD: ALL"], False),
        (["Defaults log_input", f"{USER} ALL=(ALL) NOPASSWD: ALL"], True),
        (
            ["Defaults log_input", f"Defaults:{USER} !log_input", f"{USER} ALL= NOPASSWD: ALL"],
            False,
        ),
        ([f"{USER} ALL=(ALL) NOPASSWD: LOG_INPUT: ALL"], True),
    ],
)
def test_sudo_that_writes_down_what_it_reads(
    server: sudoer.Server, remote: Remote, sudoers: list[str], logs: bool
) -> None:
    server.allow("Defaults iolog_dir=/run/sudo-io", *sudoers)
    found = facts.gather(remote)
    assert (found.user, found.sudo_logs) == ("0", logs)


# Which login


def test_root_where_the_user_is_not_let_in(server: sudoer.Server) -> None:
    """As in the initramfs. It is remembered: each refusal counts against us."""
    with sudoer.serving(["AllowUsers root"]) as initramfs:
        where = replace(initramfs.endpoint, also=(sudoer.root_too(initramfs),))
        for _ in range(3):
            with connect(where) as remote:
                assert remote.endpoint.user == "root"
                assert remote.sh(["id", "-u"]) == "0\n"
        log = (initramfs.directory / "log").read_text()
        assert log.count(f"User {USER} from 127.0.0.1 not allowed") == 1


def test_nobody_is_let_in(server: sudoer.Server) -> None:
    with sudoer.serving(["AllowUsers nobody"]) as closed:
        where = replace(closed.endpoint, also=(sudoer.root_too(closed),))
        with pytest.raises(LoginRefused, match=f"{USER}@127.0.0.1") as caught, connect(where):
            pass
    assert f"authorized_keys of {USER}" in caught.value.hint


@pytest.mark.parametrize("user", [USER, "root"])
def test_rescue(
    server: sudoer.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """ssh(1) goes by the login that is let in; sudo asks on its own terminal."""
    server.allow(f"{USER} ALL=(ALL) NOPASSWD: ALL")
    where = server.endpoint
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}")
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    argv: list[str] = []

    def become(_: str, words: list[str]) -> NoReturn:
        argv.extend(words)
        raise Became

    monkeypatch.setattr(os, "execvp", become)
    place = (where.address, where.host_key, where.port)
    host = Host("mx", tmp_path, *place, user=user, identity=f"{where.identity}")

    with pytest.raises(Became):
        recovery.rescue(host)

    end = [f"{user}@127.0.0.1", *(["-t", "sudo -i"] if user == USER else [])]
    assert argv[-len(end) :] == end
    login = argv[: argv.index(end[0]) + 1]
    assert run([*login, "sudo" if user == USER else "env", "id", "-u"]) == "0\n"


# The terminal

ASK = f"from anemos.workstation import sudo; sudo.asked('{USER}@mx') == {PASSWORD!r} or exit(9)"


def test_typed_on_the_terminal() -> None:
    """It is not shown there."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", ASK])
    shown = b""
    while b"debian@mx: " not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, PASSWORD.encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert PASSWORD.encode() not in shown + os.read(terminal, 1024)
    os.close(terminal)


def test_no_terminal() -> None:
    """In a script. Its standard input is no place for a password, either."""
    tell = f"try:\n {ASK}\nexcept SystemExit as end:\n print(end); raise"
    with pytest.raises(CommandFailed, match=r"(?s)no terminal to type it on.*NOPASSWD") as caught:
        run([sys.executable, "-c", tell], data=PASSWORD.encode() + b"\n")
    assert caught.value.returncode == BAD_INPUT


def test_nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    monkeypatch.setattr(getpass, "getpass", end)
    with pytest.raises(Failure, match="no password was given"):
        sudo.asked(USER)


# A host's own tests


def test_own_tests_get_the_password(
    server: sudoer.Server, typed: Typed, remote: Remote, tmp_path: Path
) -> None:
    """What was typed before is not asked for again: they have no terminal."""
    typed(PASSWORD)
    remote.sh(["true"])
    text = "import pytest\n\n@pytest.mark.safe\ndef test_root(host):\n"
    (tmp_path / "test_mx.py").write_text(f"{text}    assert host.user().uid == 0\n")
    here = Machine(server.endpoint, [], {}, f"{tmp_path}/notes")

    assert machine.check(tmp_path, here, print).startswith("1 passed")
