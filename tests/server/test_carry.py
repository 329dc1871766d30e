"""What a slot takes over from the running system, and what it never does."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos import mounts
from anemos.log import Failure
from anemos.run import CommandFailed, run
from anemos.server import carry, staging
from anemos.system import carry as rules
from anemos.system import imgbuild, volatile
from anemos.workstation.deploy import phases
from tests.imaging import attached

TIME = 10**18 + 123_456_789
STATE = "var/lib/state"
# linux/posix_acl_xattr.h: version 2; then tag, permission and id of each entry. User 9 may read.
ACL = bytes.fromhex("02000000 01000700ffffffff 0200040009000000 04000500ffffffff 10000500ffffffff")
ACL += bytes.fromhex("20000000ffffffff")
CAPABLE = bytes.fromhex("0000000200040000000000000000000000000000")  # capabilities(7): cap_net_bind
ATTRIBUTES = {
    "user.colour": b"blue",
    "system.posix_acl_access": ACL,
    "security.capability": CAPABLE,
}
LAYOUT = """
disk system serial=S
part bios type=bios size=1M
part boot fs=ext4 size=64M
part root fs=ext4 size=1G mount=/ slots=2
part srv  fs=ext4 size=1G mount=/srv/shared
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The running system's /, a file system of its own."""
    file, top = tmp_path / "disk", tmp_path / "host"
    with file.open("wb") as disk:
        disk.truncate(2**25)
    top.mkdir()
    monkeypatch.setattr(staging, "HOST", top)
    monkeypatch.setattr(carry, "VIEW", tmp_path / "view")
    run(["mkfs.ext4", "-q", "-I", "256", file])
    with attached(file) as node, mounts.mounted(node, at=top):
        (top / STATE).mkdir(parents=True)
        yield top


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The new system."""
    made = tmp_path / "root"
    (made / STATE / "sub").mkdir(parents=True)
    (made / STATE / "sub/new").write_text("of the definition")
    return made


def fill(state: Path) -> None:
    (state / "file").write_text("text")
    for name, value in ATTRIBUTES.items():
        os.setxattr(state / "file", name, value)
    os.link(state / "file", state / "-again")
    (state / "link").symlink_to("/etc/passwd")
    (state / "nowhere").symlink_to("../../../../nowhere")
    os.mkfifo(state / "pipe")
    (state / "sub").mkdir(mode=0o700)
    with (state / "sub/sparse").open("wb") as file:
        file.truncate(2**24)
    os.lchown(state / "link", 12, 13)
    os.chown(state / "sub", 5, 2**31)
    for each in ("file", "sub", "."):
        os.utime(state / each, ns=(TIME, TIME))
    state.chmod(0o2751)


def told(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(["", *map(str, (each.relative_to(top) for each in top.rglob("*")))]):
        status = (top / path).lstat()
        times = () if stat.S_ISLNK(status.st_mode) else status.st_mtime_ns
        words = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, times)
        attributes = {
            each: os.getxattr(top / path, each, follow_symlinks=False)
            for each in (os.listxattr(top / path, follow_symlinks=False))
        }
        content = (top / path).read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[path] = (*words, attributes, content)
    return found


@pytest.mark.root
@pytest.mark.real("run")
def test_as_it_is(host: Path, root: Path) -> None:
    """A directory takes the place of the new one; nothing else changes."""
    fill(host / STATE)
    before = told(host / STATE)
    (root / "var/lib/other").write_text("stays")
    (root / "etc").mkdir()
    (root / "etc/link").symlink_to("nowhere")
    (host / "etc").mkdir()
    (host / "etc/link").symlink_to("/etc/shadow")

    carry.copy([STATE, "etc/link"], root)

    assert told(root / STATE) == before == told(host / STATE)
    assert set(os.listxattr(root / STATE / "file")) == {*ATTRIBUTES}
    assert (root / STATE / "sub/sparse").stat().st_blocks < 2**10
    assert (root / "etc/link").readlink() == Path("/etc/shadow")
    assert {each.name for each in (root / "var/lib").iterdir()} == {"other", "state"}
    assert not os.path.ismount(carry.VIEW)


@pytest.mark.root
@pytest.mark.real("run")
def test_what_is_missing(host: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told, and what the new system has there stays."""
    (host / STATE).rmdir()
    (host / "etc").mkdir()
    (host / "etc/there").write_text("x")
    carry.copy([STATE, "opt/a/b", "etc/there"], root)
    assert (root / STATE / "sub/new").exists()
    assert not (root / "opt").exists()
    assert (root / "etc/there").read_text() == "x"
    said = capsys.readouterr().err
    assert f"/{STATE}: not carried, the running system has none" in said
    assert "/opt/a/b: not carried" in said
    assert "/etc/there: carried" in said


