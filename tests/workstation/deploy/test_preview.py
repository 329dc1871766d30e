"""What a deployment now would change, by what the last one has left of its definition."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from anemos.border import payload as border
from anemos.log import FAILED, Failure
from anemos.run import run
from anemos.system import defined, imgbuild, installation
from anemos.system.installation import Installation
from anemos.workstation import images
from anemos.workstation.deploy import payload, phases, preview
from anemos.workstation.deploy.preview import Preview
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway
from anemos.workstation.values import values

pytestmark = pytest.mark.real("run")

IMGBUILD = "target=debian\ndebian_suite=trixie\npackages='tool nginx'\n"
STATUS = "Package: {}\nStatus: install ok installed\nVersion: {}\nArchitecture: amd64\n\n"
SECRETS = {"etc/key": "a secret key", "etc/shadow": "root:hash::"}
VALUE, PRIVATE, CLOSED = "the-secret-value", "only for root", "in a closed directory"
FILES = {
    "etc/motd": "hello\nworld\n",
    "etc/tool.conf.makeimg.patch": "--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n",
    "etc/issue.makeimg.template": "{{ host }} {{ deployment }}\n",
    "etc/app.conf.makeimg.template": "password = {{ PASSWORD }}\n",
    "etc/private": PRIVATE,
    "root/closed": CLOSED,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
}
NAMES = [*SECRETS, "PASSWORD"]
HIDDEN = "contents that may be secret: "
ALWAYS = "/etc/app.conf, /etc/key, /etc/private, /etc/shadow, /root/closed"


def write(top: Path, path: str, text: str) -> None:
    (top / path).parent.mkdir(parents=True, exist_ok=True)
    (top / path).write_text(text)


class Server:
    """What the deployment has left on it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sh(self, argv: list[str], **_options: object) -> str:
        return run([*argv[:-1], f"{self.root}{argv[-1]}"])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The definition as it was deployed, on a workstation without a package layer."""
    found = Host("mx", tmp_path / "hosts/mx")
    write(found.directory, "IMGBUILD", IMGBUILD)
    for path, text in FILES.items():
        write(found.directory, f"files/{path}", text)
    (found.directory / "files/etc/private").chmod(0o600)

    class Source:
        def names(self, _name: str) -> list[str]:
            return NAMES

    monkeypatch.setattr(throwaway, "secrets_of", lambda _host: Source())
    monkeypatch.setattr(images, "cached_layer", lambda _spec: "")
    return found


@pytest.fixture
def server(host: Host, tmp_path: Path) -> Any:
    """Deployed by a payload with all its secrets."""
    for path, text in SECRETS.items():
        write(tmp_path, f"secrets/{path}", text)
    given = values("mx", "d-1", None, {"PASSWORD": VALUE})
    payload.write(tmp_path / "tar", host.imgbuild(), "d-1", given, tmp_path / "secrets")
    border.unpack(tmp_path / "tar", tmp_path / "payload")
    root = tmp_path / "root"
    run(["cp", "--archive", tmp_path / "payload/files", root])
    write(root, "etc/tool.conf", "b\n")
    write(root, "var/lib/dpkg/status", STATUS.format("tool", "1") + STATUS.format("old", "2"))
    (root / "root").chmod(0o700)
    spec = imgbuild.load(tmp_path / "payload/host")
    words = (root, "d-1", "{}", None, (tmp_path / "base", "0" * 64), tmp_path)
    installation.leave_manifest(Installation(spec, *words))
    return Server(root)


def made(host: Host, server: Any) -> Preview:
    found = preview.make(host, host.imgbuild(), "d-1", server)
    assert found
    return found


def told(found: Preview) -> list[tuple[str, str, str]]:
    return [(each.kind, each.name, each.what) for each in found.changes]


Act = Callable[[Path], object]
Told = tuple[str, str, str]


def enable(directory: Path) -> None:
    wants = directory / "files/etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "x.service").symlink_to("/etc/systemd/system/x.service")


def user(directory: Path) -> None:
    write(directory, "files/etc/passwd", f"{FILES['etc/passwd']}bob:x:1:1::/:/bin/sh\n")


PATCH = "files/etc/tool.conf.makeimg.patch"
ISSUE = "files/etc/issue.makeimg.template"
CHANGES: dict[str, tuple[Act, list[Told], str]] = {
    "nothing": (lambda top: None, [], ""),
    "content": (
        lambda top: write(top, "files/etc/motd", "hello\nyou\n"),
        [("file", "/etc/motd", "content")],
        "--- deployed\n+++ here\n@@ -1,2 +1,2 @@\n hello\n-world\n+you",
    ),
    "mode": (
        lambda top: (top / "files/etc/motd").chmod(0o755),
        [("file", "/etc/motd", "mode 0644 -> 0755")],
        "",
    ),
    "added": (
        lambda top: write(top, "files/etc/new", "x"),
        [("file", "/etc/new", "added")],
        "",
    ),
    "removed": (
        lambda top: (top / "files/etc/motd").unlink(),
        [("file", "/etc/motd", "removed")],
        "",
    ),
    "patch": (
        lambda top: write(top, PATCH, "--- a\n+++ b\n@@ -1 +1 @@\n-a\n+c\n"),
        [("file", "/etc/tool.conf.makeimg.patch", "content")],
        "-+b\n++c",
    ),
    "template": (
        lambda top: write(top, ISSUE, "on {{ host }}\n"),
        [("file", "/etc/issue", "content")],
        "-mx d-1\n+on mx",
    ),
    "IMGBUILD": (
        lambda top: write(top, "IMGBUILD", IMGBUILD.replace("nginx", "htop")),
        [("definition", "IMGBUILD", "content")],
        "-packages='tool nginx'\n+packages='tool htop'",
    ),
    "repositories": (
        lambda top: write(top, "keys/x.asc", "x"),
        [("definition", "keys/x.asc", "added")],
        "",
    ),
    "unit": (enable, [("unit", "x.service", "added: multi-user.target")], ""),
    "user": (
        user,
        [("user", "bob", "added: 1:1::/:/bin/sh"), ("file", "/etc/passwd", "content")],
        "+bob:x:1:1::/:/bin/sh",
    ),
    "secret": (lambda top: write(top, "files/root/closed", "another one"), [], ""),
    "secret value": (
        lambda top: write(top, "files/etc/app.conf.makeimg.template", "{{ PASSWORD }} only"),
        [],
        "",
    ),
    "for all now": (
        lambda top: (top / "files/etc/private").chmod(0o644),
        [("file", "/etc/private", "mode 0600 -> 0644")],
        "",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change(host: Host, server: Any, name: str) -> None:
    act, expected, text = CHANGES[name]
    act(host.directory)
    found = made(host, server)
    assert told(found) == expected
    assert text in "".join(found.texts.values())
    assert bool(text) == bool(found.texts)
    assert found.unknown[1:] == [HIDDEN + ALWAYS]


def test_secrets_come_and_go_by_name(
    host: Host, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.NAMES", ["etc/key", "etc/other", "PASSWORD"])
    found = made(host, server)
    assert told(found) == [("file", "/etc/other", "added"), ("file", "/etc/shadow", "removed")]
    assert found.texts == {}


def test_packages(host: Host, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the package layer that would be sent, against all that the server got."""
    write(tmp_path, "layer/var/lib/dpkg/status", STATUS.format("tool", "3"))
    layer = tmp_path / "layer.tar.zst"
    run(["tar", "--create", "--zstd", "--file", layer, "-C", tmp_path / "layer", "."])
    monkeypatch.setattr(images, "cached_layer", lambda _spec: os.fspath(layer))
    both = [("package", "old", "removed: 2"), ("package", "tool", "1 -> 3")]
    found = made(host, server)
    assert (told(found), found.unknown) == (both, [HIDDEN + ALWAYS])
    write(host.directory, "IMGBUILD", IMGBUILD + "provision() {\n\ttrue\n}\n")
    found = made(host, server)
    assert told(found)[1] == ("package", "old", "removed: 2, unless provision() installs it")
    assert found.unknown[-1] == "what provision() does"
    layer.write_bytes(b"damaged")
    assert "pack" in made(host, server).unknown[0]


