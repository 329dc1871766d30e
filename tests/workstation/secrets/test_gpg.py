"""The keyring, with the real gpg(1)."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gnupg
import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.workstation.secrets.gpg import THROWAWAY_KEY, Keyring, check_result

pytestmark = pytest.mark.real("run", "gpg")

SECRET = b"\x00not\xfftext\r\n" * 300
NAME = "secrets/demo/KEY.gpg"
LABEL = "demo/KEY"
NOBODY = "0" * 40
# A pinentry whose user always cancels, so that no window opens (protocol: `info pinentry`).
PINENTRY = """\
#!/bin/sh
echo OK
while read -r word rest; do
    case $word in
    GETINFO) printf 'D 1\\nOK\\n' ;;
    GETPIN) echo ERR 83886179 Operation cancelled ;;
    *) echo OK ;;
    esac
done
"""
IN_2020 = ["--faked-system-time", "20200101T000000!"]


class People:
    """Alice reads. She and Bob know each other and may sign; nobody knows Eve."""

    def __init__(self, home: Callable[[], Path]) -> None:
        self.home = home
        self.alice, self.bob, self.eve = Keyring(home()), Keyring(home()), Keyring(home())
        self.a, self.b = self.alice.generate("Alice"), self.bob.generate("Bob")
        self.eve.generate("Eve")
        introduce(self.alice, self.bob)
        introduce(self.bob, self.alice)
        introduce(self.alice, self.eve)
        self.old = gnupg.GPG(gnupghome=self.alice.gpg.gnupghome, options=IN_2020)
        key = THROWAWAY_KEY.format(name="Old").replace("Date: 0", "Date: 1d")
        self.expired = str(self.old.gen_key(key).fingerprint)


def introduce(source: Keyring, target: Keyring) -> None:
    assert target.gpg.import_keys(source.gpg.export_keys(source.gpg.list_keys().fingerprints)).count


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    homes: list[Path] = []

    def home() -> Path:
        # Not in tmp_path: the path of the agent's socket in it must be shorter than 108 bytes.
        homes.append(Path(tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp")))
        pinentry = homes[-1] / "pinentry"
        pinentry.write_text(PINENTRY)
        pinentry.chmod(0o700)
        (homes[-1] / "gpg-agent.conf").write_text(
            f"pinentry-program {pinentry}\ns2k-count 65536\n"  # else it measures the machine first
        )
        return homes[-1]

    yield People(home)
    for made in homes:
        run(["gpgconf", "--homedir", made, "--kill", "all"])
        shutil.rmtree(made, ignore_errors=True)


def good(people: People) -> bytes:
    return people.alice.encrypt(SECRET, NAME, [people.a, people.b], LABEL)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def raw(gpg: gnupg.GPG, recipient: str | None, **options: Any) -> bytes:
    """Ciphertext as Keyring.encrypt does not make it."""
    result = gpg.encrypt(SECRET, recipient, always_trust=True, armor=False, **options)
    assert result.ok, result.stderr
    return bytes(result.data)


def by_revoked_key(people: People) -> bytes:
    key = people.alice.generate("Revoked")
    data = people.alice.encrypt(SECRET, NAME, [key], LABEL)
    certificate = Path(people.alice.gpg.gnupghome, f"openpgp-revocs.d/{key}.rev").read_text()
    people.alice.gpg.import_keys(certificate.replace(":-----BEGIN", "-----BEGIN"))
    return data


def locked(people: People) -> bytes:
    """For a key of Alice's whose passphrase nobody types."""
    text = THROWAWAY_KEY.format(name="Locked").removeprefix("%no-protection\n")
    key = str(people.alice.gpg.gen_key(text.replace("%commit", "Passphrase: x\n%commit")))
    run(["gpgconf", "--homedir", people.alice.gpg.gnupghome, "--kill", "gpg-agent"])
    return raw(people.alice.gpg, key)


def test_round_trip(people: People) -> None:
    data = good(people)
    assert SECRET[:20] not in data
    assert people.alice.decrypt(data, NAME, [people.b, people.a], LABEL) == SECRET
    assert people.bob.decrypt(data, NAME, [people.a], LABEL) == SECRET


