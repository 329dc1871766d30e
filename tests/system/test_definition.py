"""The definition layer on a tiny root file system; provision() in a real chroot."""

import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from anemos import log
from anemos import run as owner
from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.run import CommandFailed, run
from anemos.system import booting, chroot, definition, imgbuild, tree
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild
from anemos.workstation.deploy import payload
from tests import tiny
from tests.waiting import until

pytestmark = pytest.mark.real("run")

PATCH = """\
--- a/etc/conf
+++ b/etc/conf
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
"""
Input = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    (made / "etc").mkdir(parents=True)
    (made / "etc/conf").write_text("one\ntwo\nthree\n")
    return made


@pytest.fixture
def put(tmp_path: Path) -> Input:
    """Makes a file in one of several input directories."""

    def make(path: str, text: str, directory: str = "files", mode: int = 0o644) -> Path:
        file = tmp_path / directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return tmp_path / directory

    return make


def spec(directory: Path, text: str = "") -> Imgbuild:
    (directory / "IMGBUILD").write_text(f"target=debian\n{text}")
    return imgbuild.load(directory)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files(tmp_path: Path, root: Path, put: Input) -> None:
    put("etc/conf", "first")
    put("etc/twice", "first", mode=0o600)
    put("a dir/-n", "", mode=0o755)
    put("etc/twice", "second", "later", 0o640)
    files = put("srv/link.makeimg", "no suffix of ours")
    (files / "etc/link").symlink_to("/nowhere")
    definition.apply(spec(tmp_path), root, Definition([files, tmp_path / "later"]))
    assert (root / "etc/conf").read_text() == "first"
    assert (root / "etc/twice").read_text() == "second"
    assert (root / "etc/link").readlink() == Path("/nowhere")
    assert (root / "srv/link.makeimg").is_file()
    assert [mode(root / path) for path in ("etc/twice", "a dir/-n", "a dir")] == [
        0o640,
        0o755,
        0o755,
    ]


@pytest.mark.root
def test_owner_is_root(tmp_path: Path, root: Path, put: Input) -> None:
    os.chown(put("etc/x", "") / "etc/x", 1234, 1234)
    definition.apply(spec(tmp_path), root, Definition([tmp_path / "files"]))
    assert ((root / "etc/x").stat().st_uid, (root / "etc/x").stat().st_gid) == (0, 0)


def test_patch(tmp_path: Path, root: Path, put: Input) -> None:
    (root / "etc/conf").chmod(0o640)
    definition.apply(spec(tmp_path), root, Definition([put("etc/conf.makeimg.patch", PATCH)]))
    assert (root / "etc/conf").read_text() == "one\nTWO\nthree\n"
    assert mode(root / "etc/conf") == 0o640
    assert list((root / "etc").iterdir()) == [root / "etc/conf"]


@pytest.mark.root
def test_patch_keeps_the_owner(tmp_path: Path, root: Path, put: Input) -> None:
    os.chown(root / "etc/conf", 5, 6)
    definition.apply(spec(tmp_path), root, Definition([put("etc/conf.makeimg.patch", PATCH)]))
    assert ((root / "etc/conf").stat().st_uid, (root / "etc/conf").stat().st_gid) == (5, 6)


