"""A host's own tests: a real pytest runs them, and an sshd on this machine is the host's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from anemos.log import UNVERIFIED, Failure
from anemos.run import run
from anemos.workstation import machine
from anemos.workstation.deploy import reach, verify
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import State
from anemos.workstation.deploy.verify import Check
from anemos.workstation.hosts import Host
from anemos.workstation.machine import Machine
from tests import sshd
from tests.workstation import test_ssh

pytestmark = pytest.mark.real("run", "ssh")

GOOD = """
import pytest

def test_machine(machine, host):
    assert (machine.address, machine.port(443), machine.port(25)) == ("127.0.0.1", 40443, 25)
    assert host.check_output("echo %s", "two  words") == "two  words"
    assert host.file(__file__).content_string.startswith("\\nimport pytest")
    said = host.run("printf 'a\\\\377'; echo why >&2; exit 3")
    assert (said.rc, said.stdout_bytes, said.stderr) == (3, b"a\\xff", "why\\n")

def test_secrets(secret):
    assert (secret("NAME"), secret("etc/mx.key")) == ("value", "key")

@pytest.mark.safe
def test_safe(host):
    assert host.run("true").succeeded
"""
LOST = """
import pytest

def test_connection_is_made_again(host):
    with pytest.raises(SystemExit, match="the connection was lost"):
        host.run({!r})
    assert host.check_output("echo back") == "back"
"""
TRUST = """
import socket, ssl, threading

def test_trust(trust):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain("{0}/leaf.pem", "{0}/leaf.key")
    for file, good in (("leaf.pem", True), ("other.pem", False)):
        ours, theirs = socket.socketpair()
        end = threading.Thread(target=answer, args=(server, theirs))
        end.start()
        try:
            trust("{0}/" + file).wrap_socket(ours, server_hostname="mx").close()
            assert good
        except ssl.SSLCertVerificationError:
            assert not good
        ours.close()
        end.join()

def answer(context, sock):
    try:
        context.wrap_socket(sock, server_side=True).close()
    except (ssl.SSLError, OSError):
        sock.close()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[sshd.Server]:
    with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
        yield server


@pytest.fixture
def here(server: sshd.Server, tmp_path: Path) -> Machine:
    """A throw-away machine."""
    for name, text in {"values/NAME": "value", "files/etc/mx.key": "key"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    notes = str(tmp_path / "notes.json")
    return Machine(server.endpoint, [], {"443": 40443}, notes, str(tmp_path))


def write(tmp_path: Path, text: str) -> Path:
    directory = tmp_path / "hosts/mx"
    directory.mkdir(parents=True)
    (directory / "test_mx.py").write_text(text)
    return directory


def test_machine_crosses_to_pytest(here: Machine) -> None:
    anywhere = replace(here, where=replace(here.where, identity=None, jumps=("a", "b")))
    assert [machine.load(machine.dump(each)) for each in (here, anywhere)] == [here, anywhere]


def test_tests_that_pass(tmp_path: Path, here: Machine) -> None:
    assert machine.check(write(tmp_path, GOOD), here, print).startswith("3 passed in ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace('"two  words"', '"other"', 1), "1 failed"),
        ("import nothing_like_it\n", "1 error"),
        ("", "no tests ran"),
        (
            GOOD.replace("test_safe(host)", "test_safe(host, outside)"),
            "ERROR: marked `safe`, but they need a throw-away VM or its secrets: "
            "test_mx.py::test_safe",
        ),
    ],
)
def test_tests_that_fail(tmp_path: Path, here: Machine, text: str, reason: str) -> None:
    said: list[str] = []

    with pytest.raises(Failure, match="mx: its own tests fail") as caught:
        machine.check(write(tmp_path, text), here, said.append)

    assert caught.value.status == UNVERIFIED
    assert any(reason in line for line in said)


def test_lost_connection(tmp_path: Path, here: Machine) -> None:
    """As a reboot ends it."""
    machine.check(write(tmp_path, LOST.format(test_ssh.DROP)), here, print)


