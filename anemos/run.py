"""The one module that starts processes."""

import os
import resource
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sh

from anemos.log import FAILED, Failure, die

TAIL_LINES = 25  # the reason of a failure stands at the end of the output
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The time that a reproducible build goes by (reproducible-builds.org), and what leads out of a
# network: apt(8) knows the small ones, curl(1) and Python the others, too.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PASSED = ("SOURCE_DATE_EPOCH", *PROXIES)

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
        **{name: os.environ[name] for name in PASSED if name in os.environ},
        **(extra or {}),
    }


def no_core_dumps() -> None:
    """Let no crash of this process, or of one that it starts, write secrets to a disk."""
    # 1, not 0: core(5) ignores limits when a program takes the dump, except this one, which the
    # kernel takes for such a program's own crash (do_coredump()). For a file it is too small, too.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


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
    try:
        done = _execute(argv, options)
    except sh.ErrorReturnCode as error:
        output = (error.stdout + error.stderr).decode(errors="replace")
        raise CommandFailed(argv, error.exit_code, output) from None
    if trouble:
        raise trouble[0]
    return str(done.stdout.decode(errors="replace"))


def read(
    argv: Argv,
    what: str,
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run ARGV, which prints or handles secrets, and return its standard output, byte for byte.

    ARGV gets no terminal, so that it fails instead of waiting for somebody; after TIMEOUT (seconds)
    all that it has started is ended, too. Raises Failure (status 1) that begins with WHAT and shows
    standard error, never standard output.
    """
    if shutil.which(argv[0], path=environment(env)["PATH"]) is None:
        die(f"{what}: {argv[0]} not found", status=FAILED)
    # timeout(1) signals the whole process group. It gives up with status 124, or 137 (KILL).
    alone = ["setsid", "--wait", "timeout", "--kill-after=5", f"{timeout:g}"]
    options: dict[str, Any] = {"_in": b"", "_tty_out": False, "_return_cmd": True}
    options |= {"_env": environment(env), "_cwd": cwd and os.fspath(cwd)}
    try:
        return bytes(_execute([*alone, *argv], options).stdout)
    except sh.ErrorReturnCode as error:
        said = error.stderr.decode(errors="replace").strip()
        why = meaning(error.exit_code)
        if error.exit_code in (124, 137):
            why = f"no end after {timeout:g} s"
    die(f"{what}: {why}{': ' if said else ''}{said}", status=FAILED)


def _execute(argv: Argv, options: Mapping[str, Any]) -> Any:
    program, *arguments = (os.fspath(word) for word in argv)
    try:
        return sh.Command(program, search_paths=environment()["PATH"].split(":"))(
            *arguments, **options
        )
    except sh.CommandNotFound:
        die(f"{program} not found", hint="run ./inv: it installs what is missing", status=FAILED)
    except sh.TimeoutException:
        die(f"{quote(argv)}: no end after {options['_timeout']:g} s", status=FAILED)
    except sh.ForkException as error:  # its text is the child's traceback
        die(f"{program}: {str(error).strip().splitlines()[-1].strip()}", status=FAILED)


def catching(log: Callable[[str], None], trouble: list[BaseException]) -> Callable[[str], bool]:
    """LOG for sh's output thread, where an error would vanish: the first one goes to TROUBLE."""

    def emit(line: str) -> bool:
        try:
            log(line.rstrip("\n"))
        except BaseException as error:
            trouble.append(error)
        return bool(trouble)  # true: no more lines, please

    return emit