@pytest.mark.root
@pytest.mark.real("run")
def test_no_other_file_system(host: Path, root: Path) -> None:
    """It is refused while nothing has happened yet. Should one come later, it is not seen."""
    (host / STATE / "mnt").mkdir()
    with mounts.mounted("-t", "tmpfs", "tmpfs", at=host / STATE / "mnt"):
        (host / STATE / "mnt/kept").write_text("kept")
        for path in (STATE, f"{STATE}/mnt", f"{STATE}/mnt/kept"):
            with pytest.raises(Failure, match=f"carry: /{path}: /{STATE}/mnt is another file"):
                carry.check([path])
        carry.check(["var/lib/other"])
        carry.copy([STATE], root)
    assert not [*(root / STATE / "mnt").iterdir()]


@pytest.mark.root
@pytest.mark.real("run")
def test_no_link_is_followed(host: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away/key").write_text("secret")
    (host / "opt").symlink_to(tmp_path / "away")
    (host / "var/run").symlink_to("lib")
    for path in ("opt/key", "var/run/state"):
        with pytest.raises(Failure, match=f"carry: /{path} is behind a symbolic link"):
            carry.check([path])
        with pytest.raises(NotADirectoryError):  # it has come since
            carry.copy([path], root)
    (root / "opt").symlink_to("/var")  # of the new system: it stays inside
    (host / "opt").unlink()
    (host / "opt").mkdir()
    (host / "opt/key").write_text("own")
    carry.copy(["opt/key"], root)
    assert (root / "var/key").read_text() == "own"
    assert not Path("/var/key").exists()


@pytest.mark.root
@pytest.mark.real("run")
def test_failure(host: Path, tmp_path: Path) -> None:
    """A part is not the whole: the new system's disk is full."""
    (host / STATE / "large").write_bytes(b"x" * 2**22)
    full = tmp_path / "full"
    full.mkdir()
    with (
        mounts.mounted("-t", "tmpfs", "-o", "size=1M", "tmpfs", at=full),
        pytest.raises(CommandFailed, match="state/large: "),
    ):
        carry.copy([STATE], full)
    assert not os.path.ismount(carry.VIEW)


def refused(path: str) -> str:
    words = {"target": "debian", "layout": LAYOUT, "bootloader": "grub", "carry": path}
    try:
        imgbuild.interpret(Path("hosts/demo"), words)
    except Failure as failure:
        return failure.message.removeprefix("hosts/demo/IMGBUILD: carry: ")
    return ""


@pytest.mark.parametrize(
    "path",
    [STATE, "/etc/machine-id", "home", "opt/x", "usr/local/share/x", "etc/ssl/acme", "srv/x"],
)
def test_may_be_carried(path: str) -> None:
    assert refused(path) == ""


@pytest.mark.parametrize(
    "path",
    [
        *("etc", "usr", "var", "var/lib", "boot", "boot/grub", "proc/1", "sys", "dev/shm", "run/x"),
        *(
            "tmp",
            "bin",
            "lib",
            "usr/lib",
            "usr/bin/x",
            "var/run/x",
            "root",
            "root/.ssh/x",
            "a/.ssh",
        ),
        *("etc/shadow", "etc/shadow-", "etc/gshadow", "etc/passwd", "etc/group-", "etc/ssh/x"),
        *("etc/fstab", "etc/anemos/x", "var/lib/anemos", "var/lib/dpkg/info", "etc/security"),
    ],
)
def test_of_the_new_system_alone(path: str) -> None:
    assert refused(path) == f"the new system has a /{path} of its own"


@pytest.mark.parametrize("path", ["/", "opt/", "opt//x", "opt/../etc/shadow", "./x", "opt/*"])
def test_no_path(path: str) -> None:
    assert refused(path) == f"{'/' + path.removeprefix('/')!r} is no path below /"


@pytest.mark.parametrize("path", ["srv", "srv/shared", "srv/shared/x"])
def test_shared(path: str) -> None:
    assert refused(path) == f"'/{path}': /srv/shared is mounted there, and both slots use it"


def test_state_is_volatile() -> None:
    words = {"target": "debian", "layout": LAYOUT, "carry": "etc/app", "volatile": "/opt/*"}
    skip = volatile.matcher(imgbuild.interpret(Path("hosts/demo"), words).changing)
    assert skip("etc/app")
    assert skip("opt/x")
    assert not skip("etc/application")


def test_of_the_definition(tmp_path: Path) -> None:
    """What it has is right, and no old secret takes a new one's place."""
    for name in ("app/own.conf.makeimg.patch", "other"):
        (tmp_path / "files/etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files/etc" / name).write_text("")

    def told(*paths: str) -> str:
        words = {"target": "debian", "layout": LAYOUT, "carry": "\n".join(paths)}
        return phases.carried(imgbuild.interpret(tmp_path, words), ["PASSWORD", "etc/keys/mx.key"])

    which = "`carry` names what the definition has, too: "
    assert told("etc/app") == f"{which}/etc/app/own.conf"
    assert told("etc/app/own.conf", "etc/keys") == f"{which}/etc/app/own.conf, /etc/keys/mx.key"
    assert told("etc/app/own", "etc/oth", "PASSWORD") == ""
    assert rules.problem([], ["etc/x"]) == ""
