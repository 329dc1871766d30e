"""Root file system -> image, the same bytes for the same tree."""

import os
import shutil
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anemos import files
from anemos.image import disk, fsimage, manifest, reproducible
from anemos.image.manifest import Sources
from anemos.log import die
from anemos.run import run
from anemos.system.imgbuild import COMPRESSORS, Imgbuild

# tar's own way to compress has one thread. Their results are the same with any number of threads.
PARALLEL = {
    **dict.fromkeys(("zst", "tzst"), ("zstd", "-T0")),
    **dict.fromkeys(("xz", "txz"), ("xz", "-T0")),
    **dict.fromkeys(("gz", "tgz", "taz"), ("pigz", "-n")),
}

Read = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """An image of the tree ROOT, to be written below PLACE, which lies where the image will be."""

    imgbuild: Imgbuild
    root: Path
    place: Path
    seed: str
    epoch: int

    @property
    def disks(self) -> dict[str, Path]:
        return {each.name: self.place / f"{each.name}.img" for each in self.imgbuild.layout.disks}


def check(imgbuild: Imgbuild, out: Path) -> None:
    """Raises Failure for an image that cannot be written to the directory OUT."""
    if imgbuild.format in ("disk", "raw"):
        disk.check(imgbuild.layout)
    target = out / imgbuild.name
    if imgbuild.format == "dir" and target.exists():
        die(f"{target} exists", hint="remove it, or build with another --output")
    if not os.access(out, os.W_OK):
        die(f"{out}: cannot be written to")
    options = imgbuild.format_options
    program = COMPRESSORS[options[0]] if imgbuild.format == "tar" and options else ""
    if program and not shutil.which(program):
        die(f"{program} not found", hint=f"format='tar {options[0]}' needs it")


def write(
    imgbuild: Imgbuild,
    root: Path,
    out: Path,
    seed: str,
    *,
    epoch: int,
    sources: Sources,
    kept: Set[str] = frozenset(),
    changed: Path | None = None,
) -> list[Path]:
    """Write the image of the tree ROOT, which is used up, and its manifest into the directory OUT.

    KEPT, CHANGED: see reproducible.forget and clamp; the latter is ROOT if not said. An older image
    is replaced when the new one is complete.
    """
    check(imgbuild, out)
    with files.scratch(out, ".anemos-") as place, ThreadPoolExecutor() as pool:
        output = OUTPUTS[imgbuild.format]
        job = Job(imgbuild, root, place, seed, epoch)
        reproducible.forget(root, kept)
        output.prepare(job)
        reproducible.clamp(root, changed or root, epoch)
        tools = output.tools(job)
        text = pool.submit(manifest.text, imgbuild, root, sources, tools, epoch)
        made = output.write(job, text.result)
        described = job.place / manifest.name(imgbuild)
        described.write_text(text.result())
        described.rename(out / described.name)
        return [file.rename(out / final) for final, file in made.items()]


def nothing(job: Job) -> None:
    pass


def directory(job: Job, _: Read) -> dict[str, Path]:
    made = job.place / "directory"
    # No move: across file systems that reads device nodes, and forgets owners.
    run(["cp", "--archive", "--no-target-directory", job.root, made])
    return {job.imgbuild.name: made}


def tar(job: Job, _: Read) -> dict[str, Path]:
    made = job.place / ".".join(["archive", "tar", *job.imgbuild.format_options])
    options = ["--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    # Extended headers must not hold the number of tar's process, nor times of access and change.
    options += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    # Holes by content, as they differ by file system; later versions write tar's number, too.
    options += ["--sparse", "--hole-detection=raw", "--sparse-version=0.0"]
    by = compressor(job)
    options += [f"--use-compress-program={' '.join(by)}"] if by else ["--auto-compress"]
    run(["tar", "--create", *options, "--file", made, "--directory", job.root, "."])
    return {made.name.replace("archive", job.imgbuild.name, 1): made}


def compressor(job: Job) -> tuple[str, ...]:
    """What compresses the tar with all processors; none for what tar runs itself."""
    found = PARALLEL.get("".join(job.imgbuild.format_options), ())
    return found if found and shutil.which(found[0]) else ()


def squashfs(job: Job, _: Read) -> dict[str, Path]:
    made = job.place / "image"
    compression = job.imgbuild.format_options or ("zstd",)
    options = ["-noappend", "-quiet", "-no-progress", "-comp", *compression]
    run(["mksquashfs", job.root, made, *options])  # it goes by SOURCE_DATE_EPOCH
    return {f"{job.imgbuild.name}.squashfs": made}


def prepare_disks(job: Job) -> None:
    disk.prepare(job.imgbuild, job.root, job.disks, job.seed)


def disks(job: Job, read: Read) -> dict[str, Path]:
    disk.fill(job.imgbuild, job.root, job.disks, job.seed, job.epoch, read)
    names = disk.names(job.imgbuild)
    return {names[each]: file for each, file in job.disks.items()}


def disk_tools(job: Job) -> list[str]:
    kinds = {each.fs for each in job.imgbuild.layout.filesystems()}
    return ["sfdisk", *(fsimage.program(kind) for kind in kinds)]


@dataclass(frozen=True)
class Output:
    """A format. PREPARE writes what the tree lacks.

    WRITE returns files by their final names. Before it changes the tree, it calls the function that
    it is given, which ends when nobody else reads the tree.
    """

    write: Callable[[Job, Read], dict[str, Path]]
    tools: Callable[[Job], list[str]]
    prepare: Callable[[Job], None] = nothing


OUTPUTS = {
    "dir": Output(directory, lambda _: []),
    "tar": Output(tar, lambda job: ["tar", *compressor(job)[:1]]),
    "squashfs": Output(squashfs, lambda _: ["mksquashfs"]),
    "disk": Output(disks, disk_tools, prepare_disks),
    "raw": Output(disks, disk_tools, prepare_disks),
}
