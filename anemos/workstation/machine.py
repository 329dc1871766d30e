"""A host's own tests, hosts/NAME/test_*.py: the machine that they are given, and how they are run.

`inv test` runs all of them against a throw-away VM, `inv verify --tests` those that are marked
`safe` against the server. fixtures.py has what they can ask for.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from anemos import run
from anemos.log import UNVERIFIED, Failure, Sink, die
from anemos.run import CommandFailed
from anemos.workstation import journal, places, sudo
from anemos.workstation.ssh import Endpoint, connect

VARIABLE = "ANEMOS_MACHINE"  # the machine as JSON; no secret is in it
AGENT = "SSH_AUTH_SOCK"  # it may have the keys that the server lets in
# testinfra's own plugin would have another fixture `host`.
PLUGINS = ("anemos.workstation.fixtures", "no:pytest11.testinfra", "no:cacheprovider")


@dataclass(frozen=True)
class Machine:
    """WHERE: one login. LOGIN: ssh(1)'s argv for it. PORTS: the machine's -> those that lead there.

    NOTES: the JSON file of what the tests wrote down. SECRETS: the directory of the throw-away
    ones, in clear, as secrets.py reveals them; "" for a server.
    """

    where: Endpoint
    login: list[str]
    ports: Mapping[str, int]
    notes: str
    secrets: str = ""

    @property
    def address(self) -> str:
        return self.where.address

    def port(self, number: int) -> int:
        """The port at ADDRESS that leads to port NUMBER of the machine."""
        return self.ports.get(str(number), number)


def dump(machine: Machine) -> str:
    return json.dumps(asdict(machine), default=os.fspath)


def load(text: str) -> Machine:
    """What `dump` has made."""
    given = json.loads(text)
    where = given.pop("where")
    identity, _, jumps = (where.pop(each) for each in ("identity", "also", "jumps"))
    key = Path(identity) if identity else None
    return Machine(Endpoint(**where, identity=key, jumps=tuple(jumps)), **given)


def check(directory: Path, machine: Machine, log: Sink) -> str:
    """Run the tests in DIRECTORY against MACHINE: what pytest counted, "" without a file of tests.

    Raises Failure (UNVERIFIED) when a test fails, or when there is none to be run. LOG then gets
    the journal, too.
    """
    files = sorted(directory.glob("test_*.py"))
    if not files:
        return ""
    env = {VARIABLE: dump(machine), AGENT: os.environ.get(AGENT, "")}
    try:
        argv, data = argv_of(files, machine), sudo.known()
        said = run.run(argv, data=data, cwd=places.ROOT, env=env, log=log)
    except CommandFailed:
        with suppress(Failure), connect(machine.where) as remote:
            journal.tell(remote, log)
        die(f"{directory.name}: its own tests fail", status=UNVERIFIED)
    return said.splitlines()[-1]


def argv_of(files: Sequence[Path], machine: Machine) -> list[str | Path]:
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    only = [] if machine.secrets else ["-m", "safe"]
    words = ["--quiet", "--no-header", *plugins, *only]
    return [sys.executable, "-B", "-m", "anemos.workstation.machine", *words, *files]


if __name__ == "__main__":  # pytest, which gets the passwords that were typed for `check`
    import pytest

    sudo.learn(sys.stdin.read())
    sys.exit(pytest.main())
