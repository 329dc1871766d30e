"""Looks for secrets where they do not belong: on disks, in processes, in what was printed."""

import os
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 2**24
SAMPLE_S = 0.3
# For a server: what its processes show, and what was logged there; again and again.
SAMPLER = """
while :; do
    cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /run/anemos/log /run/anemos/events 2>/dev/null
    sleep 3
done
"""


def counts(file: Path, markers: Mapping[str, bytes]) -> dict[str, int]:
    """How often each of MARKERS stands in FILE, which may be sparse, or a disk's image."""
    keep = max(map(len, markers.values())) - 1
    found, tail = dict.fromkeys(markers, 0), b""
    with file.open("rb") as stream:
        while data := stream.read(CHUNK):
            whole = tail + data
            for name, each in markers.items():
                # A marker that lies in the tail as a whole was counted before.
                found[name] += whole.count(each) - tail.count(each)
            tail = whole[-keep:]
    return found


def encoded(markers: Mapping[str, bytes]) -> dict[str, bytes]:
    """MARKERS, and the same in hexadecimal and in base64."""
    hexadecimal = {f"{name} in hex": each.hex().encode() for name, each in markers.items()}
    groups = {f"{name} in base64": each[: len(each) // 3 * 3] for name, each in markers.items()}
    return {**markers, **hexadecimal, **{name: b64encode(each) for name, each in groups.items()}}


def hits(files: Iterable[Path], markers: Mapping[str, bytes]) -> list[str]:
    """The FILES that hold a marker, with its name."""
    return [
        f"{file}: {name}"
        for file in files
        if file.is_file() and not file.is_symlink()
        for name, times in counts(file, markers).items()
        if times
    ]


@contextmanager
def sampled_processes() -> Iterator[set[bytes]]:
    """Arguments and environments of this machine's processes, as they come and go."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            for file in [
                *Path("/proc").glob("[0-9]*/cmdline"),
                *Path("/proc").glob("[0-9]*/environ"),
            ]:
                with suppress(OSError):  # gone
                    seen.add(file.read_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@contextmanager
def sampled_server(ssh: list[str], output: Path) -> Iterator[None]:
    """The same for a server, in all its systems: SSH is the argv that leads there."""
    ended = threading.Event()
    current: list[subprocess.Popen[bytes]] = []

    def sample() -> None:
        with output.open("ab") as file:
            while not ended.is_set():
                argv = [*ssh, SAMPLER]
                current[:] = [subprocess.Popen(argv, stdout=file, stderr=subprocess.DEVNULL)]
                current[0].wait()
                ended.wait(1)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        for process in current:
            process.terminate()
        thread.join()


def everything_below(*directories: Path) -> Iterator[Path]:
    for directory in directories:
        for parent, below, names in os.walk(directory):
            below[:] = [name for name in below if name not in (".git", ".venv")]
            yield from (Path(parent) / name for name in names)
