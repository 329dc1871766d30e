"""Base images in the cache."""

import os
import time
from pathlib import Path

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
