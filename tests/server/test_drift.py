"""What somebody has changed on a server since its deployment, and what is told of it."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import pytest

from anemos import mounts
from anemos.border import records
from anemos.border.boot import Seen, Stamp
from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.run import run
from anemos.server import drift as server
from anemos.server import staging
from anemos.system import changes, imgbuild, installation, manifest, packages
from anemos.system.changes import Change
from anemos.system.installation import Installation
from anemos.workstation import images
from anemos.workstation.deploy import drift, fleet, status
from anemos.workstation.deploy.status import Status
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway
from tests import sshd, tiny

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

BASE = f"/var/lib/anemos/base-{'0' * 64}.squashfs"
IMGBUILD = """
target=debian
volatile='/opt/app/data'
layout='
disk system serial=S
part root fs=ext4 mount=/ size=64M
part var fs=ext4 mount=/data
'
"""
STATUS = """\
Package: {}
Status: install ok installed
Version: {}
Architecture: amd64

"""
SECRETS = {"etc/key": "a secret key", "etc/open": "told to all", "etc/shadow": "root:hash::"}
TEMPLATE = "password = rendered"
PRIVATE = "in a closed directory"
FILES = {
    "etc/motd": "hello\n",
    "etc/tool.conf": "tool\n",
    "usr/bin/tool": "a program\n",
    "usr/bin/other": "another one\n",
    "root/private": PRIVATE,
    "var/log/syslog": "a line\n",
    "etc/group": "sudo:x:27:\n",
    "var/lib/dpkg/status": STATUS.format("tool", "1.0") + STATUS.format("other", "2.0"),
    "var/lib/dpkg/info/tool.list": "/.\n/bin/tool\n/etc/tool.conf\n",
    "var/lib/dpkg/info/other:amd64.list": "/.\n/usr/bin/other\n",
    "etc/anemos/deployment.json": records.text(Stamp("d-1", "mx", "0" * 64)),
}


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what the scripts of server/ call."""
    programs = ("chroot", "cut", "env", "grep", "head", "mount", "tail", "tr", "uname", "unshare")
    return tiny.make(tmp_path_factory.mktemp("layer") / "root", *programs)


def make(layer: Path, top: Path) -> Installation:
    """A system that was just installed, and the payload that it is made of."""
    root = top / "root"
    run(["cp", "--archive", layer, root])
    for path, text in {**FILES, **SECRETS, "etc/app.conf": TEMPLATE}.items():
        write(root, path, text)
    for path, text in SECRETS.items():
        write(top, f"payload/secrets/{path}", text)
    write(top, "payload/files/etc/app.conf", TEMPLATE)
    write(top, "payload/host/IMGBUILD", IMGBUILD)
    (top / "payload/files/etc/app.conf").chmod(0o640)  # `pack` has seen that it has a secret value
    for path in ("etc/key", "etc/shadow"):
        (root / path).chmod(0o600)
    (root / "root").chmod(0o700)
    (root / "etc/link").symlink_to("motd")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "nginx.service").symlink_to("/lib/systemd/system/nginx.service")
    for each in ("data", "opt/app/data"):
        (root / each).mkdir(parents=True)
    spec = imgbuild.load(top / "payload/host")
    return Installation(spec, root, "d-1", "{}", None, (top / "base", "0" * 64), top)


