"""The package layer: a root file system right after the bootstrap of `packages`.

A function of what `inputs` lists and of the mirror's state. No secret in it. The table of
distributions, each a module, and what they have in common.
"""

import hashlib
import json
import re
from pathlib import Path
from shutil import which
from typing import Protocol

from anemos import log
from anemos.run import Argv, CommandFailed, run
from anemos.system.bootstrap import alpine, arch, debian
from anemos.system.bootstrap.common import digests
from anemos.system.imgbuild import Imgbuild

# tar's records, of so many bytes; it tells each time that it has read so many more of them.
RECORD, MARK = 10240, 1000
MARKED = re.compile(r"[^ ]*tar: @(\d+)")
ZSTD = b"\x28\xb5\x2f\xfd"


class Target(Protocol):
    """How one distribution is bootstrapped: a module. Another program for it is another module."""

    PROGRAMS: tuple[str, ...]  # what does it

    def make(self, imgbuild: Imgbuild, output: Path, fetched: Path | None) -> None:
        """Write the root file system to a directory, or a tar file, compressed by its suffix.
        FETCHED: see `bootstrap`."""

    def check(self, imgbuild: Imgbuild) -> None:
        """Raise Failure for what the IMGBUILD or the files beside it lack. Asks no network."""

    def inputs(self, imgbuild: Imgbuild) -> dict[str, object]:
        """All that the layer depends on, packages aside: values that JSON can express."""

    def indexes(self, imgbuild: Imgbuild) -> list[str]:
        """URLs of the files of the mirror that change with it; none if they are not known."""


TARGETS: dict[str, Target] = {"debian": debian, "arch": arch, "alpine": alpine}


def inputs(imgbuild: Imgbuild) -> dict[str, object]:
    """All that the layer depends on, except the state of the mirror."""
    target = TARGETS[imgbuild.target]
    recipes = [Path(__file__).with_name(f"{name}.py") for name in (imgbuild.target, "identity")]
    programs = [Path(found) for found in map(which, target.PROGRAMS) if found]
    return {
        "target": imgbuild.target,
        "packages": sorted(set(imgbuild.packages)),
        **target.inputs(imgbuild),
        "programs": digests(*recipes, *programs),
    }


def key(imgbuild: Imgbuild) -> str:
    """A name for the package layer: 16 hexadecimal digits, a digest of its inputs."""
    text = json.dumps(inputs(imgbuild), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(imgbuild: Imgbuild) -> None:
    """Raise Failure for everything about the bootstrap that can be known without starting it."""
    TARGETS[imgbuild.target].check(imgbuild)


def bootstrap(imgbuild: Imgbuild, output: Path, fetched: Path | None = None) -> None:
    """Write the package layer to OUTPUT: a directory, or a tar file, compressed by its suffix.

    FETCHED, which need not be there: a directory with packages that are taken from it where the
    mirror has the same. The new root has its own at common.FETCHED then. Without it none are kept.

    Raises Failure that names the package, key or mirror at fault, where the program tells it.
    """
    check(imgbuild)
    suite = f" {imgbuild.suite}" if imgbuild.target == "debian" else ""
    with log.step(f"Bootstrapping {imgbuild.target}{suite}"):
        TARGETS[imgbuild.target].make(imgbuild, output, fetched)


def unpack(layer: Path, root: Path) -> None:
    """Unpack a package layer (tar, any compression; zstd's from a named pipe) below ROOT, owners
    and capabilities kept.

    Without device nodes: a user namespace must not make them, and every kernel has a devtmpfs.
    """
    options = ["--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    options += ["--exclude=./dev/*", f"--checkpoint={MARK}", "--checkpoint-action=echo=@%u"]
    if layer.is_fifo():  # no second look at it
        options.append("--zstd")
    argv: Argv = ["tar", "--extract", *options, "--file", layer, "--directory", root]
    whole = 0 if layer.is_fifo() else unpacked_size(layer)

    def hear(line: str) -> None:
        if whole and (mark := MARKED.fullmatch(line)):
            log.reached(int(mark[1]) * RECORD, whole)

    try:
        run(argv, log=hear)
    except CommandFailed as failed:
        said = [line for line in failed.output.splitlines() if not MARKED.fullmatch(line)]
        raise CommandFailed(argv, failed.returncode, "\n".join(said)) from None


def unpacked_size(layer: Path) -> int:
    """Bytes in a zstd file; 0 when it does not tell, or is none (RFC 8878, 3.1.1.1)."""
    with layer.open("rb") as file:
        head = file.read(18).ljust(18, b"\0")
    flags, single = head[4], head[4] >> 5 & 1
    start, length = 6 - single + (0, 1, 2, 4)[flags & 3], (single, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)
    return size if head[:4] == ZSTD and length else 0
