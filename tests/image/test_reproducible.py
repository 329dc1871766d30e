"""The same inputs, the same bytes: cold and warm, and whatever a build left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anemos import mounts
from anemos.image import build, layers, reproducible
from anemos.log import Failure
from anemos.run import run
from anemos.system import imgbuild, tree
from anemos.system.definition import Definition
from tests import imaging, tiny
from tests.tree import ROOT

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

LAYOUT = """
layout='
disk system serial=S image=128M
part esp type=esp size=34M fs=vfat mount=/boot/efi
part swap type=swap size=8M fs=swap
part home size=24M fs=ext4 mount=/home
part root fs=ext4 mount=/
'
"""
PROVISION = """
provision() {
    echo "$SOURCE_DATE_EPOCH" >/etc/built
    chmod 711 /usr/bin/hard
    rm /etc/gone
    mv /usr/share/old /usr/share/new
    mkdir -p /boot/efi/EFI/BOOT
    echo loader >/boot/efi/EFI/BOOT/BOOTX64.EFI
    echo "$$ $(cat /proc/uptime)" >/var/log/noise
    cat /proc/uptime >/etc/ssh/ssh_host_rsa_key
    cat /proc/uptime >/etc/machine-id
    cat /proc/uptime >/var/cache/ldconfig/aux-cache
}
"""
EPOCH = 1_600_000_000


@pytest.fixture
def host(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    for path, text in {
        "files/etc/conf": "one",
        "files/etc/motd.makeimg.template": "Welcome to {{ NAME }}!\n",
        "files/var/log/brought": "kept",
        "secrets/etc/ssh/ssh_host_ed25519_key": "secret",
        "values.json": json.dumps({"NAME": "swordfish"}),
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    for name in ("out", "cache"):
        (made / name).mkdir()
    return made


def describe(host: Path, form: str, more: str = "") -> None:
    """Write the IMGBUILD, and its package layer into the cache."""
    text = f"imgname=x\ntarget=debian\nformat='{form}'\n{LAYOUT if form == 'disk' else ''}"
    (host / "IMGBUILD").write_text(text + PROVISION + more)
    root = tiny.make(host.parent / "layer")
    for path, content in {
        "etc/gone": "",
        "etc/ssh/keep": "",
        "usr/bin/soft": "#!",
        "usr/share/old/x": "x",
        "var/cache/ldconfig/aux-cache": "",
        "var/lib/dpkg/status": STATUS,
        "var/log/dpkg.log": "today",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "usr/bin/hard").hardlink_to(root / "usr/bin/soft")
    os.setxattr(root / "usr/bin/cat", "user.colour", b"green")
    for path, _ in list(tree.walk(root)):
        os.utime(root / path, (EPOCH, EPOCH - len(path)), follow_symlinks=False)
    imaging.store(root, imgbuild.load(host), host / "cache")


STATUS = """\
Package: hello
Status: install ok installed
Architecture: amd64
Version: 2.10-3

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


