"""Debian, by mmdebstrap(1)."""

import os
import shlex
import sys
from pathlib import Path

from anemos.image.bootstrap import identity
from anemos.image.bootstrap.common import MIRROR, NO_PACKAGE, Explanation, call
from anemos.image.imgbuild import Imgbuild
from anemos.log import BAD_INPUT, FAILED, die
from anemos.run import Argv

PROGRAMS: tuple[str, ...] = ("mmdebstrap",)

# The last step of mmdebstrap, in the chroot. Until then INITRD=No kept the kernel's hooks from
# making an initramfs before everything that goes into it is there, and a trigger from making it
# again (initramfs-tools(7), update-initramfs(8)). This is what a kernel package's postinst does.
INITRAMFS = """
for kernel in /boot/vmlinuz-*; do
    if [ -e "$kernel" ] && [ -d /etc/kernel/postinst.d ]; then
        version=${kernel#/boot/vmlinuz-}
        export DEB_MAINT_PARAMS="'configure' ''"
        run-parts --arg="$version" --arg="$kernel" /etc/kernel/postinst.d
        linux-update-symlinks install "$version" "$kernel"
    fi
done
"""
PYTHON = os.fspath(Path(__file__).parents[3])  # where this package lies
UNSAFE = "etc/dpkg/dpkg.cfg.d/anemos"

EXPLANATIONS: list[Explanation] = [
    (r"E: Unable to locate package (\S+)", NO_PACKAGE.format("Debian", r"\1"), "", BAD_INPUT),
    (
        r"E: Package '?([^'\s]+)'? has no installation candidate",
        NO_PACKAGE.format("Debian", r"\1"),
        "",
        BAD_INPUT,
    ),
    (
        r"E: The repository '(.*?)' does not have a Release file",
        r"no Debian suite at the mirror: \1",
        "debian_suite and mirror of the IMGBUILD",
        FAILED,
    ),
    (
        r"(?:Could not resolve|Temporary failure resolving|Could not connect to) '?([^'\s]+)'?",
        r"the mirror cannot be reached: \1",
        MIRROR,
        FAILED,
    ),
    (r"E: Failed to fetch (\S+)", r"the mirror does not have \1", MIRROR, FAILED),
    (r"NO_PUBKEY (\S+)", r"the mirror is signed with a key that is not trusted: \1", "", FAILED),
]


def check(imgbuild: Imgbuild) -> None:
    if imgbuild.hostconf:
        die(f"{imgbuild.file}: hostconf is for target=arch and target=alpine")


def make(imgbuild: Imgbuild, output: Path) -> None:
    argv = mmdebstrap(imgbuild, output.resolve())
    call(argv, imgbuild.file, EXPLANATIONS, output, {"INITRD": "No"})


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
        # A system that is not there yet has nothing to lose: no fsync(2) for every file (dpkg(1)).
        f'--setup-hook=mkdir -p "$1/{UNSAFE.rpartition("/")[0]}"',
        f'--setup-hook=echo force-unsafe-io >"$1/{UNSAFE}"',
        # An initramfs has what it is about in it, too.
        f"--customize-hook=PYTHONPATH={shlex.quote(PYTHON)} {sys.executable}"
        f' -m {identity.__name__} "$1"',
        f"--customize-hook=env -u INITRD chroot \"$1\" sh -ec '{quoted(INITRAMFS)}'",
        # The machine that boots has its own; mmdebstrap copies this one's name and resolver.
        f'--customize-hook=cd "$1" && rm -f {UNSAFE} etc/hostname etc/resolv.conf',
        imgbuild.suite,
        output,
        *([imgbuild.mirror] if imgbuild.mirror else []),
    ]


def quoted(script: str) -> str:
    """SCRIPT, to stand between single quotes."""
    return script.replace("'", "'\\''")


def inputs(imgbuild: Imgbuild) -> dict[str, object]:
    return {
        "debian_suite": imgbuild.suite,
        "mirror": imgbuild.mirror,
        "excludes": list(imgbuild.excludes),
    }


def indexes(imgbuild: Imgbuild) -> list[str]:
    """The suite's InRelease. Of mmdebstrap's other ways to name mirrors, nothing is known."""
    if "://" not in imgbuild.mirror or " " in imgbuild.mirror:
        return []
    return [f"{imgbuild.mirror.rstrip('/')}/dists/{imgbuild.suite}/InRelease"]