def test_patch_that_has_moved(
    tmp_path: Path, root: Path, put: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are the same, some way off: another section may have them, too."""
    said: list[str] = []
    monkeypatch.setattr(log, "sink", said.append)
    (root / "etc/conf").write_text("new\nnew\none\ntwo\nthree\n")
    files = put("etc/conf.makeimg.patch", PATCH)
    definition.apply(spec(tmp_path), root, Definition([files]))
    assert (root / "etc/conf").read_text() == "new\nnew\none\nTWO\nthree\n"
    where = "Hunk #1 succeeded at 3 (offset 2 lines)"
    assert said == [f"{files}/etc/conf.makeimg.patch: {where}: is it the right place?"]


def test_patch_for_a_file_of_the_definition(tmp_path: Path, root: Path, put: Input) -> None:
    """Patches come after files, whichever input directory they are in."""
    first = put("etc/mine.makeimg.patch", PATCH)
    later = put("etc/mine", "zero\none\ntwo\nthree\n", "later")
    definition.apply(spec(tmp_path), root, Definition([first, later]))
    assert (root / "etc/mine").read_text() == "zero\none\nTWO\nthree\n"


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("etc/lost", PATCH, "the image has no file /etc/lost to patch"),
        ("etc", PATCH, "the image has no file /etc to patch"),
        ("etc/conf", PATCH.replace("two", "zwei"), "does not apply to /etc/conf\npatching file"),
        # It would fit another section, with fuzz.
        ("etc/conf", PATCH.replace(" one", " [two]"), "does not apply to /etc/conf\npatching file"),
        ("etc/conf", "garbage\n", "does not apply to /etc/conf\n"),
        ("etc/done", PATCH, "does not apply to /etc/done\n"),
        ("etc/link", PATCH, "the image has no file /etc/link to patch"),
    ],
)
def test_patch_that_does_not_fit(
    tmp_path: Path, root: Path, put: Input, path: str, text: str, message: str
) -> None:
    (root / "etc/done").write_text("one\nTWO\nthree\n")
    (root / "etc/link").symlink_to("conf")
    files = put(f"{path}.makeimg.patch", text)
    with pytest.raises(Failure) as caught:
        definition.apply(spec(tmp_path), root, Definition([files]))
    assert caught.value.status == BAD_INPUT
    assert str(caught.value).startswith(f"{files}/{path}.makeimg.patch: {message}")
    assert "does not" not in message or "(the package's file has changed" in str(caught.value)
    assert (root / "etc/conf").read_text() == "one\ntwo\nthree\n"


def test_template(tmp_path: Path, root: Path, put: Input) -> None:
    put("etc/motd.makeimg.template", "{{ host }}: grün\r\n", mode=0o4750)
    files = put("etc/conf.makeimg.template", "{{ host }}")
    definition.apply(spec(tmp_path), root, Definition([files], values={"host": "mx"}))
    assert (root / "etc/motd").read_bytes() == "mx: grün\r\n".encode()
    assert (root / "etc/conf").read_text() == "mx"
    assert mode(root / "etc/motd") == 0o4750
    assert not list(root.rglob("*.makeimg.*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n{{ lost }}\n", "line 2: undefined name 'lost'"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        (None, "[Errno 2] No such file"),
    ],
)
def test_bad_template(tmp_path: Path, root: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "files/x.makeimg.template"
    file.parent.mkdir()
    if content is None:
        file.symlink_to("nowhere")
    else:
        file.write_bytes(content)
    with pytest.raises(Failure) as caught:
        definition.apply(spec(tmp_path), root, Definition([file.parent]))
    assert str(caught.value).startswith(f"{file}: {message}")
    assert not (root / "x").exists()


def test_secrets(tmp_path: Path, root: Path, put: Input) -> None:
    """Mode 0600, whatever the revealed files have, over files of the same name."""
    secrets = put("etc/ssl/key", "secret", "secrets", 0o666)
    put("etc/x.makeimg.patch", "a secret of that name", "secrets")
    files = put("etc/ssl/key", "dummy")
    definition.apply(spec(tmp_path), root, Definition([files], secrets=secrets))
    assert (root / "etc/ssl/key").read_text() == "secret"
    assert (root / "etc/x.makeimg.patch").is_file()
    assert {mode(root / "etc/ssl/key"), mode(root / "etc/x.makeimg.patch")} == {0o600}
    assert (root / "etc/ssl/key").stat().st_uid == os.geteuid()


# From here on: commands in the image.


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "sink", found.append)
    return found


def mounts(below: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if os.fspath(below) in line]


def inhabitants(directory: Path) -> list[str]:
    """The processes whose root or working directory is below DIRECTORY."""
    found = []
    for link in [*Path("/proc").glob("[0-9]*/root"), *Path("/proc").glob("[0-9]*/cwd")]:
        with suppress(OSError):  # a process that has ended
            if link.readlink().is_relative_to(directory):
                found.append(os.fspath(link))
    return found


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount, no process that works in the image, no file of a visitor."""
    yield
    assert not mounts(tmp_path)
    # Processes that are killed take their time.
    until(lambda: not inhabitants(tmp_path), lambda: inhabitants(tmp_path))
    assert not list(tmp_path.rglob("*.anemos-aside"))
    assert not list(tmp_path.rglob("policy-rc.d"))


@pytest.fixture
def image(tmp_path: Path, nothing_left: None) -> Path:
    return tiny.make(tmp_path / "image")


def provision(tmp_path: Path, image: Path, body: str) -> None:
    text = f"greeting=hello\nprovision() {{\n{body}\n}}\n"
    definition.apply(spec(tmp_path, text), image, Definition([]))


@pytest.mark.root
def test_provision(tmp_path: Path, image: Path, lines: list[str]) -> None:
    provision(tmp_path, image, 'echo "$greeting"; echo two >&2; chown 5:6 /tmp; : > "/a b"')
    assert lines[:3] == ["Running provision() ...", "  hello", "  two"]
    assert ((image / "tmp").stat().st_uid, (image / "tmp").stat().st_gid) == (5, 6)
    assert (image / "a b").is_file()


@pytest.mark.root
def test_what_provision_finds(
    tmp_path: Path, image: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    provision(
        tmp_path,
        image,
        """
        for number in /proc/[0-9]*; do echo "process ${number#/proc/}"; done
        for node in /dev/*; do echo "node $node"; done
        [ -c /dev/null ] && echo nothing > /dev/null && [ -z "$(cat /dev/null)" ]
        [ -e /dev/fd/1 ] && [ -e /dev/ptmx ] && : > /dev/shm/x
        [ -d /sys/kernel ]
        [ -x /usr/sbin/policy-rc.d ] && { policy-rc.d || echo "policy $?"; }
        cat /etc/resolv.conf > /tmp/resolver
        read -r line || echo "no input"
        echo "$HOME $PATH ${SECRET:-clean}"
        """,
    )
    seen = [line.strip() for line in lines]
    assert [line for line in seen if line.startswith("process")] == ["process 1"]
    nodes = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert [line[10:] for line in seen if line.startswith("node")] == nodes.split()
    assert "policy 101" in seen
    assert "no input" in seen
    assert seen[-2] == "/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin clean"
    resolver = Path("/etc/resolv.conf")
    if resolver.exists():
        assert (image / "tmp/resolver").read_bytes() == resolver.read_bytes()


@pytest.mark.root
def test_inhabitants(image: Path) -> None:
    """The check of every test here sees what it is to see."""
    chroot.call(image, ["sh", "-c", "sleep 1000 & :"], shared=image.parent)
    assert not inhabitants(image)
    with subprocess.Popen(["chroot", image, "sleep", "1000"]) as process:
        try:
            until(lambda: inhabitants(image))
        finally:
            process.kill()


@pytest.mark.root
def test_isolation(tmp_path: Path, image: Path) -> None:
    """Nothing below / of a command is the host's and writable, but nodes and what we gave it."""
    provision(tmp_path, image, "cat /proc/self/mountinfo > /mountinfo")
    found = {}
    for line in (image / "mountinfo").read_text().splitlines():
        point, options = line.split()[4:6]
        assert "shared:" not in line
        found[point] = (line.split(" - ")[1].split()[0], options.split(",")[0])
    nodes = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert nodes <= found.keys()
    assert {point: kind for point, kind in found.items() if point not in nodes} == {
        "/proc": ("proc", "rw"),
        "/sys": ("sysfs", "ro"),
        "/dev": ("tmpfs", "rw"),
        "/dev/pts": ("devpts", "rw"),
        "/dev/shm": ("tmpfs", "rw"),
        "/run": ("tmpfs", "rw"),
        "/run/anemos": (found["/run/anemos"][0], "rw"),
    }


@pytest.mark.root
def test_provision_that_removes_everything(tmp_path: Path, image: Path) -> None:
    """Only the image is gone. (What can be reached is in test_isolation.)"""
    shared = tmp_path / "given/shared"
    shared.mkdir(parents=True)
    (shared / "x").touch()
    (shared.parent / "neighbour").touch()
    host = witnesses()
    with pytest.raises(CommandFailed):  # what is mounted cannot be removed
        chroot.call(image, ["rm", "-rf", "--no-preserve-root", "/"], shared=shared)
    assert not (image / "etc").exists()
    assert not (image / "usr/bin").exists()
    assert sorted(path.name for path in shared.parent.iterdir()) == ["neighbour", "shared"]
    assert witnesses() == host
    assert Path("/dev/null").is_char_device()


def witnesses() -> list[Path]:
    """What is on this machine whatever other tests do: loop devices come and go."""
    places = (Path("/dev"), Path("/sys"), Path("/sys/kernel"), Path("/etc"))
    found = sorted(file for place in places for file in place.iterdir())
    return [file for file in found if not file.name.startswith("loop")]


@pytest.mark.root
@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize(
    ("body", "line", "reason", "last"),
    [
        ("echo why >&2; (exit 7)\necho never", 4, "exit status 7", "why"),
        (":\nnonexistent-program --x", 5, "exit status 127", "not found"),
        ("ls /nonexistent | cat\nls /nonexistent", 5, "exit status 2", "No such file or directory"),
        ("x=$(false) || :; echo $(false)\nchmod 0 /lost", 5, "exit status 1", "directory"),
        ("if true; then\n    false\nfi", 5, "exit status 1", None),
        ("exit 3", 0, "exit status 3", None),
        ("false || exit 3", 0, "exit status 3", None),
        ("sh -c 'nonexistent-program' || exit 4", 0, "exit status 4", "not found"),
        ("kill -9 $$ || exit 9; exit 9", 0, "exit status 9", None),  # PID 1 is out of reach
        ("echo $undefined; set -u\necho $undefined", 5, "", None),
    ],
)
def test_provision_that_fails(
    tmp_path: Path,
    image: Path,
    lines: list[str],
    shell: str,
    body: str,
    line: int,
    reason: str,
    last: str | None,
) -> None:
    """File, line and text of the command; without bash only of what the shell itself refuses."""
    if shell == "sh":
        (image / "usr/bin/bash").unlink()
    with pytest.raises(Failure) as caught:
        provision(tmp_path, image, body)
    assert caught.value.status == FAILED
    message = str(caught.value).splitlines()
    text = (tmp_path / "IMGBUILD").read_text().splitlines()[line - 1].strip()
    known = shell == "bash" or "undefined" in body or "nonexistent-program --x" in body
    where = f"line {line}: in provision(): `{text}`" if line and known else "in provision()"
    assert message[0].startswith(f"{tmp_path}/IMGBUILD: {where}: {reason or 'exit status '}")
    assert not any("never" in line for line in lines)
    assert not any("exit status" in line for line in message[1:])
    if last:
        assert message[-1].endswith(last)


@pytest.mark.root
def test_daemons_end_with_provision(tmp_path: Path, image: Path) -> None:
    """Also one that closed its output, and one that did not."""
    body = "sleep 1000 & (sleep 1000 >/dev/null 2>&1 </dev/null &); echo $! > /pid"
    provision(tmp_path, image, body)
    assert (image / "pid").is_file()


@pytest.mark.root
def test_deadline(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "GRACE_S", 0.5)
    with pytest.raises(Failure, match="no end after 1 s"):
        chroot.call(image, ["sleep", "1000"], shared=tmp_path, timeout=1)


@pytest.mark.root
@pytest.mark.parametrize(
    ("before", "body", "after"),
    [
        (None, ":", None),
        ("old", ":", "old"),
        ("-> ../run/resolv.conf", ":", "-> ../run/resolv.conf"),
        ("old", "echo new > /etc/resolv.conf", "new"),
        ("old", "ln -sf /run/resolv.conf /etc/resolv.conf", "-> /run/resolv.conf"),
        (None, "echo new > /etc/resolv.conf", "new"),
        ("-> /run/x", "rm /etc/resolv.conf; echo new > /etc/resolv.conf", "new"),
        ("old", "exit 1", "old"),
    ],
)
def test_resolver_of_the_image(
    tmp_path: Path, image: Path, before: str | None, body: str, after: str | None
) -> None:
    file = image / "etc/resolv.conf"
    if before is not None and before.startswith("-> "):
        file.symlink_to(before[3:])
    elif before is not None:
        file.write_text(f"{before}\n")
    try:
        provision(tmp_path, image, body)
    except Failure:
        assert body == "exit 1"
    if file.is_symlink():
        assert f"-> {file.readlink()}" == after
    else:
        assert (file.read_text().strip() if file.exists() else None) == after


@pytest.mark.root
def test_shared_directory(tmp_path: Path, image: Path) -> None:
    """What commands write to /run/anemos is there afterwards; the rest of /run is not."""
    shared = tmp_path / "shared"
    shared.mkdir()
    chroot.call(image, ["sh", "-c", "echo 1 > /run/anemos/x; : > /run/y"], shared=shared)
    assert (shared / "x").read_text() == "1\n"
    assert not list((image / "run").iterdir())
    assert run(["find", image / "dev", image / "proc", image / "sys"]).count("\n") == 3


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("{{ host }} {{deployment}} {{ operator_key }}", 0o644, 0o644),
        ("none", 0o755, 0o755),
        ("{{ PASSWORD }}", 0o644, 0o640),
        ("{{ host }} {{ PASSWORD }}", 0o755, 0o750),
        ("{{ PASSWORD }}", 0o600, 0o600),
    ],
)
def test_secret_in_a_template(
    tmp_path: Path, root: Path, put: Input, text: str, mode: int, expected: int
) -> None:
    """Not everybody may read it; provision() may say otherwise."""
    values = {"host": "mx", "deployment": "d", "operator_key": "k", "PASSWORD": "secret"}
    files = put("etc/app.conf.makeimg.template", text, mode=mode)
    definition.apply(spec(tmp_path), root, Definition([files], values=values))
    assert stat.S_IMODE((root / "etc/app.conf").stat().st_mode) == expected
    payload.write(tmp_path / "payload", spec(tmp_path), "d-1", values, tmp_path / "none")
    with tarfile.open(tmp_path / "payload") as archive:
        assert archive.getmember("files/etc/app.conf").mode == expected


