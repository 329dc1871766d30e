"""IMGBUILDs, sourced by the real shell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anemos.image import imgbuild
from anemos.image.imgbuild import FUNCTIONS, VARIABLES, load
from anemos.image.layout import Kept
from anemos.log import BAD_INPUT, Failure

pytestmark = pytest.mark.real("run")

LAYOUT = """
target=debian
format=disk
layout='
disk system serial=S1 {disk}
{parts}
'
"""
BIOS = "part bios type=bios size=1M\npart root fs=ext4 mount=/"


def write(directory: Path, text: str) -> Path:
    (directory / "IMGBUILD").write_text(text, newline="")
    return directory


def refusal(directory: Path, text: str) -> str:
    """The message for an IMGBUILD that cannot be used, without the path that it begins with."""
    with pytest.raises(Failure) as caught:
        load(write(directory, text))
    assert caught.value.status == BAD_INPUT
    where, _, message = str(caught.value).partition(": ")
    assert where == f"{directory}/IMGBUILD"
    return message


def laid_out(disk: str = "", parts: str = BIOS, more: str = "") -> str:
    return LAYOUT.format(disk=disk, parts=parts) + more


def test_everything(tmp_path: Path) -> None:
    text = """
imgname=mx
target=debian
debian_suite=bookworm
format='squashfs xz -Xbcj x86'
packages='
nginx
  openssh-server

