"""The package layer: a root file system right after the bootstrap of `packages`.

It depends on target, suite, packages, excludes and the state of the mirror alone. No secret in it.
"""

import hashlib
import os
import time
from pathlib import Path

from anemos import log
from anemos.image.imgbuild import Imgbuild
from anemos.run import Argv, quote, run


def key(imgbuild: Imgbuild) -> str:
    """A name for the package layer in caches: 16 hexadecimal digits.

    It stands for the whole command line of the bootstrap: all that the layer depends on, but for
    the state of the mirror.
    """
    argv = quote(BOOTSTRAPS[imgbuild.target](imgbuild, Path("layer")))
    return hashlib.sha256(argv.encode()).hexdigest()[:16]


def mmdebstrap(imgbuild: Imgbuild, output: Path) -> Argv:
    """mmdebstrap(1): OUTPUT is a directory, or a tar file, compressed as its suffix says."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        # The root that runs this may be one of a user namespace only, where mknod(2) is refused.
        "--mode=root",
        "--skip=check/qemu",
        *([f"--include={','.join(sorted(imgbuild.packages))}"] if imgbuild.packages else []),
        *(f"--dpkgopt=path-exclude={glob}" for glob in imgbuild.excludes),
        # The machine that boots has its own; mmdebstrap copies this one's name and resolver.
        "--customize-hook=rm -f $1/etc/ssh/ssh_host_*_key* $1/etc/hostname $1/etc/resolv.conf",
        imgbuild.suite,
        output,
        *([imgbuild.mirror] if imgbuild.mirror else []),
    ]


BOOTSTRAPS = {"debian": mmdebstrap}


def bootstrap(imgbuild: Imgbuild, output: Path) -> None:
    """Write the package layer to OUTPUT: a directory, or a tar file by its suffix."""
    with log.step(f"Bootstrapping {imgbuild.target} {imgbuild.suite}"):
        env = {"TMPDIR": os.fspath(output.parent)}
        run(BOOTSTRAPS[imgbuild.target](imgbuild, output), env=env, log=log.info)


def cached(imgbuild: Imgbuild, cache: Path, scratch: Path, max_age_s: float) -> Path:
    """The package layer as a .tar.zst in the directory CACHE, made when older than MAX_AGE_S.

    The age stands for the state of the mirror. SCRATCH is a directory with room for the layer.
    """
    layer = layer_file(imgbuild, cache)
    if layer.exists() and time.time() - layer.stat().st_mtime < max_age_s:
        log.info(f"Package layer: {layer.name} from the cache")
        return layer
    bootstrap(imgbuild, scratch / "layer.tar")
    partial = layer.with_suffix(f".{scratch.name}")  # builds may run at the same time
    with log.step("Compressing the package layer"):
        run(["zstd", "-q", "-12", "-T0", "--rm", "-f", scratch / "layer.tar", "-o", partial])
    partial.rename(layer)
    return layer


def layer_file(imgbuild: Imgbuild, cache: Path) -> Path:
    return cache / f"layer-{key(imgbuild)}.tar.zst"


def unpack(layer: Path, root: Path) -> None:
    """Unpack a package layer (tar, any compression) below ROOT, owners and capabilities kept.

    Without device nodes: a user namespace must not make them, and every kernel has a devtmpfs.
    """
    options = ["--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    options += ["--exclude=./dev/*"]
    run(["tar", "--extract", *options, "--file", layer, "--directory", root])
