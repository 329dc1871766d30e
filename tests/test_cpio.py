"""cpio archives, read back by cpio(1)."""

import io
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anemos import cpio
from anemos.cpio import Entry, append
from anemos.run import run

HEAD = 110
NAMES = st.text("abc/.-äß ", min_size=1, max_size=20)
ENTRIES = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=9), st.integers(0, 0o7777)))


def archive(entries: list[Entry], before: bytes = b"") -> bytes:
    stream = io.BytesIO(before)
    stream.seek(0, io.SEEK_END)
    append(stream, entries)
    return stream.getvalue()


def parse(data: bytes) -> list[tuple[str, int, bytes]]:
    """Names, modes and contents, as the kernel's init/initramfs.c reads them."""
    found, at = [], 0
    while at < len(data):
        if data[at] == 0:
            at += 4
            continue
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + HEAD : at + HEAD + length]
        assert name[-1:] == b"\0"
        start = at + HEAD + length + (-(HEAD + length) % 4)
        found.append((name[:-1].decode(), mode, data[start : start + size]))
        at = start + size + (-size % 4)
    assert at == len(data)
    return found


@settings(deadline=None, database=None)
@given(ENTRIES)
def test_whatever_goes_in_comes_out(entries: list[tuple[str, bytes | None, int]]) -> None:
    data = archive([Entry(path, content, mode) for path, content, mode in entries])
    kinds = [stat.S_IFDIR if content is None else stat.S_IFREG for _, content, _ in entries]
    assert len(data) % cpio.PADDING == 0
    assert parse(data) == [
        *((p, kind | m, c or b"") for (p, c, m), kind in zip(entries, kinds, strict=True)),
        ("TRAILER!!!", 0, b""),
    ]


def test_archives_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    first = archive([Entry("a", None, 0o755), Entry("a/b", b"12345", 0o640)])
    both = archive([Entry("c", tmp_path / "file")], first + bytes(512))
    assert [name for name, _, _ in parse(both)] == ["a", "a/b", "TRAILER!!!", "c", "TRAILER!!!"]
    assert parse(both)[3] == ("c", stat.S_IFREG | 0o600, b"from a file")


@pytest.mark.real("run")
def test_cpio_unpacks_it(tmp_path: Path) -> None:
    data = archive(
        [
            Entry("etc", None, 0o750),
            Entry("etc/secret", b"\0\xff\n" * 1001),
            Entry("etc/empty", b"", 0o644),
            Entry("init", b"#!/bin/sh\n", 0o755),
        ]
    )
    run(["cpio", "--extract", "--quiet", "--no-absolute-filenames"], data=data, cwd=tmp_path)
    assert (tmp_path / "etc/secret").read_bytes() == b"\0\xff\n" * 1001
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert modes == {"etc": 0o750, "etc/secret": 0o600, "etc/empty": 0o644, "init": 0o755}
    listing = run(["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"], data=data)
    assert [line.split()[2:4] for line in listing.splitlines()] == [["0", "0"]] * 4


def test_content_is_not_copied_into_memory(tmp_path: Path) -> None:
    """A file's size is told by its end, not by what was read."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**22 + 1)
    ((_, _, content), _) = parse(archive([Entry("big", tmp_path / "big")]))
    assert content == bytes(2**22 + 1)


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**32)
    stream = io.BytesIO()
    with pytest.raises(ValueError, match=r"^boot/huge: 4294967296 bytes do not fit"):
        append(stream, [Entry("boot/huge", tmp_path / "huge")])
    assert not stream.getvalue()
