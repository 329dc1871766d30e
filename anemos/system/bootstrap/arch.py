"""Arch Linux, by pacstrap(8) and pacman(8)."""

import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log, mounts
from anemos.log import BAD_INPUT, FAILED, die
from anemos.run import CommandFailed, run
from anemos.system import tree as files
from anemos.system.bootstrap import identity
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

PROGRAMS: tuple[str, ...] = ("pacman", "pacstrap")
KEYRING = Path("/etc/pacman.d/gnupg")
MIRRORLIST = Path("/etc/pacman.d/mirrorlist")
# Not for other machines: keys that sign for this one, and the sockets of its agent.
PRIVATE = ("private-keys-v1.d", "openpgp-revocs.d", "secring.gpg", "S.*", ".#*", "*.lock", "*~")
# For mkinitcpio(8), without the hook that leaves out drivers which this machine does not need: the
# new system runs on another one. When the layer is made it goes: the new system may look at itself.
PORTABLE = "etc/mkinitcpio.conf.d/anemos.conf"
HOOKS = "HOOKS=(${HOOKS[@]/autodetect})\n"

# As Arch's own pacman.conf(5).
DEFAULT = """[options]
Architecture = auto
SigLevel = Required DatabaseOptional
ParallelDownloads = 5
[core]
{server}
[extra]
{server}
"""
EXPLANATIONS: list[Explanation] = [
    (r"error: target not found: (\S+)", NO_PACKAGE.format("Arch", r"\1"), "", BAD_INPUT),
    (
        r"error: (\S+): (signature from .* is (?:unknown trust|marginal trust|invalid))",
        r"\1: \2",
        "keys/ beside the IMGBUILD holds the keys that are trusted",
        FAILED,
    ),
    (
        r"error: (\S+): (key \S+ is unknown|missing required signature)",
        r"\1: \2",
        "keys/ beside the IMGBUILD holds the keys that are trusted",
        FAILED,
    ),
    (
        r"error: failed retrieving file '(\S+)' from (.*)",
        r"the mirror does not give \1: \2",
        MIRROR,
        FAILED,
    ),
    (r"error: (config file .*)", r"pacman.conf: \1", "", BAD_INPUT),
]


def check(imgbuild: Imgbuild) -> None:
    configuration(imgbuild)


def make(imgbuild: Imgbuild, output: Path, fetched: Path | None) -> None:
    if not mounts.privileged():
        die("target=arch: needs root", hint="pacstrap(8) mounts a devtmpfs, which only root may")
    # A path that is short enough for the socket of gpg-agent.
    with tree(output) as root, TemporaryDirectory(prefix="anemos-") as name:
        keyring = Path(name) / "gnupg"
        conf = Path(name) / "pacman.conf"
        # pacman.conf(5): the first GPGDir counts, all NoExtract do.
        excludes = "".join(f"NoExtract = {glob.lstrip('/')}\n" for glob in imgbuild.excludes)
        conf.write_text(f"[options]\nGPGDir = {keyring}\n{excludes}{configuration(imgbuild)}")
        make_keyring(imgbuild, keyring)
        files.write(root, PORTABLE, HOOKS)
        # Mounts go with the namespace in every case. -G, -M: nothing of this host goes along.
        argv: list[str | Path] = ["unshare", "--mount", "--propagation=private", "pacstrap"]
        call(
            [*argv, "-C", conf, "-G", "-M", root, *imgbuild.packages],
            imgbuild.file,
            EXPLANATIONS,
            output,
        )
        if "keyring" in imgbuild.hostconf:
            target = files.inside(root, "etc/pacman.d/gnupg")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(keyring, target, ignore=shutil.ignore_patterns(*PRIVATE))
        clean(root)


