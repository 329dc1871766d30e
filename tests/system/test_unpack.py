"""Unpacking a package layer: how far it is, and why it failed."""

import os
from pathlib import Path

import pytest

from anemos import log
from anemos.run import CommandFailed, run
from anemos.system import bootstrap

pytestmark = pytest.mark.real("run")

SIZE = 30 << 20


class Seen(log.Observer):
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def reached(self, done: int, total: int) -> None:
        self.told.append((done, total))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    monkeypatch.setattr(log, "observers", [observer := Seen()])
    return observer.told


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """As images.layers makes it: of a file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_bytes(os.urandom(1 << 20) + bytes(SIZE))
    (tmp_path / "root").mkdir()
    run(["tar", "--create", "--file", tmp_path / "layer.tar", "--directory", tmp_path / "in", "."])
    run(["zstd", "-q", "-T0", tmp_path / "layer.tar", "-o", tmp_path / "layer"])
    return tmp_path / "layer"


def test_how_far_it_is(layer: Path, seen: list[tuple[int, int]]) -> None:
    bootstrap.unpack(layer, layer.parent / "root")

    whole = layer.with_suffix(".tar").stat().st_size
    assert bootstrap.unpacked_size(layer) == whole
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {whole}
    assert whole / 2 < seen[-1][0] <= whole
    assert (layer.parent / "root/file").stat().st_size == SIZE + (1 << 20)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65791, 65792, 1 << 20])
def test_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    run(["zstd", "-q", tmp_path / "file"])
    assert bootstrap.unpacked_size(tmp_path / "file.zst") == size


def test_size_that_is_not_told(layer: Path, seen: list[tuple[int, int]]) -> None:
    """Of one that went through a pipe, as the server makes it; of what is no zstd file."""
    piped = layer.with_name("piped")
    run(["sh", "-c", 'zstd -q <"$0" >"$1"', layer.with_suffix(".tar"), piped])
    assert bootstrap.unpacked_size(piped) == 0
    bootstrap.unpack(piped, layer.parent / "root")
    bootstrap.unpack(layer.with_suffix(".tar"), layer.parent / "root")
    assert seen == []


def test_failure_tells_what_tar_said(layer: Path) -> None:
    layer.write_bytes(layer.read_bytes()[:-100])
    with pytest.raises(CommandFailed) as caught:
        bootstrap.unpack(layer, layer.parent / "root")
    assert "tar: " in caught.value.output
    assert "@" not in caught.value.output
