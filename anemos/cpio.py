"""Archives in the format that the kernel unpacks an initramfs from.

"newc" with 110 bytes of header, names and data padded to 4 bytes; archives may follow each other,
zeros between them (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import io
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PADDING = 4
MAX_SIZE = 2**32 - 1  # a file's size has eight hexadecimal digits


@dataclass(frozen=True)
class Entry:
    """PATH in the archive; DATA: bytes, a file to read, or None for a directory."""

    path: str
    data: bytes | Path | None
    mode: int = 0o600


def append(archive: BinaryIO, entries: Sequence[Entry]) -> None:
    """Write one archive with ENTRIES at ARCHIVE's position, which must be a multiple of 4.

    Parent directories need entries of their own, before their files. Owner is root, time 0.
    Raises ValueError for a file of 4 GiB or more.
    """
    for number, entry in enumerate(entries, 1):
        _write(archive, entry, number)
    _header(archive, "TRAILER!!!", 0, 0, 0)


def _write(archive: BinaryIO, entry: Entry, inode: int) -> None:
    if entry.data is None:
        _header(archive, entry.path, inode, stat.S_IFDIR | entry.mode, 0)
        return
    with _open(entry.data) as source:
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        _header(archive, entry.path, inode, stat.S_IFREG | entry.mode, size)
        shutil.copyfileobj(source, archive, 2**20)
        archive.write(_padding(size))


def _open(data: bytes | Path) -> BinaryIO:
    return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)


def _header(archive: BinaryIO, path: str, inode: int, mode: int, size: int) -> None:
    if size > MAX_SIZE:
        raise ValueError(f"{path}: {size} bytes do not fit in a cpio archive")
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive.write(head + _padding(len(head)))


def _padding(length: int) -> bytes:
    return bytes(-length % PADDING)
