"""IMGBUILDs, sourced by the real shell."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.system import imgbuild
from anemos.system.imgbuild import FUNCTIONS, VARIABLES, load
from anemos.system.layout import Kept

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
    (directory / "IMGBUILD").write_bytes(text.encode(errors="surrogateescape"))
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
    assert load(tmp_path, name="mx").name == "mx"
    assert load(write(tmp_path, "target=debian\nimgname=own"), name="mx").name == "own"
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
        "_package=x; formatted=1; image=2; key=3; clean() { :; }",
        "unset package; false && packagesx=1; :",
        ": <<EOF\npackage=x\nEOF",
        "sleep 30 &",
        "target=debian; provision() { exit 1; }; grep -q nothing /dev/null || target=debian",
    ],
)
def test_harmless(tmp_path: Path, script: str) -> None:
    assert load(write(tmp_path, f"target=debian\n{script}\n")).target == "debian"


def test_sourced_once(tmp_path: Path) -> None:
    """Until it is another one, or what it reads is."""
    count, home = tmp_path / "count", tmp_path / "mx"
    home.mkdir()
    (home / "common").write_text("target=debian")
    write(home, f". ./common; echo >>{count}")

    def sourced() -> tuple[str, int]:
        found = [load(home).target for _ in range(3)]
        assert len(set(found)) == 1
        return found[0], count.read_text().count("\n")

    assert sourced() == ("debian", 1)
    assert load(home, "tar").format == "tar"
    (home / "common").write_text("target=arch")
    assert sourced() == ("arch", 2)
    write(home, f"target=alpine; echo >>{count}")
    assert sourced() == ("alpine", 3)


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
        ("\ufefftarget=debian\n", "line 1: a byte order mark (BOM)\n  (save it as UTF-8"),
        ("target=debian\n\0", "is no UTF-8 text, but UTF-16 perhaps\n"),
        (
            "target=debian\npackages='nginx\u200b vim'\n",
            "packages: 'nginx\\u200b vim' has a zero width space (U+200B)\n  (retype it",
        ),
        (
            "target=\u201cdebian\u201d\n",
            "target: '\u201cdebian\u201d' has a left double quotation mark",
        ),
        ("target=debian\ncmdline='quiet\u00a0ro'", "cmdline: 'quiet\\xa0ro' has a no-break space"),
        (
            "\u200btarget=debian\n",
            "line 1: \u200btarget=debian: not found (it has a zero width space",
        ),
        (
            "target=debian\npackages='\nnginx # web\n'",
            "packages: 'nginx # web': a comment in a value\n",
        ),
        (
            "target=debian\nlayout='\n# first disk\n'",
            "layout: '# first disk': a comment in a value\n",
        ),
        (
            "target=debian\nversion=trixie\n",
            "line 2: unknown variable 'version'\n  (did you mean debian_suite?",
        ),
        ("target=debian\nprovision() {\r\n:\n}\n", "line 2: carriage return\n"),
        ("", "target is not set\n  (one of: debian, arch, alpine)"),
        ("target=\n", "target is not set"),
        ("target=gentoo\n", "target is 'gentoo'\n  (one of: debian, arch, alpine)"),
        (
            "target=debian\nformat=iso\n",
            "format is 'iso'\n  (one of: dir, tar, raw, custom, squashfs, disk)",
        ),
        ("target=debian\nformat=\n", "format is not set"),
        ("target=debian\nvolatile='/x opt'\n", "volatile: 'opt' does not begin with /"),
        ("target=debian\ncarry=opt/x\n", "carry: the layout has no slots=2"),
        ("target=debian\nformat='tar zip'\n", "format=tar does not know 'zip'"),
        ("target=debian\nformat='tar gz -9'\n", "format=tar does not know 'gz -9'"),
        ("target=debian\nformat='dir gz'\n", "format=dir does not know 'gz'"),
        ("target=debian\nformat=disk\n", "format=disk needs a layout"),
        ("target=debian\nimgname=a/b\n", "imgname 'a/b' is no name of a file"),
        (
            "target=debian\nlayout='disk a'\n",
            "'disk a': which disk? one of serial=, wwn=, path=, size=, id=",
        ),
        ("target=debian\nkeep='part a'\n", "keep: 'part a': disk= names a disk of the layout"),
        ("target=debian\nformat='dir\ntar gz'\n", "format has several lines, it takes one"),
        ("target='debian\nalpine'\n", "target has several lines, it takes one"),
        ("target=debian\nformat='dir raw'\n", "format=dir does not know 'raw'"),
        ("target=debian\nformat='tar lz4'\n", "format=tar does not know 'lz4'"),
        ("target=debian\nformat='raw 8X'\n", "format=raw: '8X' is no size that truncate(1) takes"),
        ("target=debian\nformat='raw -1G'\n", "format=raw: '-1G' is no size"),
        ("target=debian\nformat='raw 99999999E'\n", "format=raw: '99999999E' is no size"),
        (
            "target=debian\nformat='raw 0'\n",
            "format='raw 0 msdos ext4': partitions do not fit in 0",
        ),
        ("target=debian\nformat='raw 3T'\n", "format='raw 3T msdos ext4': table=gpt is needed"),
        ("target=debian\nformat='raw 8G mbr'\n", "format='raw 8G mbr ext4': 'mbr' is not one of"),
        ("target=debian\nformat='raw 8G gpt -x'\n", "format='raw 8G gpt -x': '-x' is no type of"),
        ("target=debian\nformat='raw 8G gpt xfs 1'\n", "format=raw does not know '1'"),
        (laid_out(more="format='raw 8G'"), "format=raw does not know '8G', as the layout says it"),
        (
            "target=debian\nformat=raw\nbootloader=grub\nformat='raw 8G gpt'\n",
            "bootloader=grub nee",
        ),
        ("target=debian\nformat=custom\n", "format=custom needs setup() or cleanup()"),
        (
            "target=debian\nhostconf='keyring\nlocale'\n",
            "hostconf is 'locale'\n  (one of: keyring)",
        ),
        ("target=debian\nimgname=-x\n", "imgname '-x' is no name of a file"),
        ("target=debian\nimgname=..\n", "imgname '..' is no name of a file"),
        ("target=debian\npackages='a\udcff'\n", "packages has bytes that"),
        (
            "target=debian\npackage=a\n",
            "line 2: unknown variable 'package'\n  (did you mean packages",
        ),
        ("targett=debian\n", "line 1: unknown variable 'targett'\n  (did you mean target?"),
        ("target=debian\n\nexport Layout=x\n", "line 3: unknown variable 'Layout'"),
        (
            "target=debian\nprovison() { :; }\n",
            "line 2: unknown function 'provison'\n  (did you mean",
        ),
        ("target=debian\n[[ a = a ]]\n", "line 2: [[: not found"),
        ("target=debian\nsource /dev/null\n", "line 2: source: not found"),
        ("target=debian\npackages+=x\n", "line 2: packages+=x: not found"),
        ("target=debian\nfunction x { :; }\n", "line 2: Syntax error"),
        (
            "target=debian\nyes | head -c 1000000 >&2; exit 7\n",
            "a command in it fails, exit status 7",
        ),
        (laid_out(more="bootloader=lilo"), "bootloader is 'lilo'\n  (one of: grub, systemd-boot)"),
        (laid_out(more="keep='disk d serial=D mount=/'"), "keep: mount '/' stands in the layout"),
        (
            laid_out(more="keep='disk d serial=S1'"),
            "serial=S1 is disk 'system' of layout and 'd' of keep",
        ),
        (
            laid_out(more="keep='disk d wwn=0xAB'").replace("serial=S1", "wwn=naa.ab"),
            "wwn=0xAB is disk 'system' of layout and 'd' of keep",
        ),
        (
            laid_out(parts="part root fs=ext4 mount=/", more="bootloader=grub"),
            "bootloader=grub needs a partition of type=bios or esp on disk 'system'",
        ),
        ("target=debian\narch=riscv64\n", "arch is 'riscv64'\n  (one of: amd64, arm64)"),
        ("target=alpine\narch=arm64\n", "arch=arm64 is for target=debian"),
        (laid_out(more="arch=arm64\nbootloader=grub"), "arch=arm64 starts by UEFI"),
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


@pytest.mark.parametrize(
    ("text", "options", "image"),
    [
        ("raw", ("raw",), (8 * 2**30, "msdos", "ext4")),
        ("raw 10M", ("raw", "10M"), (10 * 2**20, "msdos", "ext4")),
        ("raw 10MB gpt", ("raw", "10MB", "gpt"), (10**7, "gpt", "ext4")),
        ("raw 16777216 gpt xfs", ("raw", "16777216", "gpt", "xfs"), (2**24, "gpt", "xfs")),
        ("raw 1gIB", None, None),
        ("raw 1giB msdos btrfs", ("raw", "1giB", "msdos", "btrfs"), (2**30, "msdos", "btrfs")),
    ],
)
def test_raw(
    tmp_path: Path,
    text: str,
    options: tuple[str, ...] | None,
    image: tuple[int, str, str] | None,
) -> None:
    """Left out from the right; the disk is for images only: it would fit any disk of a server."""
    write(tmp_path, "target=debian\nformat=dir\n")
    if options is None:
        with pytest.raises(Failure):
            load(tmp_path, text)
        return
    spec = load(tmp_path, text)
    assert (spec.format, *spec.format_options) == options
    assert not spec.layout.disks
    (disk,) = imgbuild.for_image(spec).layout.disks
    assert (disk.image, disk.table, disk.parts[0].fs) == image
    assert [(part.mount, part.size) for part in disk.parts] == [("/", None)]


def test_layout_as_raw(tmp_path: Path) -> None:
    spec = load(write(tmp_path, laid_out()), "raw")
    assert spec.format == "raw"
    assert imgbuild.for_image(spec) is spec


@pytest.mark.parametrize("suffix", imgbuild.COMPRESSORS)
def test_compressions(tmp_path: Path, suffix: str) -> None:
    """Exactly those that this machine's tar knows: others it stores as they are."""
    assert load(write(tmp_path, f"target=debian\nformat='tar {suffix}'\n")).format == "tar"
    program = imgbuild.COMPRESSORS[suffix]
    (tmp_path / program).write_text("#!/bin/sh\ncat >/dev/null; echo compressed\n")
    (tmp_path / program).chmod(0o755)
    archive = tmp_path / f"x.tar.{suffix}"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run(["tar", "-c", "-a", "-f", archive, "-C", tmp_path, "IMGBUILD"], env=env)
    assert archive.read_text() == "compressed\n"