@pytest.fixture
def system(layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    given = make(layer, tmp_path)
    installation.leave_manifest(given)
    monkeypatch.setattr(staging, "HOST", given.root)
    return given.root


def found(*more: str) -> list[tuple[str, str, str]]:
    return [(each.kind, each.name, each.what) for each in server.find(more).changes]


@pytest.fixture(autouse=True)
def courtesy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the tests that follow."""
    monkeypatch.setattr(os, "nice", lambda _: 0)


def rewrite(root: Path, path: str) -> None:
    text = (root / path).read_text()
    (root / path).unlink()
    write(root, path, text)


def install(root: Path, package: str, version: str, *paths: str) -> None:
    for path in paths:
        write(root, path, version)
    stanzas = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    kept = [each for each in stanzas if each and not each.startswith(f"Package: {package}\n")]
    text = "\n\n".join([*kept, STATUS.format(package, version)])
    write(root, "var/lib/dpkg/status", text)
    write(root, f"var/lib/dpkg/info/{package}.list", "".join(f"/{path}\n" for path in paths))


def add(root: Path, path: str, text: str) -> None:
    with (root / path).open("a") as file:
        file.write(text)


def replaced(root: Path) -> None:
    (root / "etc/motd").unlink()
    (root / "etc/motd").symlink_to("/run/motd")


def relinked(root: Path) -> None:
    (root / "etc/link").unlink()
    (root / "etc/link").symlink_to("key")


def directory(root: Path) -> None:
    for path in ("opt/tool/bin/a", "opt/tool/b", "opt/tool-2"):
        write(root, path, "x")


def units(root: Path) -> None:
    wants = root / "etc/systemd/system/multi-user.target.wants"
    (wants / "nginx.service").unlink()
    (wants / "cron.service").symlink_to("/lib/systemd/system/cron.service")


def odd(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/etc/\xff")).write_text("x")
    os.mkfifo(root / "etc/fifo")


def accounts(root: Path) -> None:
    add(root, "etc/passwd", "bob:x:1000:1000::/home/bob:/bin/sh\n")
    write(root, "etc/group", "sudo:x:27:bob\n")


def by_itself(root: Path) -> None:
    for path in CHANGING:
        write(root, path, "x")


Act = Callable[[Path], object]
GOAL = "multi-user.target"
CHANGING = (
    "etc/machine-id",
    "etc/rc2.d/S01x",
    "etc/ssh/ssh_host_rsa_key",
    "opt/app/data/x/y",
    "root/.cache/x",
    "tmp/x",
    "usr/lib/python3/__pycache__/x.pyc",
    "var/log/new",
)
DRIFTS: dict[str, tuple[Act, list[tuple[str, str, str]]]] = {
    "nothing": (lambda root: None, []),
    "same": (lambda root: rewrite(root, "etc/motd"), []),
    "content": (lambda root: add(root, "etc/motd", "x"), [("file", "/etc/motd", "content")]),
    "mode": (
        lambda root: (root / "usr/bin/tool").chmod(0o4755),
        [("file", "/usr/bin/tool", "mode 0644 -> 4755")],
    ),
    "owner": (
        lambda root: os.chown(root / "etc/motd", 5, 6),
        [("file", "/etc/motd", "owner 0:0 -> 5:6")],
    ),
    "root": (lambda root: root.chmod(0o700), [("file", "/", "mode 0755 -> 0700")]),
    "link": (relinked, [("file", "/etc/link", "leads to key, before to motd")]),
    "type": (replaced, [("file", "/etc/motd", "file -> link")]),
    "directory": (
        directory,
        [("file", "/opt/tool", "added, with 3 below it"), ("file", "/opt/tool-2", "added")],
    ),
    "removed": (
        lambda root: shutil.rmtree(root / "etc/anemos"),
        [("file", "/etc/anemos", "removed, with 1 below it")],
    ),
    "odd": (odd, [("file", "/etc/\\xff", "added"), ("file", "/etc/fifo", "added")]),
    "secret": (lambda root: add(root, "etc/key", "x"), [("file", "/etc/key", "written to")]),
    "closed": (lambda r: add(r, "root/private", "x"), [("file", "/root/private", "written to")]),
    "secret for all": (
        lambda root: (root / "etc/key").chmod(0o644),
        [("file", "/etc/key", "mode 0600 -> 0644")],
    ),
    "new package": (
        lambda root: install(root, "htop", "3.2", "usr/bin/htop"),
        [("package", "htop", "added: 3.2")],
    ),
    "upgrade": (
        lambda root: install(root, "tool", "1.1", "usr/bin/tool", "etc/tool.conf"),
        [("package", "tool", "1.0 -> 1.1"), ("file", "/etc/tool.conf", "content")],
    ),
    "accounts": (
        accounts,
        [
            ("user", "bob", "added: 1000:1000::/home/bob:/bin/sh"),
            ("group", "sudo", "27: -> 27:bob"),
            ("file", "/etc/group", "content"),
            ("file", "/etc/passwd", "content"),
        ],
    ),
    "units": (
        units,
        [("unit", "cron.service", f"added: {GOAL}"), ("unit", "nginx.service", f"removed: {GOAL}")],
    ),
    "volatile": (
        by_itself,
        [("file", "/etc/ssh", "added"), ("file", "/usr/lib/python3", "added")],
    ),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift(system: Path, name: str) -> None:
    act, expected = DRIFTS[name]
    act(system)
    assert found("/opt/app/data") == expected


def test_another_file_system(system: Path) -> None:
    """It is kept, or somebody has mounted it: named, and not looked at."""
    with mounts.mounted("-t", "tmpfs", "tmpfs", at=system / "data"):
        write(system, "data/file", "x")
        told = server.find([])
    assert told == server.Drift([], ["/data"])


def test_file_system_of_the_layout(
    layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files count. Where it is not mounted, they are not missing."""
    given = make(layer, tmp_path)
    monkeypatch.setattr(staging, "HOST", given.root)
    with mounts.mounted("-t", "tmpfs", "tmpfs", at=given.root / "data"):
        write(given.root, "data/file", "x")
        installation.leave_manifest(given)
        (given.root / "data/file").write_text("y")
        assert found() == [("file", "/data/file", "content")]
    assert server.find([]) == server.Drift([], ["/data"])


def test_nothing_secret_is_in_a_manifest(system: Path) -> None:
    """Neither of secrets and templates, whatever their modes, nor of what only root may read."""
    file = system / manifest.FILE
    text = gzip.decompress(file.read_bytes()).decode()
    assert file.stat().st_mode & 0o777 == 0o600
    assert sha256(b"hello\n").hexdigest() in text
    for secret in (*SECRETS.values(), TEMPLATE, PRIVATE):
        assert sha256(secret.encode()).hexdigest() not in text
        assert secret not in text
    entries = {each.path: each for each in manifest.read(system).entries}
    for path in (*SECRETS, "etc/app.conf", "root/private"):
        assert (entries[path].secret, entries[path].content) == (True, "")


def test_a_full_disk_is_no_failure(layer: Path, tmp_path: Path) -> None:
    given = make(layer, tmp_path)
    with mounts.mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", at=given.root / "var/lib"):
        write(given.root, "var/lib/full", "x" * 4096)
        installation.leave_manifest(given)
        assert list((given.root / "var/lib/anemos").iterdir()) == []


@pytest.mark.parametrize(
    "damage", [b"", b"x", gzip.compress(b"{}", mtime=0), gzip.compress(b"[", mtime=0)]
)
def test_damaged_manifest(system: Path, damage: bytes) -> None:
    (system / manifest.FILE).write_bytes(damage)
    with pytest.raises(Failure, match=r"manifest\.json\.gz: cannot be read") as caught:
        server.find([])
    assert caught.value.status == FAILED


def test_owners(tmp_path: Path) -> None:
    """By pacman and apk."""
    write(tmp_path, "var/lib/pacman/local/a-b-1.0-2/files", "%FILES%\nusr/\nusr/x\n\n%BACKUP%\ny\n")
    write(tmp_path, "lib/apk/db/installed", "P:c\nF:\nR:z\nF:usr/bin\nR:d\n\nP:e\nF:etc\nR:f\n")
    assert packages.owners(tmp_path) == {
        "usr": "a-b",
        "usr/x": "a-b",
        "z": "c",
        "usr/bin/d": "c",
        "etc/f": "e",
    }


# The border


@contextmanager
def serving(given: Installation, base: Path) -> Iterator[Host]:
    """The system, in which sshd puts whoever logs in; the base image that it was deployed with. The
    definition lies where the workstation has it, with one change."""
    root, name = given.root, base.stem.removeprefix("base-")
    write(root, "etc/anemos/deployment.json", records.text(Stamp("d-1", "mx", name)))
    (root / "var/lib/anemos").mkdir(parents=True)
    shutil.copy(base, root / "var/lib/anemos")
    installation.leave_manifest(given)
    with sshd.scratch() as directory, ExitStack() as stack:
        # unshare(1) wants a mount point as its root.
        stack.enter_context(mounts.mounted("--bind", root, at=root))
        for each in ("dev", "proc", "sys"):
            stack.enter_context(mounts.mounted("--bind", f"/{each}", at=root / each))
        stack.enter_context(mounts.mounted("-t", "tmpfs", "tmpfs", at=root / "run"))
        inside = replace(sshd.prepare(directory), settings=[f"ChrootDirectory {root}"])
        stack.enter_context(sshd.serving(inside))
        where = inside.endpoint
        identity = os.fspath(directory / "identity")
        host = directory / "hosts/mx"
        shutil.copytree(given.spec.directory, host)
        shutil.copytree(given.spec.directory.parent / "files", host / "files")
        write(host, "files/etc/new.conf", "new")
        yield Host("mx", host, where.address, where.host_key, where.port, identity=identity)


@pytest.fixture
def deployed(layer: Path) -> Iterator[Installation]:
    """Nobody else may write to the directories above it: sshd_config(5), ChrootDirectory."""
    with TemporaryDirectory(prefix="anemos-drift-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield make(layer, Path(name))


@pytest.mark.vm
@pytest.mark.real("ssh")
def test_over_ssh(
    deployed: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real base image on the server; nothing secret crosses the line, nothing is written."""
    root, names = deployed.root, list(SECRETS)
    monkeypatch.setattr(throwaway, "secrets_of", lambda _: Mock(names=lambda _: names))
    with serving(deployed, images.base()) as host:
        for path in ("etc/motd", "etc/key", "etc/open", "etc/app.conf"):
            add(root, path, "changed")
        write(root, "opt/app/data/x", "x")
        before = state(root)
        result = drift.diff(host)
        assert state(root) == before
        monkeypatch.setenv("XDG_STATE_HOME", os.fspath(root.parent / "state"))
        row = fleet.look(host, {"mx": ["/opt/app/data"]})
        assert [asdict(each) for each in row.drift or []] == result["drift"]["changes"]
    assert result == {
        "host": "mx",
        "deployment": "d-1",
        "ahead": {
            "changes": [{"kind": "file", "name": "/etc/new.conf", "what": "added"}],
            "texts": {},
            "unknown": [
                "packages: `./inv pack` makes the package layer first",
                "contents that may be secret: /etc/app.conf, /etc/key, /etc/open, /etc/shadow",
            ],
        },
        "drift": {
            "changes": [
                {"kind": "file", "name": f"/etc/{name}", "what": what}
                for name, what in (
                    ("app.conf", "written to"),
                    ("key", "written to"),
                    ("motd", "content"),
                    ("open", "written to"),
                )
            ],
            "apart": [],
        },
    }
    said = capsys.readouterr().err
    assert "A deployment would change, against d-1: 1 file\n" in said
    assert "Changed on the server since d-1: 4 files\n" in said
    for text in (*SECRETS.values(), TEMPLATE, f"{TEMPLATE}changed"):
        for leak in (text, sha256(text.encode()).hexdigest()):
            assert leak not in said + json.dumps(result)


def state(root: Path) -> dict[str, Any]:
    """All times but those of reading."""
    found = manifest.walk(root, [], lambda path: path in ("dev", "proc", "run", "sys"), [])
    return {path: (status.st_mtime_ns, status.st_ctime_ns) for path, status in found}


@pytest.mark.parametrize(
    ("there", "seen", "says"),
    [
        ([], {"state": status.SYSTEM, "deployment": ""}, "Anemos has not deployed this system"),
        ([], {"state": status.HELD}, "mx is in the initramfs"),
        ([f"/{manifest.FILE}"], {}, r"mx lacks /var/lib/anemos/base-0+\.squashfs: an older"),
        ([BASE], {}, r"mx lacks /var/lib/anemos/manifest\.json\.gz: an older Anemos"),
    ],
)
def test_nothing_to_compare_with(there: list[str], seen: dict[str, Any], says: str) -> None:
    class Server:
        def sh(self, _argv: list[str], **_options: object) -> str:
            return "\n".join(there)

    known = Status(status.DEPLOYED, "d-1", stamp=Seen("d-1", "mx", "0" * 64))
    remote: Any = Server()
    with pytest.raises(Failure, match=says) as caught:
        drift.comparable(Host("mx", Path("mx")), replace(known, **seen), remote)
    assert caught.value.status == BAD_INPUT


def test_summary() -> None:
    told = [Change("file", "/a", ""), Change("unit", "x", ""), Change("file", "/b", "")]
    assert changes.summary(told) == "2 files, 1 unit"
    assert changes.summary([]) == "nothing"
