"""Loads an IMGBUILD: sources it in a POSIX shell and reads back its variables and functions."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anemos.image import bootloader, grammar
from anemos.image.layout import Kept, Layout
from anemos.log import Failure, die
from anemos.run import CommandFailed, meaning, run

VARIABLES = (
    "imgname",
    "target",
    "debian_suite",
    "format",
    "hostconf",
    "packages",
    "mirror",
    "excludes",
    "layout",
    "keep",
    "bootloader",
    "cmdline",
    "server_secrets",
)
FUNCTIONS = ("provision", "verify", "test_secrets", "fetch_secrets")
TARGETS = ("debian", "arch", "alpine")
HOSTCONF = ("keyring",)
FORMATS = ("dir", "tar", "squashfs", "disk")
COMPRESSIONS = ("bz2", "gz", "lz4", "xz", "zst")  # suffixes that tar(1) compresses by
DEADLINE_S = 10.0

# Everything that the IMGBUILD prints goes to standard error; standard output carries NUL-terminated
# words only: `name value` for each variable that is set, `name` + "()" for each function, the end.
# The names are written into it: no variable of the IMGBUILD changes what is read.
READER = rf"""
exec 3>&1 >&2 </dev/null
set -e
. ./IMGBUILD
for name in {" ".join(VARIABLES)}; do
    eval "[ -z \"\${{$name+set}}\" ] || printf '%s\0%s\0' \"$name\" \"\$$name\" >&3"
done
for name in {" ".join(FUNCTIONS)}; do
    [ "$(command -v "$name")" != "$name" ] || printf '%s()\0\0' "$name" >&3
