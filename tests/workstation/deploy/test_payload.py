"""The payload: everything particular to one deployment, the same bytes for the same inputs."""

import json
import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from anemos.border.deployment import Revision
from anemos.log import BAD_INPUT, Failure
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation.deploy import payload

IMGBUILD = "target=debian\n"
VALUES = {"TOKEN": "x{{ y }}", "deployment": "d-1"}
ODD = ["a b", "-rf", "quote'd", 'double"d', "new\nline", "ä", "\udcff.bin", "x" * 200, "*", "$HOME"]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    directory = tmp_path / "mx"
    (directory / "files/etc").mkdir(parents=True)
    (directory / "IMGBUILD").write_text(IMGBUILD)
    return directory


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


def spec(host: Path, keep: str = "") -> Imgbuild:
    return imgbuild.interpret(host, {"target": "debian", "keep": keep})


def write(host: Path, out: str = "payload", values: Mapping[str, str] = VALUES) -> Path:
    file = host.parent / out
    payload.write(file, spec(host), "d-1", values, host.parent / "secrets")
    return file


def members(file: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(file) as archive:
        return {each.name: each for each in archive}


def content(file: Path, name: str) -> bytes:
    with tarfile.open(file) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def manifest(file: Path) -> dict[str, Any]:
    return dict(json.loads(content(file, "manifest.json")))


def age(directory: Path, seconds: int) -> None:
    for path in directory.rglob("*"):
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def test_contents(host: Path, secrets: Path) -> None:
    (host / "files/etc/motd").write_text("hello\n")
    (secrets / "etc/ssl").mkdir(parents=True)
    (secrets / "etc/ssl/mx.key").write_bytes(b"\x00secret")

    file = write(host)

    assert list(members(file)) == [
        "manifest.json",
        "host/IMGBUILD",
        "files/etc/motd",
        "secrets/etc/ssl/mx.key",
    ]
    assert content(file, "host/IMGBUILD") == IMGBUILD.encode()
    assert content(file, "secrets/etc/ssl/mx.key") == b"\x00secret"


def test_what_a_bootstrap_takes(host: Path) -> None:
    (host / "keys").mkdir()
    for name in ("pacman.conf", "repositories", "keys/b.asc", "keys/a.rsa.pub", "notes"):
        (host / name).write_text(name)

    file = write(host)

    names = ["host/pacman.conf", "host/repositories", "host/keys/a.rsa.pub", "host/keys/b.asc"]
    assert [name for name in members(file) if name.startswith("host/")][1:] == names
    assert [content(file, name).decode() for name in names] == [name[5:] for name in names]


def test_manifest(host: Path, secrets: Path) -> None:
    (host / "files/etc/motd").write_text("hello\n")
    out = host.parent / "payload"
    keep = "disk data serial=S part=1 mount=/home\ndisk more wwn=naa.1\n"

    payload.write(out, spec(host, keep), "d-1", {}, secrets, commit=Revision("c" * 40))

    assert manifest(out) == {
        "deployment": "d-1",
        "commit": {"id": "c" * 40, "changed": False},
        "host": "mx",
        "keep": [
            {"name": "data", "match": {"serial": "S"}, "only": 0, "kind": "", "on": []},
            {"name": "more", "match": {"wwn": "naa.1"}, "only": 0, "kind": "", "on": []},
        ],
        "finish": "reboot",
        "agreed": {"layout": "", "erase": {}, "slot": "", "by_server": False},
        "files": {
            "host/IMGBUILD": sha256(IMGBUILD.encode()).hexdigest(),
            "files/etc/motd": sha256(b"hello\n").hexdigest(),
        },
    }


def test_same_bytes(host: Path, secrets: Path) -> None:
    for name in ("b", "a", "etc/c", "etc/d.makeimg.template"):
        (host / "files" / name).write_text("{{ TOKEN }}")
    (host / "files/link").symlink_to("a")
    secrets.mkdir()
    (secrets / "key").write_text("k")

    age(host.parent, 1)
    first = write(host, "first").read_bytes()
    age(host.parent, 2_000_000_000)
    second = write(host, "second").read_bytes()

    assert first == second
    (host / "files/a").write_text("other")
    assert write(host, "third").read_bytes() != first


def test_another_deployment_is_another_payload(host: Path, secrets: Path) -> None:
    out = host.parent / "payload"
    payload.write(out, spec(host), "d-1", {}, secrets)
    first = out.read_bytes()
    payload.write(out, spec(host), "d-2", {}, secrets)

    assert out.read_bytes() != first


@pytest.mark.parametrize("before", [None, 0o644])
def test_nobody_else_can_read_it(host: Path, before: int | None) -> None:
    if before:
        (host.parent / "payload").write_text("an older one")
        (host.parent / "payload").chmod(before)
    old = os.umask(0)
    try:
        file = write(host)
    finally:
        os.umask(old)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert manifest(file)


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o4755, 0o440])
def test_modes(host: Path, secrets: Path, mode: int) -> None:
    secrets.mkdir()
    for file in (host / "files/plain", host / "files/t.makeimg.template", secrets / "key"):
        file.write_text("x")
        file.chmod(mode)

    found = members(write(host))

    assert found["files/plain"].mode == found["files/t"].mode == mode
    assert found["secrets/key"].mode == 0o600


