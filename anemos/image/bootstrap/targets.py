"""The table of distributions, and what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from anemos import log
from anemos.image.bootstrap import alpine, arch, debian
from anemos.image.imgbuild import Imgbuild
from anemos.run import run


@dataclass(frozen=True)
class Target:
    """How one distribution is bootstrapped. Another program for it is another `make`."""

    # Write the root file system to a directory, or to a tar file, compressed as its suffix says.
    make: Callable[[Imgbuild, Path], None]
    # Raise Failure for what the IMGBUILD or the files beside it lack. Asks no network.
    check: Callable[[Imgbuild], None]
    # All that the layer depends on, packages aside: name -> anything that JSON can express.
    inputs: Callable[[Imgbuild], dict[str, object]]
    # The files of the mirror that change with it; none if they are not known.
    indexes: Callable[[Imgbuild], list[str]]
    # The programs that do it.
    programs: tuple[str, ...]
    module: ModuleType


TARGETS = {
    "debian": Target(
        debian.make, debian.check, debian.inputs, debian.indexes, ("mmdebstrap",), debian
    ),
    "arch": Target(arch.make, arch.check, arch.inputs, arch.indexes, ("pacman", "pacstrap"), arch),
    "alpine": Target(alpine.make, alpine.check, alpine.inputs, alpine.indexes, ("apk",), alpine),
}


def of(imgbuild: Imgbuild) -> Target:
    return TARGETS[imgbuild.target]


def check(imgbuild: Imgbuild) -> None:
    """Raise Failure for everything about the bootstrap that can be known without starting it."""
    of(imgbuild).check(imgbuild)


def bootstrap(imgbuild: Imgbuild, output: Path) -> None:
    """Write the package layer to OUTPUT: a directory, or a tar file, compressed by its suffix.

    Raises Failure that names the package, key or mirror at fault, where the program tells it.
    """
    check(imgbuild)
    suite = f" {imgbuild.suite}" if imgbuild.target == "debian" else ""
    with log.step(f"Bootstrapping {imgbuild.target}{suite}"):
        of(imgbuild).make(imgbuild, output)


def unpack(layer: Path, root: Path) -> None:
    """Unpack a package layer (tar, any compression) below ROOT, owners and capabilities kept.

    Without device nodes: a user namespace must not make them, and every kernel has a devtmpfs.
    """
    options = ["--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    options += ["--exclude=./dev/*"]
    run(["tar", "--extract", *options, "--file", layer, "--directory", root])
