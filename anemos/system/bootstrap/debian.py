"""Debian, by mmdebstrap(1)."""

import os
import re
import shlex
import sys
from pathlib import Path

from anemos import log
from anemos.log import BAD_INPUT, FAILED, die
from anemos.run import Argv
from anemos.system.bootstrap import identity
from anemos.system.bootstrap.common import FETCHED, MIRROR, NO_PACKAGE, Explanation, call, digests
from anemos.system.imgbuild import Imgbuild

PROGRAMS: tuple[str, ...] = ("mmdebstrap",)

STRIP = f"from {identity.__name__} import main; main()"
PROGRAM = shlex.quote(sys.executable)
PYTHON = os.fspath(Path(__file__).parents[3])  # where this package lies
MOVING = ("stable", "oldstable", "testing")
# sources.list(5), the one-line style.
SOURCE = re.compile(
    r"deb(?:-src)?\s+(?P<options>\[[^]]*\]\s+)?(?P<url>\S+://\S+)\s+(?P<suite>\S+).*"
)
LIST = "etc/apt/sources.list.d/anemos.list"
KEYS = "etc/apt/keyrings"
ARCHIVES = "var/cache/apt/archives"
UNSAFE = "etc/dpkg/dpkg.cfg.d/anemos"

ELSEWHERE = "is it in another component or repository? `components`, `apt_sources` name them"

