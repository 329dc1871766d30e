"""Loads an IMGBUILD: sources it in a POSIX shell and reads back its variables and functions."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from anemos.image import layout
from anemos.image.layout import Kept, Layout
from anemos.log import Failure, die
from anemos.run import CommandFailed, run

VARIABLES = (
    "imgname",
    "target",
    "debian_suite",
    "format",
    "packages",
    "mirror",
    "excludes",
    "layout",
    "keep",
    "bootloader",
    "cmdline",
)
FUNCTIONS = ("provision", "verify", "test_secrets")
TARGETS = ("debian",)
FORMATS = ("dir", "tar", "squashfs", "disk")
BOOTLOADERS = ("grub",)
DEADLINE_S = 10.0

# Everything that the IMGBUILD prints goes to standard error; standard output carries NUL-terminated
# words only: `name value` for each variable that is set, `name` + "()" for each function, the end.
READER = r"""
exec 3>&1 >&2 </dev/null
. ./IMGBUILD
for name in $VARIABLES; do
    eval "[ -z \"\${$name+set}\" ] || printf '%s\0%s\0' \"$name\" \"\$$name\" >&3"
done
for name in $FUNCTIONS; do
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
    packages: tuple[str, ...]
    mirror: str
    excludes: tuple[str, ...]
    layout: Layout
    keep: tuple[Kept, ...]
    bootloader: str
    cmdline: str
    functions: frozenset[str]

    @property
    def file(self) -> Path:
        return self.directory / "IMGBUILD"


def load(directory: Path) -> Imgbuild:
    """The IMGBUILD in DIRECTORY. Raises Failure (status 2) that names the file and the line."""
    if not (directory / "IMGBUILD").is_file():
        die(f"{directory}: no IMGBUILD there")
    return interpret(directory, read(directory))


def read(directory: Path) -> dict[str, str]:
    """Source the IMGBUILD: its variables by name, its functions as "name()"."""
    env = {"VARIABLES": " ".join(VARIABLES), "FUNCTIONS": " ".join(FUNCTIONS)}
    try:
        output = run(["sh", "-c", READER], cwd=directory, env=env, timeout=DEADLINE_S)
    except CommandFailed as failed:
        die(f"{directory}/IMGBUILD: {shell_error(failed.output)}")
    except Failure:
        die(f"{directory}/IMGBUILD: does not end within {DEADLINE_S:.0f} s when sourced")
    words = output.split("\0")
    found = dict(zip(words[::2], words[1::2], strict=False))
    if found.pop("end", None) is None:
        die(f"{directory}/IMGBUILD: ends the shell that reads it", hint="remove the `exit`")
    return found


def shell_error(output: str) -> str:
    """The shell's last message, without the name of the file: "line 3: Syntax error: ..."."""
    message = (output.strip().splitlines() or ["ends the shell that reads it"])[-1]
    match = re.search(r"IMGBUILD: (?:line )?(\d+): (.*)", message)
    return f"line {match[1]}: {match[2]}" if match else message


def interpret(directory: Path, found: dict[str, str]) -> Imgbuild:
    """Check and convert what `read` found. Pure but for the name of DIRECTORY in messages."""
    where = f"{directory}/IMGBUILD"
    kind, *options = found.get("format", "dir").split() or [""]
    try:
        disks = layout.parse(found.get("layout", ""))
        kept = layout.parse_keep(found.get("keep", ""))
    except ValueError as error:
        die(f"{where}: {error}")
    if kind == "disk" and not disks.disks:
        die(f"{where}: format=disk needs a layout")
    return Imgbuild(
        directory=directory,
        name=found.get("imgname", "") or directory.resolve().name,
        target=choice(where, "target", found.get("target", ""), TARGETS),
        suite=found.get("debian_suite", "stable"),
        format=choice(where, "format", kind, FORMATS),
        format_options=tuple(options),
        packages=tuple(found.get("packages", "").split()),
        mirror=found.get("mirror", "").strip(),
        excludes=tuple(found.get("excludes", "").split()),
        layout=disks,
        keep=kept,
        bootloader=choice(where, "bootloader", found.get("bootloader", ""), ("", *BOOTLOADERS)),
        cmdline=" ".join(found.get("cmdline", "").split()),
        functions=frozenset(name[:-2] for name in found if name.endswith("()")),
    )


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
