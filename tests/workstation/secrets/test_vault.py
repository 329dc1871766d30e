"""Daily use of secrets, with the real gpg(1), real editors and real memory-backed storage."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gnupg
import pytest

from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.run import run
from anemos.workstation import places, scratch
from anemos.workstation.secrets import audit, editor, vault
from anemos.workstation.secrets.gpg import THROWAWAY_KEY, Keyring
from anemos.workstation.secrets.vault import Vault
from tests.waiting import until

pytestmark = pytest.mark.real("run", "gpg")

KEY = "etc/ssl/private/mx.key"
BINARY = b"\x00\xff\r\n" * 9
# What every editor of these tests does first: tell where it is, and who may read that.
NOTE = 'echo "$1" >"$NOTES"; stat -c %a "$1" "$(dirname "$1")" >>"$NOTES"\n'


@dataclass
class People:
    """Alice and Bob know each other; Eve knows both."""

    alice: Keyring
    bob: Keyring
    eve: Keyring
    a: str
    b: str
    e: str


def introduce(source: Keyring, target: Keyring) -> None:
    target.gpg.import_keys(source.gpg.export_keys(source.gpg.list_keys().fingerprints))


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    # Not in tmp_path: the path of the agent's socket in it must be shorter than 108 bytes.
    homes = [Path(tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp")) for _ in range(3)]
    rings = alice, bob, eve = Keyring(homes[0]), Keyring(homes[1]), Keyring(homes[2])
    a, b, e = alice.generate("Alice"), bob.generate("Bob"), eve.generate("Eve")
    for source in rings:
        for target in rings:
            introduce(source, target)
    yield People(alice, bob, eve, a, b, e)
    for home in homes:
        run(["gpgconf", "--homedir", home, "--kill", "all"])
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    top = tmp_path / "hosts"
    for name in ("mx", "www"):
        (top / name / "files/etc").mkdir(parents=True)
    (top / "mx/files/etc/app.conf.makeimg.template").write_text("x\npassword={{ PASSWORD }}\n")
    monkeypatch.setattr(places, "HOSTS", top)
    yield top
    shutil.rmtree(places.memory("x").parent)


@pytest.fixture
def alice(people: People, tmp_path: Path) -> Vault:
    """Alice's view of secrets that she shares with Bob."""
    (tmp_path / "secrets").mkdir()
    share(tmp_path / "secrets", people.a, people.b)
    return Vault(people.alice, tmp_path / "secrets")


def share(root: Path, *fingerprints: str) -> None:
    (root / "recipients").write_text("\n".join(fingerprints) + "\n")


def tree(top: Path) -> dict[str, bytes]:
    paths = (path for path in top.rglob("*") if path.is_file())
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("VISUAL", raising=False)
    return tmp_path / "notes"


def put_editor(directory: Path, script: str, name: str = "my-editor") -> Path:
    program = directory / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\nset -e\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def use(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def choose(script: str) -> None:
        monkeypatch.setenv("EDITOR", str(put_editor(tmp_path, NOTE + script)))

    return choose


# One secret


@pytest.mark.parametrize("name", [KEY, "PASSWORD"])
def test_write_and_read(alice: Vault, people: People, name: str) -> None:
    assert alice.read("mx", name) is None
    alice.write("mx", name, "grün\n".encode())

    assert alice.read("mx", name) == "grün\n".encode()
    assert Vault(people.bob, alice.root).read("mx", name) == "grün\n".encode()
    assert tree(alice.root).keys() == {"recipients", f"mx/{name}.gpg"}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/x", "../x", "etc/../x", "etc/", "etc//x", "./etc/x", "a-b", "x y"]
)
def test_what_is_no_name(alice: Vault, name: str) -> None:
    with pytest.raises(Failure) as failure:
        alice.write("mx", name, b"x")

    assert failure.value.code == BAD_INPUT
    assert tree(alice.root).keys() == {"recipients"}