LAYER = """
bootloader={}
layout='
disk system serial=S
part {}
part root fs=ext4 mount=/
'
"""
ESP = "esp type=esp size=512M fs=vfat mount=/boot/efi"
SYSTEMD_BOOT = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"


@pytest.mark.parametrize(
    ("loader", "part", "file", "lacks"),
    [
        ("grub", "bios type=bios size=1M", "usr/lib/grub/i386-pc/kernel.img", ""),
        ("grub", "bios type=bios size=1M", "etc/conf", "/usr/lib/grub/i386-pc/kernel.img"),
        ("grub", ESP, "usr/lib/grub/i386-pc/kernel.img", "/usr/lib/grub/x86_64-efi/kernel.img"),
        ("systemd-boot", ESP, SYSTEMD_BOOT, ""),
        ("systemd-boot", ESP, f"{SYSTEMD_BOOT}.signed", ""),
        ("systemd-boot", ESP, "etc/conf", f"/{SYSTEMD_BOOT}.signed or /{SYSTEMD_BOOT}"),
    ],
)
@pytest.mark.parametrize(
    ("place", "database"),
    [
        ("layer", "var/lib/dpkg/status"),
        ("files", "var/lib/pacman/local/ALPM_DB_VERSION"),
        ("layer", "lib/apk/db/installed"),
    ],
)
def test_boot_loader_is_there(
    tmp_path: Path,
    root: Path,
    loader: str,
    part: str,
    file: str,
    lacks: str,
    place: str,
    database: str,
) -> None:
    """What a boot loader is made of is looked for long before a disk is erased."""
    tree.write(root if place == "layer" else tmp_path / "files", file, "")
    tree.write(root, database, "")
    run(["tar", "--create", "--file", tmp_path / "layer", "--directory", root, "."])
    given = spec(tmp_path, LAYER.format(loader, part))
    if lacks:
        with pytest.raises(Failure, match=f"bootloader={loader}: the package layer has no {lacks}"):
            definition.rehearse_loader(given, tmp_path / "layer", [tmp_path / "files"])
    else:
        definition.rehearse_loader(given, tmp_path / "layer", [tmp_path / "files"])


@pytest.mark.parametrize("there", [True, False])
def test_file_system_check_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    given = spec(tmp_path, LAYER.format("grub", "bios type=bios size=1M"))
    kernel = "usr/lib/grub/i386-pc/kernel.img"
    booting.rehearse(given, [kernel, *(["usr/sbin/fsck.ext4"] if there else [])])
    told = "Nothing checks ext4 at the boot: e2fsprogs is not among the packages"
    assert (told in capsys.readouterr().err) != there


@pytest.mark.parametrize("line", ["two", "changed by a newer package"])
def test_rehearse(tmp_path: Path, root: Path, put: Input, line: str) -> None:
    """A patch that a package has outgrown is found before anything is sent."""
    (root / "etc/conf").write_text(f"one\n{line}\nthree\n")
    run(["tar", "--create", "--file", tmp_path / "layer", "--directory", root, "."])
    put("opt/elsewhere.makeimg.patch", PATCH)
    files = put("etc/conf.makeimg.patch", PATCH)

    if line == "two":
        definition.rehearse(tmp_path / "layer", [files])
    else:
        with pytest.raises(Failure, match=r"conf\.makeimg\.patch: does not apply to /etc/conf"):
            definition.rehearse(tmp_path / "layer", [files])
