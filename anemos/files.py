"""Files: their digests; how they are written when others read them, or a power cut may come."""

import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

PIECE = 1 << 20


def sha256(file: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def crc32(file: Path) -> int:
    """The file's CRC-32, as zlib's: many times as quick, for damage that nobody does on purpose."""
    found = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            found = zlib.crc32(piece, found)
    return found


def text(file: Path) -> str:
    """What somebody else has written to FILE, "" without one. Bytes that are not UTF-8 stand there
    as surrogates, and become the same bytes again where it is written."""
    return file.read_text(errors="surrogateescape") if file.is_file() else ""


def encoded(data: str | bytes) -> bytes:
    return data.encode(errors="surrogateescape") if isinstance(data, str) else data


def replace(file: Path, data: str | bytes, mode: int = 0o666, beside: Path | None = None) -> None:
    """Make DATA the content of FILE: nobody ever reads half of it. MODE: less the umask.

    BESIDE: the directory in which it is written first, if not FILE's.
    """
    fresh = (beside or file.parent) / f".{file.name}.{os.getpid()}"
    with named(file):
        try:
            fresh.touch(mode)
            fresh.write_bytes(encoded(data))
            settle(fresh, file)
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def private(file: Path) -> Iterator[BinaryIO]:
    """A new FILE to write to, instead of an old one, which nobody else can ever read."""
    file.unlink(missing_ok=True)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with named(file), os.fdopen(fd, "wb") as stream:
        yield stream


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Errors inside are about FILE: write(2) names none, of a full disk, say."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(file)
        raise


def settle(fresh: Path, file: Path) -> None:
    """Rename FRESH to FILE. After a power cut there is the old one, or all of the new one.

    A rename may reach the disk before the data does, and both after we have gone on (fsync(2)).
    """
    sync(fresh)
    fresh.rename(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Have what PATH holds, a file or a directory, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def forget(file: Path) -> None:
    """Have FILE, which is on the disk, read from there next time (posix_fadvise(2))."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextmanager
def scratch(top: Path, prefix: str) -> Iterator[Path]:
    """A directory in TOP, gone at the end. Those of PREFIX that a killed process left go now."""
    for abandoned in top.glob(f"{prefix}*"):
        with suppress(OSError), locked(abandoned):
            shutil.rmtree(abandoned)
    with TemporaryDirectory(prefix=prefix, dir=top) as name, locked(Path(name)) as held:
        yield held


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Wait until nobody else has its turn by FILE, which is made and stays (flock(2))."""
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """Hold DIRECTORY for as long as we live. Raises OSError when somebody else does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory
    finally:
        os.close(fd)
