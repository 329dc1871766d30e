"""Puts the parts together: package layer, definition layer, output."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.image import (
    bootstrap,
    definition,
    output,
    reproducible,
    unpacked,
)
from anemos.image.imgbuild import Imgbuild
from anemos.image.manifest import Sources

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (tmpfs; only fresh directories are made in it)
ROOM = 3 * 1024**3  # bytes free there for a build in memory
DAY_S = 86400.0


def build(
    imgbuild: Imgbuild,
    inputs: Sequence[Path],
    out: Path,
    *,
    cache: Path,
    max_age_s: float = DAY_S,
    values: Mapping[str, str] | None = None,
    secrets: Path | None = None,
) -> list[Path]:
    """Build the image of IMGBUILD into the directory OUT and return its files."""
    output.check(imgbuild, out)
    with workspace() as scratch:
        layer = bootstrap.cached(imgbuild, cache, scratch, max_age_s)
        with unpacked.writable(layer, scratch) as lower:
            given = reproducible.given()
            epoch = lower.newest if given is None else given
            with reproducible.environment(epoch):
                with log.step("Applying the definition"):
                    definition.apply(imgbuild, lower.root, inputs, values=values, secrets=secrets)
                brought, secret = reproducible.brought_in(lower.root, inputs, secrets)
                known = lower.digests
                sources = Sources(layer.name, lower.layer_sha256, inputs, secret, known)
                with log.step(f"Writing {imgbuild.name} as {imgbuild.format}"):
                    seed = f"{imgbuild.name}/{bootstrap.key(imgbuild)}"
                    return output.write(
                        imgbuild, lower.root, out, seed, epoch=epoch, sources=sources, kept=brought
                    )


def layer(imgbuild: Imgbuild, *, cache: Path, max_age_s: float = DAY_S) -> Path:
    """The package layer alone."""
    with workspace() as scratch:
        return bootstrap.cached(imgbuild, cache, scratch, max_age_s)


@contextmanager
def workspace() -> Iterator[Path]:
    """A scratch directory: in memory where that has room, twice as fast as a disk."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    with TemporaryDirectory(prefix="anemos-", dir=SHARED_MEMORY if roomy else "/var/tmp") as name:  # noqa: S108
        os.chmod(name, 0o755)  # noqa: S103, PTH101 (an unprivileged apt has to pass)
        yield Path(name)
