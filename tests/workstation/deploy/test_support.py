"""The file for a bug report: what is in it, and that no secret is, in whatever form."""

import json
import os
import stat
from base64 import b64encode, encodebytes
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.border import records
from anemos.log import FAILED
from anemos.workstation.deploy.account import Account, Line
from anemos.workstation.deploy.state import State
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.sources import Gpg
from anemos.workstation.secrets.trove import encrypt_tree
from tests import leaks, sshd, tree
from tests.tree import TOML, Tree

pytestmark = pytest.mark.real("run", "ssh", "gpg")

TOKEN = 'a "very" \t<secret> täken'  # noqa: S105
KEY = b"-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpe\n-----END KEY-----\n"
RAW = bytes(range(128, 250)) + b"\n\0\xff"
SECRETS = {"TOKEN": TOKEN.encode(), "etc/ssl/mx.key": KEY, "etc/raw": RAW}
MARKERS = leaks.encoded({"token": TOKEN.encode(), "key": KEY.splitlines()[1], "raw": RAW}) | {
    "other": b"MC4other"
}
# What programs of a definition may print.
SAID = [
    TOKEN,
    KEY.decode(),
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "MC4other",
    "-----END OPENSSH PRIVATE KEY-----",
    f"curl -H 'Authorization: Basic {b64encode(b'me:' + TOKEN.encode()).decode()}'",
    b64encode(KEY.splitlines()[1]).decode(),
    *(each.hex() for each in SECRETS.values()),
    *(b64encode(each).decode() for each in SECRETS.values()),
    *(line for each in SECRETS.values() for line in encodebytes(each).decode().split()),
]


def reveal(directory: Path) -> None:
    for name, data in SECRETS.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """After a deployment of mx that failed and told all of its secrets, in the log, too."""
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        (copy.home / ".gnupg").mkdir(0o700)
        keyring, root = Keyring(copy.home / ".gnupg"), copy.directory / "secrets"
        root.mkdir()
        (root / "recipients").write_text(keyring.generate("Alice"))
        copy.host("mx", imgbuild=f"{tree.IMGBUILD}secrets='TOKEN password'\n")
        encrypt_tree(keyring, root, "mx", reveal)
        assert Gpg(keyring, root).reveal("mx", "TOKEN") == TOKEN.encode()
        state = tree.where("state('mx')", copy.directory, copy.home)
        (state / "state.json").write_text(records.text(State("mx", "d-1")))
        lines = [Line(1.0, line) for said in SAID for line in said.split("\n")]
        account = Account("mx", "resume", 1.0, status=FAILED, message="\n".join(SAID), lines=lines)
        (state / "reports").mkdir()
        (state / "reports/20260101T000000Z-resume.json").write_text(records.text(account))
        (state / "report.json").write_text(json.dumps({"error": "\n".join(SAID)}))
        (state / "history.jsonl").write_text(json.dumps({"end": TOKEN}) + "\n")
        yield copy


def made(project: Tree, keys: str = ".gnupg") -> tuple[Path, str]:
    done = project.inv("support", "--host", "mx", GNUPGHOME=os.fspath(project.home / keys))
    assert done.status == 0, done.err
    assert "Read it before you send it" in done.err
    file = Path(done.out.removesuffix("\n"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return file, file.read_text()


def test_no_secret_is_in_it(project: Tree, tmp_path: Path) -> None:
    """They are revealed, and nobody answers."""
    assert project.inv("reveal-secrets", "--host", "mx").status == 0
    assert len(leaks.hits(project.memory.rglob("*"), MARKERS)) == len(SECRETS)
    said = tmp_path / "said"
    said.write_text("\n".join(SAID))
    assert {hit.split(": ")[1] for hit in leaks.hits([said], MARKERS)} == MARKERS.keys() - {"raw"}

    file, text = made(project)

    assert leaks.hits([file], MARKERS) == []
    assert "very" not in text
    assert "Authorization: Basic " in text
    for words in ("Python: 3.", "Debian", tree.HOST_KEY, "TOKEN password", '"deployment": "d-1"'):
        assert words in text
    assert "\n00:00:01 [secret]\n" in text
    assert "not known: root@127.0.0.1:1: no SSH connection" in text


def test_without_the_key(project: Tree) -> None:
    """Nobody can tell what is secret then."""
    (project.home / "none").mkdir(0o700)
    file, text = made(project, keys="none")
    assert leaks.hits([file], MARKERS) == []
    assert "## left out" in text
    assert "## the last report" not in text and "## the server" not in text
    assert "TOKEN password" in text


def test_server_and_broken_files(project: Tree) -> None:
    """A real sshd answers; state and report make no sense."""
    state = tree.where("state('mx')", project.directory, project.home)
    (state / "reports/20270101T000000Z-deploy.json").write_text("{")
    with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
        where = server.endpoint
        toml = f'address = "127.0.0.1"\nport = {where.port}\nhost_key = "{where.host_key}"\n'
        toml += f'user = "{where.user}"\nidentity = "{where.identity}"\n'
        (project.directory / "hosts/mx/host.toml").write_text(toml)
        file, text = made(project)
    assert f"kernel={os.uname().release}\n" in text
    assert "memory_total_kib=" in text
    assert text.count("\nend=end\n") == 2
    assert "not known: no JSON" in text
    assert leaks.hits([file], MARKERS) == []


def test_broken_host_toml(project: Tree) -> None:
    (project.directory / "hosts/mx/host.toml").write_text(f"{TOML}wrong = 1\n")
    _, text = made(project)
    assert "wrong = 1" in text and "not known: hosts/mx/host.toml: unknown name 'wrong'" in text
