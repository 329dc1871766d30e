"""Generated secrets, looked at with the tools that use them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.system import imgbuild
from anemos.workstation import places
from anemos.workstation.secrets import generate
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.vault import Vault

pytestmark = pytest.mark.real("run", "gpg")

TLS_KEY = "etc/ssl/private/mx.key"
NAME = "mail.example.org"


@pytest.fixture(scope="module")
def keyring() -> Iterator[Keyring]:
    # Not in tmp_path: the path of the agent's socket in it must be shorter than 108 bytes.
    home = Path(tempfile.mkdtemp(prefix="anemos-gpg-", dir="/tmp"))
    ring = Keyring(home)
    ring.generate("Alice")
    yield ring
    run(["gpgconf", "--homedir", home, "--kill", "all"])
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def vault(keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    (tmp_path / "hosts/mx").mkdir(parents=True)
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/recipients").write_text(keyring.gpg.list_keys().fingerprints[0])
    yield Vault(keyring, tmp_path / "secrets")
    clear = places.memory("x").parent
    assert [path for path in clear.rglob("*") if path.is_file()] == []
    shutil.rmtree(clear)


@pytest.fixture(autouse=True)
def argvs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """All that is given to processes as arguments, where everybody can read it."""
    seen: list[str] = []

    def noting(argv: list[str | Path], **options: Any) -> str:
        seen.extend(os.fspath(word) for word in argv)
        return run(argv, **options)

    monkeypatch.setattr(generate, "run", noting)
    yield seen
    assert not [word for word in seen if "PRIVATE" in word]


def secret(vault: Vault, name: str) -> bytes:
    found = vault.read("mx", name)
    assert found is not None
    return found


def public_key(private: bytes) -> str:
    return run(["openssl", "pkey", "-pubout"], data=private)


def one(
    vault: Vault, kind: str, name: str = "", csr: bool = False, **options: str
) -> dict[str, Any]:
    return generate.generate(vault, "mx", kind, name, options, csr)


def make(vault: Vault, kind: str, **options: Any) -> dict[str, Any]:
    """What is made, once; the second time nothing is, and the public half is the same."""
    first = one(vault, kind, **options)
    before = {path: path.read_bytes() for path in vault.root.rglob("*.gpg")}
    again = one(vault, kind, **options)
    assert {path: path.read_bytes() for path in vault.root.rglob("*.gpg")} == before
    assert again["made"] == []
    if not options.get("csr"):  # ECDSA is not deterministic
        assert again["public"] == first["public"]
    return first


@pytest.mark.parametrize("name", ["PASSWORD", "etc/app/password"])
def test_password(vault: Vault, name: str) -> None:
    made = make(vault, "password", name=name)
    assert made == {"host": "mx", "kind": "password", "made": [name], "public": ""}
    assert len(secret(vault, name)) == 43  # 256 bits, 6 a character
    one(vault, "password", name="OTHER")
    assert secret(vault, name) != secret(vault, "OTHER")


def test_ssh_host_key(vault: Vault, tmp_path: Path) -> None:
    made = make(vault, "ssh-host-key")
    assert made["made"] == ["etc/ssh/ssh_host_ed25519_key"]
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_bytes(secret(vault, "etc/ssh/ssh_host_ed25519_key"))
    assert made["public"] == f'host_key = "{run(["ssh-keygen", "-y", "-f", file]).strip()}"'
    assert made["public"].endswith(' mx"')


def test_tls(vault: Vault, tmp_path: Path) -> None:
    made = make(vault, "tls", subject=NAME)
    assert made["made"] == [TLS_KEY, "etc/ssl/mx.crt"]
    crt = secret(vault, "etc/ssl/mx.crt")
    assert made["public"].encode() == crt
    key = run(["openssl", "x509", "-noout", "-pubkey"], data=crt)
    assert key == public_key(secret(vault, TLS_KEY))
    (tmp_path / "crt").write_bytes(crt)
    file = os.fspath(tmp_path / "crt")
    check = ["openssl", "verify", "-CAfile", file, "-verify_hostname"]
    run([*check, NAME, file])
    with pytest.raises(Failure, match="hostname mismatch"):
        run([*check, "other.example.org", file])


def test_tls_for_several_names(vault: Vault) -> None:
    also = "mail.example.org,192.0.2.25,2001:db8::25"
    crt = make(vault, "tls", subject=NAME, also=also)["public"]
    text = run(["openssl", "x509", "-noout", "-ext", "subjectAltName"], data=crt.encode())
    said = [f"DNS:{NAME}", "DNS:mail.example.org", "IP Address:192.0.2.25"]
    assert text.split("\n")[1].strip() == ", ".join([*said, "IP Address:2001:DB8:0:0:0:0:0:25"])


DECLARES = """target=debian
secrets='
etc/dovecot/passwords password-hash users=alice,bob prefix={CRYPT}
TOKEN ask the token of the provider
PASSWORD password
etc/ssl/private/mx.key tls subject=mx.example.org
etc/dkimkeys/mx._domainkey.example.org.key dkim
etc/ssh/ssh_host_ed25519_key ssh-host-key
'
"""
SAID = {
    "password of alice": "alice's",
    "password of bob": "bob's",
    "TOKEN (the token of the provider)": "from the provider",
}


def terminal(monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> list[str]:
    """A person at the terminal who answers; what she was asked. She types everything twice."""
    asked: list[str] = []

    def answer(prompt: str) -> str:
        if prompt != "once more: ":
            asked.append(prompt.removesuffix(": "))
        return said[asked[-1]]

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", answer)
    return asked


def test_all_that_is_declared(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once, asked for once, and all public halves every time."""
    (places.HOSTS / "mx/IMGBUILD").write_text(DECLARES)
    asked = terminal(monkeypatch, SAID)

    first = generate.complete(vault, "mx")

    names = sorted(
        name for each in imgbuild.load(places.HOSTS / "mx").secrets for name in each.names
    )
    assert asked == list(SAID)
    assert sorted(first["made"]) == sorted(vault.names("mx")) == names
    assert first["missing"] == []
    dkim, key = first["public"].split("\n")
    assert dkim.startswith('mx._domainkey.example.org. IN TXT "v=DKIM1;')
    assert key.startswith('host_key = "ssh-ed25519 AAAA')
    assert secret(vault, "TOKEN") == b"from the provider"
    for line, user in zip(secret(vault, "etc/dovecot/passwords").split(b"\n"), SAID, strict=True):
        if user.startswith("password of "):
            name, _, known = line.decode().partition(":{CRYPT}")
            assert user == f"password of {name}"
            salt = known.split("$")[2]
            words = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
            assert run(words, data=SAID[user].encode()).strip() == known

    before = {path: path.read_bytes() for path in vault.root.rglob("*.gpg")}
    again = generate.complete(vault, "mx")
    assert again == {**first, "made": []}
    assert {path: path.read_bytes() for path in vault.root.rglob("*.gpg")} == before
    assert asked == list(SAID)