EXPLANATIONS: list[Explanation] = [
    (
        r"E: Unable to locate package (\S+)",
        NO_PACKAGE.format("Debian", r"\1"),
        ELSEWHERE,
        BAD_INPUT,
    ),
    (
        r"E: Package '?([^'\s]+)'? has no installation candidate",
        NO_PACKAGE.format("Debian", r"\1"),
        ELSEWHERE,
        BAD_INPUT,
    ),
    (
        r"E: Release file for (\S+) is expired",
        r"the mirror is out of date, its Release file has expired: \1",
        "is the clock right? else take another `mirror`",
        FAILED,
    ),
    (
        r"E: Release file for (\S+) is not valid yet",
        r"the mirror's Release file is from the future: \1",
        "is the clock of this machine right?",
        FAILED,
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
    (
        r"Exec format error",
        "programs of this `arch` do not run on this machine",
        "install qemu-user-static; in a container, its host has to have it",
        FAILED,
    ),
    (r"NO_PUBKEY (\S+)", r"the mirror is signed with a key that is not trusted: \1", "", FAILED),
]


def check(imgbuild: Imgbuild) -> None:
    if imgbuild.hostconf:
        die(f"{imgbuild.file}: hostconf is for target=arch and target=alpine")
    for line in imgbuild.apt_sources:
        match = SOURCE.fullmatch(line)
        if not match:
            hint = "deb [signed-by=keys/NAME.asc] URL SUITE COMPONENT"
            die(f"{imgbuild.file}: apt_sources: {line!r} is no line of sources.list(5)", hint=hint)
        for key in re.findall(r"signed-by=(keys/[^],\s]+)", match["options"] or ""):
            if not (imgbuild.directory / key).is_file():
                die(f"{imgbuild.file}: apt_sources: there is no {key} beside the IMGBUILD")


def make(imgbuild: Imgbuild, output: Path, fetched: Path | None) -> None:
    if imgbuild.suite in MOVING:
        why = f"{imgbuild.suite} becomes another release by itself: write trixie, bookworm..."
        log.info(f"{imgbuild.file}: debian_suite: {why}")
    argv = mmdebstrap(imgbuild, output.resolve(), fetched)
    call(argv, imgbuild.file, EXPLANATIONS, output, {"INITRD": "No"})


def mmdebstrap(imgbuild: Imgbuild, output: Path, fetched: Path | None = None) -> Argv:
    """mmdebstrap(1): OUTPUT is a directory, or a tar file, compressed as its suffix says."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        # The root that runs this may be one of a user namespace only, where mknod(2) is refused.
        "--mode=root",
        "--skip=check/qemu",
        f"--architectures={imgbuild.arch.name}",
        *([f"--include={','.join(sorted(imgbuild.packages))}"] if imgbuild.packages else []),
        *(f"--dpkgopt=path-exclude={glob}" for glob in imgbuild.excludes),
        # A system that is not there yet has nothing to lose: no fsync(2) for every file (dpkg(1)).
        f'--setup-hook=mkdir -p "$1/{UNSAFE.rpartition("/")[0]}"',
        f'--setup-hook=echo force-unsafe-io >"$1/{UNSAFE}"',
        *sources(imgbuild),
        *(cache(fetched) if fetched else []),
        # An initramfs has what it is about in it, too.
        f'--customize-hook=PYTHONPATH={shlex.quote(PYTHON)} {PROGRAM} -c "{STRIP}" "$1"',
        f'--customize-hook=env -u INITRD chroot "$1" sh <{script("initramfs.sh")}',
        # The machine that boots has its own; mmdebstrap copies this one's name and resolver.
        f'--customize-hook=cd "$1" && rm -f {UNSAFE} etc/hostname etc/resolv.conf',
        *([f"--components={','.join(imgbuild.components)}"] if imgbuild.components else []),
        imgbuild.suite,
        output,
        *([imgbuild.mirror] if imgbuild.mirror else []),
    ]


def cache(fetched: Path) -> list[str]:
    """Options for packages that are FETCHED already, see bootstrap.bootstrap. apt(8) itself looks
    at their names and sizes only."""
    take, keep = f'{script("take.sh")} "$1" {ARCHIVES}', f'{script("keep.sh")} "$1" {ARCHIVES}'
    return [
        "--skip=essential/unlink",
        f"--setup-hook=sh {take} {shlex.quote(os.fspath(fetched))}",
        f"--customize-hook=sh {keep} {FETCHED}",
    ]


def sources(imgbuild: Imgbuild) -> list[str]:
    """Options for `apt_sources`: until the end, apt(8) sees the keys from outside of the image."""
    if not imgbuild.apt_sources:
        return []
    lines = shlex.quote("\n".join(imgbuild.apt_sources))
    keys = shlex.quote(os.fspath(imgbuild.directory.absolute() / "keys"))
    copied = f'mkdir -p "$1/{KEYS}"; ! [ -d {keys} ] || cp {keys}/* "$1/{KEYS}/"; chmod 644'
    return [
        f'--setup-hook={copied} "$1/{KEYS}"/* 2>/dev/null || :',
        f'--setup-hook=printf "%s\\n" {lines} | sed "s|=keys/|=$1/{KEYS}/|" >"$1/{LIST}"',
        f'--customize-hook=sed -i "s|=$1/|=/|" "$1/{LIST}"',
    ]


def script(name: str) -> str:
    """The file NAME beside this one, for the shell of a hook: mmdebstrap shows all words of it."""
    return shlex.quote(os.fspath(Path(__file__).with_name(name)))


def inputs(imgbuild: Imgbuild) -> dict[str, object]:
    return {
        "arch": imgbuild.arch.name,
        "debian_suite": imgbuild.suite,
        "mirror": imgbuild.mirror,
        "excludes": list(imgbuild.excludes),
        "components": list(imgbuild.components),
        "apt_sources": list(imgbuild.apt_sources),
        "keys": digests(imgbuild.directory / "keys"),
    }


def indexes(imgbuild: Imgbuild) -> list[str]:
    """The suites' InRelease. Of mmdebstrap's other ways to name mirrors, nothing is known."""
    if "://" not in imgbuild.mirror or " " in imgbuild.mirror:
        return []
    others = filter(None, map(SOURCE.fullmatch, imgbuild.apt_sources))
    found = [(each["url"], each["suite"]) for each in others if not each["suite"].endswith("/")]
    places = [(imgbuild.mirror, imgbuild.suite), *found]
    return [f"{url.rstrip('/')}/dists/{suite}/InRelease" for url, suite in places]
