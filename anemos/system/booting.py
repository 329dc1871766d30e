"""The boot loader of an IMGBUILD: what it needs, and what it does."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from anemos import files, log
from anemos.log import die
from anemos.system import filesystems, layout, slots, tree
from anemos.system.bootloader import LOADERS
from anemos.system.bootloader.places import Target
from anemos.system.imgbuild import Imgbuild

UNSIGNED = re.compile("linux-image-.*-unsigned").fullmatch


def ways(imgbuild: Imgbuild) -> frozenset[str]:
    """How machines can start IMGBUILD's system."""
    loader = LOADERS.get(imgbuild.bootloader)
    return loader.ways(imgbuild.layout) if loader else frozenset()


def missing(imgbuild: Imgbuild) -> list[tuple[str, ...]]:
    """Packages of which IMGBUILD has none, although the boot loader needs one of each."""
    packages = offered(imgbuild)
    needed = dict.fromkeys(packages[way] for way in sorted(ways(imgbuild)))
    return [each for each in needed if not set(each) & set(imgbuild.package_names)]


def offered(imgbuild: Imgbuild) -> dict[str, tuple[str, ...]]:
    """Packages with the boot loader, by way of starting."""
    known = LOADERS[imgbuild.bootloader].PACKAGES[imgbuild.target]
    return {way: tuple(map(imgbuild.arch.named, names)) for way, names in known.items()}


def untrusted(imgbuild: Imgbuild) -> str:
    """Why firmware with Secure Boot would not start IMGBUILD's system; "" where it would."""
    needed = LOADERS[imgbuild.bootloader].TRUSTED.get(imgbuild.target)
    if needed is None:
        return f"bootloader={imgbuild.bootloader} of target={imgbuild.target} is not trusted"
    wanted = map(imgbuild.arch.named, needed)
    if lacking := [each for each in wanted if each not in imgbuild.package_names]:
        return f"`packages` lacks {', '.join(lacking)}"
    return next((f"{each} is not signed" for each in imgbuild.package_names if UNSIGNED(each)), "")


def rehearse(imgbuild: Imgbuild, present: Collection[str]) -> None:
    """Die when what the boot loader is made of is not among PRESENT, paths in the image.

    Tell of file systems that the image could not check: Debian 13 has e2fsprogs on demand only.
    """
    tools = {path.rpartition("/")[2] for path in present}
    for fs in sorted({each.fs for each in imgbuild.layout.filesystems()} & set(layout.FSCK)):
        if f"fsck.{fs}" not in tools:
            package = filesystems.PACKAGES[fs]
            log.info(f"Nothing checks {fs} at the boot: {package} is not among the packages")
    loader = LOADERS.get(imgbuild.bootloader)
    for patterns in loader.files(imgbuild.layout) if loader else ():
        needed = [imgbuild.arch.named(each) for each in patterns]
        if not set(needed) & set(present):
            names = " or ".join(f"/{each}" for each in needed)
            hint = f"one of these in `packages`? {packages_for(imgbuild)}"
            die(f"bootloader={imgbuild.bootloader}: the package layer has no {names}", hint=hint)


def packages_for(imgbuild: Imgbuild) -> str:
    known = offered(imgbuild)
    return ", ".join(name for way in sorted(ways(imgbuild)) for name in known[way])


def install(
    imgbuild: Imgbuild,
    root: Path,
    disks: Mapping[str, Path],
    seed: str,
    deployment: str = "",
    now: int = 0,
) -> None:
    """Make the disks bootable. DISKS: device or image file of each disk of the layout, by name.

    Below ROOT all of the layout is mounted, or nothing is and the files move to their places later.
    With slots, it is the one that ROOT is for that starts; the record tells of DEPLOYMENT and NOW.
    """
    target = Target(imgbuild.layout, imgbuild.cmdline, root, disks, seed, imgbuild.arch)
    loader = LOADERS[imgbuild.bootloader]
    loader.install(target)
    if shared := imgbuild.layout.shared():
        file = f"{shared.mount}/{loader.RECORD}"
        record = slots.encoded(slots.first(imgbuild.layout, seed, deployment, now), loader.RECORD)
        tree.write(root, file, record + rest(tree.inside(root, file)))


def rest(file: Path) -> bytes:
    """What the definition's FILE has to say beside the record: all but which system starts."""
    lines = files.text(file).splitlines()
    kept = [f"{line}\n" for line in lines if line.split()[:1] != ["default"]]
    return files.encoded("".join(kept))


def configure(imgbuild: Imgbuild, root: Path, seed: str) -> None:
    """Write below ROOT all that a slot has of a boot loader. What both share stays as it is."""
    target = Target(imgbuild.layout, imgbuild.cmdline, root, {}, seed, imgbuild.arch)
    LOADERS[imgbuild.bootloader].configure(target)


def share(imgbuild: Imgbuild, root: Path, seed: str, top: Path) -> None:
    """Write to what slots share, mounted at TOP, by what the one at ROOT starts. Raises OSError."""
    target = Target(imgbuild.layout, imgbuild.cmdline, root, {}, seed, imgbuild.arch)
    LOADERS[imgbuild.bootloader].share(target, top)
