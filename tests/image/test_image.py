"""The whole image builder, as its user runs it: python3 -m anemos.image."""

import json
import os
import stat
import tarfile
import time
from pathlib import Path

import pytest

from anemos.image import build, layers
from anemos.log import Failure
from anemos.run import CommandFailed, run
from anemos.system import bootstrap, imgbuild, slots
from anemos.system.bootloader import grub
from anemos.system.bootstrap import debian
from anemos.system.definition import Definition
from anemos.system.layout import SHARED
from anemos.system.slots import Record, Slot
from tests import tiny
from tests.imaging import describe, image

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

PROVISION = """
provision() {
    echo "I am process $$"
    chown 5:6 /etc/key
    cat /etc/motd
    sleep 1000 &
}
"""
LAYOUT = """
layout='
disk system serial=S image=64M
part root fs=ext4 mount=/ size=32M
part home fs=ext4 mount=/home
'
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory with everything that a build can take."""
    made = tmp_path / "host"
    for path, text in {
        "files/etc/conf": "files",
        "files/etc/motd.makeimg.template": "Welcome to {{ host }}!\n",
        "more/etc/conf": "more",
        "more/home/alice/x": "x",
        "secrets/etc/key": "secret",
        "values.json": json.dumps({"host": "mx"}),
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    (made / "out").mkdir()
    return made


OPTIONS = ("--output", "out", "--values", "values.json", "--secrets", "secrets", "files", "more")


def test_tar(host: Path) -> None:
    describe(host, f"format='tar gz'\n{PROVISION}")
    done = image(host, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out/mx.tar.gz\n"
    assert str(host) not in Path("/proc/self/mountinfo").read_text()
    log = [line.strip() for line in done.stderr.splitlines()]
    assert log.index("I am process 1") + 1 == log.index("Welcome to mx!")
    with tarfile.open(host / "out/mx.tar.gz") as archive:
        members = {member.name: member for member in archive}
        texts = {
            name: file.read()
            for name in ("./etc/conf", "./etc/motd", "./etc/key")
            if (file := archive.extractfile(name))
        }
    assert texts == {
        "./etc/conf": b"more",
        "./etc/motd": b"Welcome to mx!\n",
        "./etc/key": b"secret",
    }
    key = members["./etc/key"]
    assert (key.mode, key.uid, key.gid) == (0o600, 5, 6)
    assert members["."].mode == members["./home/alice"].mode == 0o755
    assert not {"./usr/sbin/policy-rc.d", "./etc/resolv.conf"} & members.keys()


def test_default_directories(host: Path) -> None:
    """./files in, the working directory out."""
    describe(host, "format=dir\n")
    (host / "files/etc/motd.makeimg.template").unlink()
    layer = next((host / "out").iterdir())
    layer.rename(host / layer.name)
    done = image(host)
    assert (done.returncode, done.stdout) == (0, "mx\n"), done.stderr
    assert (host / "mx/etc/conf").read_text() == "files"
    assert stat.S_IMODE((host / "mx").stat().st_mode) == 0o755


def test_disk(host: Path) -> None:
    describe(host, f"format=disk\n{LAYOUT}{PROVISION}")
    done = image(host, *OPTIONS)
    assert (done.returncode, done.stdout) == (0, "out/mx-system.img\n"), done.stderr
    file = host / "out/mx-system.img"
    for start, path, text in ((1, "/etc/conf", "more"), (33, "/alice/x", "x")):
        where = f"{file}?offset={start * 2**20}"
        run(["e2fsck", "-f", "-n", where])
        assert run(["debugfs", "-R", f"cat {path}", where]) == text


SLOTS = """
format=disk
bootloader=grub
layout='
disk system serial=S image=256M
part bios type=bios size=1M
part boot fs=ext4 size=32M
part root fs=ext4 size=48M mount=/ slots=2
part srv  fs=ext4 mount=/srv
'
provision() { mkdir /srv; echo here >/srv/x; }
"""
MKIMAGE = """#!/bin/sh
for word; do case $word in --output=*) printf "%-999s" "core $*" >"${word#--output=}" ;; esac; done
"""


def with_grub(tree: Path) -> None:
    """A kernel, and what stands for GRUB."""
    files = {"boot/vmlinuz-6.1": "kernel", "boot/initrd.img-6.1": "initrd"}
    files |= {f"usr/lib/grub/i386-pc/{name}": name for name in ("kernel.img", "boot.img", "x.mod")}
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text.ljust(512))
    (tree / "usr/bin/grub-mkimage").write_text(MKIMAGE)
    (tree / "usr/bin/grub-mkimage").chmod(0o755)


def test_slots(host: Path) -> None:
    """The first slot is filled and the default, the second one is empty; both start from what they
    share, which no slot mounts at boot."""
    with_grub(tiny.make(host.parent / "layer"))
    describe(host, SLOTS)
    done = image(host, *OPTIONS)
    assert (done.returncode, done.stdout) == (0, "out/mx-system.img\n"), done.stderr
    file = host / "out/mx-system.img"

    def read(start: int, path: str) -> str:
        return run(["debugfs", "-R", f"cat {path}", f"{file}?offset={start * 2**20}"])

    uuid = run(["blkid", "-p", "-O", f"{34 * 2**20}", "-o", "value", "-s", "UUID", file]).strip()
    record = slots.decoded(read(2, slots.FILE).encode())
    assert record == Record("a", {"a": Slot("good", uuid), "b": Slot()})
    assert read(2, "/grub/grub.cfg") == grub.CHOICE
    assert read(2, "/grub/i386-pc/x.mod").startswith("x.mod")
    assert read(2, "/grub/i386-pc/core.img").startswith("core --format=i386-pc")
    assert f"root=UUID={uuid} ro" in read(34, "/boot/grub/grub.cfg")
    listed = run(["debugfs", "-R", "ls /boot/grub", f"{file}?offset={34 * 2**20}"])
    assert "grub.cfg" in listed and "i386-pc" not in listed
    fstab = sorted(line.split()[1:4] for line in read(34, "/etc/fstab").splitlines())
    assert fstab == [
        ["/", "ext4", "defaults"],
        ["/srv", "ext4", "defaults"],
        [SHARED, "ext4", "noauto"],
    ]
    with file.open("rb") as disk:
        disk.seek(82 * 2**20)
        assert not any(disk.read(48 * 2**20))
    assert read(130, "/x") == "here\n"
    for start in (2, 34, 130):
        run(["e2fsck", "-f", "-n", f"{file}?offset={start * 2**20}"])


def test_same_definition_same_uuids(host: Path) -> None:
    describe(host, f"format=disk\n{LAYOUT}")
    tables = []
    for _ in range(2):
        assert image(host, *OPTIONS).returncode == 0
        tables.append(run(["sfdisk", "--dump", host / "out/mx-system.img"]))
    assert tables[0] == tables[1]


def test_layer(host: Path) -> None:
    describe(host, "")
    done = image(host, "--layer", "--cache", "out")
    (layer,) = (host / "out").glob("*.zst")
    assert (done.returncode, done.stdout) == (0, f"out/{layer.name}\n")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", ["nowhere"], "argument DIR: 'nowhere' is no directory"),
        ("", ["--output", "nowhere"], "argument --output: 'nowhere' is no directory"),
        ("", ["--cache", "IMGBUILD"], "argument --cache: 'IMGBUILD' is no directory"),
        ("", ["--secrets", "nowhere"], "argument --secrets: 'nowhere' is no directory"),
        ("", ["--directory", "nowhere"], "argument --directory: 'nowhere' is no directory"),
        ("", ["--directory", "files"], "error: files: no IMGBUILD there"),
        ("", ["--values", "nowhere"], "argument --values: 'nowhere': [Errno 2] No such file"),
        ("", ["--values", "IMGBUILD"], "argument --values: 'IMGBUILD': Expecting value: line 1"),
        ("", ["--values", "list"], "argument --values: 'list': not an object with strings as val"),
        ("", ["--max-age", "week"], "argument --max-age: invalid float value: 'week'"),
        ("format=disk", [], "error: ./IMGBUILD: format=disk needs a layout"),
        ("if", [], "error: ./IMGBUILD: line 4: Syntax error: end of file unexpected"),
        ("", [], "error: files/etc/motd.makeimg.template: line 1: undefined name 'host'"),
    ],
)
def test_mistakes(host: Path, text: str, options: list[str], message: str) -> None:
    """One message, no traceback, status 2, no image."""
    describe(host, "")
    (host / "IMGBUILD").write_text(f"imgname=mx\ntarget=debian\n{text}\n")
    (host / "list").write_text('{"a": 1}')
    cache = () if {"--cache", "--output"} & set(options) else ("--cache", "out")
    done = image(host, *options, *cache)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not [path for path in host.rglob("mx*") if path.suffix != ".zst"]


