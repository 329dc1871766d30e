"""Calls functions of an IMGBUILD, and tells the line of the command that failed in one.

The shell is bash(1) in POSIX mode where there is one, as it alone can tell that line (Debian's
dash(1) has no $LINENO), else sh. An IMGBUILD need not know: it is a POSIX script.
"""

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from anemos.log import FAILED, Failure, Sink
from anemos.run import CommandFailed, meaning, run, tail
from anemos.system.imgbuild import CLEAN, Imgbuild

BASH = ("bash", "--posix")
SH = ("sh",)

# Said on standard error when `set -e` is about to end the script, not what a subshell puts up with.
# All of the trap is on one line, as $LINENO counts on in it.
SAY = r'printf "%s: line %s: exit status %s\n" "${BASH_SOURCE##*/}" "$LINENO" "$?" >&2'
TELL = f"""
[ -z "${{BASH_VERSION-}}" ] || set -E
[ -z "${{BASH_VERSION-}}" ] || trap 'case $BASHPID in $$) {SAY};; esac' ERR
"""
# "IMGBUILD: 3: x: not found" from dash, "/run/anemos/IMGBUILD: line 3: x: not found" from bash.
TOLD = re.compile(r"^(?:\S*/)?IMGBUILD: (?:line )?(\d+): (.*)$", re.MULTILINE)


def argv(
    shell: Sequence[str], imgbuild: Imgbuild, function: str, file: str, **more: str
) -> list[str]:
    """The command that calls FUNCTION of the IMGBUILD, which the shell sees at the path FILE."""
    return [*shell, "-c", script(imgbuild, function, **more), "IMGBUILD", file]


def script(imgbuild: Imgbuild, function: str, **more: str) -> str:
    """A POSIX shell script that sources the IMGBUILD at the path $1 and calls FUNCTION of it.

    The first command that fails is the function's end. When it is called, the variables that say
    what is built have the values that count, and MORE are set.
    """
    effective = {
        "imgname": imgbuild.name,
        "target": imgbuild.target,
        "debian_suite": imgbuild.suite,
        "format": " ".join((imgbuild.format, *imgbuild.format_options)),
        **more,
    }
    known = "".join(f"{name}={shlex.quote(value)}\n" for name, value in effective.items())
    return f'set -e{TELL}. "$1"\nset -e\n{known}{function}'


def on_host(
    imgbuild: Imgbuild, function: str, directory: Path, log: Sink | None = None, **more: str
) -> None:
    """Call FUNCTION outside of any image, DIRECTORY as its working directory. Raises Failure."""
    shell = BASH if shutil.which(BASH[0]) else SH
    home = f"HOME={directory.absolute()}"
    file = os.fspath(imgbuild.file.resolve())
    try:
        run([*CLEAN, home, *argv(shell, imgbuild, function, file, **more)], cwd=directory, log=log)
    except CommandFailed as failed:
        raise explained(imgbuild, function, failed) from None


def explained(imgbuild: Imgbuild, function: str, failed: CommandFailed) -> Failure:
    """FAILED as its user wants to see it: file, line and text of the command, and what it said."""
    lines = imgbuild.file.read_text(errors="replace").split("\n")
    where, told = f"{imgbuild.file}: ", TOLD.findall(failed.output)
    command = ""
    if told and int(told[-1][0]) <= len(lines):
        where += f"line {told[-1][0]}: "
        text = lines[int(told[-1][0]) - 1].strip()
        command = f"`{text}`: " if re.search(r"\w", text) else ""  # no lone bracket
    said = tail(re.sub(r"(?m)^IMGBUILD: line \d+: exit status \d+\n?", "", failed.output))
    reason = f"in {function}(): {command}{meaning(failed.returncode)}"
    return Failure(f"{where}{reason}\n{said}".rstrip(), status=FAILED)
