"""What a host's own tests can ask for: a plugin of pytest.

    @pytest.mark.safe
    def test_page(host, machine, trust):
        assert host.service("nginx").is_running
        tls = trust("/etc/ssl/mx.crt")
        with socket.create_connection((machine.address, machine.port(443))) as plain:
            tls.wrap_socket(plain, server_hostname="mx")

`host` is pytest-testinfra's. A test may be `safe` when it changes nothing on the machine, sends no
mail and needs no secret: then it runs against the server, too. What asks for `throwaway` runs in a
VM alone. outside.py has one more fixture. `notes` last from one deployment to the next:

    def test_certificate_stays(host, notes):
        now = host.file("/srv/acme/certs/example.org/cert.pem").sha256sum
        assert notes.setdefault("certificate", now) == now
"""

import json
import os
import re
import signal
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from anemos.log import UNVERIFIED
from anemos.workstation import machine as machines
from anemos.workstation.machine import Machine
from anemos.workstation.ssh import Endpoint, Remote, connect

pytest_plugins = ["anemos.workstation.outside"]

TIMEOUT_S = 300
WARNINGS = "journalctl --boot --priority=warning --no-pager --quiet"
SERVICES = " ".join(f"_TRANSPORT={each}" for each in ("syslog", "stdout", "journal"))


class Pinned(BaseBackend):  # type: ignore[misc] # testinfra has no types
    """testinfra's way to the machine: a connection under the pinned key, and another one when it is
    lost, as by a reboot."""

    NAME = "pinned"

    def __init__(self, where: Endpoint) -> None:
        super().__init__(where.address)
        self.where, self.opened = where, ExitStack()
        self.remote: Remote | None = None

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        if not (self.remote and self.remote.is_connected):
            self.remote = self.opened.enter_context(connect(self.where, status=UNVERIFIED))
        line = self.get_command(command, *args)
        said = self.remote.answer(["sh", "-c", line], timeout=TIMEOUT_S)
        return self.result(said.status, line.encode(), said.out, said.err)

    def get_encoding(self) -> str:
        return "utf-8"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "safe: may run against the server")
    # A task that is ended ends this so: fixtures take back what they have made.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: Sequence[pytest.Function]) -> None:
    safe = [each for each in items if each.get_closest_marker("safe")]
    # No node ids: these begin where pytest takes its root to be.
    names = [f"{each.path.name}::{each.name}" for each in safe if "throwaway" in each.fixturenames]
    if names:
        what = "marked `safe`, but they need a throw-away VM or its secrets"
        raise pytest.UsageError(f"{what}: {', '.join(names)}")


@pytest.fixture(scope="session")
def machine() -> Machine:
    return machines.load(os.environ[machines.VARIABLE])


@pytest.fixture(scope="session")
def host(machine: Machine) -> Iterator[Host]:
    backend = Pinned(machine.where)
    with backend.opened:
        yield Host(backend)


@pytest.fixture(scope="session")
def throwaway(machine: Machine) -> Machine:
    """For what changes the machine: a VM, and no server."""
    assert machine.secrets
    return machine


@pytest.fixture(scope="session")
def secret(throwaway: Machine) -> Callable[[str], str]:
    """Tells a throw-away secret by its name in `secrets/`: its path on the target, or NAME."""
    top = Path(throwaway.secrets)
    return lambda name: (top / ("files" if "/" in name else "values") / name).read_text()


@pytest.fixture(scope="session")
def trust(host: Host) -> Callable[[str], ssl.SSLContext]:
    """Makes a client's TLS that trusts nothing but the certificates in a file of the machine."""

    def client(path: str) -> ssl.SSLContext:
        made = ssl.create_default_context(cadata=host.file(path).content_string)
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its authority is not in the file
        return made

    return client


@pytest.fixture(scope="session")
def warnings(host: Host) -> Callable[[Sequence[str]], list[str]]:
    """Tells what services have warned of since the start, without lines that match an expected one.

    The kernel's lines are left out: they are about the emulated machine.
    """

    def unexpected(expected: Sequence[str]) -> list[str]:
        lines = host.check_output(f"{WARNINGS} {SERVICES}").splitlines()
        return [line for line in lines if not any(re.search(each, line) for each in expected)]

    return unexpected


@pytest.fixture
def notes(machine: Machine) -> Iterator[dict[str, str]]:
    """What the tests of an earlier deployment of MACHINE wrote down, to be added to."""
    file = Path(machine.notes)
    found = json.loads(file.read_text()) if file.exists() else {}
    yield found
    file.write_text(json.dumps(found))