def test_hostconf(tmp_path: Path) -> None:
    assert load(write(tmp_path, "target=debian\nhostconf=keyring")).hostconf == ("keyring",)


WORDS = st.sampled_from(
    [*VARIABLES, *FUNCTIONS, "disk", "part", "a", "$x", "raw", "8G", "ext4", "é"]
)
SIGNS = st.sampled_from(list("='\"(){};\n #\\\t\r\0") + ["\udcff", "=debian\n", "() { :; }\n"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.one_of(WORDS, SIGNS), max_size=30))
def test_any_text(tmp_path: Path, words: list[str]) -> None:
    """Whatever stands in an IMGBUILD: it is loaded, or there is one message about it."""
    write(tmp_path, "target=debian\n" + "".join(words))
    try:
        assert load(tmp_path).target
    except Failure as failure:
        assert failure.status == BAD_INPUT
        assert failure.message.startswith(f"{tmp_path}/IMGBUILD: ")


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.one_of(
            st.text(max_size=30),
            st.lists(st.one_of(WORDS, st.sampled_from(imgbuild.FORMATS)), max_size=6).map(" ".join),
        ),
    )
)
def test_any_values(found: dict[str, str]) -> None:
    try:
        spec = imgbuild.interpret(Path("/x"), {"target": "debian"} | found)
    except Failure as failure:
        assert failure.message.startswith("/x/IMGBUILD: ")
    else:
        assert spec.format in imgbuild.FORMATS
        assert "/" not in spec.name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "IMGBUILD").write_bytes("target=debian\n".encode(encoding))
    with pytest.raises(Failure, match="is no UTF-8 text, but UTF-16 perhaps"):
        load(tmp_path)


def test_characters_and_names_of_ones_own(tmp_path: Path) -> None:
    """Whatever stands in comments, names and functions; a version of something else."""
    text = """# \u201cquoted\u201d, \u00a0 and \u2013
imgname='a \u2013 b'
target=debian
debian_suite=trixie
version=2.1
packages=c++ # a comment of the shell
provision() { echo '\u201cHello\u201d # no comment'; }
"""
    assert load(write(tmp_path, text)).packages == ("c++",)
    assert load(write(tmp_path, "target=arch\nversion=2\n")).target == "arch"
