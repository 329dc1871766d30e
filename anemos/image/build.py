"""Puts the parts together: package layer, definition layer, output."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anemos import files, log
from anemos.image import custom, layers, output, reproducible, unpacked
from anemos.image.manifest import Sources
from anemos.system import bootstrap, definition
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild, for_image

memory: Path | None = None  # where isolation.py has mounted a file system for us
DISK = Path("/var/tmp")  # noqa: S108 (only fresh directories are made in it)
ROOM = 3 * 1024**3  # bytes of free memory for a build in memory, twice as fast as on a disk
DAY_S = 86400.0


def build(
    imgbuild: Imgbuild, given: Definition, out: Path, *, cache: Path, max_age_s: float = DAY_S
) -> list[Path]:
    """Build the image of IMGBUILD into the directory OUT and return its files."""
    imgbuild = for_image(imgbuild)
    output.check(imgbuild, out)
    definition.check(given, imgbuild.mount_points())
    with workspace() as scratch:
        layer = layers.cached(imgbuild, cache, scratch, max_age_s)
        if imgbuild.format == "custom":
            root = scratch / "root"
            return custom.build(imgbuild, layer, root, given, out)
        with unpacked.writable(layer, scratch) as lower:
            epoch = reproducible.given(lower.newest)
            with reproducible.environment(epoch):
                with log.step("Applying the definition"):
                    definition.complete(imgbuild, lower.root, given)
                brought, secret = reproducible.brought_in(lower.root, given)
                known, digest = lower.digests, lower.layer_sha256
                sources = Sources(layer.name, digest, given.inputs, secret, known)
                with log.step(f"Writing {imgbuild.name} as {imgbuild.format}"):
                    seed = f"{imgbuild.name}/{bootstrap.key(imgbuild)}"
                    return output.write(
                        imgbuild,
                        lower.root,
                        out,
                        seed,
                        epoch=epoch,
                        sources=sources,
                        kept=brought,
                        changed=lower.changed if lower.newest <= epoch else lower.root,
                    )


def layer(imgbuild: Imgbuild, *, cache: Path, max_age_s: float = DAY_S) -> Path:
    """The package layer alone."""
    with workspace() as scratch:
        return layers.cached(imgbuild, cache, scratch, max_age_s)


def attempt(imgbuild: Imgbuild, given: Definition, *, cache: Path, max_age_s: float) -> Path:
    """Apply the definition in memory, as the initramfs is going to, and throw it away; the layer.

    Raises Failure where that fails. Its secrets are real ones: without memory nothing is tried.
    """
    with workspace() as scratch:
        layer = layers.cached(imgbuild, cache, scratch, max_age_s)
        if memory is None:
            log.info(f"The definition is not tried here: less than {ROOM >> 30} GiB of free memory")
            return layer
        with log.step("Trying the definition"), unpacked.writable(layer, scratch) as lower:
            definition.apply(imgbuild, lower.root, given)
    return layer


@contextmanager
def workspace() -> Iterator[Path]:
    """A scratch directory: in the memory that isolation.py took, else on disk."""
    with files.scratch(memory or DISK, f"anemos-{os.geteuid()}-") as held:
        held.chmod(0o755)  # an unprivileged apt has to pass
        yield held