udev
'
mirror=' http://mirror/ '
excludes='
/usr/share/doc/*
/usr/share/man/*
'
layout='disk system serial=S1
part root fs=ext4 mount=/'
keep='disk data wwn=W1 part=2 mount=/home'
cmdline='  quiet
net.ifnames=0 '
helper=1
provision() { :; }
verify() ( : )
unrelated() { :; }
"""
    spec = load(write(tmp_path, text))
    assert (spec.name, spec.target, spec.suite) == ("mx", "debian", "bookworm")
    assert (spec.format, spec.format_options) == ("squashfs", ("xz", "-Xbcj", "x86"))
    assert spec.packages == ("nginx", "openssh-server", "udev")
    assert spec.mirror == "http://mirror/"
    assert spec.excludes == ("/usr/share/doc/*", "/usr/share/man/*")
    assert [disk.name for disk in spec.layout.disks] == ["system"]
    assert spec.keep == (Kept("data", {"wwn": "W1"}, 2, "/home"),)
    assert (spec.bootloader, spec.cmdline) == ("", "quiet net.ifnames=0")
    assert spec.functions == {"provision", "verify"}
    assert spec.file == tmp_path / "IMGBUILD"


def test_defaults(tmp_path: Path) -> None:
    spec = load(write(tmp_path, "target=debian"))
    assert (spec.name, spec.suite, spec.format) == (tmp_path.name, "stable", "dir")
    assert (spec.packages, spec.layout.disks, spec.keep) == ((), (), ())
    assert not spec.functions
    assert load(write(tmp_path, "target=debian\ndebian_suite=\nimgname=\n")).suite == "stable"


@pytest.mark.parametrize(
    "script",
    [
        "echo noise; printf 'a\\0b\\0'",
        "echo noise >&2",
        "printf '%s\\0' a end",
        "read -r line && exit 1; :",
        "cat",
        "VARIABLES=; FUNCTIONS=; name=x",
        "set -u",
        "set -f; set +e",
        "[ -e /nonexistent ] && echo never; true",
        "cd /",
        "return 0",
        "packages=\"$(printf 'a\\nb\\n')\"",
        "target=debian; provision() { exit 1; }; grep -q nothing /dev/null || target=debian",
    ],
)
def test_harmless(tmp_path: Path, script: str) -> None:
    assert load(write(tmp_path, f"target=debian\n{script}\n")).target == "debian"


def test_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SECRET"):
        monkeypatch.setenv(name, "disk")
    monkeypatch.setenv("BASH_FUNC_provision%%", "() { :; }")
    spec = load(write(tmp_path, "target=debian\npackages=${SECRET:-none}\n"))
    assert (spec.format, spec.packages, spec.suite) == ("dir", ("none",), "stable")
    assert not spec.functions
    assert refusal(tmp_path, "imgname=x").startswith("target is not set")


def test_programs_are_no_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FUNCTIONS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not load(write(tmp_path, "target=debian")).functions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target=debian\nif\n", 'line 3: Syntax error: end of file unexpected (expecting "then")'),
        ("target=debian\npackages=(a b)\n", 'line 2: Syntax error: "(" unexpected'),
        ("target='debian\n", "line 2: Syntax error: Unterminated quoted string"),
        ("target=debian\n\nset -u\nx=$lost\n", "line 4: lost: parameter not set"),
        ("target=debian\npackages= '\na\nb\n'\n", "line 2: a b : not found"),
        ("target=debian\nnonexistent-program\n", "line 2: nonexistent-program: not found"),
        ("target=debian\n. ./lost\n", "line 2: .: cannot open ./lost: No such file"),
        ("target=debian\nfalse\n", "a command in it fails, exit status 1: no message"),
        ("echo reason\nexit 3\n", "a command in it fails, exit status 3: reason"),
        ("target=debian\nkill -9 $$\n", "a command in it fails, killed by signal 9: no message"),
        ("target=debian\nexit 0\n", "ends the shell that reads it\n  (remove the `exit`)"),
        ("while :; do :; done\n", "does not end within 1 s when sourced"),
        ("target=debian\r\nformat=dir\r\n", "line 1: carriage return\n"),
        ("target=debian\nprovision() {\r\n:\n}\n", "line 2: carriage return\n"),
        ("", "target is not set\n  (one of: debian)"),
        ("target=\n", "target is not set"),
        ("target=gentoo\n", "target is 'gentoo'\n  (one of: debian)"),
        (
            "target=debian\nformat=iso\n",
            "format is 'iso'\n  (one of: dir, tar, raw, custom, squashfs, disk)",
        ),
        ("target=debian\nformat=\n", "format is not set"),
        ("target=debian\nformat='tar zip'\n", "format=tar does not know 'zip'"),
        ("target=debian\nformat='tar gz -9'\n", "format=tar does not know 'gz -9'"),
        ("target=debian\nformat='dir gz'\n", "format=dir does not know 'gz'"),
        ("target=debian\nformat=disk\n", "format=disk needs a layout"),
        ("target=debian\nimgname=a/b\n", "imgname 'a/b' is no name of a file"),
        ("target=debian\nlayout='disk a'\n", "'disk a': which disk? one of serial=, wwn=, size="),
        ("target=debian\nkeep='part a'\n", "keep: 'part a': expected `disk NAME ...`"),
        (laid_out(more="bootloader=lilo"), "bootloader is 'lilo'\n  (one of: grub)"),
        (laid_out(more="keep='disk d serial=D mount=/'"), "keep: mount '/' stands in the layout"),
        (
            laid_out(parts="part root fs=ext4 mount=/", more="bootloader=grub"),
            "bootloader=grub needs a partition of type=bios on disk 'system'",
        ),
        (
            laid_out(parts=f"{BIOS} size=2G\npart b fs=ext4 mount=/boot", more="bootloader=grub"),
            "bootloader=grub needs /boot in the root file system",
        ),
        (laid_out(more="bootloader=grub\ncmdline='a=\"b c\"'"), 'cmdline has a "'),
        (laid_out(more="bootloader=grub\ncmdline='a;b'"), "cmdline has a ;"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    if "while" in text:
        monkeypatch.setattr(imgbuild, "DEADLINE_S", 1.0)
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("disk", ["", "table=msdos"])
def test_bootable(tmp_path: Path, disk: str) -> None:
    parts = BIOS if not disk else "part root fs=ext4 mount=/"
    spec = load(write(tmp_path, laid_out(disk, parts, "bootloader=grub\ncmdline='console=ttyS0'")))
    assert spec.bootloader == "grub"


@pytest.mark.parametrize("make", [lambda _: None, lambda d: (d / "IMGBUILD").mkdir()])
def test_no_imgbuild(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    with pytest.raises(Failure, match=f"^{tmp_path}: no IMGBUILD there$"):
        load(tmp_path)
