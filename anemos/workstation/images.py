"""Base image and package layers on the workstation: built when the cache has none that fits."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import files, log
from anemos.architecture import AMD64, Architecture
from anemos.files import sha256
from anemos.image import layers
from anemos.log import Failure, die
from anemos.run import CommandFailed, meaning, run, tail
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places, scratch

BASE = places.PACKAGE / "base"
LIBRARIES = "usr/lib/python3/dist-packages"
KEPT = 2  # base images that are never too old
DAY_S = 86400.0
OPERATOR_ONLY = ("workstation", "image", "base", "__pycache__")


def base(arch: Architecture = AMD64) -> Path:
    """The base image: base-<SHA-256>.squashfs. Built when anything that goes into it changed."""
    with sources(arch) as (tree, link):
        if not sound(link):
            with files.turn(link.parent / ".base.lock"):  # minutes of work, for one of us
                if not sound(link):
                    with log.step(f"Building the base image for {arch.name}"):
                        build_base(tree, link, arch)
                    prune(link.parent)
        image = link.resolve()
        os.utime(image)  # when it was last used
        return image


def cached_base(arch: Architecture) -> str:
    """The base image, when it is built, or ""."""
    with sources(arch) as (_, link):
        return str(link.resolve()) if sound(link) else ""


def sound(link: Path) -> bool:
    """Tell whether LINK leads to a base image with the SHA-256 that its name says."""
    image = link.resolve()
    if image.is_file() and image.name != file_name(image):
        log.info(f"{image.name} is damaged")
        return False
    return image.is_file()


def file_name(image: Path) -> str:
    return f"base-{sha256(image)}.squashfs"


@contextmanager
def sources(arch: Architecture) -> Iterator[tuple[Path, Path]]:
    """What of Anemos goes into the base image, and the link in the cache that stands for it."""
    with TemporaryDirectory() as name:
        tree = collect(Path(name))
        yield tree, places.cache() / f"base-{arch.name}-{key(BASE / 'IMGBUILD', tree)}"


def collect(directory: Path) -> Path:
    """All input files: the base image's own, Anemos without the workstation's part, and sh."""
    library = directory / LIBRARIES
    sources = {BASE / "files": directory, places.PACKAGE: library / "anemos"}
    sources[Path(str(distribution("sh").locate_file("sh")))] = library / "sh"
    for source, target in sources.items():
        ignore = shutil.ignore_patterns(*OPERATOR_ONLY)
        shutil.copytree(source, target, ignore=ignore, copy_function=copy, dirs_exist_ok=True)
    return directory


def copy(source: str, target: str) -> None:
    """A clone has modes by its umask, a package by that of pip: none of them counts."""
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def key(imgbuild: Path, inputs: Path) -> str:
    """16 hexadecimal digits: IMGBUILD, and all names, modes and contents in the tree INPUTS."""
    digest = hashlib.sha256(sha256(imgbuild).encode())
    for file in sorted(file for file in inputs.rglob("*") if file.is_file()):
        entry = f"{file.relative_to(inputs)}\0{file.stat().st_mode:o}\0{sha256(file)}\n"
        digest.update(os.fsencode(entry))
    return digest.hexdigest()[:16]


def build_base(tree: Path, link: Path, arch: Architecture) -> None:
    cache = places.cache()
    with files.scratch(cache, ".base-") as out:
        (built,) = image(BASE, ["--arch", arch.name, "--output", out, tree])
        final = cache / file_name(built)
        files.settle(built, final)
    fresh = link.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(final.name)
    files.settle(fresh, link)
    log.info(f"Base image: {final.stat().st_size / 2**20:.1f} MiB")


def prune(cache: Path) -> None:
    """Remove base images that nobody has used for a day, except the newest; and their links."""
    with suppress(FileNotFoundError):  # a run beside this one was quicker
        used = {image: image.stat().st_mtime for image in cache.glob("base-*.squashfs")}
        for image in sorted(used, key=lambda image: used[image], reverse=True)[KEPT:]:
            if time.time() - used[image] > DAY_S:
                image.unlink()
        for link in cache.glob("base-*"):
            if not link.exists():
                link.unlink()


def layer(spec: Imgbuild) -> Path:
    """The package layer of SPEC, a .tar.zst."""
    (built,) = image(spec.directory, ["--layer"])
    return built


def cached_layer(spec: Imgbuild) -> str:
    """The package layer of SPEC, when there is one, or ""."""
    if spec.target == "debian":
        spec = replace(spec, mirror=spec.mirror or places.mirror())
    file = layers.layer_file(spec, places.cache())
    return str(file) if file.exists() else ""


def image(directory: Path, options: Sequence[str | Path]) -> list[Path]:
    """Run the image builder for the IMGBUILD in DIRECTORY: the files that it made.

    In a process of its own, as it needs namespaces of its own; what ends this one ends that, too.
    """
    argv = [sys.executable, "-m", "anemos.image", "--directory", directory, *options]
    argv += [f"--cache={places.cache()}", f"--mirror={places.mirror()}"]
    try:
        lines = run(
            argv, env={"PYTHONPATH": os.fspath(places.PACKAGE.parent)}, log=relay
        ).splitlines()
    except CommandFailed as failed:
        raise said(directory, failed) from None
    files = [Path(line) for line in lines if line.startswith("/")]
    if not files:
        die(f"{directory}: the image builder made nothing", status=log.FAILED)
    return files


def definition(memory: Path, values: Mapping[str, str], secrets: Path) -> list[str]:
    """The image builder's options for the VALUES of templates, which go through a file in MEMORY,
    and for the tree of revealed SECRETS, if there are any."""
    scratch.write_private(memory, "values.json", json.dumps(values).encode())
    tree = [f"--secrets={secrets}"] if secrets.is_dir() else []
    return [f"--values={memory}/values.json", *tree]


def said(directory: Path, failed: CommandFailed) -> Failure:
    """The builder's last word, with its status; of one that was killed, or fell over, our own."""
    _, spoke, reason = f"\n{failed.output.rstrip()}".rpartition("\nerror: ")
    if spoke and failed.returncode > 0:
        return Failure(reason, status=failed.returncode)
    how = f"{directory}: the image builder: {meaning(failed.returncode)}"
    out_of_memory = "the kernel kills so when memory is short (dmesg)"
    hint = out_of_memory if failed.returncode == -signal.SIGKILL else ""
    return Failure(f"{how}\n{tail(failed.output)}", hint=hint, status=log.FAILED)


def relay(line: str) -> None:
    """The builder's log without its last word and what belongs to that: we say it ourselves."""
    if not line.startswith(("error: ", "  |", "  (")):
        log.info(line)


@contextmanager
def boot_files(image: Path) -> Iterator[tuple[Path, Path]]:
    """Kernel and first initrd of the base image IMAGE, as files."""
    with TemporaryDirectory() as name:
        out = Path(name) / "root"
        run(["unsquashfs", "-quiet", "-no-progress", "-dest", out, image, "boot"])
        yield out / "boot/vmlinuz", out / "boot/initrd"