@pytest.mark.parametrize("of", ["", "nope", "../hosts/mx"])
def test_no_such_host(alice: Vault, of: str) -> None:
    with pytest.raises(Failure, match=r"host.*\n.*known: "):
        alice.write(of, KEY, b"x")


@pytest.mark.parametrize("second", ["etc/ssl", f"{KEY}/x"])
def test_file_and_directory(alice: Vault, second: str) -> None:
    alice.write("mx", KEY, b"x")
    with pytest.raises(Failure, match="cannot both be on the target"):
        alice.write("mx", second, b"x")


def test_no_way_out_by_symbolic_links(alice: Vault, tmp_path: Path) -> None:
    (alice.root / "mx").mkdir()
    (alice.root / "mx/etc").symlink_to(tmp_path)
    with pytest.raises(Failure, match="mx/etc is not a regular file"):
        alice.write("mx", "etc/x", b"x")


def test_values_are_text(alice: Vault) -> None:
    with pytest.raises(Failure, match=r"PASSWORD\.gpg: a value must be UTF-8 text"):
        alice.write("mx", "PASSWORD", BINARY)


def test_failed_replacement_keeps_the_old(alice: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.write("mx", KEY, b"old")
    before = tree(alice.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(Failure, match=r"mx\.key\.gpg: No space left on device") as failure:
        alice.write("mx", KEY, b"new")

    assert failure.value.code == FAILED
    assert tree(alice.root) == before


# edit


def test_edit(alice: Vault, use: Callable[[str], None], notes: Path) -> None:
    alice.write("mx", KEY, BINARY)
    use('cat "$1" "$1" >"$1.new"; mv "$1.new" "$1"; touch "$1~"')

    assert vault.edit(alice, "mx", KEY)["changed"] is True

    assert alice.read("mx", KEY) == BINARY * 2
    where, *modes = notes.read_text().split()
    assert modes == ["600", "700"]
    assert where.startswith("/dev/shm/")
    assert where.endswith("/mx.key")
    assert tree(places.memory("x").parent) == {}


def test_edit_without_a_change(alice: Vault, use: Callable[[str], None]) -> None:
    alice.write("mx", KEY, BINARY)
    before = tree(alice.root)
    use('cat "$1" >"$1.new"; mv "$1.new" "$1"')

    assert vault.edit(alice, "mx", KEY)["changed"] is False
    assert vault.edit(alice, "mx", "NEW")["changed"] is False

    assert tree(alice.root) == before


def test_new_secret_starts_empty(alice: Vault, use: Callable[[str], None]) -> None:
    use('test -f "$1"; test ! -s "$1"; echo new >"$1"')

    vault.edit(alice, "mx", "NEW")

    assert alice.read("mx", "NEW") == b"new\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo changed >"$1"; cat "$1"; exit 3', "my-editor: exit status 3; NEW stays as it was"),
        ("kill -9 $$", "my-editor: killed by signal 9; NEW stays as it was"),
        ('rm "$1"', "my-editor left no file; NEW stays as it was"),
    ],
)
def test_editor_that_fails(
    alice: Vault, use: Callable[[str], None], script: str, message: str
) -> None:
    alice.write("mx", "NEW", b"old")
    before = tree(alice.root)
    use(script)

    with pytest.raises(Failure, match=f"{message}$") as failure:
        vault.edit(alice, "mx", "NEW")

    assert failure.value.code == FAILED
    assert tree(alice.root) == before
    assert tree(places.memory("x").parent) == {}


def test_nothing_is_typed_in_vain(alice: Vault, use: Callable[[str], None], notes: Path) -> None:
    share(alice.root, "0" * 40)
    use("")
    with pytest.raises(Failure, match="no public key of 0000"):
        vault.edit(alice, "mx", "NEW")
    assert not notes.exists()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [("/none/vi -x", "'/none/vi -x' not found"), ("'vi", "No closing quotation"), ("' '", "not f")],
)
def test_bad_editor(monkeypatch: pytest.MonkeyPatch, chosen: str, message: str) -> None:
    monkeypatch.setenv("VISUAL", chosen)
    with pytest.raises(Failure, match=message) as failure:
        editor.edit(b"", "NEW")
    assert failure.value.code == BAD_INPUT