@pytest.mark.parametrize("is_a_terminal", [False, True])
def test_nobody_answers(vault: Vault, monkeypatch: pytest.MonkeyPatch, is_a_terminal: bool) -> None:
    """All others are made, and the rest is named with what to type. An empty answer is none."""
    (places.HOSTS / "mx/IMGBUILD").write_text(DECLARES)
    if is_a_terminal:
        terminal(monkeypatch, dict.fromkeys(SAID, ""))

    result = generate.complete(vault, "mx")

    command = "./inv secrets.set --host mx --name"
    words = "a line USER:{CRYPT}HASH; openssl passwd -6 makes a hash; for alice, bob"
    assert result["missing"] == [
        f"{command} etc/dovecot/passwords <FILE  # {words}",
        f"{command} TOKEN <FILE  # the token of the provider",
    ]
    assert len(vault.names("mx")) == 5
    with pytest.raises(Failure) as caught:
        generate.require_all(result)
    assert caught.value.code == BAD_INPUT
    assert all(f"\n  {line}" in str(caught.value) for line in result["missing"])


def test_one_that_is_declared(vault: Vault) -> None:
    (places.HOSTS / "mx/IMGBUILD").write_text(DECLARES)
    assert generate.complete(vault, "mx", "etc/ssl/mx.crt")["made"] == [TLS_KEY, "etc/ssl/mx.crt"]
    assert generate.complete(vault, "mx", "PASSWORD")["made"] == ["PASSWORD"]
    with pytest.raises(Failure, match="IMGBUILD declares no secret OTHER"):
        generate.complete(vault, "mx", "OTHER")


