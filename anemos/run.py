"""The one module that starts processes."""

import ctypes
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Thread, current_thread, main_thread
from typing import Any

import sh

from anemos.log import FAILED, Failure, die

TAIL_LINES = 25  # the reason of a failure stands at the end of the output
# These read or set a few values, on a disk of any size and a line of any speed. No others: a
# limit that ends honest work would end it again at each `resume` (docs/internals.md).
SHORT = {"blkid", "blockdev", "efibootmgr", "ip", "mdadm", "modprobe", "partx", "pvs", "sfdisk"}
SHORT_S = 3600.0
GRACE_S = 10.0  # from SIGTERM to SIGKILL, and from that to the end
LINGER_S = 2.0  # from a command's end, for what others write that it has started
CHUNK = 2**20  # no pipe holds more (pipe(7))
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # prctl(2)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The time that a reproducible build goes by (reproducible-builds.org), and what leads out of a
# network: apt(8) knows the small ones, curl(1) and Python the others, too.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PASSED = ("SOURCE_DATE_EPOCH", *PROXIES)

Argv = Sequence[str | os.PathLike[str]]
libc = ctypes.CDLL(None)


class CommandFailed(Failure):
    """A command ended with a status other than 0."""

    def __init__(self, argv: Argv, status: int, output: str) -> None:
        super().__init__(
            f"{quote(argv)}: {meaning(status)}\n{tail(output)}".rstrip(), status=FAILED
        )
        self.returncode, self.output = status, output


class NoEnd(Failure):
    """A command did not end in time; it and all that it has started was made to."""

    def __init__(self, what: str, limit: float, output: str) -> None:
        super().__init__(
            f"{what}: no end after {limit:g} s\n{tail(output)}".rstrip(), status=FAILED
        )


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
        # libblkid(3) goes by what it remembers there for 2 s, where no udev(7) is: what was on a
        # device before.
        "BLKID_FILE": os.devnull,
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


class Output:
    """What comes out of a command. LOG gets each line as soon as it is whole."""

    def __init__(self, log: Callable[[str], None] | None = None) -> None:
        self.log, self.data, self.told = log, bytearray(), 0

    def __str__(self) -> str:
        return self.data.decode(errors="replace")

    def take(self, chunk: bytes) -> None:
        self.data += chunk
        self.tell(self.data.rfind(b"\n", self.told) + 1)

    def end(self) -> None:
        """The last line may have no end."""
        self.tell(len(self.data))

    def tell(self, upto: int) -> None:
        if self.log is None or upto <= self.told:
            return
        lines = self.data[self.told : upto].removesuffix(b"\n").split(b"\n")
        self.told = upto
        for line in lines:
            self.log(line.decode(errors="replace"))


def run(
    argv: Argv,
    *,
    data: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    log: Callable[[str], None] | None = None,
    foreground: bool = False,
) -> str:
    """Run ARGV and return its standard output, decoded, undecodable bytes replaced.

    DATA is its standard input (empty otherwise). With LOG, every line of its standard output and
    error goes there as it comes, and both are returned. TIMEOUT is in seconds; without one, what is
    in SHORT has an hour, all else no limit. ARGV gets no terminal, so that it fails instead of
    waiting for somebody, unless it is in the FOREGROUND, as an editor is. What ends our wait (the
    time, a signal, an error in LOG) ends ARGV and all that it has started, but not an editor.
    Raises CommandFailed (with the last lines of its output), NoEnd, Failure when the program is
    missing or cannot start.
    """
    limit = timeout or (SHORT_S if Path(argv[0]).name in SHORT else math.inf)
    outputs = [Output(log)] if log else [Output(), Output()]
    options = {"_in": data or b"", "_cwd": cwd, "_new_session": not foreground}
    try:
        status = _execute(argv, outputs, limit, {**options, "_env": environment(env)})
    except TimeoutError:
        raise NoEnd(quote(argv), limit, "".join(map(str, outputs))) from None
    if status:
        raise CommandFailed(argv, status, "".join(map(str, outputs)))
    return str(outputs[0])


def read(
    argv: Argv,
    what: str,
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run ARGV, which prints or handles secrets, and return its standard output, byte for byte.

    It ends as `run` ends it, after TIMEOUT (seconds) at the latest. Raises Failure (status 1) that
    begins with WHAT and shows standard error, never standard output.
    """
    if shutil.which(argv[0], path=environment(env)["PATH"]) is None:
        die(f"{what}: {argv[0]} not found", status=FAILED)
    out, err = Output(), Output()
    options = {"_in": b"", "_cwd": cwd, "_new_session": True, "_env": environment(env)}
    try:
        status = _execute(argv, [out, err], timeout, options)
    except TimeoutError:
        raise NoEnd(what, timeout, str(err)) from None
    if status:
        said = str(err).strip()
        die(f"{what}: {meaning(status)}{': ' if said else ''}{said}", status=FAILED)
    return bytes(out.data)


def beside(argv: Argv, pipe: int, said: int) -> subprocess.Popen[bytes]:
    """Start ARGV, which ends when the other end of PIPE is closed, its standard input and output.
    SAID: its standard error. It has our environment, as it finds the user's agent there."""
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True)


