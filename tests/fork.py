"""The program, with its imports done once: each run is a fork of that.

The imports take longer than all else in most tasks that tests run. A fork is a process of its own:
it leaves nothing behind for the next one.
"""

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryFile
from typing import NoReturn

PROGRAM = "anemos.workstation.cli.program"
SLOW = [
    "cli.tasks",
    "deploy.default",
    "deploy.export",
    "deploy.fleet",
    "secrets.audit",
    "vm.rehearsal",
]
LARGEST = 2**16  # bytes of a message


@dataclass(frozen=True)
class Imported:
    """A process that has done the imports, seen from outside."""

    requests: socket.socket

    def run(
        self, words: Sequence[str], env: Mapping[str, str], stdin: int, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """What subprocess.run() would do and return."""
        with (
            Path(os.devnull).open() as nothing,
            TemporaryFile("w+") as out,
            TemporaryFile("w+") as err,
        ):
            given = nothing.fileno() if stdin == subprocess.DEVNULL else stdin
            message = json.dumps([words, dict(env)]).encode()
            socket.send_fds(self.requests, [message], [given, out.fileno(), err.fileno()])
            status = self.ended(timeout)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def ended(self, timeout: float) -> int:
        pid = int(self.requests.recv(LARGEST))
        self.requests.settimeout(timeout)
        try:
            return int(self.requests.recv(LARGEST))
        except TimeoutError:
            os.kill(pid, SIGKILL)
            self.requests.settimeout(None)
            self.requests.recv(LARGEST)  # its status is not the next one's
            raise
        finally:
            self.requests.settimeout(None)


@contextmanager
def imported(directory: Path, env: Mapping[str, str]) -> Iterator[Imported]:
    """The program of the copy in DIRECTORY."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    with process, ours:
        yield Imported(ours)


def serve(requests: socket.socket) -> None:
    while True:
        request, streams, *_ = socket.recv_fds(requests, LARGEST, 3)
        if not request:  # the other end is closed
            return
        if (pid := os.fork()) == 0:
            requests.close()
            become(streams, *json.loads(request))
        for stream in streams:
            os.close(stream)
        requests.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())


def become(streams: Sequence[int], words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """What Python would have done at the start of a process."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [PROGRAM, *words]
    import_module(PROGRAM).main()
    raise AssertionError("main() ends the process")


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # noqa: PTH109 (where `python -m` looks first)
    for module in (PROGRAM, *(f"anemos.workstation.{each}" for each in SLOW)):
        import_module(module)
    gc.freeze()  # else each fork copies all of it, only to look for garbage
    serve(socket.socket(fileno=int(sys.argv[1])))
