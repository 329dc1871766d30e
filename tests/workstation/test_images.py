"""Base images in the cache."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier

import pytest

from anemos.architecture import Architecture
from anemos.run import CommandFailed
from anemos.workstation import images

HOUR_S = 3600.0


def test_damaged_base_image(tmp_path: Path) -> None:
    link = tmp_path / "base-of-a"
    assert not images.sound(link)
    (tmp_path / "image").write_text("squashfs")
    image = (tmp_path / "image").rename(tmp_path / images.file_name(tmp_path / "image"))
    link.symlink_to(image.name)
    assert images.sound(link)
    image.write_text("")
    assert not images.sound(link)


def test_one_builds_and_the_other_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2)
    asked: list[Path] = []
    built: list[Path] = []

    def sound(link: Path) -> bool:
        there = link.exists()
        asked.append(link)
        if len(asked) <= 2:
            both.wait(10)  # neither has begun
        return there

    def build(_: Path, link: Path, __: Architecture) -> None:
        built.append(link)
        link.write_text("image")

    monkeypatch.setattr(
        images, "sources", lambda _: nullcontext((tmp_path, tmp_path / "base-of-a"))
    )
    monkeypatch.setattr(images, "sound", sound)
    monkeypatch.setattr(images, "build_base", build)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: images.base(), range(2))) == [tmp_path / "base-of-a"] * 2
    assert built == [tmp_path / "base-of-a"]


def test_prune(tmp_path: Path) -> None:
    """The newest stay, and what somebody may work with now; links go with what they lead to."""
    ages = {"a": 90, "b": 80, "c": 70, "d": 30, "e": 23, "f": 1}  # hours since they were used
    for name, age in ages.items():
        image = tmp_path / f"base-{name}.squashfs"
        image.touch()
        os.utime(image, times=(0, time.time() - age * HOUR_S))
        (tmp_path / f"base-of-{name}").symlink_to(image.name)
    (tmp_path / "layer-x.tar.zst").touch()

    images.prune(tmp_path)
    kept = {"base-e.squashfs", "base-f.squashfs", "base-of-e", "base-of-f"}
    assert {each.name for each in tmp_path.iterdir()} == kept | {"layer-x.tar.zst"}

    for image in tmp_path.glob("*.squashfs"):
        os.utime(image, times=(0, 0))
    images.prune(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == kept | {"layer-x.tar.zst"}


@pytest.mark.parametrize(
    ("code", "output", "message", "status"),
    [
        (2, "Building\nerror: IMGBUILD: line 3: no\n", "IMGBUILD: line 3: no", 2),
        (1, "error: one\nmore\nerror: why\n  | last\n", "why\n  | last", 1),
        (2, "error: no error: in the middle\n", "no error: in the middle", 2),
        (-9, "Building\n", "mx: the image builder: killed by signal 9\n  | Building", 1),
        (-11, "error: told before\n", "mx: the image builder: killed by signal 11\n", 1),
        (1, "Traceback\nKeyError: 1\n", "mx: the image builder: exit status 1\n  | Traceback", 1),
    ],
)
def test_end_of_the_builder(code: int, output: str, message: str, status: int) -> None:
    failure = images.said(Path("mx"), CommandFailed(["python3"], code, output))

    assert failure.message.startswith(message)
    assert failure.status == status