def test_empty_secret(people: People) -> None:
    data = people.alice.encrypt(b"", NAME, [people.a], LABEL)
    assert people.alice.decrypt(data, NAME, [people.a], LABEL) == b""


def test_the_first_recipient_whose_secret_key_is_here_signs(people: People) -> None:
    data = people.bob.encrypt(SECRET, NAME, [people.a, people.b], LABEL)
    assert people.alice.decrypt(data, NAME, [people.b], LABEL) == SECRET


def test_signing_subkey_counts_as_its_primary_key(people: People) -> None:
    ring = Keyring(people.home())
    key = ring.generate("Subkey")
    gpg = ["gpg", "--homedir", ring.gpg.gnupghome, "--batch", "--passphrase", ""]
    run([*gpg, "--quick-add-key", key, "ed25519", "sign"])
    data = ring.encrypt(SECRET, NAME, [key], LABEL)
    assert ring.gpg.decrypt(data).fingerprint != key
    assert ring.decrypt(data, NAME, [key], LABEL) == SECRET


# Fails to decrypt: how the file came to be, and what is said about it.
REFUSED: dict[str, tuple[Callable[[People], bytes], str]] = {
    "empty": (lambda p: b"", "is empty"),
    "plain": (lambda p: b"password\n", "is not encrypted"),
    "plain binary": (lambda p: b"\xc3\xa4" * 99, "is not encrypted"),
    "signed only": (lambda p: bytes(p.alice.gpg.sign(SECRET, keyid=p.a).data), "is not encrypted"),
    "cut in the first packet": (lambda p: good(p)[:8], "is damaged"),
    "cut in the header": (lambda p: good(p)[:20], "or is damaged: truncated"),
    "cut in the middle": (lambda p: good(p)[:-200], "is damaged"),
    "cut at the end": (lambda p: good(p)[:-1], "is damaged"),
    "changed in the middle": (lambda p: flipped(good(p), -150), "is damaged"),
    "changed at the end": (lambda p: flipped(good(p), -1), "is damaged"),
    "changed session key": (lambda p: flipped(good(p), 50), "is damaged, or its key is locked"),
    "large garbage": (lambda p: b"\x84" + bytes(1 << 20), "is damaged"),
    "for Bob only": (
        lambda p: p.bob.encrypt(SECRET, NAME, [p.b], LABEL),
        "whose secret part is not here",
    ),
    "locked key": (locked, "passphrase was not given\n  (gpg-agent asks for"),
    "with a passphrase": (
        lambda p: raw(p.eve.gpg, None, symmetric=True, passphrase="x"),  # noqa: S106
        "is encrypted with a passphrase, not to the recipients",
    ),
    "unsigned": (lambda p: raw(p.bob.gpg, p.a), "is not signed"),
    "signed by Eve": (lambda p: raw(p.eve.gpg, p.a, sign=True), "is signed by an unknown key"),
    "revoked key": (by_revoked_key, "by a key that was revoked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_ciphertext(people: People, case: str) -> None:
    make, message = REFUSED[case]
    data = make(people)
    everybody = [people.b, *people.alice.gpg.list_keys().fingerprints]
    with pytest.raises(Failure) as failure:
        people.alice.decrypt(data, NAME, everybody, LABEL)
    assert str(failure.value).startswith(f"{NAME} ")
    assert message in str(failure.value)
    assert failure.value.code == BAD_INPUT
    assert "not\ufffdtext" not in str(failure.value)


# What GnuPG 2.4.7 says, beside what 2.2 does.
NEWER = """\
[GNUPG:] ENC_TO 4A73D8479B93DF67 18 0
[GNUPG:] NO_SECKEY 4A73D8479B93DF67
[GNUPG:] ERROR pkdecrypt_failed {}
[GNUPG:] DECRYPTION_FAILED
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [(33554449, "whose secret part is not here"), (16777226, "is damaged, or its key is locked")],
)
def test_errors_of_newer_gpg(code: int, message: str) -> None:
    result = SimpleNamespace(stderr=NEWER.format(code), ok=False)
    with pytest.raises(Failure, match=message):
        check_result(result, NAME, [])


def test_key_that_has_expired_since(people: People, capsys: pytest.CaptureFixture[str]) -> None:
    """What it has signed stays readable, for those who still trust it; and that is said."""
    notation = f"secret@anemos={LABEL}"
    words = {"sign": people.expired, "extra_args": ["--sig-notation", notation]}
    data = raw(people.old, people.expired, **words)

    assert people.alice.decrypt(data, NAME, [people.a, people.expired], LABEL) == SECRET
    assert f"the key {people.expired} that signed it has expired" in capsys.readouterr().err
    with pytest.raises(Failure, match="which is not a recipient"):
        people.alice.decrypt(data, NAME, [people.a], LABEL)


@pytest.mark.parametrize("line", ["throw-keyids", "encrypt-to {}", "hidden-encrypt-to {}"])
def test_gpg_conf_for_mail(people: People, line: str) -> None:
    """Nobody is hidden, and nobody is added."""
    ring = Keyring(people.home())
    key, other = ring.generate("Hardened"), ring.generate("Other")
    Path(ring.gpg.gnupghome, "gpg.conf").write_text(f"{line.format(other)}\n")

    data = ring.encrypt(SECRET, NAME, [key], LABEL)

    assert ring.recipients(data, NAME) == [key]
    assert ring.key_ids(data, NAME) == ring.chosen([key])


def test_new_subkey(people: People) -> None:
    """gpg takes the newest one. For a hidden recipient it tries all of them, and ends with 2."""
    ring = Keyring(people.home())
    made = gnupg.GPG(gnupghome=ring.gpg.gnupghome, options=IN_2020)
    key = str(made.gen_key(THROWAWAY_KEY.format(name="Subkeys")).fingerprint)
    before = ring.encrypt(SECRET, NAME, [key], LABEL)
    old = ring.chosen([key])
    gpg = ["gpg", "--homedir", ring.gpg.gnupghome, "--batch", "--passphrase", ""]
    run([*gpg, "--quick-add-key", key, "cv25519", "encr"])
    words = ["--throw-keyids", "--sig-notation", f"secret@anemos={LABEL}"]
    hidden = raw(ring.gpg, key, sign=key, extra_args=words)

    assert ring.recipients(before, NAME) == [key]
    assert ring.key_ids(before, NAME) == old != ring.chosen([key])
    assert ring.decrypt(before, NAME, [key], LABEL) == SECRET
    assert ring.decrypt(hidden, NAME, [key], LABEL) == SECRET
    assert ring.recipients(hidden, NAME) == ["0000000000000000"]


def test_signer_must_be_a_recipient(people: People) -> None:
    with pytest.raises(Failure, match=f"{NAME} is signed by {people.a}, which is not a recipient"):
        people.bob.decrypt(good(people), NAME, [people.b], LABEL)


def test_unfit_recipients_are_named(people: People) -> None:
    for recipient, message in (
        (NOBODY, f"cannot encrypt {NAME}: no public key of {NOBODY}"),
        (people.expired, f"the key {people.expired} has expired"),
    ):
        with pytest.raises(Failure, match=message):
            people.alice.encrypt(SECRET, NAME, [people.a, recipient], LABEL)


def test_somebody_here_must_sign(people: People) -> None:
    with pytest.raises(Failure, match=f"cannot sign {NAME}"):
        people.eve.encrypt(SECRET, NAME, [people.a], LABEL)


def test_home_with_too_long_a_path(people: People) -> None:
    home = people.home() / ("x" * 100)
    home.mkdir(mode=0o700)
    with pytest.raises(Failure, match="shorter than 108 bytes"):
        Keyring(home).generate("Long")


def test_missing_gpg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="gpg not found") as failure:
        Keyring(tmp_path)
    assert failure.value.code == BAD_INPUT


def test_missing_home(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=f"{tmp_path}/none"):
        Keyring(tmp_path / "none")