def test_visual_comes_first_and_has_words(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_editor(tmp_path, 'echo "$1" >"$2"')
    monkeypatch.setenv("VISUAL", f"{program} 'two words'")
    monkeypatch.setenv("EDITOR", "false")
    assert editor.edit(b"", "NEW") == b"two words\n"


@pytest.mark.parametrize(("real", "options"), [("vim.tiny", editor.VIM), ("nvi", [])])
def test_vim_is_told_to_write_nowhere_else(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch, real: str, options: list[str]
) -> None:
    """Debian's vi is a symbolic link to whichever it is."""
    real_one = put_editor(tmp_path, 'for word; do printf "%s\\n" "$word" >>"$NOTES"; done', real)
    (tmp_path / "vi").symlink_to(real_one)
    monkeypatch.setenv("EDITOR", f"{tmp_path}/vi -u x")
    editor.edit(b"", "NEW")
    assert notes.read_text().splitlines()[:-1] == ["-u", "x", *options]


# Signals, terminals

PROGRAM = """\
from pathlib import Path
from anemos.workstation import places
from anemos.workstation.secrets import vault
from anemos.workstation.secrets.gpg import Keyring
places.HOSTS = Path({hosts!r})
vault.{call}(vault.Vault(Keyring(Path({home!r})), Path({root!r})), "mx", "NEW")
"""


def program(alice: Vault, call: str) -> list[str]:
    given = {"hosts": str(places.HOSTS), "home": alice.keyring.gpg.gnupghome, "call": call}
    return [sys.executable, "-c", PROGRAM.format(root=str(alice.root), **given)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals(
    alice: Vault, use: Callable[[str], None], notes: Path, number: signal.Signals
) -> None:
    alice.write("mx", "NEW", b"old")
    before = tree(alice.root)
    use('echo changed >"$1"; echo $$ >>"$NOTES"; exec sleep 1000')
    memory = places.memory("x").parent
    with subprocess.Popen(program(alice, "edit"), stderr=subprocess.PIPE) as process:
        until(lambda: notes.exists() and len(notes.read_text().split()) == 4)
        where, *_, pid = notes.read_text().split()
        assert list(tree(memory)) == [os.path.relpath(where, memory)]
        process.send_signal(number)
        process.wait(60)
    until(lambda: not alive(int(pid)))

    assert process.returncode != 0
    if number == signal.SIGKILL:  # nobody can do anything; the next one does
        with scratch.directory() as directory:
            assert list(directory.iterdir()) == []
    assert tree(memory) == {}
    assert tree(alice.root) == before


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(each) for each in scratch.SIGNALS]
    with scratch.directory():
        assert [signal.getsignal(each) for each in scratch.SIGNALS] != before
    assert [signal.getsignal(each) for each in scratch.SIGNALS] == before


@contextmanager
def on_terminal(argv: list[str]) -> Iterator[tuple[int, int]]:
    """ARGV with a terminal of its own: process id, our end of the terminal."""
    pid, ours = os.forkpty()
    if pid == 0:
        os.execv(argv[0], argv)
    try:
        yield pid, ours
    finally:
        os.close(ours)


def await_text(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 1000)


def test_scratch_that_others_remove_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that ends removes its own sockets, after the directory was listed."""
    directory = tmp_path / "gnupg"
    directory.mkdir()
    for name in ("S.gpg-agent", "S.gpg-agent.ssh", "pubring.kbx"):
        (directory / name).touch()
    unlink = os.unlink

    def raced(path: str, *, dir_fd: int | None = None) -> None:
        if path == "S.gpg-agent.ssh" and (directory / path).exists():
            unlink(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", raced)
    scratch.remove(directory)
    assert not directory.exists()
    scratch.remove(directory)


def test_editor_has_the_terminal(alice: Vault, use: Callable[[str], None]) -> None:
    use('echo "what now?"; read -r answer; test -t 0; test -t 1; test -t 2; echo "$answer" >"$1"')
    with on_terminal(program(alice, "edit")) as (pid, terminal):
        await_text(terminal, b"what now?")
        os.write(terminal, b"this\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert alice.read("mx", "NEW") == b"this\n"


@pytest.mark.parametrize(("second", "status"), [(b"grun", 0), (b"blau", BAD_INPUT)])
def test_set_on_a_terminal(alice: Vault, second: bytes, status: int) -> None:
    with on_terminal(program(alice, "put")) as (pid, terminal):
        await_text(terminal, b"NEW: ")
        os.write(terminal, b"grun\n")
        await_text(terminal, b"once more: ")
        os.write(terminal, second + b"\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert alice.read("mx", "NEW") == (b"grun" if status == 0 else None)


def test_set_from_standard_input(alice: Vault) -> None:
    argv = program(alice, "put")
    argv[2] = argv[2].replace('"NEW"', repr(KEY))
    subprocess.run(argv, input=BINARY, check=True)
    assert alice.read("mx", KEY) == BINARY

    done = subprocess.run(argv, input=b"", check=False)
    assert done.returncode == BAD_INPUT
    assert alice.read("mx", KEY) == BINARY


# rekey


def test_rekey_for_a_new_recipient(alice: Vault, people: People) -> None:
    share(alice.root, people.a)
    for of in ("mx", "www"):
        alice.write(of, KEY, BINARY)
        alice.write(of, "VALUE", b"v")
    share(alice.root, people.b, people.a)

    assert vault.rekey(alice, "www") == {"rekeyed": [f"www/{KEY}.gpg", "www/VALUE.gpg"]}
    assert vault.rekey(alice) == {"rekeyed": [f"mx/{KEY}.gpg", "mx/VALUE.gpg"]}

    assert Vault(people.bob, alice.root).read("mx", KEY) == BINARY
    before = tree(alice.root)
    assert vault.rekey(alice) == {"rekeyed": []}
    assert tree(alice.root) == before


def test_rekey_without_a_former_recipient(alice: Vault, people: People) -> None:
    alice.write("mx", KEY, BINARY)
    Vault(people.bob, alice.root).replace(
        alice.root / "mx/VALUE.gpg",
        people.bob.encrypt(b"v", "VALUE", [people.b, people.a], "mx/VALUE"),
    )
    before = tree(alice.root)
    share(alice.root, people.a)

    with pytest.raises(
        Failure, match=rf"(?s)nothing was.*VALUE\.gpg is signed by {people.b}.*--fo"
    ):
        vault.rekey(alice)
    assert tree(alice.root) == before | {"recipients": f"{people.a}\n".encode()}

    vault.rekey(alice, former=people.b.lower())
    assert alice.read("mx", "VALUE") == b"v"
    with pytest.raises(Failure, match="whose secret part is not here"):
        Vault(people.bob, alice.root).read("mx", KEY)


def test_rekey_for_a_new_subkey(alice: Vault, people: People) -> None:
    """And for what hides its recipients. Afterwards nothing is left to do."""
    home = tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp")
    ring = Keyring(Path(home))
    made = gnupg.GPG(gnupghome=home, options=["--faked-system-time", "20200101T000000!"])
    key = str(made.gen_key(THROWAWAY_KEY.format(name="Subkeys")).fingerprint)
    vault_ = Vault(ring, alice.root)
    share(alice.root, key)
    try:
        vault_.write("mx", "OLD", b"x")
        argv = ["gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-add-key", key]
        run([*argv, "cv25519", "encr"])
        vault_.write("mx", "NEW", b"x")

        with pytest.raises(Failure) as caught:
            audit.check(vault_)
        assert caught.value.message.splitlines()[1:] == [
            "  - mx/OLD is encrypted to an old subkey: ./inv secrets.rekey"
        ]
        assert vault.rekey(vault_) == {"rekeyed": ["mx/OLD.gpg"]}
        assert vault.rekey(vault_) == {"rekeyed": []}
        assert audit.check(vault_)["checked"] == 2
    finally:
        run(["gpgconf", "--homedir", home, "--kill", "all"])
        shutil.rmtree(home, ignore_errors=True)


def test_rekey_does_not_launder(alice: Vault, people: People) -> None:
    """Eve has the public keys, and can write files."""
    path = alice.root / "mx/VALUE.gpg"
    alice.replace(
        path, people.eve.encrypt(b"mine", "VALUE", [people.e, people.a, people.b], "mx/VALUE")
    )
    with pytest.raises(Failure, match=f"signed by {people.e}, which is not a recipient"):
        vault.rekey(alice)


def test_former_must_be_a_fingerprint(alice: Vault) -> None:
    alice.write("mx", "VALUE", b"v")
    with pytest.raises(Failure, match="--former 'bob': not a full fingerprint"):
        vault.rekey(alice, former="bob")


# list


def test_list(alice: Vault, people: People, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (KEY, "PASSWORD", "FORGOTTEN"):
        alice.write("mx", name, b"x")
    alice.replace(
        alice.root / "www/THEIRS.gpg", people.bob.encrypt(b"x", "THEIRS", [people.b], "www/THEIRS")
    )
    alice.replace(alice.root / "gone/etc/x.gpg", b"plain")
    both = sorted([people.a, people.b])

    found = {each["name"]: each for each in audit.show(alice)["secrets"]}

    used = {name: (each["kind"], each["used"]) for name, each in found.items()}
    assert used == {
        KEY: ("file", True),
        "PASSWORD": ("value", True),
        "FORGOTTEN": ("value", False),
        "THEIRS": ("value", False),
        "etc/x": ("file", False),
    }
    assert found[KEY]["recipients"] == both
    assert found["THEIRS"]["recipients"] == [people.b]
    signatures = {name: each["signature"] for name, each in found.items()}
    assert signatures.pop("THEIRS") == "unknown"
    assert signatures.pop("etc/x") == "bad"
    assert set(signatures.values()) == {"ok"}
    said = capsys.readouterr()
    assert said.out == ""
    assert "etc/x.gpg is not encrypted" in said.err
    assert [each["host"] for each in audit.show(alice, "www")["secrets"]] == ["www"]


def test_declared(alice: Vault, capsys: pytest.CaptureFixture[str]) -> None:
    """Which secrets the IMGBUILD declares, and all that are missing, by line."""
    text = "target=debian\nsecrets='\nPASSWORD password\netc/x ask\nTOKEN ask\n'\n"
    (places.HOSTS / "mx/IMGBUILD").write_text(text)
    for name in (KEY, "PASSWORD"):
        alice.write("mx", name, b"x")
    missing = f"{places.HOSTS}/mx/IMGBUILD declares: etc/x (line 4), TOKEN (line 5)"

    found = {each["name"]: each["declared"] for each in audit.show(alice)["secrets"]}

    assert found == {KEY: False, "PASSWORD": True}
    said = f"secrets are missing that {missing}: ./inv secrets.generate --host mx\n"
    assert capsys.readouterr().err.endswith(said)
    with pytest.raises(Failure) as caught:
        audit.check(alice, "mx")
    assert f"  - {said.strip()}" in str(caught.value)
    (places.HOSTS / "mx/host.toml").write_text('[vm]\nstock = "stock"\n')
    assert audit.check(alice, "mx")["checked"] == 2  # a VM makes its own


# check


def wrong(people: People, name: str) -> bytes:
    """Ciphertext that is wrong in one way."""
    both, label = [people.a, people.b], "mx/VALUE"
    options = {"always_trust": True, "armor": False}
    made = {
        "plain": b"password",
        "empty": b"",
        "damaged": people.alice.encrypt(b"x", name, both, label)[:-1],
        "unsigned": bytes(people.eve.gpg.encrypt(b"x", both, **options).data),
        "signed by Eve": people.eve.encrypt(b"x", name, [people.e, people.b, people.a], label),
        "Bob is missing": people.alice.encrypt(b"x", name, [people.a], label),
        "binary value": people.alice.encrypt(BINARY, name, both, label),
        "passphrase": bytes(
            people.alice.gpg.encrypt(
                b"x",
                both,
                sign=people.a,
                symmetric=True,
                passphrase="x",  # noqa: S106
                **options,
            ).data
        ),
    }
    return made[name]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("plain", "mx/VALUE.gpg is not encrypted"),
        ("empty", "mx/VALUE.gpg is empty"),
        ("damaged", "mx/VALUE.gpg is damaged"),
        ("unsigned", "mx/VALUE.gpg is not signed"),
        ("signed by Eve", "mx/VALUE is encrypted to {e}, which is not a recipient"),
        ("signed by Eve", "mx/VALUE.gpg is signed by {e}, which is not a recipient"),
        ("Bob is missing", "mx/VALUE is not encrypted to {b}"),
        ("passphrase", "mx/VALUE is encrypted to whoever knows a passphrase"),
        ("binary value", "mx/VALUE: a value must be UTF-8 text"),
    ],
)
def test_check(alice: Vault, people: People, case: str, message: str) -> None:
    alice.write("mx", KEY, b"x")
    alice.write("www", KEY, b"x")
    assert audit.check(alice) == {"checked": 2, "unknown": [], "unused": []}

    alice.replace(alice.root / "mx/VALUE.gpg", wrong(people, case))

    with pytest.raises(Failure, match="not as they should be") as failure:
        audit.check(alice)
    assert failure.value.code == BAD_INPUT
    assert message.format(b=people.b, e=people.e) in failure.value.message
    assert KEY not in failure.value.message
    assert audit.check(alice, "www")["checked"] == 1


def test_check_tells_everything_at_once(alice: Vault, tmp_path: Path) -> None:
    (alice.root / "www/etc").mkdir(parents=True)
    (alice.root / "www/etc/plain").write_text("x")
    (alice.root / "www/no-value.gpg").write_text("x")
    (alice.root / "mx").symlink_to(tmp_path)
    (alice.root / "mx.key").write_text("x")
    (alice.root / ".gitattributes").write_text("x")
    (alice.root / "README.md").write_text("x")
    with pytest.raises(Failure) as failure:
        audit.check(alice)
    lines = failure.value.message.splitlines()[1:]
    assert [line.split("secrets/")[-1] for line in lines] == [
        "mx.key is no secret of any host",
        "mx is not a regular file",
        "www/no-value.gpg: 'no-value' is no name for a value",
        "www/etc/plain does not end in .gpg",
    ]


def test_check_by_somebody_without_a_key(alice: Vault, people: People) -> None:
    alice.write("mx", KEY, b"x")
    eve = Vault(people.eve, alice.root)
    assert audit.check(eve) == {"checked": 1, "unknown": [f"mx/{KEY}"], "unused": []}


def test_check_without_secrets(people: People, tmp_path: Path) -> None:
    assert audit.check(Vault(people.alice, tmp_path / "none"))["checked"] == 0


def test_ciphertext_is_for_everybody_to_read(alice: Vault) -> None:
    """Git's users may be others than who wrote it: nothing secret is in it."""
    alice.write("mx", KEY, b"x")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((alice.root / f"mx/{KEY}.gpg").stat().st_mode) == 0o666 & ~mask
