"""The table of distributions, and what they have in common."""

from pathlib import Path
from typing import Protocol

from anemos import log
from anemos.image.bootstrap import alpine, arch, debian
from anemos.image.imgbuild import Imgbuild
from anemos.run import run


class Target(Protocol):
    """How one distribution is bootstrapped: a module. Another program for it is another module."""

    PROGRAMS: tuple[str, ...]  # what does it

    def make(self, imgbuild: Imgbuild, output: Path) -> None:
        """Write the root file system to a directory, or a tar file, compressed by its suffix."""

    def check(self, imgbuild: Imgbuild) -> None:
        """Raise Failure for what the IMGBUILD or the files beside it lack. Asks no network."""

    def inputs(self, imgbuild: Imgbuild) -> dict[str, object]:
        """All that the layer depends on, packages aside: values that JSON can express."""

    def indexes(self, imgbuild: Imgbuild) -> list[str]:
        """URLs of the files of the mirror that change with it; none if they are not known."""


TARGETS: dict[str, Target] = {"debian": debian, "arch": arch, "alpine": alpine}


def check(imgbuild: Imgbuild) -> None:
    """Raise Failure for everything about the bootstrap that can be known without starting it."""
    TARGETS[imgbuild.target].check(imgbuild)


def bootstrap(imgbuild: Imgbuild, output: Path) -> None:
    """Write the package layer to OUTPUT: a directory, or a tar file, compressed by its suffix.

    Raises Failure that names the package, key or mirror at fault, where the program tells it.
    """
    check(imgbuild)
    suite = f" {imgbuild.suite}" if imgbuild.target == "debian" else ""
    with log.step(f"Bootstrapping {imgbuild.target}{suite}"):
        TARGETS[imgbuild.target].make(imgbuild, output)


def unpack(layer: Path, root: Path) -> None:
    """Unpack a package layer (tar, any compression) below ROOT, owners and capabilities kept.

    Without device nodes: a user namespace must not make them, and every kernel has a devtmpfs.
    """
    options = ["--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    options += ["--exclude=./dev/*"]
    run(["tar", "--extract", *options, "--file", layer, "--directory", root])