def test_certificates_of_a_file_are_trusted(tmp_path: Path, here: Machine) -> None:
    """Alone, and without the authority that signed them."""
    name = ["-subj", "/CN=mx", "-addext", "subjectAltName=DNS:mx", "-nodes", "-newkey", "ed25519"]

    def certificate(file: str, *signed: str | Path) -> None:
        new: list[str | Path] = [
            "-keyout",
            tmp_path / f"{file}.key",
            "-out",
            tmp_path / f"{file}.pem",
        ]
        run(["openssl", "req", "-x509", *name, *new, *signed])

    certificate("authority")
    certificate("other")
    certificate("leaf", "-CA", tmp_path / "authority.pem", "-CAkey", tmp_path / "authority.key")

    machine.check(write(tmp_path, TRUST.format(tmp_path)), here, print)


def test_host_without_tests(tmp_path: Path, here: Machine) -> None:
    assert machine.check(tmp_path / "hosts", here, print) == ""


def test_notes_last(tmp_path: Path, here: Machine) -> None:
    """The tests of the second deployment see what those of the first wrote down."""
    test = "def test_notes(notes):\n    assert notes.setdefault('seen', '{0}') == 'first'\n"
    first, second = (write(tmp_path / each, test.format(each)) for each in ("first", "second"))
    machine.check(first, here, print)
    machine.check(second, here, print)

    Path(here.notes).unlink()
    with pytest.raises(Failure, match="its own tests fail"):
        machine.check(second, here, print)


def test_warnings(server: sshd.Server, tmp_path: Path, here: Machine) -> None:
    server.program("journalctl", "printf '%s\\n' 'a slow start' 'a wrong owner'")
    text = """
def test_warnings(warnings):
    assert warnings(["slow", "nothing like it"]) == ["a wrong owner"]
    assert warnings([]) == ["a slow start", "a wrong owner"]
"""
    machine.check(write(tmp_path, text), here, print)


# Against a server: `verify --tests`


@pytest.fixture
def host(server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Deployed to the sshd on this machine, one unit of which has failed."""
    server.program("systemctl", "echo nginx.service loaded failed")
    server.program("journalctl", 'echo "$@"')
    directory = write(tmp_path, GOOD)
    (directory / "IMGBUILD").write_text("target=debian\n")
    State("mx", deployment="d-1", old_boot_id="old").save()
    up = Identity("new", False, "d-1", 1.0)
    monkeypatch.setattr(reach, "await_boot", lambda *_: up)
    monkeypatch.setattr(reach, "endpoint", lambda _: server.endpoint)
    monkeypatch.setattr(verify, "check_units", lambda *_: Check("units", True, "running"))
    monkeypatch.setattr(verify, "examine", lambda *_: iter(()))
    return Host("mx", directory, "192.0.2.1", server.endpoint.host_key)


def test_safe_tests_run_against_the_server(host: Host) -> None:
    (check,) = (
        each for each in verify.verify(host, tests=True)["checks"] if "tests" in each["name"]
    )
    assert (check["name"], check["passed"]) == ("own tests", True)
    assert check["evidence"].startswith("1 passed, 2 deselected in ")
    assert len(verify.verify(host)["checks"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"true"', '"false"', "1 failed"),
        ("@pytest.mark.safe", "", "3 deselected"),
    ],
)
def test_server_that_fails(
    host: Host, capsys: pytest.CaptureFixture[str], old: str, new: str, reason: str
) -> None:
    file = host.directory / "test_mx.py"
    file.write_text(file.read_text().replace(old, new))

    with pytest.raises(Failure, match="mx: its own tests fail") as caught:
        verify.verify(host, tests=True)

    assert caught.value.status == UNVERIFIED
    said = capsys.readouterr().err
    assert reason in said
    assert "journal: --boot --no-pager --quiet --lines=20 --unit=nginx.service" in said


def test_journal_of_a_system_that_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Check("units", False, "degraded; nginx.service loaded failed")
    monkeypatch.setattr(verify, "check_units", lambda *_: failed)

    with pytest.raises(Failure, match="mx was deployed, but fails: units"):
        verify.verify(host, tests=True)

    said = capsys.readouterr().err
    assert "--unit=nginx.service" in said
    assert "passed" not in said
