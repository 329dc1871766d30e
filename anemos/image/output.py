"""Root file system -> image, without mounting anything."""

import shutil
from collections.abc import Callable
from pathlib import Path

from anemos.image import bootloader, layout, tree
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import Disk, Part
from anemos.run import run

BLOCK = "1048576"


def write(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    """Write the image of the tree ROOT, which is used up, into the directory OUT."""
    return OUTPUTS[imgbuild.format](imgbuild, root, out, seed)


def directory(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / imgbuild.name
    shutil.move(root, target)
    return [target]


def tar(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / ".".join([imgbuild.name, "tar", *imgbuild.format_options])
    options = ["--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    run(
        ["tar", "--create", "--auto-compress", *options, "--file", target, "--directory", root, "."]
    )
    return [target]


def squashfs(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / f"{imgbuild.name}.squashfs"
    compression = imgbuild.format_options or ("zstd",)
    options = ["-noappend", "-quiet", "-no-progress", "-b", BLOCK, "-comp", *compression]
    run(["mksquashfs", root, target, *options, "-all-time", "0", "-mkfs-time", "0"])
    return [target]


def disk(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    """One sparse image file for each disk of the layout, bootable."""
    files = {d.name: out / f"{imgbuild.name}-{d.name}.img" for d in imgbuild.layout.disks}
    tree.write(root, "etc/fstab", layout.fstab(imgbuild.layout, seed, {}))
    for each in imgbuild.layout.disks:
        partition(each, files[each.name], seed)
    if imgbuild.bootloader:
        bootloader.install(imgbuild, root, files, seed)
    # Children before parents: what lies below a mount point moves out of the parent's tree.
    for each, number, part in reversed(imgbuild.layout.mounts()):
        fill(each, number, part, files[each.name], root, seed)
    return list(files.values())


def partition(each: Disk, file: Path, seed: str) -> None:
    file.unlink(missing_ok=True)
    with file.open("wb") as image:
        image.truncate(each.image)
    script = layout.sfdisk_script(each, each.image, seed)
    run(["sfdisk", "--quiet", file], data=script.encode())


def fill(each: Disk, number: int, part: Part, file: Path, root: Path, seed: str) -> None:
    """Make the file system of a partition in its place in FILE, with what ROOT has at its mount."""
    source = tree.inside(root, part.mount.lstrip("/")) if part.mount != "/" else root
    source.mkdir(parents=True, exist_ok=True)
    extent = layout.extents(each, each.image)[number - 1]
    uuid = layout.fs_uuid(each, part, seed)
    run(
        ["mkfs.ext4", "-q", "-F", "-U", uuid, "-E", f"offset={extent.start},hash_seed={uuid}"]
        + ["-d", source, file, f"{extent.size // 1024}k"]
    )
    if source != root:
        shutil.rmtree(source)
        source.mkdir()


Output = Callable[[Imgbuild, Path, Path, str], list[Path]]
OUTPUTS: dict[str, Output] = {
    "dir": directory,
    "tar": tar,
    "squashfs": squashfs,
    "disk": disk,
}
