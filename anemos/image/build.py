"""Puts the parts together: package layer, definition layer, output."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.image import bootstrap, definition, functions, output
from anemos.image.imgbuild import COMPRESSORS, Imgbuild, for_image
from anemos.log import Failure, die
from anemos.run import run

MEMORY = Path("/dev/shm/anemos-build")  # noqa: S108 (only what isolation.py mounts there is used)
DISK = Path("/var/tmp")  # noqa: S108 (only fresh directories are made in it)
ROOM = 3 * 1024**3  # bytes of free memory for a build in memory, twice as fast as on a disk
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
    require(imgbuild, out)
    definition.check(inputs, values or {})
    imgbuild = for_image(imgbuild)
    with workspace() as scratch:
        layer = bootstrap.cached(imgbuild, cache, scratch, max_age_s)
        root = scratch / "root"
        root.mkdir()
        with custom(imgbuild, root, out) as files:
            with log.step("Unpacking the package layer"):
                bootstrap.unpack(layer, root)
            with log.step("Applying the definition"):
                definition.apply(imgbuild, root, inputs, values=values, secrets=secrets)
            if imgbuild.format != "custom":
                seed = f"{imgbuild.name}/{bootstrap.key(imgbuild)}"
                with log.step(f"Writing {imgbuild.name} as {imgbuild.format}"):
                    files.extend(output.write(imgbuild, root, out, seed))
        return files


def require(imgbuild: Imgbuild, out: Path) -> None:
    """Raises Failure for what would only be missed after all the work."""
    if not os.access(out, os.W_OK):
        die(f"{out}: cannot be written")
    options = imgbuild.format_options
    program = COMPRESSORS[options[0]] if imgbuild.format == "tar" and options else ""
    if program and not shutil.which(program):
        die(f"{program} not found", hint=f"format='tar {options[0]}' needs it")


@contextmanager
def custom(imgbuild: Imgbuild, root: Path, out: Path) -> Iterator[list[Path]]:
    """With format=custom, setup() before the image is made at ROOT, cleanup() after it in any case.

    Yields the list of the image's files, to which what the two make in OUT is added.
    """
    files: list[Path] = []
    if imgbuild.format != "custom":
        yield files
        return
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
    """Whatever setup() mounted at ROOT and below: it must not be removed with the scratch files."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        if Path(point).is_relative_to(root):
            run(["umount", "--lazy", point])


def changes(directory: Path) -> dict[Path, int]:
    """When each file in DIRECTORY was changed."""
    return {file: file.lstat().st_ctime_ns for file in sorted(directory.iterdir())}


def layer(imgbuild: Imgbuild, *, cache: Path, max_age_s: float = DAY_S) -> Path:
    """The package layer alone."""
    with workspace() as scratch:
        return bootstrap.cached(imgbuild, cache, scratch, max_age_s)


@contextmanager
def workspace() -> Iterator[Path]:
    """A scratch directory: in the memory that isolation.py took, else on disk."""
    top = MEMORY if MEMORY.is_mount() else DISK
    for abandoned in top.glob(f"anemos-{os.geteuid()}-*"):
        with suppress(OSError), locked(abandoned):
            shutil.rmtree(abandoned)
    with (
        TemporaryDirectory(prefix=f"anemos-{os.geteuid()}-", dir=top) as name,
        locked(Path(name)) as scratch,
    ):
        os.chmod(name, 0o755)  # noqa: S103, PTH101 (an unprivileged apt has to pass)
        yield scratch


@contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """Hold DIRECTORY for as long as we live. Raises OSError when somebody else does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory
    finally:
        os.close(fd)