done
printf 'end\0\0' >&3
"""


@dataclass(frozen=True)
class Imgbuild:
    """What an IMGBUILD declares. Multi-line strings have become tuples, one value each."""

    directory: Path
    name: str
    target: str
    suite: str
    format: str
    format_options: tuple[str, ...]
    hostconf: tuple[str, ...]
    packages: tuple[str, ...]
    mirror: str
    excludes: tuple[str, ...]
    layout: Layout
    keep: tuple[Kept, ...]
    bootloader: str
    cmdline: str
    server_secrets: tuple[str, ...]
    functions: frozenset[str]

    @property
    def file(self) -> Path:
        return self.directory / "IMGBUILD"


def load(directory: Path) -> Imgbuild:
    """The IMGBUILD in DIRECTORY. Raises Failure (status 2) that names the file and the line."""
    file = directory / "IMGBUILD"
    if not file.is_file():
        die(f"{directory}: no IMGBUILD there")
    before, carriage_return, _ = file.read_bytes().partition(b"\r")
    if carriage_return:
        line = before.count(b"\n") + 1
        die(f"{file}: line {line}: carriage return", hint="save it with Unix line ends")
    return interpret(directory, read(directory))


def read(directory: Path) -> dict[str, str]:
    """Source the IMGBUILD: its variables by name, its functions as "name()"."""
    try:
        output = run(["sh", "-c", READER], cwd=directory, timeout=DEADLINE_S)
    except CommandFailed as failed:
        die(f"{directory}/IMGBUILD: {shell_error(failed)}")
    except Failure:
        die(f"{directory}/IMGBUILD: does not end within {DEADLINE_S:.0f} s when sourced")
    words = output.split("\0")
    found = dict(zip(words[::2], words[1::2], strict=False))
    if found.pop("end", None) is None:
        die(f"{directory}/IMGBUILD: ends the shell that reads it", hint="remove the `exit`")
    return found


def shell_error(failed: CommandFailed) -> str:
    """What went wrong: "line 3: Syntax error: ..." where the shell tells it.

    Its message is "sh: 3: ./IMGBUILD: ..." or, of a command, "sh: 3: ..." from dash(1), and
    "./IMGBUILD: line 3: ..." from bash(1). It is the last, and has several lines if a word has.
    """
    shells = r"(?ms)^(?:\S*/)?(?:sh|IMGBUILD): (?:line )?(\d+): (?:\./IMGBUILD: )?(.*)"
    if match := re.search(shells, failed.output):
        return f"line {match[1]}: {' '.join(match[2].split())}"
    message = failed.output.rstrip().rpartition("\n")[2]
    return f"a command in it fails, {meaning(failed.returncode)}: {message or 'no message'}"


def interpret(directory: Path, found: dict[str, str]) -> Imgbuild:
    """Check and convert what `read` found. Pure but for the name of DIRECTORY in messages."""
    where = f"{directory}/IMGBUILD"
    kind, *options = found.get("format", "dir").split() or [""]
    try:
        disks = grammar.parse(found.get("layout", ""))
        kept = grammar.parse_keep(found.get("keep", ""), disks)
    except ValueError as error:
        die(f"{where}: {error}")
    check_format(where, kind, options, disks)
    check_mounts(where, disks, kept)
    cmdline = " ".join(found.get("cmdline", "").split())
    loader = choice(where, "bootloader", found.get("bootloader", ""), ("", *bootloader.LOADERS))
    if loader and disks.disks:
        check_loader(where, loader, disks, cmdline)
    server_secrets = tuple(found.get("server_secrets", "").split())
    check_server_secrets(where, server_secrets, fetched="fetch_secrets()" in found)
    name = found.get("imgname", "") or directory.resolve().name
    if "/" in name:
        die(f"{where}: imgname {name!r} is no name of a file")
    return Imgbuild(
        directory=directory,
        name=name,
        target=choice(where, "target", found.get("target", ""), TARGETS),
        suite=found.get("debian_suite", "").strip() or "stable",
        format=kind,
        format_options=tuple(options),
        hostconf=tuple(
            choice(where, "hostconf", item, HOSTCONF) for item in found.get("hostconf", "").split()
        ),
        packages=tuple(found.get("packages", "").split()),
        mirror=found.get("mirror", "").strip(),
        excludes=tuple(found.get("excludes", "").split()),
        layout=disks,
        keep=kept,
        bootloader=loader,
        cmdline=cmdline,
        server_secrets=server_secrets,
        functions=frozenset(name[:-2] for name in found if name.endswith("()")),
    )


def check_format(where: str, kind: str, options: list[str], disks: Layout) -> None:
    choice(where, "format", kind, FORMATS)
    if kind == "disk" and not disks.disks:
        die(f"{where}: format=disk needs a layout")
    # Those of squashfs are mksquashfs's.
    known = {"tar": COMPRESSIONS}.get(kind, ())
    if kind != "squashfs" and (options[1:] or not set(options) <= set(known)):
        die(f"{where}: format={kind} does not know {' '.join(options)!r}")


def check_mounts(where: str, disks: Layout, kept: tuple[Kept, ...]) -> None:
    taken = {each.mount for each in disks.mounts()}
    for each in kept:
        if each.mount in taken:
            die(f"{where}: keep: mount {each.mount!r} stands in the layout, too")


def check_loader(where: str, loader: str, disks: Layout, cmdline: str) -> None:
    try:
        bootloader.LOADERS[loader].check(disks, cmdline)
    except ValueError as error:
        die(f"{where}: {error}")


def check_server_secrets(where: str, names: tuple[str, ...], *, fetched: bool) -> None:
    """What fetch_secrets() is to write, asked long before a disk is erased."""
    for name in names:
        pure = PurePosixPath(name)
        if pure.as_posix() != name or pure.is_absolute() or "/" not in name or ".." in pure.parts:
            die(f"{where}: server_secrets: {name!r} is no path", hint="like etc/ssl/private/mx.key")
    if bool(names) != fetched:
        die(f"{where}: server_secrets and fetch_secrets() need each other")


def choice(where: str, name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        shown = f"is {value!r}" if value else "is not set"
        die(f"{where}: {name} {shown}", hint=f"one of: {', '.join(filter(None, allowed))}")
    return value


def call(function: str) -> str:
    """A POSIX shell script that sources /run/anemos/IMGBUILD and calls FUNCTION of it.

    `set -e`: the first command that fails is the function's end (sh(1)).
    """
    return f"set -e; . /run/anemos/IMGBUILD; {function}"


def host_call(imgbuild: Imgbuild, function: str, directory: Path) -> None:
    """Call FUNCTION outside of any image, DIRECTORY as its working directory."""
    script = f'set -e; . "$0"; {function}'
    run(["sh", "-c", script, os.fspath(imgbuild.file.resolve())], cwd=directory)
