"""Mounts that last for a block of code, and the kernel's list of them."""

import os
from pathlib import Path

import pytest

from anemos import mounts
from anemos.log import Failure


def test_unescaped() -> None:
    assert mounts.unescaped(r"/mnt/ä\040b\134c") == "/mnt/ä b\\c"


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("name", ["plain", "two words", "back\\slash", "ä"])
def test_mounted(tmp_path: Path, name: str) -> None:
    """Listed while it is there, and gone afterwards, also when the block fails."""
    point = tmp_path / name
    point.mkdir()
    with pytest.raises(Failure), mounts.mounted("-t", "tmpfs", "anemos", at=point):
        assert os.path.ismount(point)
        assert (Path("anemos"), point) in mounts.listed()
        raise Failure("no")
    assert not os.path.ismount(point)
