"""The one module that starts processes."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sh

from anemos.log import FAILED, Failure, die

TAIL_LINES = 25  # the reason of a failure stands at the end of the output
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Argv = Sequence[str | os.PathLike[str]]


class CommandFailed(Failure):
    """A command ended with a status other than 0."""

    def __init__(self, argv: Argv, status: int, output: str) -> None:
        super().__init__(
            f"{quote(argv)}: {meaning(status)}\n{tail(output)}".rstrip(), status=FAILED
        )
        self.returncode, self.output = status, output


def quote(argv: Argv) -> str:
    return shlex.join(os.fspath(word) for word in argv)


def tail(output: str) -> str:
    """The last lines of OUTPUT, as they stand in messages."""
    return "\n".join(f"  | {line}" for line in output.splitlines()[-TAIL_LINES:])


def meaning(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child: built, not inherited. EXTRA must hold no secret."""
    return {
        # An empty word in it would mean the current directory.
        "PATH": ":".join(filter(None, [os.environ.get("PATH"), SYSTEM_PATH])),
        "HOME": os.environ.get("HOME", "/root"),
        "TERM": os.environ.get("TERM", "dumb"),
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        # A lost DNS answer costs the resolver's default of 5 s (resolv.conf(5)).
        "RES_OPTIONS": "timeout:1 attempts:5",
        **(extra or {}),
    }


def run(
    argv: Argv,
    *,
    data: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    log: Callable[[str], None] | None = None,
) -> str:
    """Run ARGV and return its standard output, decoded, undecodable bytes replaced.

    DATA is its standard input (empty otherwise). With LOG, every line of its standard output and
    error goes there as it comes, and both are returned. TIMEOUT is in seconds.
    Raises CommandFailed (with the last lines of its output), Failure when the program is missing,
    cannot start or does not end in time, and, once it has ended, what LOG raised.
    """
    options: dict[str, Any] = {
        "_in": data or b"",
        "_env": environment(env),
        "_cwd": None if cwd is None else os.fspath(cwd),
        "_timeout": timeout,
        "_tty_out": False,
        "_truncate_exc": False,
        "_decode_errors": "replace",
        "_return_cmd": True,
    }
    trouble: list[BaseException] = []
    if log is not None:
        options |= {"_out": catching(log, trouble), "_err_to_out": True, "_tee": True}
    program, *arguments = (os.fspath(word) for word in argv)
    try:
        done = sh.Command(program, search_paths=environment()["PATH"].split(":"))(
            *arguments, **options
        )
    except sh.CommandNotFound:
        die(f"{program} not found", hint="./inv installs what is missing", status=FAILED)
    except sh.TimeoutException:
        die(f"{quote(argv)}: no end after {timeout:g} s", status=FAILED)
    except sh.ForkException as error:  # its text is the child's traceback
        die(f"{program}: {str(error).strip().splitlines()[-1].strip()}", status=FAILED)
    except sh.ErrorReturnCode as error:
        output = (error.stdout + error.stderr).decode(errors="replace")
        raise CommandFailed(argv, error.exit_code, output) from None
    if trouble:
        raise trouble[0]
    return str(done.stdout.decode(errors="replace"))


def catching(log: Callable[[str], None], trouble: list[BaseException]) -> Callable[[str], bool]:
    """LOG for sh's output thread, where an error would vanish: the first one goes to TROUBLE."""

    def emit(line: str) -> bool:
        try:
            log(line.rstrip("\n"))
        except BaseException as error:
            trouble.append(error)
        return bool(trouble)  # true: no more lines, please

    return emit
