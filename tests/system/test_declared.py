"""The variable `secrets` of an IMGBUILD."""

from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.system import declared, imgbuild
from anemos.system.declared import KINDS, Declared
from anemos.workstation.secrets import generate
from tests.tree import ROOT

HOSTS = ROOT / "hosts"


def test_every_kind() -> None:
    text = """target=debian
secrets='
PASSWORD                password

etc/dovecot/passwords   password-hash  users=a@x,b@x prefix={CRYPT}
  etc/ssl/private/mx.key  tls subject=mx.example.org also=192.0.2.1,mail.example.org
etc/dkimkeys/mx._domainkey.x.key dkim
etc/mail.key dkim subject=example.org
etc/ssh/ssh_host_ed25519_key ssh-host-key
TOKEN ask the provider's token, a=b
'
"""
    value = text.partition("'")[2].rpartition("'")[0]
    found = declared.parse(value, text)

    assert {each.kind for each in found} == KINDS.keys()
    assert [each.line for each in found] == [3, 5, 6, 7, 8, 9, 10]
    assert found[0] == Declared("PASSWORD", "password", line=3)
    assert found[1].listed("users") == ["a@x", "b@x"]
    assert found[1].options["prefix"] == "{CRYPT}"
    assert found[2].names == ("etc/ssl/private/mx.key", "etc/ssl/mx.crt")
    assert found[2].listed("also") == ["192.0.2.1", "mail.example.org"]
    assert found[6].what == "the provider's token, a=b"


def test_kinds_can_be_made() -> None:
    assert generate.KINDS.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PASSWORD", "'' is no kind of secret\n  (one of: password, "),
        ("PASSWORD passwd", "'passwd' is no kind of secret"),
        ("PASSWORD password bits=8", "password has no option 'bits'\n  (known: none)"),
        ("PASSWORD password please", "password has no option 'please'"),
        ("etc/x password-hash users=", "users has no value"),
        ("etc/x password-hash users=a users=b", "an option stands there twice"),
        ("my-key password", "'my-key' is no name for a value"),
        ("/etc/key password", "'/etc/key' is no path on the target"),
        ("etc/../key password", "'etc/../key' is no path on the target"),
        ("host password", "'host' is a value that every template has already"),
        ("operator_key ask", "'operator_key' is a value that every template has already"),
        ("KEY tls subject=x", "tls is a file: its name is a path on the target"),
        ("etc/x.key tls", "subject '' is no name"),
        ("etc/x.key tls subject=a/CN=b", "subject 'a/CN=b' is no name"),
        ("etc/x.key tls subject=a also=b,c:,d e", "tls has no option 'e'"),
        ("etc/x.key tls subject=a also=b,c/d", "subject 'c/d' is no name"),
        ("etc/x.key dkim", "subject '' is no name"),
        ("KNOWN password", "KNOWN and KNOWN cannot both be there"),
        ("etc/known/x password", "etc/known/x and etc/known cannot both be there"),
        ("etc/ssl/known.crt ask", "etc/ssl/known.crt and etc/ssl/known.crt cannot both be there"),
    ],
)
@pytest.mark.real("run")
def test_line_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    """The message has the number of the line, and the line."""
    before = "KNOWN password\netc/known ask\netc/ssl/private/known.key tls subject=x\n"
    file = tmp_path / "IMGBUILD"
    file.write_text(f"target=debian\n# {line}\nsecrets='\n{before}  {line}\n'\n")

    with pytest.raises(Failure) as caught:
        imgbuild.load(tmp_path)

    assert caught.value.status == BAD_INPUT
    assert str(caught.value).startswith(f"{file}: line 7: secrets: {line!r}: {message}")


@pytest.mark.real("run")
def test_lines_that_only_the_shell_knows(tmp_path: Path) -> None:
    loop = "secrets=$(for n in a b; do echo etc/$n password; done)"
    (tmp_path / "IMGBUILD").write_text(f"target=debian\n{loop}\n")

    found = imgbuild.load(tmp_path).secrets

    assert found == (Declared("etc/a", "password"), Declared("etc/b", "password"))


@pytest.mark.real("run")
@pytest.mark.parametrize("name", ["demo", "mx", "www", "stock"])
def test_hosts(name: str) -> None:
    for each in imgbuild.load(HOSTS / name).secrets:
        assert each.line