def end_beside(process: subprocess.Popen[bytes]) -> None:
    """Wait until PROCESS has ended, and make it after GRACE_S."""
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _execute(
    argv: Argv, outputs: Sequence[Output], limit: float, options: Mapping[str, Any]
) -> int:
    """Exit status of ARGV. OUTPUTS: one for each stream, or one for both.

    sh itself stops reading two seconds after the end: on a slow machine much can be left by then.
    """
    pipes = [os.pipe() for _ in outputs]
    streams = {ours: output for (ours, _), output in zip(pipes, outputs, strict=True)}
    command = None
    try:
        with _held_back():
            command = _start(argv, [theirs for _, theirs in pipes], options)
            ended = _announced(command)
        try:
            _follow(ended, streams, limit)
        finally:
            os.close(ended)
        return int(command.exit_code)
    except BaseException:
        if command is not None:
            _end(command.pid)
        raise
    finally:
        for ours in streams:
            os.close(ours)


@contextmanager
def _held_back() -> Iterator[None]:
    """What ends us by an exception waits until it is known what it has to end, too.

    By Python's handlers, which run in the main thread alone: the kernel would give a signal that
    this thread blocks to another one, whose handler is the main thread's, too (signal(7)).
    """
    known = {each: signal.getsignal(each) for each in ENDING}
    ours = {each: handler for each, handler in known.items() if callable(handler)}
    if current_thread() is not main_thread():
        ours = {}
    came: list[int] = []
    for each in ours:
        signal.signal(each, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in ours.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def _prepare() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # nobody else would tell it of our SIGKILL


def _start(argv: Argv, pipes: Sequence[int], options: Mapping[str, Any]) -> Any:
    program, *arguments = (os.fspath(word) for word in argv)
    # In the background, but sh has True also ignore SIGHUP.
    options = {**options, "_bg": 1, "_bg_exc": False, "_preexec_fn": _prepare}
    options |= {"_out": pipes[0], "_err": pipes[-1]}
    try:
        return sh.Command(program, search_paths=environment()["PATH"].split(":"))(
            *arguments, **options
        )
    except sh.CommandNotFound:
        die(f"{program} not found", hint="run ./inv: it installs what is missing", status=FAILED)
    except sh.ForkException as error:  # its text is the child's traceback
        die(f"{program}: {str(error).strip().splitlines()[-1].strip()}", status=FAILED)
    finally:
        for each in pipes:
            os.close(each)


def _announced(command: Any) -> int:
    """A pipe that is closed when COMMAND has ended."""
    ours, theirs = os.pipe()

    def wait() -> None:
        with suppress(sh.ErrorReturnCode):
            command.wait()
        os.close(theirs)

    Thread(target=wait, daemon=True).start()
    return ours


def _follow(ended: int, streams: Mapping[int, Output], limit: float) -> None:
    """Read STREAMS until all are closed, or the command has ENDED and has left nothing in them.

    Raises TimeoutError after LIMIT (seconds).
    """
    deadline = time.monotonic() + limit
    with DefaultSelector() as selector:
        for each in (ended, *streams):
            selector.register(each, EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            for key, _ in selector.select(min(max(left, 0), SHORT_S)):
                if chunk := os.read(key.fd, CHUNK):
                    streams[key.fd].take(chunk)
                    continue
                selector.unregister(key.fd)
                if key.fd == ended:  # its last words are in the pipes: they are read once more
                    deadline, left = time.monotonic() + LINGER_S, LINGER_S
            if left <= 0:
                if ended in selector.get_map():
                    raise TimeoutError
                break
    for output in streams.values():
        output.end()


def _end(group: int) -> None:
    """Make a process GROUP end; programs that make temporary files remove them."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(group, signal.SIGTERM)
            _await(group)
        finally:  # a second signal may have ended the wait
            os.killpg(group, signal.SIGKILL)
        _await(group)  # but not for ever: a dead device may hold it


def _await(group: int) -> None:
    """Raises ProcessLookupError when nobody is left in GROUP."""
    end = time.monotonic() + GRACE_S
    while time.monotonic() < end:
        os.killpg(group, 0)
        time.sleep(0.05)
