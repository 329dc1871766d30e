"""Everything that can be wrong with a secret, through the real tasks: one message, status 2.

And whatever ends a task: nothing stays in clear.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import gnupg
import pytest

from anemos.log import BAD_INPUT
from anemos.run import run
from anemos.workstation.secrets.gpg import THROWAWAY_KEY, Keyring
from tests import tree
from tests.tree import IMGBUILD, TOML, Tree
from tests.waiting import until

pytestmark = pytest.mark.real("run", "gpg")

NAME = "etc/ssl/mx.key"
# Of this process alone: others look for theirs in the same memory.
SECRET = f"PLAINTEXT-{token_hex(8)}".encode()


@dataclass
class World:
    """Alice runs the tasks in PROJECT. Bob is a recipient, too; Eve has everybody's public keys."""

    project: Tree
    alice: Keyring
    bob: Keyring
    eve: Keyring
    a: str
    b: str
    e: str

    @property
    def root(self) -> Path:
        return self.project.directory / "secrets"

    @property
    def file(self) -> Path:
        return self.root / f"mx/{NAME}.gpg"

    def good(self, label: str = f"mx/{NAME}", of: str = "") -> bytes:
        return self.alice.encrypt(SECRET, label, [of or self.a, self.b], label)

    def share(self, *fingerprints: str) -> None:
        (self.root / "recipients").write_text("\n".join(fingerprints))

    def raw(self, ring: gnupg.GPG, recipient: str, **options: object) -> bytes:
        result = ring.encrypt(SECRET, recipient, always_trust=True, armor=False, **options)
        assert result.ok, result.stderr
        return bytes(result.data)


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    homes = [Path(tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp")) for _ in range(2)]
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        (copy.home / ".gnupg").mkdir(0o700)
        # No pinentry anywhere: nobody is asked for a passphrase.
        agent = copy.home / ".gnupg/gpg-agent.conf"
        agent.write_text("pinentry-program /bin/false\ns2k-count 65536\n")  # else it measures first
        rings = alice, bob, eve = [Keyring(home) for home in (copy.home / ".gnupg", *homes)]
        fingerprints = [ring.generate(who) for ring, who in zip(rings, "ABE", strict=True)]
        for source in (alice, bob):
            exported = source.gpg.export_keys(source.gpg.list_keys().fingerprints)
            for target in rings:
                target.gpg.import_keys(exported)
        yield World(copy, alice, bob, eve, *fingerprints)
    for home in homes:
        run(["gpgconf", "--homedir", home, "--kill", "all"])
        shutil.rmtree(home, ignore_errors=True)  # its agent removes sockets meanwhile


@pytest.fixture
def world(module_world: World) -> World:
    shutil.rmtree(module_world.root, ignore_errors=True)
    module_world.project.host("mx")
    module_world.file.parent.mkdir(parents=True)
    module_world.share(module_world.a, module_world.b)
    return module_world


def two_signatures(world: World) -> bytes:
    """Whose word about the name would count?"""
    alice = gnupg.GPG(gnupghome=world.alice.gpg.gnupghome)
    alice.import_keys(world.bob.gpg.export_keys(world.b, secret=True, expect_passphrase=False))
    words = ["--local-user", world.a, "--local-user", world.b]
    words += ["--sig-notation", f"secret@anemos=mx/{NAME}"]
    try:
        return world.raw(alice, world.a, sign=True, extra_args=words)
    finally:
        alice.delete_keys(world.b, secret=True, expect_passphrase=False)


def left(world: World) -> bytes:
    world.share(world.b)
    return world.good()


def locked(world: World) -> bytes:
    """For a key of Alice's whose passphrase nobody types."""
    text = THROWAWAY_KEY.format(name="Locked").removeprefix("%no-protection\n")
    key = str(world.alice.gpg.gen_key(text.replace("%commit", "Passphrase: x\n%commit")))
    run(["gpgconf", "--homedir", world.alice.gpg.gnupghome, "--kill", "gpg-agent"])
    return world.raw(world.alice.gpg, key)


REFUSED: dict[str, tuple[Callable[[World], bytes], str]] = {
    "empty": (lambda w: b"", " is empty"),
    "plain": (lambda w: SECRET, " is not encrypted"),
    "truncated": (lambda w: w.good()[:-9], " is damaged: truncated or tampered with"),
    "only the beginning": (lambda w: w.good()[:40], " or is damaged: truncated"),
    "tampered": (
        lambda w: w.good()[:-60] + bytes([w.good()[-60] ^ 1]) + w.good()[-59:],
        " is damaged",
    ),
    "unsigned": (lambda w: w.raw(w.eve.gpg, w.a), " is not signed"),
    "unknown signer": (lambda w: w.raw(w.eve.gpg, w.a, sign=w.e), " is signed by an unknown key"),
    "no recipient any more": (left, " is signed by"),
    "for others": (
        lambda w: w.bob.encrypt(SECRET, NAME, [w.b], f"mx/{NAME}"),
        " is encrypted to keys whose secret part is not here",
    ),
    "no terminal": (locked, "export GPG_TTY=$(tty)"),
    "of another host": (
        lambda w: w.good(f"www/{NAME}"),
        f" is the secret www/{NAME}, under another name\n  (renamed it? ",
    ),
    "swapped": (lambda w: w.good("mx/PASSWORD"), " is the secret mx/PASSWORD, under another name"),
    "without a name": (
        lambda w: w.raw(w.alice.gpg, w.a, sign=w.a),
        ": its signature does not say which secret it is",
    ),
    "with two signatures": (two_signatures, " has several signatures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(world: World, case: str) -> None:
    make, message = REFUSED[case]
    world.file.write_bytes(make(world))
    before = world.project.files()

    done = world.project.inv("reveal-secrets", "--host", "mx")

    assert done.status == BAD_INPUT
    assert done.out == ""
    (line, *_) = done.err.splitlines()
    assert line.startswith(f"error: {world.file}")
    assert message in done.err
    assert SECRET.decode() not in done.err
    assert world.project.files() == before


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        ("0" * 40, f"cannot encrypt secrets/mx/{NAME}.gpg: no public key of 0000"),
        ("12345678", "secrets/recipients:1: not a full fingerprint"),
    ],
)
def test_unfit_recipient(world: World, fingerprint: str, message: str, tmp_path: Path) -> None:
    world.share(fingerprint)
    (tmp_path / "in").write_bytes(SECRET)
    with (tmp_path / "in").open() as file:
        done = world.project.inv("secrets.set", "--host=mx", f"--name={NAME}", stdin=file.fileno())

    assert done.status == BAD_INPUT
    assert message in done.err.replace(f"{world.project.directory}/", "")
    assert not world.file.exists()


def test_swapped_files_of_a_host(world: World) -> None:
    """Both are Alice's, and both say what they are."""
    other = world.root / "mx/etc/ssl/other.key.gpg"
    world.file.write_bytes(world.good("mx/etc/ssl/other.key"))
    other.write_bytes(world.good())

    done = world.project.inv("secrets.check")

    assert done.status == BAD_INPUT
    assert done.err.count("under another name") == 2
    world.file.rename(world.file.with_suffix(".x"))
    other.rename(world.file)
    world.file.with_suffix(".x").rename(other)
    assert world.project.inv("secrets.check").status == 0


# Interrupted


def in_clear(world: World) -> list[Path]:
    """Where the secret is to be found: in memory, in the project, in Alice's home.

    What is large is another test's: a disk, a base image.
    """
    found = []
    for top in (*Path("/dev/shm").glob("*anemos*"), world.project.directory, world.project.home):
        for directory, _, names in os.walk(top):
            for path in (Path(directory, name) for name in names):
                with suppress(OSError):  # another test's, gone by now; a socket
                    if path.stat().st_size < 2**20 and SECRET in path.read_bytes():
                        found.append(path)
    return found


@pytest.fixture
def slow_gpg(tmp_path: Path) -> Path:
    """A directory for PATH: its gpg takes its time with the second decryption."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/gpg"
    program.write_text(f"""#!/bin/sh
case "$*" in
*--decrypt*)
    echo >>{tmp_path}/calls
    [ "$(wc -l <{tmp_path}/calls)" != 2 ] || exec sleep 1000
    ;;
esac
exec {shutil.which("gpg")} "$@"
""")
    program.chmod(0o755)
    return tmp_path


def start(world: World, words: list[str], path: Path) -> subprocess.Popen[str]:
    environment = tree.environment(world.project.home)
    return subprocess.Popen(
        [sys.executable, "-m", "invoke", *words],
        cwd=world.project.directory,
        env=environment | {"PATH": f"{path}:{environment['PATH']}"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_reveal_that_is_interrupted(world: World, slow_gpg: Path, number: signal.Signals) -> None:
    world.file.write_bytes(world.good())
    (world.root / "mx/VALUE.gpg").write_bytes(world.good("mx/VALUE"))
    calls = slow_gpg / "calls"
    with start(world, ["reveal-secrets", "--host", "mx"], slow_gpg / "bin") as process:
        until(lambda: calls.exists() and calls.read_text() == "\n\n")
        assert in_clear(world)
        process.send_signal(number)
        os.killpg(process.pid, number)  # as a terminal does
        _, said = process.communicate(timeout=60)

    assert process.returncode != 0
    assert SECRET.decode() not in said
    assert "Traceback" not in said or number == signal.SIGINT
    if number == signal.SIGKILL:  # nobody can do anything; the next one does
        assert in_clear(world)
        assert world.project.inv("clean").status == 0
    assert in_clear(world) == []


@pytest.mark.parametrize("after", ["demo", "clean"])
def test_throwaway_secrets_that_are_killed(world: World, tmp_path: Path, after: str) -> None:
    """test_secrets() writes in clear; a SIGKILL leaves that to the next run, or to `clean`."""
    words = f"{SECRET[:5].decode()} {SECRET[5:].decode()}"  # not whole in the IMGBUILD
    function = f"test_secrets() {{\n printf %s%s {words} >KEY\n touch {tmp_path}/written\n"
    wait = f" until [ -e {tmp_path}/again ]; do sleep 0.1; done\n}}\n"
    world.project.host("vm", '[vm]\nstock = "vm"\n', IMGBUILD + function + wait)
    with start(world, ["reveal-secrets", "--host", "vm"], tmp_path) as process:
        until((tmp_path / "written").exists)
        process.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert in_clear(world)
    (tmp_path / "again").touch()

    again = ["reveal-secrets", "--host", "vm"] if after == "demo" else ["clean"]
    done = world.project.inv(*again)

    assert done.status == 0, done.err
    left = [path.name for path in in_clear(world)]
    assert left == (["KEY"] if after == "demo" else [])  # revealed, as it was asked for
    assert world.project.inv("clean").status == 0
    assert in_clear(world) == []
    state = world.project.home / ".local/state/anemos"
    if state.exists():
        shutil.rmtree(state, ignore_errors=True)  # its agent removes sockets meanwhile


def test_wrong_host_toml(world: World) -> None:
    world.project.host("mx", TOML + '[secrets]\nsource = "vault"\n')

    for words in (["secrets.list"], ["reveal-secrets", "--host=mx"]):
        done = world.project.inv(*words)
        assert done.status == BAD_INPUT
        assert done.err == (
            "error: hosts/mx/host.toml: secrets.source is 'vault':"
            " should be 'gpg', 'age', 'sops' or 'pass'\n"
        )
