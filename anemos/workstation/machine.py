"""A host's own tests, hosts/NAME/test_*.py: how they are run, and the machine that they are given.

A test takes the fixture `machine`:

    def test_page(machine):
        assert machine.run("systemctl", "is-active", "nginx") == "active\\n"
        socket.create_connection((machine.address, machine.port(443)))

Its `warnings()` are the journal's; outside.py has a fixture for its ports. And `notes` last from
one deployment of the machine to the next:

    def test_certificate_stays(machine, notes):
        now = machine.run("sha256sum", "/srv/acme/certs/example.org/cert.pem")
        assert notes.setdefault("certificate", now) == now
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

import pytest

from anemos import run
from anemos.log import UNVERIFIED, Failure, Sink, die
from anemos.run import CommandFailed
from anemos.workstation import places, ssh

VARIABLE = "ANEMOS_MACHINE"  # the machine as JSON; no secret is in it
WARNINGS = ("journalctl", "--boot", "--priority=warning", "--no-pager", "--quiet")
SERVICES = tuple(f"_TRANSPORT={each}" for each in ("syslog", "stdout", "journal"))


@dataclass(frozen=True)
class Machine:
    """LOGIN: ssh(1)'s argv under the pinned key. PORTS: the machine's -> those that lead there.

    NOTES: the JSON file of what the tests wrote down.
    """

    address: str
    login: list[str]
    ports: Mapping[str, int]
    notes: str

    def port(self, number: int) -> int:
        """The port at ADDRESS that leads to port NUMBER of the machine."""
        return self.ports.get(str(number), number)

    def run(self, *argv: str) -> str:
        """Standard output of ARGV on the machine, as root. Raises CommandFailed."""
        mark = f"<{token_hex(8)}>"  # what root's .bashrc there prints is no answer
        try:
            said = run.run([*self.login, run.quote(ssh.framed(argv, mark))])
        except CommandFailed as failed:
            raise CommandFailed(argv, failed.returncode, failed.output.replace(mark, "")) from None
        return ssh.between(said, mark)

    def warnings(self, expected: Sequence[str]) -> list[str]:
        """What services have warned of since the start, without lines that match one of EXPECTED.

        The kernel's lines are left out: they are about the emulated machine. Raises CommandFailed.
        """
        lines = self.run(*WARNINGS, *SERVICES).splitlines()
        return [line for line in lines if not any(re.search(each, line) for each in expected)]


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(**json.loads(os.environ[VARIABLE]))


@pytest.fixture
def notes(machine: Machine) -> Iterator[dict[str, str]]:
    """What the tests of an earlier deployment of MACHINE wrote down, to be added to."""
    file = Path(machine.notes)
    found = json.loads(file.read_text()) if file.exists() else {}
    yield found
    file.write_text(json.dumps(found))


def check(directory: Path, machine: Machine, log: Sink) -> int:
    """Run the tests in DIRECTORY against MACHINE; how many files of tests there are.

    Raises Failure (UNVERIFIED) when a test fails, or when the files have no test. LOG then gets the
    machine's warnings, too.
    """
    files = sorted(directory.glob("test_*.py"))
    if not files:
        return 0
    env = {VARIABLE: json.dumps(asdict(machine))}
    try:
        run.run(argv_of(files), cwd=places.ROOT, env=env, log=log)
    except CommandFailed:
        with suppress(Failure):
            for line in machine.run(*WARNINGS, "--lines=40").splitlines():
                log(f"journal: {line}")
        die(f"{directory.name}: its own tests fail", status=UNVERIFIED)
    return len(files)


def argv_of(files: Sequence[Path]) -> list[str | Path]:
    names = ("anemos.workstation.machine", "anemos.workstation.outside", "no:cacheprovider")
    plugins = [word for name in names for word in ("-p", name)]
    return [sys.executable, "-B", "-m", "pytest", "--quiet", "--no-header", *plugins, *files]