def test_of_a_local_vm(vault: Vault) -> None:
    (places.HOSTS / "mx/IMGBUILD").write_text(DECLARES)
    (places.HOSTS / "mx/host.toml").write_text('[vm]\nstock = "stock"\n')
    with pytest.raises(Failure, match="mx is a local VM: it makes its throw-away secrets"):
        generate.complete(vault, "mx")


def test_nothing_is_declared(vault: Vault) -> None:
    """Then nothing is needed to make it: no recipients."""
    (vault.root / "recipients").unlink()
    (places.HOSTS / "mx/IMGBUILD").write_text("target=debian\n")
    assert generate.complete(vault, "mx") == {
        "host": "mx",
        "made": [],
        "public": "",
        "missing": [],
    }


def test_tls_for_an_address(vault: Vault) -> None:
    crt = make(vault, "tls", name="etc/x/y.pem", subject="2001:db8::1")
    assert crt["made"] == ["etc/x/y.pem", "etc/x/y.crt"]
    text = run(["openssl", "x509", "-noout", "-text"], data=crt["public"].encode())
    assert "IP Address:2001:DB8:0:0:0:0:0:1" in text


def test_certificate_for_a_key_that_is_there(vault: Vault) -> None:
    request = make(vault, "tls", subject=NAME, csr=True)
    assert request["made"] == [TLS_KEY]
    text = run(["openssl", "req", "-verify", "-text", "-pubkey"], data=request["public"].encode())
    assert f"DNS:{NAME}" in text
    assert public_key(secret(vault, TLS_KEY)) in text
    assert make(vault, "tls", subject=NAME)["made"] == ["etc/ssl/mx.crt"]


@pytest.mark.parametrize("subject", ["example.org", "mx._domainkey.example.org"])
def test_dkim(vault: Vault, subject: str) -> None:
    made = make(vault, "dkim", subject=subject)
    assert made["made"] == ["etc/dkimkeys/mx._domainkey.example.org.key"]
    name, kind, strings = made["public"].partition(' IN TXT "')
    assert name + kind == 'mx._domainkey.example.org. IN TXT "'
    parts = strings.removesuffix('"').split('" "')
    assert [len(part) for part in parts] == [255, len("".join(parts)) - 255]
    pem = "".join(parts).removeprefix("v=DKIM1; k=rsa; p=")
    # RFC 6376, 3.6.1: base64 of a SubjectPublicKeyInfo, which is what PEM has
    assert pem == "".join(public_key(secret(vault, made["made"][0])).splitlines()[1:-1])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("", {}, "--kind '' cannot be generated\n  (one of: password, ssh-host-key, tls, dkim)"),
        ("password", {}, "which secret? --name"),
        ("password", {"name": "X", "csr": True}, "--csr does not go with --kind password"),
        ("dkim", {"subject": "x", "also": "x"}, "--kind dkim: dkim has no option 'also'"),
        ("tls", {"subject": "a", "also": "b/c"}, "--kind tls: subject 'b/c' is no name"),
        ("ask", {"name": "X"}, "--kind 'ask' cannot be generated"),
        (
            "ssh-host-key",
            {"subject": "x"},
            "--kind ssh-host-key: ssh-host-key has no option 'subject'",
        ),
        ("tls", {}, "--kind tls: subject '' is no name\n  (a DNS name or an IP"),
        ("tls", {"subject": "a/CN=b"}, "--kind tls: subject 'a/CN=b' is no name"),
        ("tls", {"subject": "a,DNS:b"}, "--kind tls: subject 'a,DNS:b' is no name"),
        ("tls", {"subject": "a", "name": "KEY"}, "--kind tls: tls is a file: its name is a path"),
        ("dkim", {}, "which secret? --name"),
        ("dkim", {"subject": "a b"}, "--kind dkim: subject 'a b' is no name"),
    ],
)
def test_bad_order(vault: Vault, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure) as failure:
        one(vault, kind, **options)
    assert failure.value.code == BAD_INPUT
    assert str(failure.value).startswith(message)
    assert list(vault.root.rglob("*.gpg")) == []


def test_key_that_is_none(vault: Vault) -> None:
    """A failure shows what the tool says, not what it was given."""
    vault.write(
        "mx", TLS_KEY, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    )
    with pytest.raises(Failure, match="openssl req") as failure:
        one(vault, "tls", subject=NAME)
    assert "c2VjcmV0" not in str(failure.value)