def test_try(host: Path) -> None:
    """All of the definition, with its secrets, in memory: nothing of it stays."""
    describe(host, PROVISION)
    (layer,) = (host / "out").glob("*.zst")
    done = image(host, *OPTIONS, "--try")
    assert (done.returncode, done.stdout) == (0, f"out/{layer.name}\n"), done.stderr
    assert "Welcome to mx!" in done.stderr
    assert not [*(host / "out").rglob("key"), *(host / "out").rglob("motd")]


@pytest.mark.parametrize("more", [[], ["--try"]])
def test_provision_that_fails(host: Path, more: list[str]) -> None:
    describe(host, "provision() {\n    echo because\n    false  # here\n}\n")
    done = image(host, *OPTIONS, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2:] == [
        "error: IMGBUILD: line 5: in provision(): `false  # here`: exit status 1",
        "  | because",
    ]


def test_workspace() -> None:
    with build.workspace() as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o755
        (scratch / "x").touch()
    assert not scratch.exists()


class Bootstrap:
    """Stands for mmdebstrap: counts, and writes a layer with its number in it, dated as told."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _spec: object, output: Path) -> None:
        self.count += 1
        with tarfile.open(output, "w") as archive:
            info = tarfile.TarInfo(f"number-{self.count}")
            info.mtime = int(os.environ["SOURCE_DATE_EPOCH"])
            archive.addfile(info)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Bootstrap:
    made = Bootstrap()
    monkeypatch.setattr(bootstrap, "bootstrap", made)
    return made


def layer_of(host: Path, text: str, max_age_s: float = 100) -> Path:
    (host / "IMGBUILD").write_text(f"target=debian\n{text}\n")
    return build.layer(imgbuild.load(host), cache=host / "out", max_age_s=max_age_s)


def age(layer: Path, seconds: float) -> None:
    os.utime(layer, (layer.stat().st_mtime - seconds,) * 2)


@pytest.mark.parametrize(("age_s", "count"), [(0.0, 1), (99.0, 1), (101.0, 2)])
def test_age_of_layers(
    tmp_path: Path, host: Path, counter: Bootstrap, age_s: float, count: int
) -> None:
    start = int(time.time())
    made = layer_of(host, "")
    age(made, age_s)
    assert layer_of(host, "") == made
    assert counter.count == count
    assert set((host / "out").iterdir()) == {made, made.with_name(made.name[:-8] + ".json")}
    bootstrap.unpack(made, tmp_path)
    # A mirror that does not tell its state has the clock's, so that the layer can be made again.
    assert start <= (tmp_path / f"number-{count}").stat().st_mtime <= time.time()


def test_state_of_the_mirror(
    host: Path, counter: Bootstrap, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror that tells its state counts for more than the age; one that cannot does not."""
    release = host / "mirror/dists/stable/InRelease"
    release.parent.mkdir(parents=True)
    release.write_text("one")
    mirror = f"mirror=file://{host}/mirror"
    made = layer_of(host, mirror)
    age(made, 1000)
    assert layer_of(host, mirror) == made
    assert counter.count == 1
    release.write_text("another")
    assert layer_of(host, mirror) == made
    assert counter.count == 2
    assert f"to be made (mirror: changed: file://{release})" in capsys.readouterr().err
    release.unlink()
    assert layer_of(host, mirror) == made
    assert counter.count == 2
    age(made, 7300)
    layer_of(host, mirror)
    assert counter.count == 3
    assert "to be made (it is 2 hours old)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("packages='a\nnginx'", "packages: + nginx, - apache2"),
        ("packages='a\napache2'\ndebian_suite=sid", "debian_suite: stable -> sid"),
        ("packages='a\napache2'\nmirror=/x", "mirror: none -> /x"),
        ("packages='a'\nexcludes=/x", "excludes: + /x; packages: - apache2"),
    ],
)
def test_why_a_layer_is_made(
    host: Path, counter: Bootstrap, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    layer_of(host, "packages='apache2\na'")
    assert "Package layer: to be made (the first one of host)" in capsys.readouterr().err
    layer_of(host, text)
    assert f"Package layer: to be made ({reason})" in capsys.readouterr().err
    layer_of(host, "imgname=other\n" + text)
    assert "from the cache" in capsys.readouterr().err
    assert counter.count == 2


def test_damaged_note(host: Path, counter: Bootstrap) -> None:
    made = layer_of(host, "")
    made.with_name(made.name[:-8] + ".json").write_text("{")
    assert layer_of(host, "") == made
    assert counter.count == 1


@pytest.mark.usefixtures("counter")
def test_old_layers_are_removed(host: Path) -> None:
    """The newest three of each image stay, and what is not older than a day."""
    days = 86400
    shared = layer_of(host, "imgname=other\npackages=shared")
    age(shared, 9 * days)
    made = []
    for number in range(6):
        made.append(layer_of(host, f"packages={number}"))
        age(made[-1], (6 - number) * days)
    assert layer_of(host, "packages=shared", 99 * days) == shared  # is now an image's fourth, too
    stranger = host / "out/layer-0123456789abcdef.tar.zst"
    stranger.touch()
    age(stranger, 2 * days)
    newest = layer_of(host, "packages=newest")
    assert set((host / "out").glob("*.zst")) == {shared, *made[4:], newest}
    assert len(list((host / "out").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ({"a": ["x"]}, {"a": [{}]}, "a: changed"),
        ({"keys": {"a": "1", "b": "1"}}, {"keys": {"b": "2", "c": "1"}}, "keys: a, b, c"),
        ({"suite": ""}, {"suite": "x"}, "suite: none -> x"),
        ({}, {"new": ["x"]}, "new: none -> ['x']"),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, "a: changed"),
    ],
)
def test_difference(old: dict[str, object], new: dict[str, object], text: str) -> None:
    assert layers.difference(old, new) == text


