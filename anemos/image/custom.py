"""format=custom: the IMGBUILD's own setup() and cleanup() make the image.

The manifest tells what cleanup() has found at $root.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anemos import log, mounts
from anemos.files import replace, sha256
from anemos.image import manifest, reproducible
from anemos.image.manifest import Sources
from anemos.log import Failure
from anemos.run import run
from anemos.system import bootstrap, definition, functions
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild


def build(imgbuild: Imgbuild, layer: Path, root: Path, given: Definition, out: Path) -> list[Path]:
    """Make the image at ROOT, which is not there yet, between setup() and cleanup()."""
    root.mkdir()
    with hooks(imgbuild, root, out) as files:
        with log.step("Unpacking the package layer"):
            bootstrap.unpack(layer, root)
        epoch = reproducible.given(reproducible.newest(root))
        with reproducible.environment(epoch):
            with log.step("Applying the definition"):
                definition.complete(imgbuild, root, given)
            brought, secret = reproducible.brought_in(root, given)
            reproducible.forget(root, brought)
            reproducible.clamp(root, root, epoch)
        sources = Sources(layer.name, sha256(layer), given.inputs, secret)
        text = manifest.text(imgbuild, root, sources, (), epoch)
    replace(out / manifest.name(imgbuild), text)
    return files


@contextmanager
def hooks(imgbuild: Imgbuild, root: Path, out: Path) -> Iterator[list[Path]]:
    """Call setup() before the image is made at ROOT, cleanup() after it in any case.

    Yields the list of the image's files, to which what the two make in OUT is added.
    """
    files: list[Path] = []
    before = changes(out)
    try:
        hook(imgbuild, "setup", root, out)
        yield files
    except BaseException:
        try:
            hook(imgbuild, "cleanup", root, out, status="1")
        except Failure as another:
            log.info(str(another))
        raise
    else:
        hook(imgbuild, "cleanup", root, out, status="0")
    finally:
        unmount(root)
    files.extend(file for file, when in changes(out).items() if before.get(file) != when)


def hook(imgbuild: Imgbuild, function: str, root: Path, out: Path, **more: str) -> None:
    if function in imgbuild.functions:
        more |= {"root": os.fspath(root), "imgdir": os.fspath(imgbuild.directory.absolute())}
        with log.step(f"Running {function}()"):
            functions.on_host(imgbuild, function, out, log.info, **more)


def unmount(root: Path) -> None:
    """What setup() mounted at ROOT and below: it must not be removed with the scratch files."""
    for each in reversed(mounts.listed()):
        if each.point.is_relative_to(root):
            run(["umount", "--lazy", each.point])


def changes(directory: Path) -> dict[Path, int]:
    """When each file in DIRECTORY was changed."""
    return {file: file.lstat().st_ctime_ns for file in sorted(directory.iterdir())}