def test_owner_is_root(host: Path) -> None:
    (host / "files/a").touch()

    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members(write(host)).values()} == {
        (0, 0, "", "", 0)
    }


def test_templates_are_rendered_here(host: Path) -> None:
    (host / "files/etc/conf.makeimg.template").write_text("a {{ TOKEN }}\n{{deployment}} {x}\n")
    (host / "files/etc/other.makeimg.patch").write_text("{{ not_a_value }}\n")

    file = write(host)

    assert content(file, "files/etc/conf") == b"a x{{ y }}\nd-1 {x}\n"
    assert content(file, "files/etc/other.makeimg.patch") == b"{{ not_a_value }}\n"
    assert manifest(file)["files"]["files/etc/conf"] == sha256(b"a x{{ y }}\nd-1 {x}\n").hexdigest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"fine\n{{ NOPE }}\n", "line 2: undefined name 'NOPE'"),
        (b"\n\n{{ token }}", "line 3: undefined name 'token'"),
        (b"\xff{{ TOKEN }}", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_template_that_cannot_be_rendered(host: Path, data: bytes, message: str) -> None:
    template = host / "files/etc/conf.makeimg.template"
    template.write_bytes(data)

    with pytest.raises(Failure) as caught:
        write(host)

    assert caught.value.message.startswith(f"{template}: {message}")
    assert caught.value.status == BAD_INPUT
    assert VALUES["TOKEN"] not in str(caught.value)
    assert not (host.parent / "payload").exists()


def test_failure_leaves_the_last_payload(host: Path) -> None:
    before = write(host).read_bytes()
    (host / "files/x.makeimg.template").write_text("{{ NOPE }}")

    with pytest.raises(Failure):
        write(host)

    assert (host.parent / "payload").read_bytes() == before


@pytest.mark.parametrize("target", ["motd", "/etc/shadow", "nowhere", "../../../x", "dir"])
def test_symbolic_links_stay_links(host: Path, target: str) -> None:
    (host / "files/dir").mkdir()
    (host / "files/link").symlink_to(target)

    member = members(write(host))["files/link"]

    assert (member.issym(), member.linkname) == (True, target)


@pytest.mark.parametrize("name", ODD)
def test_odd_names(host: Path, secrets: Path, tmp_path: Path, name: str) -> None:
    secrets.mkdir()
    (host / "files" / name).write_text("one")
    (host / "files" / f"link to {name}"[:250]).symlink_to(name)
    (secrets / name).write_text("two")

    file = write(host)
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "unpacked")

    assert (tmp_path / "unpacked/files" / name).read_text() == "one"
    assert (tmp_path / "unpacked/secrets" / name).read_text() == "two"
    assert manifest(file)["files"][f"files/{name}"] == sha256(b"one").hexdigest()


def test_no_files_no_secrets(host: Path) -> None:
    (host / "files/etc").rmdir()
    (host / "files").rmdir()

    assert list(members(write(host))) == ["manifest.json", "host/IMGBUILD"]


def test_no_regular_file(host: Path) -> None:
    os.mkfifo(host / "files/fifo")

    with pytest.raises(Failure, match=r"files/fifo: neither a regular file nor a symbolic link"):
        write(host)


def test_unreadable_file(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "files/locked").touch()

    def refuse(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(Failure, match=rf"{host}/\S+: Permission denied") as caught:
        write(host)

    assert caught.value.status == BAD_INPUT


def test_key_of_an_encrypted_volume(host: Path, secrets: Path, tmp_path: Path) -> None:
    words = "disk d serial=s\npart r fs=ext4 mount=/ size=1G\npart c\nluks x on=d/c key=etc/x.key"
    whole = imgbuild.interpret(host, {"target": "debian", "layout": words})
    with pytest.raises(Failure, match="no secret etc/x"):
        payload.write(tmp_path / "out", whole, "d-1", {}, secrets)
    fetched = replace(whole, server_secrets=("etc/x.key",))
    payload.write(tmp_path / "out", fetched, "d-1", {}, secrets)
    (secrets / "etc").mkdir(parents=True)
    (secrets / "etc/x.key").write_text("key")
    payload.write(tmp_path / "out", whole, "d-1", {}, secrets)


def test_who_logs_in(host: Path, secrets: Path) -> None:
    """What plain files say; where a link leads is not known before the installation."""
    assert payload.authorized(write(host)) == []
    for top, text in {host / "files": "of files\n", secrets: "of secrets\n"}.items():
        (top / payload.AUTHORIZED).parent.mkdir(parents=True)
        (top / payload.AUTHORIZED).write_text(text)
    assert payload.authorized(write(host)) == [b"of files\n", b"of secrets\n"]
    (host / "files" / payload.AUTHORIZED).unlink()
    (host / "files" / payload.AUTHORIZED).symlink_to("/etc/keys")
    assert payload.authorized(write(host)) == [b"of secrets\n"]
