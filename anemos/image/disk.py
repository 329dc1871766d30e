"""Image files of disks: partition tables, boot loaders, file systems."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from anemos.image import fsimage
from anemos.image.fsimage import Place
from anemos.log import die
from anemos.run import run
from anemos.system import booting, fstab, layout, tree
from anemos.system.bootloader import places
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import FILE_SYSTEMS, Carrier, Disk, Layout


def check(disks: Layout) -> None:
    """Raises Failure for a layout that no image file can have."""
    for each in disks.volumes:
        hint = "`./inv test` deploys it to a local VM, whose disks are image files"
        die(f"layout: {each.kind} {each.name!r}: only a running kernel can make it", hint=hint)


def names(imgbuild: Imgbuild) -> dict[str, str]:
    """The names of the image files, by disk."""
    disks = [each.name for each in imgbuild.layout.disks]
    if imgbuild.format == "raw" and len(disks) == 1:
        return {disks[0]: f"{imgbuild.name}.img"}
    return {disk: f"{imgbuild.name}-{disk}.img" for disk in disks}


def prepare(imgbuild: Imgbuild, root: Path, files: Mapping[str, Path], seed: str) -> None:
    """All that the tree ROOT lacks to be one on disks; their tables and boot loaders in FILES.

    FILES: by name of the disk.
    """
    for disk in imgbuild.layout.disks:
        partition(disk, files[disk.name], seed)
    # Of other types the UUID is not known before they are made.
    if all(each.fs in (*FILE_SYSTEMS, *fsimage.EXT) for each in imgbuild.layout.filesystems()):
        fstab.write(root, layout.fstab(imgbuild.layout, seed))
    for carrier in imgbuild.layout.mounts():
        point = source(carrier, root)
        tree.directories(root, point)
    if imgbuild.bootloader:
        booting.install(imgbuild, root, dict(files), seed)


def partition(disk: Disk, file: Path, seed: str) -> None:
    with file.open("xb") as image:
        image.truncate(disk.image)
    script = layout.sfdisk_script(disk, disk.image, seed)
    # The kernel knows nothing of it: sfdisk would wait for 0.25 s before it tells it of the table.
    run(["sfdisk", "--quiet", "--no-tell-kernel", file], data=script.encode())


def fill(
    imgbuild: Imgbuild,
    root: Path,
    files: Mapping[str, Path],
    seed: str,
    epoch: int,
    wait: Callable[[], object],
) -> None:
    """Make all file systems, with what ROOT, which is used up, has at their mount points.

    WAIT is called before ROOT is changed.
    """
    # Children before parents: what lies below a mount point moves out of the parent's tree.
    carriers = [each for each in imgbuild.layout.filesystems() if not each.mount]
    for carrier in [*carriers, *reversed(imgbuild.layout.mounts())]:
        # The ESP that is mounted has copies without a mount.
        original = places.original(imgbuild.layout, carrier)
        content = source(original, root) if original.mount else None
        uuid = layout.fs_uuid(carrier, seed)
        fsimage.make(carrier.fs, place(carrier, files), uuid, epoch, content)
        if carrier.mount and content not in (None, root):
            wait()
            empty(content, epoch)


def place(carrier: Carrier, files: Mapping[str, Path]) -> Place:
    assert carrier.disk is not None  # check
    extent = layout.extents(carrier.disk, carrier.disk.image)[carrier.number - 1]
    return Place(files[carrier.disk.name], *extent)


def source(carrier: Carrier, root: Path) -> Path:
    """Where what CARRIER is to hold lies below ROOT."""
    if carrier.mount == "/":
        return root
    found = tree.inside(root, carrier.mount.lstrip("/"))
    if found.is_symlink():
        die(f"layout: {carrier.mount} is a symbolic link in the image")
    return found


def empty(directory: Path, epoch: int) -> None:
    """Leave nothing of DIRECTORY but a mount point, and no trace of that."""
    above = directory.parent.stat()
    shutil.rmtree(directory)
    directory.mkdir()
    directory.chmod(0o755)
    os.utime(directory, (epoch, epoch))
    os.utime(directory.parent, ns=(above.st_atime_ns, above.st_mtime_ns))
