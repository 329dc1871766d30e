"""Machines without an old system: `inv test` in a VM of its own, `inv export` started by hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from anemos.architecture import AMD64
from anemos.system import imgbuild
from anemos.workstation import images, places
from anemos.workstation.deploy import byhand
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.ssh import Endpoint, connect
from anemos.workstation.vm import vm
from tests import imaging, lab, tiny, tree
from tests.tree import ROOT, Tree

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]

FOREIGN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS a"
# The packages of hosts/demo: one package layer for both.
SERVER = """\
imgname=mx
target=debian
debian_suite=trixie
format=disk
bootloader=grub
cmdline='console=ttyS0 net.ifnames=0'
layout='
disk system serial=A-REAL-DISK-WITH-A-LONG-SERIAL image=3G
part bios type=bios size=1M
part root fs=ext4 mount=/
'
keep='
disk data serial=DATA wwn=naa.5000c500a1b2c3d4 part=3 mount=/home
'
test_secrets() {
    echo throw-away >PASSWORD
}
verify() {
    grep -q throw-away /etc/motd
    grep -q kept /home/anemos-test
    grep -q operator /root/.ssh/authorized_keys
}
"""
SERVER_TOML = f"""\
address = "203.0.113.5"
host_key = "{tree.HOST_KEY}"
[vm]
address = "203.0.113.5/24"
gateway = "203.0.113.1"
"""
SERVER_FILES = {
    "etc/hostname": "mx\n",
    "etc/motd.makeimg.template": "{{ PASSWORD }}\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\nallow-hotplug eth0\n"
    "iface eth0 inet static\n    address 203.0.113.5/24\n    gateway 203.0.113.1\n",
    "root/.ssh/authorized_keys": f"{FOREIGN_KEY}\n",
}
# Its package layer is faked, and has no kernel.
SMALL = """\
target=debian
format=disk
bootloader=grub
packages='grub-pc linux-image-amd64'
layout='
disk system serial=SYSTEM image=256M table=msdos
part root fs=ext4 mount=/
'
keep='
disk data wwn=naa.5000c500a1b2c3d4
'
"""
FAILS = SMALL + "provision() {\n    echo 'provision: not today'\n    false\n}\n"
# On the workstation it works.
FAILS_THERE = FAILS.replace(
    "    false\n", '    read -r words </proc/cmdline\n    test "${words#*oops=panic}" = "$words"\n'
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as copy:
        (copy.home / ".gnupg").mkdir(0o700)
        yield copy


def inv(project: Tree, cache: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run `inv WORDS --json` with the base image and the package layers in CACHE."""
    done = subprocess.run(
        [sys.executable, "-m", "anemos.workstation.cli.program", *words, "--json"],
        cwd=project.directory,
        env=tree.environment(project.home) | {"XDG_CACHE_HOME": os.fspath(cache.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5400,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def state(project: Tree, name: str) -> Path:
    return tree.where(f"state({name!r})", project.directory, project.home)


@pytest.fixture(scope="module")
def small(project: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the base image, and a package layer that is as small as can be."""
    cache = tmp_path_factory.mktemp("cache") / "anemos"
    cache.mkdir(0o700)
    with images.sources(AMD64) as (_, link):
        (cache / link.name).symlink_to(images.base())
    (cache / "accelerator").write_text(vm.accelerator())
    root = tiny.make(cache / "root")
    spec = imgbuild.load(project.host("small", imgbuild=SMALL))
    imaging.store(root, spec, cache)
    return cache


@pytest.mark.all
@pytest.mark.proves("VM", source="started by hand", target="Debian 13", disk="SCSI")
def test_real_server(project: Tree) -> None:
    """Its own network, disks and keys; a machine without its GPG key, its SSH key and itself."""
    demo = (ROOT / "hosts/demo/IMGBUILD").read_text()
    packages = demo[demo.index("packages='") :].split("\n'\n")[0] + "\n'\n"
    directory = project.host("mx", toml=SERVER_TOML, imgbuild=packages + SERVER)
    for path, data in SERVER_FILES.items():
        (directory / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / "files" / path).write_text(data)
    secret = project.directory / "secrets/mx/PASSWORD.gpg"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"for somebody else")

    status, report, log = inv(project, places.cache(), "test", "--host", "mx")

    assert status == 0, log
    assert (report["host"], report["verified"]) == ("mx", True)
    assert report["kept_disks"] == [{"serial": "DATA", "unchanged": True}]
    assert {each["name"] for each in report["checks"]} >= {"deployment", "port 22", "verify()"}
    assert "203.0.113.5/24" in log
    assert secret.read_bytes() == b"for somebody else"
    assert not list(state(project, "mx@test").iterdir())
    assert not list(project.memory.glob("mx*/*"))


@pytest.mark.all
@pytest.mark.parametrize("name", ["www", "mx"])
def test_servers(project: Tree, name: str) -> None:
    """The servers of the documentation pass their own tests, twice, and keep what is to be kept."""
    shutil.copytree(ROOT / "hosts" / name, project.directory / "hosts" / name)

    status, report, log = inv(project, places.cache(), "test", "--host", name, "--redeploy")

    assert status == 0, log
    assert report["verified"]
    assert {each["name"] for each in report["phases"]} >= {"in RAM", "plan", "kexec"}
    assert len(re.findall(r"^ *[0-9]+ passed", log, re.MULTILINE)) == 2, log


def test_definition_that_fails(project: Tree, small: Path) -> None:
    """Found out on the workstation: one message, nothing is started, nothing stays."""
    project.host("fails", imgbuild=FAILS)
    status, said, log = inv(project, small, "test", "--host", "fails")

    assert status == 2, log
    assert "fails@test: the definition fails:\n" in said["error"]
    assert "in provision(): `false`: exit status 1\n  | provision: not today" in said["error"]
    assert not list(state(project, "fails@test").iterdir())


@pytest.mark.all
def test_failing_provision(project: Tree, small: Path) -> None:
    """Past the point of no return: status 3, and the machine answers with its log.

    A corrected definition is installed on the same disks, and comes further.
    """
    project.host("fails", imgbuild=FAILS_THERE)
    try:
        status, said, log = inv(project, small, "test", "--host", "fails", "--keep")

        assert status == 3, log
        assert "in provision(): " in said["error"]
        home = state(project, "fails@test")
        port = int((home / "vm/port-1").read_text())
        public = (home / "ssh_host_ed25519_key.pub").read_text()
        where = Endpoint("127.0.0.1", port, public, home / "id_ed25519")
        with connect(where) as remote:
            assert "provision: not today" in remote.sh(["cat", "/run/anemos/log"])

        (project.directory / "hosts/fails/IMGBUILD").write_text(SMALL)
        kept = sha256((home / "vm/kept-data.img").read_bytes()).digest()
        status, said, log = inv(project, small, "test", "--host", "fails", "--reuse")
        assert (status, said["error"].count("the image has no kernel in /boot")) == (3, 1), log
        assert sha256((home / "vm/kept-data.img").read_bytes()).digest() == kept
    finally:
        assert inv(project, small, "test", "--host", "fails", "--stop")[0] == 0
    assert not list(state(project, "fails@test").iterdir())


@pytest.mark.all
def test_export_started_by_hand(project: Tree, small: Path) -> None:
    """It waits, and answers under the pinned key; nothing is written without the word."""
    with lab.opened() as room:
        port = vm.free_port()
        export = exported(project, small, room, port)
        before = [room.drive("system", serial="SYSTEM")]
        before += [room.drive("data", wwn="naa.5000c500a1b2c3d4")]
        digests = [lab.sha256(each) for each in before]
        words = [str(word) for word in byhand.qemu_words(export)]
        guest = room.start(before, *words, port=port)

        guest.await_ssh()
        guest.await_line("To be erased")
        assert [lab.sha256(each) for each in before] == digests
        assert inv(project, small, "go", "--host", "small", "--yes", "other")[0] == 2
        assert [lab.sha256(each) for each in before] == digests
        assert inv(project, small, "go", "--host", "small", "--yes", "small")[0] == 0
        status, said, _ = inv(project, small, "watch", "--host", "small")
        assert (status, said["status"]) == (3, 3)
        assert "the image has no kernel in /boot" in said["error"]
        assert "the image has no kernel in /boot" in guest.sh("cat /run/anemos/log")
        assert lab.sha256(before[0]) != digests[0]
        assert lab.sha256(before[1]) == digests[1]


def exported(project: Tree, cache: Path, room: lab.Room, port: int) -> Path:
    """The export of hosts/small, whose host key is among its secrets. It answers at PORT."""
    fingerprint = Keyring(project.home / ".gnupg").generate("Alice")
    (project.directory / "secrets").mkdir(exist_ok=True)
    (project.directory / "secrets/recipients").write_text(fingerprint)
    words = ["secrets.generate", "--host", "small", "--kind", "ssh-host-key"]
    status, made, log = inv(project, cache, *words)
    assert status == 0, log
    operator = room.directory / "operator"
    lines = ['address = "127.0.0.1"', f"port = {port}", f'identity = "{operator}"', made["public"]]
    project.host("small", "\n".join(lines), SMALL)
    room.host_key = made["public"].split('"')[1]
    output = room.directory / "export"
    network = ["--mac", "52:54:00:a2:e0:05", "--address", "10.0.2.15/24", "--gateway", "10.0.2.2"]
    status, said, log = inv(
        project, cache, "export", "--host", "small", f"--output={output}", *network
    )
    assert status == 0, log
    assert said["deployment"] in (output / "README").read_text()
    assert (output / "initrd").stat().st_mode & 0o777 == 0o600
    return output
