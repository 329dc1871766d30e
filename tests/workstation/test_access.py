"""Who may log in to the new system, as far as its definition tells."""

from pathlib import Path

import pytest

from anemos.system import imgbuild
from anemos.workstation import access
from tests.tree import ROOT

KEY = "ssh-ed25519 AAAA me\n"
OWN = "root/.ssh/authorized_keys"
CONFIG = "etc/ssh/sshd_config"
HOSTS = ROOT / "hosts"
# Of hosts/www: they may publish, and nothing else.
SITES = "Match Group sites\n    AuthorizedKeysFile /etc/ssh/authorized_keys/%u\n"
ELSEWHERE = "AuthorizedKeysFile /etc/ssh/keys/%u\n"
FOR_ROOT = f"Match User root\n    {ELSEWHERE}"

FOR_ALICE = "Match User alice\n    AuthorizedKeysFile /etc/ssh/authorized_keys/%u\n"

Files = dict[str, str]


def problem(tmp_path: Path, files: Files, *secrets: str, user: str = "root", **words: str) -> str:
    for path, text in files.items():
        (tmp_path / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / path).write_text(text)
    spec = imgbuild.interpret(tmp_path, {"target": "debian"} | words)
    return access.problem(spec, secrets, user)


@pytest.mark.parametrize(
    "files",
    [
        {OWN: KEY},
        {f"{OWN}2": KEY},
        {f"{OWN}.makeimg.template": "{{ operator_key }}\n"},
        {OWN: KEY, f"{CONFIG}.d/sites.conf": SITES},
        {"etc/ssh/keys/root": KEY, f"{CONFIG}.d/keys.conf": ELSEWHERE},
        {"etc/ssh/keys/root": KEY, CONFIG: FOR_ROOT},
        {"etc/ssh/keys/root": KEY, CONFIG: f"{SITES}Match all\n{ELSEWHERE}"},
        {"etc/ssh/keys/root": KEY, CONFIG: f"AuthorizedKeysFile none\n{FOR_ROOT}"},
        {"root/keys": KEY, CONFIG: 'authorizedkeysfile = "keys" %h/more\n'},
        {"root/more": KEY, CONFIG: "AuthorizedKeysFile keys %h/more\n"},
        {"etc/ssh/keys/root": KEY, f"{CONFIG}.makeimg.patch": f"@@ -1 +1 @@\n-X\n+{ELSEWHERE}"},
        {CONFIG: "AuthorizedKeysCommand /usr/bin/keys %u\n"},
        {f"{CONFIG}.d/ca.conf": "TrustedUserCAKeys /etc/ssh/ca.pub\n"},
        # The first one counts, and sshd_config includes its directory at its beginning.
        {OWN: KEY, f"{CONFIG}.d/a.conf": f"AuthorizedKeysFile .ssh/authorized_keys\n{ELSEWHERE}"},
        {OWN: KEY, CONFIG: f"# {ELSEWHERE}"},
    ],
)
def test_somebody(tmp_path: Path, files: Files) -> None:
    assert problem(tmp_path, files) == ""


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({}, OWN),
        ({OWN: "# nobody yet\n\n"}, OWN),
        ({"home/alice/.ssh/authorized_keys": KEY}, OWN),
        ({"etc/ssh/authorized_keys/alice": KEY, f"{CONFIG}.d/sites.conf": SITES}, OWN),
        ({OWN: KEY, CONFIG: ELSEWHERE}, "etc/ssh/keys/root"),
        ({OWN: KEY, f"{CONFIG}.d/keys.conf": FOR_ROOT}, "etc/ssh/keys/root"),
        ({OWN: KEY, CONFIG: "AuthorizedKeysFile none\n"}, "any file"),
        ({CONFIG: "AuthorizedKeysCommand none\n"}, OWN),
    ],
)
def test_nobody(tmp_path: Path, files: Files, where: str) -> None:
    """The message names the place, and what to type."""
    said = problem(tmp_path, files)

    assert f"have a key in /{where};" in said
    assert said.endswith("login='provision() writes it'")
    assert problem(tmp_path, files, login="provision() writes it") == ""


@pytest.mark.parametrize("name", [OWN, f"{OWN}2"])
def test_among_the_secrets(tmp_path: Path, name: str) -> None:
    assert problem(tmp_path, {}, name) == ""
    assert problem(tmp_path, {CONFIG: ELSEWHERE}, name)


def test_ordinary_user(tmp_path: Path) -> None:
    """Needs a key that sshd can read as that user, and sudo."""
    own = "home/alice/.ssh/authorized_keys"

    def said(files: Files, *secrets: str, **words: str) -> str:
        return problem(tmp_path, files, *secrets, user="alice", **{"packages": "sudo"} | words)

    assert "could log in to the new system as alice: files/ does not have a key" in said({}, own)
    assert said({OWN: KEY}).endswith("login='provision() writes it'")
    assert said({}, login="provision() writes it") == ""
    assert said({own: KEY}) == ""
    assert "sudo is not among `packages`" in said({}, packages="openssh-server")
    assert said({"etc/ssh/authorized_keys/alice": KEY, CONFIG: FOR_ALICE}) == ""


def test_fetched_by_the_server(tmp_path: Path) -> None:
    assert problem(tmp_path, {}, **{"server_secrets": OWN, "fetch_secrets()": ""}) == ""


def test_what_the_definition_cannot_tell(tmp_path: Path) -> None:
    """Behind a symbolic link, or on a kept disk."""
    assert problem(tmp_path, {}, keep="disk data serial=S mount=/root") == ""
    (tmp_path / "files/root").mkdir(parents=True)
    (tmp_path / "files/root/.ssh").symlink_to("/srv/ssh")
    assert problem(tmp_path, {}) == ""


@pytest.mark.real("run")
@pytest.mark.parametrize("name", ["demo", "mx", "www", "stock"])
def test_hosts(name: str) -> None:
    assert access.problem(imgbuild.load(HOSTS / name), []) == ""
