"""Root file system -> image, without mounting anything."""

import shutil
from collections.abc import Callable
from pathlib import Path

from anemos.image import bootloader, layout, tree
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import Carrier, Disk
from anemos.log import die
from anemos.run import run


def write(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    """Write the image of the tree ROOT, which is used up, into the directory OUT."""
    return OUTPUTS[imgbuild.format](imgbuild, root, out, seed)


def directory(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / imgbuild.name
    if target.exists():
        die(f"{target} exists", hint="remove it, or build with another --output")
    # No move: across file systems that reads device nodes, and forgets owners.
    run(["cp", "--archive", "--no-target-directory", root, target])
    return [target]


def tar(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / ".".join([imgbuild.name, "tar", *imgbuild.format_options])
    options = ["--force-local", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    run(
        ["tar", "--create", "--auto-compress", *options, "--file", target, "--directory", root, "."]
    )
    return [target]


def squashfs(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    target = out / f"{imgbuild.name}.squashfs"
    compression = imgbuild.format_options or ("zstd",)
    options = ["-noappend", "-quiet", "-no-progress", "-comp", *compression]
    run(["mksquashfs", root, target, *options, "-all-time", "0", "-mkfs-time", "0"])
    return [target]


def disk(imgbuild: Imgbuild, root: Path, out: Path, seed: str) -> list[Path]:
    """One sparse image file for each disk of the layout, bootable."""
    files = {name: out / file for name, file in names(imgbuild).items()}
    tree.write(root, "etc/fstab", layout.fstab(imgbuild.layout, seed))
    for each in imgbuild.layout.disks:
        partition(each, files[each.name], seed)
    for carrier in imgbuild.layout.filesystems():
        if not carrier.mount:
            make_fs(carrier, files, seed)
    if imgbuild.bootloader:
        bootloader.install(imgbuild, root, files, seed)
    # Children before parents: what lies below a mount point moves out of the parent's tree.
    for carrier in reversed(imgbuild.layout.mounts()):
        fill(carrier, files, root, seed)
    return list(files.values())


def names(imgbuild: Imgbuild) -> dict[str, str]:
    """The names of the image files, by disk."""
    disks = [each.name for each in imgbuild.layout.disks]
    if imgbuild.format == "raw" and len(disks) == 1:
        return {disks[0]: f"{imgbuild.name}.img"}
    return {disk: f"{imgbuild.name}-{disk}.img" for disk in disks}


def partition(each: Disk, file: Path, seed: str) -> None:
    file.unlink(missing_ok=True)
    with file.open("wb") as image:
        image.truncate(each.image)
    script = layout.sfdisk_script(each, each.image, seed)
    run(["sfdisk", "--quiet", file], data=script.encode())


def make_fs(carrier: Carrier, files: dict[str, Path], seed: str, *source: Path) -> str:
    """Make the file system of a partition in its place in the disk's file; "FILE?offset=BYTES"."""
    if carrier.disk is None or carrier.fs != "ext4":
        die(f"layout: {carrier.path}: an image file has ext4 on partitions only")
    file = files[carrier.disk.name]
    extent = layout.extents(carrier.disk, carrier.disk.image)[carrier.number - 1]
    uuid = layout.fs_uuid(carrier, seed)
    options = ["-q", "-F", "-U", uuid, "-E", f"offset={extent.start},hash_seed={uuid}"]
    content: list[str | Path] = ["-d", *source] if source else []
    run(["mkfs.ext4", *options, *content, file, f"{extent.size // 1024}k"])
    return f"{file}?offset={extent.start}"


def fill(carrier: Carrier, files: dict[str, Path], root: Path, seed: str) -> None:
    """Make the file system of a partition, with what ROOT has at its mount point."""
    source = root if carrier.mount == "/" else tree.inside(root, carrier.mount.lstrip("/"))
    if source.is_symlink():
        die(f"layout: {carrier.mount} is a symbolic link in the image")
    tree.directories(root, source)
    place = make_fs(carrier, files, seed, source)
    # mkfs.ext4 -d does not do this for the topmost directory.
    top = source.stat()
    fields = {"mode": f"0{top.st_mode:o}", "uid": top.st_uid, "gid": top.st_gid}
    script = "".join(f"set_inode_field <2> {name} {value}\n" for name, value in fields.items())
    run(["debugfs", "-w", "-f", "-", place], data=script.encode())
    if source != root:
        shutil.rmtree(source)
        source.mkdir()


Output = Callable[[Imgbuild, Path, Path, str], list[Path]]
OUTPUTS: dict[str, Output] = {
    "dir": directory,
    "tar": tar,
    "squashfs": squashfs,
    "raw": disk,
    "disk": disk,
}
