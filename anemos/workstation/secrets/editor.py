"""The user's editor, for what must not touch a disk."""

import os
import shlex
import shutil
from pathlib import Path

from anemos.log import FAILED, die
from anemos.run import CommandFailed, meaning, run
from anemos.workstation import scratch
from anemos.workstation.scratch import write_private

# run() gives no terminal as input and output: take it, if there is one.
ON_TERMINAL = """\
if (: </dev/tty) 2>/dev/null; then exec </dev/tty >/dev/tty 2>&1; fi
exec "$@"
"""
RUN = ["sh", "-c", ON_TERMINAL, "sh"]

# Vim keeps what was deleted in ~/.viminfo, and other copies wherever the user's vimrc says.
VIM = ["-n", "-i", "NONE", "-c", "silent! set nobackup nowritebackup noundofile"]


def edit(data: bytes, name: str) -> bytes:
    """Have the user edit DATA in a file named like NAME, which lies in memory; the new contents.

    Raises Failure: no editor (status 2), an editor that fails (1).
    """
    argv = command()
    with scratch.directory() as directory:
        file = directory / Path(name).name
        write_private(directory, file.name, data)
        try:
            run([*RUN, *argv, file], env=os.environ, foreground=True)
        except CommandFailed as failed:  # not its output, which may show the secret
            why = meaning(failed.returncode)
            die(f"{argv[0]}: {why}; {name} stays as it was", status=FAILED)
        if not file.is_file():
            die(f"{argv[0]} left no file; {name} stays as it was", status=FAILED)
        return file.read_bytes()


def command() -> list[str]:
    """The editor as environ(7) has it; without one, Debian's alternative `editor`."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "editor"
    try:
        argv = shlex.split(chosen)
    except ValueError as error:
        die(f"editor {chosen!r}: {error}")
    program = shutil.which(argv[0]) if argv else None
    if program is None:
        die(f"editor {chosen!r} not found", hint="export EDITOR=vim")
    is_vim = Path(program).resolve().name.startswith(("vim", "nvim", "gvim"))
    return [*argv, *VIM] if is_vim else argv