def image(host: Path, *options: str, **env: str) -> list[Path]:
    argv = [sys.executable, "-m", "anemos.image", "--output", "out", "--cache", "cache"]
    argv += ["--values", "values.json", "--secrets", "secrets", *options]
    env |= {"PYTHONPATH": os.fspath(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, cwd=host, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [host / line for line in done.stdout.splitlines()]


def content(file: Path) -> object:
    if not file.is_dir():
        return file.read_bytes()
    run(["tar", "--create", "--sort=name", "--xattrs", "--file", f"{file}.tar", "-C", file, "."])
    return [(path, s.st_mode, s.st_uid, s.st_nlink, s.st_mtime) for path, s in tree.walk(file)], {
        path: (file / path).read_bytes() for path, _ in tree.walk(file) if (file / path).is_file()
    }


@pytest.mark.parametrize("form", ["disk", "tar zst", "tar gz", "squashfs", "dir"])
def test_cold_warm_and_again(host: Path, form: str) -> None:
    """A second, warm build, and one after the unpacked layer is gone: not a byte differs."""
    describe(host, form)
    found = []
    for number in range(3):
        time.sleep(1.1 if number else 0)  # times of files, in seconds, are other ones
        (made,) = image(host)
        found.append((content(made), (host / "out/x.manifest.json").read_text()))
        if len(found) == 2:
            run(["rm", "-r", *(d for d in (host / "cache").iterdir() if d.is_dir())])
        run(["rm", "-r", made])
    assert found[0] == found[1]
    assert found[0] == found[2]
    assert not [path for path in (host / "out").iterdir() if path.name.startswith(".")]


def test_nothing_is_left_of_a_build(host: Path) -> None:
    describe(host, "dir")
    (made,) = image(host)
    assert (made / "etc/built").read_text() == f"{EPOCH - 1}\n"
    assert not (made / "etc/ssh/ssh_host_rsa_key").exists()
    assert not (made / "var/cache/ldconfig/aux-cache").exists()
    assert (made / "etc/ssh/ssh_host_ed25519_key").read_text() == "secret"
    assert (made / "var/log/brought").read_text() == "kept"
    for emptied in ("etc/machine-id", "var/log/noise", "var/log/dpkg.log"):
        assert (made / emptied).read_bytes() == b""
    assert not (made / "etc/gone").exists()
    assert (made / "usr/share/new/x").read_text() == "x"
    # A hard link whose mode was changed is one still.
    assert (made / "usr/bin/hard").samefile(made / "usr/bin/soft")
    assert (made / "usr/bin/soft").stat().st_mode & 0o777 == 0o711
    assert os.getxattr(made / "usr/bin/cat", "user.colour") == b"green"
    assert max(status.st_mtime for _, status in tree.walk(made)) == EPOCH - 1


def test_date_of_the_environment(host: Path) -> None:
    describe(host, "dir")
    (made,) = image(host, SOURCE_DATE_EPOCH="1500000000")
    assert (made / "etc/built").read_text() == "1500000000\n"
    assert {status.st_mtime for _, status in tree.walk(made)} == {1500000000}


@pytest.mark.parametrize("text", ["today", "-1", "1.5", "\u0663", "9" * 12])
def test_bad_date(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(Failure, match=r"SOURCE_DATE_EPOCH is .*, no number of seconds"):
        reproducible.given(0)


def test_traces_behind_links(tmp_path: Path) -> None:
    """Links in the image lead to nothing outside of it."""
    outside = tmp_path / "outside"
    (outside / "lists").mkdir(parents=True)
    (outside / "lists/a_b").write_text("precious")
    (outside / "wtmp").write_text("precious")
    root = tmp_path / "root"
    (root / "var/lib").mkdir(parents=True)
    (root / "var/log").symlink_to(outside)
    (root / "var/lib/apt").symlink_to(outside)
    (root / "etc").mkdir()
    (root / "etc/machine-id").symlink_to(outside / "wtmp")
    reproducible.forget(root, frozenset())
    assert [(outside / name).read_text() for name in ("wtmp", "lists/a_b")] == ["precious"] * 2


def test_manifest(host: Path) -> None:
    describe(host, "tar")
    image(host)
    text = (host / "out/x.manifest.json").read_text()
    found = json.loads(text)
    assert found["packages"] == [["hello", "2.10-3", "amd64"]]
    assert found["source_date_epoch"] == EPOCH - 1
    assert "tar (GNU tar)" in found["tools"]["tar"]
    files = {entry["path"]: entry for entry in found["files"]}
    digest = run(["sha256sum", host / "files/etc/conf"]).split()[0]
    assert files["etc/conf"]["sha256"] == found["inputs"]["files/etc/conf"] == digest
    assert files["bin"]["target"] == "usr/bin"
    assert files["."]["type"] == "directory"
    # What is secret, or made with a secret value, has neither size nor digest.
    for path in ("etc/ssh/ssh_host_ed25519_key", "etc/motd"):
        assert set(files[path]) == {"path", "type", "mode", "uid", "gid", "mtime"}
    assert not [name for name in found["inputs"] if "secrets" in name]
    for value in (b"secret", b"Welcome to swordfish!\n"):
        assert run(["sha256sum"], data=value).split()[0] not in text


def test_changed_layer(host: Path) -> None:
    """A new layer of the same name replaces what was unpacked of the old one."""
    describe(host, "dir")
    image(host)
    run(["rm", "-r", host / "out/x", host.parent / "layer"])
    stale = host / "cache/layer-0123"
    stale.mkdir()
    (stale / "state.json").write_text("{}")
    describe(host, "dir", "# changed\n")
    run(["rm", "-r", host.parent / "layer/usr/bin/soft"])
    imaging.store(host.parent / "layer", imgbuild.load(host), host / "cache")
    (made,) = image(host)
    assert not (made / "usr/bin/soft").exists()
    assert not stale.exists()


def test_build_cannot_change_the_cache(host: Path) -> None:
    describe(host, "dir")
    image(host)
    (layer,) = (host / "cache").glob("*.zst")
    before = content(layer.with_name(layer.name.removesuffix(".tar.zst")) / "root")
    run(["rm", "-r", host / "out/x"])
    (host / "IMGBUILD").write_text(
        "imgname=x\ntarget=debian\nprovision() { rm -rf --no-preserve-root / || :; }"
    )
    subprocess.run(
        [sys.executable, "-m", "anemos.image", "--output", "out", "--cache", "cache"],
        cwd=host,
        env={"PYTHONPATH": os.fspath(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert content(layer.with_name(layer.name.removesuffix(".tar.zst")) / "root") == before


def test_without_overlay(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be mounted, the layer is unpacked: the image is the same."""
    describe(host, "tar")
    (made,) = image(host)
    monkeypatch.setattr(mounts, "privileged", lambda: False)
    (host / "again").mkdir()
    given = Definition([host / "files"], {"NAME": "swordfish"}, host / "secrets")
    (again,) = build.build(imgbuild.load(host), given, host / "again", cache=host / "cache")
    assert again.read_bytes() == made.read_bytes()


def bootstrapped(host: Path) -> Path:
    """A directory for PATH with a mmdebstrap that makes what is in the cache."""
    (layer,) = (host / "cache").glob("*.zst")
    programs = host / "bin"
    programs.mkdir()
    run(["zstd", "-q", "-d", layer, "-o", host / "layer.tar"])
    (programs / "mmdebstrap").write_text(MMDEBSTRAP.format(layer=host / "layer.tar"))
    (programs / "mmdebstrap").chmod(0o755)
    return programs


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_damaged_layer(host: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """It is made anew; what a build that was killed has left in the cache goes."""
    describe(host, "dir")
    monkeypatch.setenv("PATH", os.fspath(bootstrapped(host)), prepend=":")
    spec = imgbuild.load(host)
    layer = build.layer(spec, cache=host / "cache")  # its key has the program's digest, too
    good = layer.read_bytes()
    match damage:
        case "empty":
            layer.write_bytes(b"")
        case "cut":
            layer.write_bytes(good[:-1])
        case "changed":
            layer.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (host / "cache/.layer-x").mkdir()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", f"{EPOCH}")
    assert build.layer(spec, cache=host / "cache").read_bytes() == good
    assert not list((host / "cache").glob(".*"))


MMDEBSTRAP = """#!/bin/sh
# Stands for mmdebstrap: the output is the argument that is a .tar.
for output; do case $output in *.tar) break; esac; done
cp {layer} "$output"
"""


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("", ""),
        ("cat /proc/uptime >/etc/now", '> {"path": "etc/now",'),
        (": >/etc/$(cat /proc/sys/kernel/random/uuid)", '< {"path": "etc/'),
        ("umask 077; cat /proc/uptime >/etc/now", "x/etc/now: other bytes"),
    ],
)
def test_check(host: Path, noise: str, message: str) -> None:
    """--check tells what two builds differ in."""
    describe(host, "dir", f"provision() {{ {noise or ':'}; }}\n")
    programs = bootstrapped(host)
    argv = [sys.executable, "-m", "anemos.image", "--check", "--output", "out"]
    argv += ["--values", "values.json", "--secrets", "secrets"]
    env = {"PYTHONPATH": os.fspath(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(argv, cwd=host, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if message else 0), done.stderr
    assert not message or "error: x: two builds differ:\n  | " in done.stderr
    assert message in done.stderr
    assert done.stdout == "out/x\n"
    assert (host / "out/x/etc/conf").exists()


@pytest.mark.parametrize(
    ("mirror", "date"),
    [
        (None, None),
        ({"a": " 12"}, None),
        ({"a": "never 12"}, None),
        ({"a": "Thu, 01 Jan 1970 00:01:00 GMT 5", "b": "Thu, 01 Jan 1970 00:02:00 GMT 5"}, 120),
    ],
)
def test_date_of_a_mirror(mirror: dict[str, str] | None, date: int | None) -> None:
    assert layers.date(mirror) == date