def test_other_targets(host: Host, tmp_path: Path) -> None:
    write(tmp_path, "x/usr/lib/apk/db/installed", "P:musl\nV:1.2\nA:x86_64\n\n")
    desc = "%NAME%\nbash\n\n%VERSION%\n5\n\n%ARCH%\nx86_64\n"
    write(tmp_path, "x/var/lib/pacman/local/bash-5/desc", desc)
    run(["tar", "--create", "--file", tmp_path / "tar", "-C", tmp_path / "x", "."])
    spec = host.imgbuild()
    for target, packages in {"alpine": {"musl": "1.2"}, "arch": {"bash": "5"}}.items():
        found = preview.installed(replace(spec, target=target), f"{tmp_path}/tar")
        assert found == packages


def test_nothing_secret_is_left_or_told(
    host: Host, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    left = server.root / defined.FILE
    assert left.stat().st_mode & 0o777 == 0o600
    for name in ("secret", "secret value", "for all now", "content"):
        CHANGES[name][0](host.directory)
    found = made(host, server)
    preview.tell(found, "d-1")
    said = left.read_text() + json.dumps(asdict(found)) + capsys.readouterr().err
    assert "+you" in said
    for secret in (*SECRETS.values(), VALUE, f"password = {VALUE}\n", PRIVATE, CLOSED):
        assert secret not in said
        assert sha256(secret.encode()).hexdigest() not in said


def test_texts_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is compared all the same."""
    monkeypatch.setattr(defined, "ROOM", 5)
    write(tmp_path, "files/a", "123456")
    write(tmp_path, "files/b", "123")
    (tmp_path / "files/c").write_bytes(b"\xff")
    found = defined.take(tmp_path, [], lambda _: True, {})
    assert found.texts == {"files/b": "123"}
    assert all(each.content for each in found.files.entries)


def test_what_is_not_there(host: Host, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An older Anemos has left nothing; a disk may leave anything."""
    (server.root / defined.FILE).write_text("{}")
    with pytest.raises(Failure, match=r"definition\.json: cannot be read") as caught:
        made(host, server)
    assert caught.value.status == FAILED
    (server.root / defined.FILE).unlink()
    assert preview.make(host, host.imgbuild(), "d-1", server) is None
    preview.tell(None, "d-1")
    assert "against d-1: nobody knows: an older Anemos" in capsys.readouterr().err


def test_line_of_the_plan(host: Host, server: Any) -> None:
    """Only where it is known: a definition that `pack` would refuse is told by `pack`."""
    seen = Mock(deployment="d-1", place="system")
    CHANGES["content"][0](host.directory)
    line = ("changes", "1 file: ./inv diff")
    assert phases.foreseen(host, host.imgbuild(), seen, server) == [line]
    write(host.directory, ISSUE, "{{ nobody }}")
    assert phases.foreseen(host, host.imgbuild(), seen, server) == []
    other = Mock(deployment="", place="system")
    assert phases.foreseen(host, host.imgbuild(), other, server) == []
