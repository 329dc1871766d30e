"""Files that others read while they are written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from anemos import files
from anemos.system import installation

X = Path("/x/payload")


def test_scratch(tmp_path: Path) -> None:
    """What a killed process has left goes; what is in use stays."""
    (tmp_path / "x-left/deep").mkdir(parents=True)
    with files.scratch(tmp_path, "x-") as first, files.scratch(tmp_path, "x-") as second:
        assert set(tmp_path.iterdir()) == {first, second}
    assert not list(tmp_path.iterdir())


def test_error_of_writing_names_the_file(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device: '/x/payload'"), files.named(X):
        raise full
    other = r"No such file or directory: '.*/other'"
    with pytest.raises(FileNotFoundError, match=other), files.named(X):
        (tmp_path / "other").read_text()


def test_replace(tmp_path: Path) -> None:
    """Who has the old one open keeps it; nothing else is left."""
    file = tmp_path / "state.json"
    file.write_text("old")
    with file.open() as reader:
        files.replace(file, "new", 0o600)
        assert reader.read() == "old"
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    """What a user, or the old system, has written stays byte for byte."""
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc/fstab"
    file.write_bytes(b"# f\xfcr uns\n")

    installation.append(tmp_path, "etc/fstab", "UUID=1 / ext4\n")
    files.replace(file, files.text(file) + "# ä\n")

    assert file.read_bytes() == b"# f\xfcr uns\nUUID=1 / ext4\n# \xc3\xa4\n"
