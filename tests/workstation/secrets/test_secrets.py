"""Secrets, with the real gpg(1) and real memory-backed storage."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.sources import Gpg
from anemos.workstation.secrets.trove import ensure_throwaway, load, names, read_recipients, reveal

pytestmark = pytest.mark.real("run", "gpg")

KEY = "etc/ssl/private/demo.key"
PEM = b"-----BEGIN\n\x00\xff-----\n"
ALICE = "0123456789ABCDEF0123456789ABCDEF01234567"
BOB = "F" * 40


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Not in tmp_path: the path of the agent's socket in it must be shorter than 108 bytes.
    made = Path(tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp"))
    yield made
    run(["gpgconf", "--homedir", made, "--kill", "all"])
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def make(directory: Path) -> None:
    (directory / KEY).parent.mkdir(parents=True)
    (directory / KEY).write_bytes(PEM)
    (directory / "PASSWORD").write_bytes("grün\n\n".encode())


@pytest.fixture
def keyring(home: Path, root: Path) -> Keyring:
    return ensure_throwaway(home, root, "demo", make)


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def tree(top: Path) -> list[str]:
    return sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())


def test_recipients(tmp_path: Path) -> None:
    spaced = "0123 4567 89ab cdef 0123  4567 89ab cdef 0123 4567"
    (tmp_path / "recipients").write_text(f"# who\n\n{spaced} # Alice\n\t{BOB}\n")
    assert read_recipients(tmp_path / "recipients") == [ALICE, BOB]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ALICE}\n89ABCDEF01234567\n", ":2: not a full fingerprint"),
        (f"{ALICE} {BOB}\n", ":1: not a full fingerprint"),
        ("alice@example.org\n", ":1: not a full fingerprint"),
        ("\uff21" * 40, ":1: not a full fingerprint"),
        ("# nobody\n", " lists nobody"),
        (None, " is missing"),
    ],
)
def test_bad_recipients(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "recipients"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Failure, match=f"{path}{message}") as failure:
        read_recipients(path)
    assert failure.value.code == BAD_INPUT


def test_names(root: Path) -> None:
    touch(root, "demo/etc/a.gpg", "demo/.ssh/b.key.gpg", "demo/_X9.gpg", "other/etc/c.gpg")
    assert sorted(names(root, "demo")) == [".ssh/b.key", "_X9", "etc/a"]
    assert names(root, "demo")[-1] == "_X9"
    assert names(root, "none") == []


BAD_NAMES = {
    "demo/etc/shadow": "etc/shadow does not end in .gpg",
    "demo/PASSWORD": "PASSWORD does not end in .gpg",
    "demo/9X.gpg": "'9X' is no name for a value",
    "demo/my-key.gpg": "'my-key' is no name for a value",
    "demo/host.gpg": "'host' is a value that every template has already",
    "demo/operator_key.gpg": "'operator_key' is a value that every template has already",
    "demo/etc/...gpg": "its name without .gpg is '..'",  # would be etc/..
    "demo/etc/..gpg": "its name without .gpg is '.'",
    "demo/etc/.gpg": "its name without .gpg is ''",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(root: Path, name: str) -> None:
    touch(root, "demo/etc/good.gpg", name)
    with pytest.raises(Failure) as failure:
        names(root, "demo")
    assert BAD_NAMES[name] in str(failure.value)
    assert str(root / name) in str(failure.value)


@pytest.mark.parametrize("link", ["demo", "demo/etc", "demo/etc/x.gpg", "demo/X.gpg"])
def test_symbolic_links_are_refused(root: Path, tmp_path: Path, link: str) -> None:
    touch(tmp_path, "elsewhere/etc/x.gpg")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match=f"{root / link} is not a regular file"):
        names(root, "demo")


def test_special_files_are_refused(root: Path) -> None:
    touch(root, "demo/etc/a.gpg")
    os.mkfifo(root / "demo/PIPE.gpg")
    with pytest.raises(Failure, match=r"PIPE.gpg is not a regular file"):
        names(root, "demo")


def test_reveal(keyring: Keyring, root: Path, memory: Path) -> None:
    into = memory / "deep/demo"
    revealed = reveal(Gpg(keyring, root), "demo", into)
    assert revealed.files == [KEY]
    assert revealed.values == {"PASSWORD": "grün\n"}  # one newline fewer
    assert (into / "files" / KEY).read_bytes() == PEM
    assert tree(memory) == [f"deep/demo/files/{KEY}", "deep/demo/values/PASSWORD"]
    assert {mode(path) for path in into.rglob("*") if path.is_file()} == {0o600}
    assert {mode(path) for path in [into, *into.rglob("*")] if path.is_dir()} == {0o700}
    assert load(into, "demo") == revealed
    assert "grün" not in repr(revealed)


def test_reveal_replaces_an_earlier_one(keyring: Keyring, root: Path, memory: Path) -> None:
    reveal(Gpg(keyring, root), "demo", memory / "into")
    (root / "demo" / f"{KEY}.gpg").unlink()
    touch(memory, ".into.new/files/killed-before-it-was-complete")
    assert reveal(Gpg(keyring, root), "demo", memory / "into").files == []
    assert tree(memory) == ["into/values/PASSWORD"]


def test_host_without_secrets(keyring: Keyring, root: Path, memory: Path) -> None:
    (root / "recipients").unlink()
    revealed = reveal(Gpg(keyring, root), "none", memory / "into")
    assert (revealed.files, revealed.values) == ([], {})
    assert load(memory / "into", "none") == revealed


def spoil_value(keyring: Keyring, root: Path) -> None:
    data = keyring.encrypt(b"\xff", "BINARY", read_recipients(root / "recipients"), "demo/ZZZ")
    (root / "demo/ZZZ.gpg").write_bytes(data)


def twice(keyring: Keyring, root: Path) -> None:
    """A secret that is a file and the directory of another one."""
    (root / "demo" / KEY).mkdir()
    data = keyring.encrypt(b"x", "X", read_recipients(root / "recipients"), f"demo/{KEY}/x")
    (root / "demo" / KEY / "x.gpg").write_bytes(data)


ERRORS: dict[str, tuple[Callable[[Keyring, Path], object], str]] = {
    "plain file": (lambda _, root: touch(root, "demo/etc/plain"), "etc/plain does not end in .gpg"),
    "empty value": (lambda _, root: touch(root, "demo/ZZZ.gpg"), "demo/ZZZ.gpg is empty"),
    "binary value": (spoil_value, "demo/ZZZ: a value must be UTF-8 text"),
    "file in a file": (twice, "cannot reveal the secrets of demo"),
    "no recipients": (lambda _, root: (root / "recipients").unlink(), "recipients is missing"),
    "other signers": (
        lambda _, root: (root / "recipients").write_text(BOB),
        "which is not a recipient",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_nothing_stays_revealed_after_an_error(
    keyring: Keyring, root: Path, memory: Path, case: str
) -> None:
    spoil, message = ERRORS[case]
    reveal(Gpg(keyring, root), "demo", memory / "into")
    spoil(keyring, root)
    with pytest.raises(Failure, match=message):
        reveal(Gpg(keyring, root), "demo", memory / "into")
    assert list(memory.iterdir()) == []
    with pytest.raises(Failure, match=r"\./inv reveal-secrets --host demo"):
        load(memory / "into", "demo")


def test_only_memory_is_good_enough(keyring: Keyring, root: Path, memory: Path) -> None:
    (memory / "link").symlink_to("/proc/self")
    for into in (Path("/proc/self/fd/x"), memory / "link" / "x"):
        with pytest.raises(Failure, match="lies on proc, not in memory") as failure:
            reveal(Gpg(keyring, root), "demo", into)
        assert failure.value.code == BAD_INPUT


def test_throwaway_secrets_are_made_once(home: Path, root: Path) -> None:
    clear: list[Path] = []

    def note(directory: Path) -> None:
        clear.append(directory)
        make(directory)

    ensure_throwaway(home, root, "demo", note)
    assert tree(root) == ["demo/PASSWORD.gpg", f"demo/{KEY}.gpg", "recipients"]
    assert PEM not in (root / "demo" / f"{KEY}.gpg").read_bytes()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    ensure_throwaway(home, root, "demo", note)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert len(clear) == 1
    assert not clear[0].exists()
    assert clear[0].is_relative_to("/dev/shm")


def test_throwaway_home_is_private(tmp_path: Path, root: Path) -> None:
    touch(root, "demo/X.gpg", "recipients")  # complete: no key is made
    ensure_throwaway(tmp_path / "a/home", root, "demo", make)
    assert mode(tmp_path / "a/home") == 0o700


def test_throwaway_secrets_after_an_interrupted_run(home: Path, root: Path, memory: Path) -> None:
    clear: list[Path] = []

    def interrupted(directory: Path) -> None:
        clear.append(directory)
        make(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_throwaway(home, root, "demo", interrupted)
    assert not clear[0].exists()
    assert not (root / "demo").exists()
    recipients = (root / "recipients").read_text()
    touch(root, ".demo.new/etc/killed-before-it-was-complete.gpg")
    keyring = ensure_throwaway(home, root, "demo", make)
    assert (root / "recipients").read_text() == recipients
    assert reveal(Gpg(keyring, root), "demo", memory / "into").files == [KEY]


def test_hosts_share_the_throwaway_key(keyring: Keyring, home: Path, root: Path) -> None:
    recipients = (root / "recipients").read_text()
    ensure_throwaway(home, root, "other", make)
    assert (root / "recipients").read_text() == recipients
    assert names(root, "other")[-1] == "PASSWORD"
