"""Where else secrets can be, with the real programs. sops is not in Debian: where it is not
installed, its test does not run.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.sources import Sops
from tests import tree
from tests.tree import TOML, Done, Tree

pytestmark = pytest.mark.real("run", "gpg")

BINARY = b"\x00\xff\r\n" * 99
KEY = "etc/ssl/mx.key"
TEXT = "-----BEGIN\n\n"


@pytest.fixture(scope="module")
def module_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        (copy.home / ".gnupg").mkdir(0o700)
        yield copy


@pytest.fixture
def project(module_tree: Tree) -> Tree:
    shutil.rmtree(module_tree.directory / "secrets", ignore_errors=True)
    (module_tree.directory / "secrets/mx/etc/ssl").mkdir(parents=True)
    return module_tree


def kept_by(project: Tree, settings: str) -> None:
    directory = project.host("mx", f"{TOML}[secrets]\n{settings}\n")
    (directory / "files/etc").mkdir(parents=True)
    (directory / "files/etc/x.makeimg.template").write_text("{{ PASSWORD }}")


def revealed(project: Tree) -> dict[str, bytes]:
    """What `reveal-secrets` leaves in memory."""
    done = project.inv("reveal-secrets", "--host=mx")
    assert done.status == 0, done.err
    top = project.memory / "mx/secrets"
    files = (path for path in top.rglob("*") if path.is_file())
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in files}


def refused(project: Tree, *words: str) -> Done:
    done = project.inv(*words)
    assert (done.status, done.out) == (BAD_INPUT, "")
    assert done.err.startswith("error: ")
    return done


def listed(project: Tree) -> dict[str, tuple[str, bool]]:
    found = json.loads(project.inv("secrets.list", "--json").out)["secrets"]
    assert {each["signature"] for each in found} == {"none"}
    return {each["name"]: (each["kind"], each["used"]) for each in found}


def nobody_else_writes(project: Tree, hint: str) -> None:
    for words in (["secrets.edit", "--name=X"], ["secrets.set", "--name=X"], ["secrets.rekey"]):
        done = refused(project, *words, "--host=mx")
        assert done.err.endswith(f", not by GPG\n  ({hint})\n")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    run(["age-keygen", "-o", tmp_path / "key"])
    return tmp_path / "key"


def encrypt(key: Path, data: bytes, file: Path) -> None:
    recipient = run(["age-keygen", "-y", key]).strip()
    run(["age", "--encrypt", "--recipient", recipient, "--output", file], data=data)


def test_age(project: Tree, key: Path, tmp_path: Path) -> None:
    kept_by(project, f'source = "age"\nidentity = "{key}"')
    top = project.directory / "secrets/mx"
    file = top / f"{KEY}.age"
    encrypt(key, BINARY, file)
    encrypt(key, b"x\n", top / "PASSWORD.age")

    assert revealed(project) == {f"files/{KEY}": BINARY, "values/PASSWORD": b"x"}
    assert listed(project) == {KEY: ("file", True), "PASSWORD": ("value", True)}
    assert project.inv("secrets.check").status == 0
    nobody_else_writes(
        project, "age --encrypt --recipients-file FILE --output secrets/HOST/NAME.age"
    )

    whole = file.read_bytes()
    for data, message in (
        (whole[:-1], "failed to decrypt and authenticate payload chunk"),
        (whole[:99], "age: error: "),
        (b"", "age: error: "),
        (BINARY, "age: error: "),
    ):
        file.write_bytes(data)
        done = refused(project, "reveal-secrets", "--host=mx")
        assert done.err.startswith(f"error: {file}: age: exit status 1: age: error: ")
        assert message in done.err
        assert not (project.memory / "mx/secrets").exists()
        assert f"  - {file}: age: exit status 1" in refused(project, "secrets.check").err
    file.write_bytes(whole)
    run(["age-keygen", "-o", tmp_path / "other"])
    kept_by(project, f'source = "age"\nidentity = "{tmp_path}/other"')
    assert "no identity matched any" in refused(project, "reveal-secrets", "--host=mx").err
    kept_by(project, 'source = "age"')
    assert 'hosts/mx/host.toml: source = "age" needs an identity' in (
        refused(project, "reveal-secrets", "--host=mx").err
    )
    (top / "etc/plain").touch()
    assert "etc/plain does not end in .age" in refused(project, "secrets.list").err


def test_age_without_a_terminal(project: Tree, key: Path, tmp_path: Path) -> None:
    """An identity with a passphrase: nobody is there to type it, and nothing waits for somebody."""
    encrypt(key, b"x", project.directory / "secrets/mx/PASSWORD.age")
    locked = tmp_path / "locked"
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execvp("age", ["age", "--passphrase", "--output", str(locked), str(key)])
    for _ in range(2):
        os.read(terminal, 1000)
        os.write(terminal, b"correct horse\n")
    os.waitpid(pid, 0)
    os.close(terminal)
    kept_by(project, f'source = "age"\nidentity = "{locked}"')

    done = refused(project, "reveal-secrets", "--host=mx")

    assert "PASSWORD.age: age: exit status 1: age: error: " in done.err
    assert "/dev/tty" in done.err


def test_pass(project: Tree, tmp_path: Path) -> None:
    fingerprint = Keyring(project.home / ".gnupg").generate("Alice")
    variables = {"PASSWORD_STORE_DIR": str(tmp_path / "store")}
    environment = tree.environment(project.home) | variables

    def inv(*words: str) -> Done:
        return project.inv(*words, PASSWORD_STORE_DIR=variables["PASSWORD_STORE_DIR"])

    def call(*words: str, data: bytes = b"") -> None:
        subprocess.run(["pass", *words], env=environment, input=data, check=True)

    call("init", fingerprint)
    call("insert", "--multiline", f"servers/mx/{KEY}", data=BINARY)
    call("insert", "--multiline", "servers/mx/PASSWORD", data=b"x\n")
    kept_by(project, 'source = "pass"\nprefix = "servers"')

    done = inv("reveal-secrets", "--host=mx", "--json")
    assert json.loads(done.out) == {"host": "mx", "files": [KEY], "values": ["PASSWORD"]}
    assert (project.memory / f"mx/secrets/files/{KEY}").read_bytes() == BINARY
    assert "password store" not in inv("secrets.check").err
    nobody_else_writes(project, "pass edit PREFIX/HOST/NAME")

    (tmp_path / f"store/servers/mx/{KEY}.gpg").write_bytes(b"x")
    done = inv("reveal-secrets", "--host=mx")
    assert done.status == BAD_INPUT
    assert f"error: password store: servers/mx/{KEY}: pass: exit status 2: gpg: " in done.err


SOPS = shutil.which("sops")


@pytest.mark.skipif(SOPS is None, reason="sops is not installed")
def test_sops(project: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = Keyring(project.home / ".gnupg").generate("Bob")
    file = project.directory / "secrets/mx.sops.json"
    file.write_text(json.dumps({KEY: TEXT, "PASSWORD": "x\n"}))
    environment = tree.environment(project.home)
    argv = ["sops", "--encrypt", "--pgp", fingerprint, str(file)]
    encrypted = subprocess.check_output(argv, env=environment)
    file.write_bytes(encrypted)
    kept_by(project, 'source = "sops"')

    assert revealed(project) == {f"files/{KEY}": TEXT.encode(), "values/PASSWORD": b"x"}
    assert listed(project) == {KEY: ("file", True), "PASSWORD": ("value", True)}
    nobody_else_writes(project, "sops secrets/HOST.sops.json")

    swapped = json.loads(encrypted)
    swapped[KEY], swapped["PASSWORD"] = swapped["PASSWORD"], swapped[KEY]
    file.write_text(json.dumps(swapped))
    monkeypatch.setenv("HOME", str(project.home))
    with pytest.raises(Failure) as failure:  # not by `inv`: the first sops shows tracebacks
        Sops(project.directory / "secrets").reveal("mx", KEY)
    assert failure.value.message.startswith(f"{file}: sops: exit status ")
    assert failure.value.code == BAD_INPUT


@pytest.mark.skipif(SOPS is not None, reason="sops is installed")
def test_program_that_is_missing(project: Tree) -> None:
    kept_by(project, 'source = "sops"')
    file = project.directory / "secrets/mx.sops.json"
    file.write_text('{"PASSWORD": "ENC[]", "sops": {}}')

    assert refused(project, "reveal-secrets", "--host=mx").err == (
        f"error: {file}: sops: sops not found\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is no JSON object"),
        ("[]", " is no JSON object"),
        ('{"PASSWORD": "x"}', " is not encrypted"),
        ('{"PASSWORD": "x", "sops": {}}', ": PASSWORD is not encrypted"),
        ('{"../x": "ENC[]", "sops": {}}', ": '../x' is no path on the target"),
        ('{"a-b": "ENC[]", "sops": {}}', ": 'a-b' is no name for a value"),
    ],
)
def test_bad_sops_file(project: Tree, text: str, message: str) -> None:
    kept_by(project, 'source = "sops"')
    file = project.directory / "secrets/mx.sops.json"
    file.write_text(text)

    assert f"error: {file}{message}" in refused(project, "reveal-secrets", "--host=mx").err