def test_failed_bootstrap_leaves_the_old_layer(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_spec: object, _output: Path) -> None:
        raise Failure("mirror is down")

    monkeypatch.setattr(bootstrap, "bootstrap", fail)
    describe(host, "")
    (layer,) = (host / "out").iterdir()
    old = layer.read_bytes()
    with pytest.raises(Failure, match="mirror is down"):
        build.layer(imgbuild.load(host), cache=host / "out", max_age_s=-1)
    assert layer.read_bytes() == old


def test_damaged_layer(host: Path) -> None:
    describe(host, "")
    (layer,) = (host / "out").iterdir()
    layer.write_bytes(layer.read_bytes()[:-1000])
    with pytest.raises(CommandFailed, match="tar --extract"):
        build.build(imgbuild.load(host), Definition(), host, cache=host / "out")
    assert not (host / "mx").exists()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("packages='b\na'", True),
        ("packages='a b'\nimgname=x\ncmdline=quiet\nprovision() { :; }", True),
        ("packages='a'", False),
        ("packages='a b'\ndebian_suite=sid", False),
        ("packages='a b'\nmirror=m", False),
        ("packages='a b'\nexcludes=/usr/share/doc/*", False),
    ],
)
def test_key(host: Path, text: str, same: bool) -> None:
    """A layer's name tells what it depends on, nothing more."""
    (host / "IMGBUILD").write_text("target=debian\npackages='a\nb'\n")
    key = bootstrap.key(imgbuild.load(host))
    (host / "IMGBUILD").write_text(f"target=debian\n{text}\n")
    assert (bootstrap.key(imgbuild.load(host)) == key) == same


def test_mmdebstrap(host: Path) -> None:
    (host / "IMGBUILD").write_text("target=debian\npackages='a\nb'\nexcludes='/x/*\n/y'\nmirror=m")
    argv = debian.mmdebstrap(imgbuild.load(host), Path("/out.tar"))
    assert {"--include=a,b", "--dpkgopt=path-exclude=/x/*", "--dpkgopt=path-exclude=/y"} <= set(
        map(str, argv)
    )
    assert argv[-3:] == ["stable", Path("/out.tar"), "m"]
    (host / "IMGBUILD").write_text("target=debian")
    argv = debian.mmdebstrap(imgbuild.load(host), Path("/out.tar"))
    assert argv[-2:] == ["stable", Path("/out.tar")]
    assert not [word for word in argv if str(word).startswith(("--include", "--dpkgopt"))]
