"""Builds tiny images as a user does: python3 -m anemos.image, run where an IMGBUILD lies."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anemos.image import layers
from anemos.run import Argv, run
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places
from tests import tiny

ROOT = Path(__file__).parents[1]


def describe(host: Path, text: str, head: str = "imgname=mx\ntarget=debian\n") -> None:
    """Write the IMGBUILD, and its package layer into host/out: nothing has to be bootstrapped."""
    (host / "out").mkdir(parents=True, exist_ok=True)
    (host / "IMGBUILD").write_text(head + text)
    tree = host.parent / "layer"
    if not tree.exists():
        tiny.make(tree)
    store(tree, imgbuild.load(host), host / "out")


def store(tree: Path, spec: Imgbuild, directory: Path) -> Path:
    """Put TREE into the cache DIRECTORY, as the package layer of SPEC."""
    layer = layers.layer_file(spec, directory)
    options = ["--zstd", "--xattrs", "--xattrs-include=*"]
    run(["tar", "--create", *options, "--file", layer, "--directory", tree, "."])
    return layer


@contextmanager
def attached(file: Path, *options: str) -> Iterator[Path]:
    """FILE as a block device. OPTIONS: losetup(8)'s."""
    node = Path(run(["losetup", "--find", "--show", *options, file]).strip())
    run(["blockdev", "--setrw", node])  # it stays read-only if the last one who had it made it so
    try:
        yield node
    finally:
        run(["losetup", "--detach", node])


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "anemos.image", *options]


def environment() -> dict[str, str]:
    return {"PYTHONPATH": os.fspath(ROOT), "PATH": os.environ["PATH"]}


def image(
    host: Path, *options: str, user: int | None = None, umask: int = 0o077
) -> subprocess.CompletedProcess[str]:
    """Run the builder in HOST, with whatever umask its user has."""
    return subprocess.run(
        command(*options),
        cwd=host,
        env=environment(),
        umask=umask,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def root(directory: Path, text: str) -> Path:
    """What the IMGBUILD TEXT describes, with format=dir: a directory in the new DIRECTORY."""
    directory.mkdir()
    (directory / "IMGBUILD").write_text(text)
    options: Argv = ["--directory", directory, "--output", directory, "--cache", places.cache()]
    run([sys.executable, "-m", "anemos.image", *options, f"--mirror={places.mirror()}"], cwd=ROOT)
    return directory / directory.name