def configuration(imgbuild: Imgbuild) -> str:
    """The text of pacman.conf(5): the one beside the IMGBUILD, or one for its mirror."""
    file = imgbuild.directory / "pacman.conf"
    if file.is_file():
        return file.read_text()
    if imgbuild.mirror:
        return DEFAULT.format(server=f"Server = {imgbuild.mirror.rstrip('/')}/$repo/os/$arch")
    if MIRRORLIST.is_file():
        return DEFAULT.format(server=f"Include = {MIRRORLIST}")
    die(
        f"{imgbuild.file}: target=arch without a mirror",
        hint="set `mirror`, or put a pacman.conf beside the IMGBUILD",
    )


def make_keyring(imgbuild: Imgbuild, keyring: Path) -> None:
    """The keys that packages are checked with: keys/, else the host's keyring, else Arch's own."""
    keys = sorted((imgbuild.directory / "keys").glob("*"))
    if not keys and KEYRING.is_dir():
        shutil.copytree(KEYRING, keyring, ignore=shutil.ignore_patterns(*PRIVATE))
        return
    keyring.mkdir(mode=0o755)
    (keyring / "pubring.gpg").touch()  # pacman(8) insists on this format
    with log.step("Making pacman's keyring"):
        if keys:
            trust(keyring, keys)
        else:
            populate(keyring)


def trust(keyring: Path, keys: list[Path]) -> None:
    """Trust KEYS fully: no signature of another key makes them valid (gpg(1), ownertrust)."""
    gpg: list[str | Path] = ["gpg", "--homedir", keyring, "--batch", "--no-permission-warning"]
    try:
        run([*gpg, "--import", *keys])
    except CommandFailed as failed:
        die(f"{keys[0].parent}: not all are OpenPGP public keys\n{failed.output.strip()}")
    found = re.findall(r"(?m)^pub:.*\nfpr:+(\w+):", run([*gpg, "--with-colons", "--list-keys"]))
    ultimate = "".join(f"{fingerprint}:6:\n" for fingerprint in found)
    run([*gpg, "--import-ownertrust"], data=ultimate.encode())


def populate(keyring: Path) -> None:
    """Trust what Arch Linux does, by its package archlinux-keyring (pacman-key(8))."""
    try:
        run(["pacman-key", "--gpgdir", keyring, "--init"])
        run(["pacman-key", "--gpgdir", keyring, "--populate", "archlinux"])
    finally:
        run(["gpgconf", "--homedir", keyring, "--kill", "all"])


def clean(root: Path) -> None:
    """Remove caches, identity, and what tells when it was made."""
    identity.strip(root)
    files.inside(root, PORTABLE).unlink()
    for cache in ("var/cache/pacman/pkg", "var/lib/pacman/sync"):
        empty(root / cache)
    (root / "var/log/pacman.log").unlink(missing_ok=True)
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        for desc in (root / "var/lib/pacman/local").glob("*/desc"):
            text = desc.read_text()
            desc.write_text(re.sub(r"(?<=%INSTALLDATE%\n)\d+", epoch, text))


def inputs(imgbuild: Imgbuild) -> dict[str, object]:
    keys = imgbuild.directory / "keys"
    conf = imgbuild.directory / "pacman.conf"
    return {
        "mirror": imgbuild.mirror,
        "excludes": list(imgbuild.excludes),
        "hostconf": list(imgbuild.hostconf),
        "files": digests(conf, keys),
        "keyring": {} if any(keys.glob("*")) else digests(KEYRING / "pubring.gpg"),
    }


def indexes(imgbuild: Imgbuild) -> list[str]:
    """The databases of the repositories, at the first server of each (pacman-conf(8))."""
    with TemporaryDirectory() as name:
        conf = Path(name) / "pacman.conf"
        conf.write_text(configuration(imgbuild))
        text = run(["pacman-conf", "--config", conf], cwd=imgbuild.directory)
    sections = re.findall(r"(?ms)^\[(?!options\])(.*?)\]$(.*?)(?=^\[|\Z)", text)
    servers = [(repo, re.search(r"(?m)^Server = (.*)$", body)) for repo, body in sections]
    return [f"{server[1]}/{repo}.db" for repo, server in servers if server]
