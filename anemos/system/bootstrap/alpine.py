"""Alpine, by apk(8): the one on PATH, or else the repository's own apk-tools-static."""

import platform
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.log import BAD_INPUT, FAILED, die
from anemos.system import chroot
from anemos.system import tree as files
from anemos.system.bootstrap import apk, fetching, identity
from anemos.system.bootstrap.common import (
    MIRROR,
    NO_PACKAGE,
    Explanation,
    call,
    digests,
    empty,
    tree,
)
from anemos.system.imgbuild import Imgbuild

PROGRAMS: tuple[str, ...] = ("apk",)
KEYS = Path("/etc/apk/keys")
STATIC = "apk-tools-static"
PROGRAM = "sbin/apk.static"
TIMEOUT_S = 60.0
NO_KEYS = "put the repositories' public keys into keys/ beside the IMGBUILD"

# $1: the root file system; the rest: the command. Scripts of packages get /dev, with no disk in it.
BESIDE = f'{chroot.DEV}\nshift; exec "$@"'

EXPLANATIONS: list[Explanation] = [
    (r"(?m)^\s+(\S+) \(no such package\)", NO_PACKAGE.format("Alpine", r"\1"), "", BAD_INPUT),
    (
        r"(?m)^(?:WARNING|ERROR): (.*UNTRUSTED.*|.*BAD signature.*)",
        r"\1",
        NO_KEYS,
        FAILED,
    ),
    (
        r"(?m)^WARNING: (?:Ignoring|fetching|opening|updating) (.*)",
        r"the mirror does not give \1",
        MIRROR,
        FAILED,
    ),
]


def check(imgbuild: Imgbuild) -> None:
    if imgbuild.excludes:
        die(f"{imgbuild.file}: excludes: apk(8) cannot leave out files")
    repositories(imgbuild)
    if not any(file.is_file() for source in key_sources(imgbuild) for file in source.glob("*")):
        die(f"{imgbuild.file}: target=alpine without keys", hint=NO_KEYS)


def make(imgbuild: Imgbuild, output: Path, fetched: Path | None) -> None:
    with tree(output) as root, TemporaryDirectory(prefix="anemos-") as name:
        # apk(8) looks for them there, and there they stay.
        keys = root / "etc/apk/keys"
        for source in key_sources(imgbuild):
            for key in sorted(source.glob("*")):
                files.copy(key.resolve(), root, f"etc/apk/keys/{key.name}", 0o644)
        listing = Path(name) / "repositories"
        listing.write_text("".join(f"{line}\n" for line in repositories(imgbuild)))
        program = shutil.which("apk") or fetch_apk(imgbuild, keys, Path(name))
        for directory in ("dev", "proc"):
            (root / directory).mkdir(exist_ok=True)
        argv: list[str | Path] = ["unshare", "--mount", "--propagation=private"]
        argv += ["sh", "-c", BESIDE, "sh", root]
        argv += [program, "add", "--root", root, "--initdb", "--no-cache"]
        argv += ["--arch", platform.machine(), "--keys-dir", keys, "--repositories-file", listing]
        call([*argv, *(imgbuild.packages or ["alpine-base"])], imgbuild.file, EXPLANATIONS, output)
        empty(root / "var/cache/apk")
        (root / "var/log/apk.log").unlink(missing_ok=True)
        identity.strip(root)


def key_sources(imgbuild: Imgbuild) -> list[Path]:
    """The directories whose keys are trusted, and go into the image."""
    return [imgbuild.directory / "keys", *([KEYS] if "keyring" in imgbuild.hostconf else [])]


def repositories(imgbuild: Imgbuild) -> list[str]:
    """The lines of apk-repositories(5): the file beside the IMGBUILD, or those of its mirror."""
    file = imgbuild.directory / "repositories"
    if file.is_file():
        return file.read_text().splitlines()
    if imgbuild.mirror:
        return [f"{imgbuild.mirror.rstrip('/')}/{name}" for name in ("main", "community")]
    die(
        f"{imgbuild.file}: target=alpine without repositories",
        hint="put a file `repositories` beside the IMGBUILD, or set `mirror`",
    )


def urls(imgbuild: Imgbuild) -> list[str]:
    """Where the repositories are, for this machine's architecture."""
    lines = [line.split() for line in repositories(imgbuild)]
    places = [words[-1] for words in lines if words and not words[0].startswith("#")]
    return [
        ("file://" if place.startswith("/") else "") + f"{place.rstrip('/')}/{platform.machine()}"
        for place in places
    ]


def fetch_apk(imgbuild: Imgbuild, keys: Path, scratch: Path) -> Path:
    """Take apk.static from the first repository that has it. Raises Failure."""
    with log.step(f"Taking {STATIC} from the repository"):
        for url in urls(imgbuild):
            address = f"{url}/APKINDEX.tar.gz"
            try:
                for package in apk.read_index(fetch(address), keys):
                    if package.name == STATIC:
                        address = f"{url}/{STATIC}-{package.version}.apk"
                        found = apk.read_package(fetch(address), package, keys)
                        return files.write(scratch, "apk.static", found[PROGRAM], 0o755)
            except KeyError:
                die(f"{address}: no {PROGRAM} in it", status=FAILED)
            except apk.Untrusted as error:
                die(f"{address}: {error}", hint=NO_KEYS, status=FAILED)
    die(
        f"{imgbuild.file}: no apk here, and no package {STATIC} in the repositories",
        hint="Alpine has it in main",
    )


def fetch(url: str) -> bytes:
    try:
        with fetching.opened(url, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    except (OSError, ValueError) as error:
        die(f"the mirror does not give {url}: {error}", hint=MIRROR, status=FAILED)


def inputs(imgbuild: Imgbuild) -> dict[str, object]:
    return {
        "repositories": repositories(imgbuild),
        "keys": [digests(source) for source in key_sources(imgbuild)],
    }


def indexes(imgbuild: Imgbuild) -> list[str]:
    return [f"{url}/APKINDEX.tar.gz" for url in urls(imgbuild)]
