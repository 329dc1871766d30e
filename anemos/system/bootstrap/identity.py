"""Hosts share a package layer: what makes a machine this one, or is a secret, does not stay in it.

Scripts of packages make such files. Known ones are removed, and private keys by what is in them or
what they are called. /var/lib/anemos/removed in the layer lists them, one path a line: a deployment
has the packages make them again on the machine itself, and tells what is still missing.
"""

import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.run import CommandFailed
from anemos.system import chroot, tree

REMOVED = "var/lib/anemos/removed"
# Globs below the root -> Debian's package whose postinst makes what is missing; "": nobody need.
KNOWN = {
    "boot/loader/random-seed": "",
    "etc/bind/rndc.key": "bind9",
    "etc/dropbear/dropbear_*_host_key*": "dropbear",
    "etc/dropbear/initramfs/dropbear_*_host_key*": "dropbear-initramfs",
    "etc/iscsi/initiatorname.iscsi": "open-iscsi",
    "etc/munge/munge.key": "munge",
    "etc/nvme/hostid": "nvme-cli",
    "etc/nvme/hostnqn": "nvme-cli",
    "etc/ssh/ssh_host_*_key*": "",
    "etc/ssl/certs/ssl-cert-snakeoil.pem": "ssl-cert",
    "etc/ssl/private/ssl-cert-snakeoil.key": "ssl-cert",
    "etc/unbound/unbound_*.key": "unbound",
    "etc/unbound/unbound_*.pem": "unbound",
    "var/lib/dbus/machine-id": "",
    "var/lib/systemd/credential.secret": "",
    "var/lib/systemd/random-seed": "",
    "var/lib/urandom/random-seed": "",
}
# How, where dpkg-reconfigure(8) does not: to its postinst this is no first installation.
BY_HAND = {
    "open-iscsi": 'umask 077; echo "InitiatorName=$(iscsi-iname)" >/etc/iscsi/initiatorname.iscsi'
}
PLACES = ("etc", "home", "opt", "root", "srv", "var")  # packages' own files are below /usr
LARGEST = 2**18  # bytes of a file that may be a key
KEY = re.compile(
    rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----\s+(?:\S+: .*\s+)*[\w+/=]{16}", re.MULTILINE
)
NAME = re.compile(r"(?:key|secret|cookie)$|\.pem$")


def strip(root: Path) -> None:
    """Take identity and private keys out of the package layer ROOT."""
    found = sorted({*known(root), *(set(keys(root)) - owned(root))})
    for path in found:
        (root / path).unlink()
    missed = [path for path in found if maker(path) != ""]
    if missed:
        tree.write(root, REMOVED, "".join(f"{path}\n" for path in missed))
        log.info(f"Taken out of the package layer, which hosts share: {', '.join(missed)}")
    machine = root / "etc/machine-id"
    if machine.is_file() and not machine.is_symlink():  # empty: made at the first boot
        machine.write_text("")


def known(root: Path) -> Iterator[str]:
    for path, _ in files(root, "boot/loader", *PLACES):
        if maker(path) is not None:
            yield path


def maker(path: str) -> str | None:
    """The package that makes PATH again, "" if nobody need; None for what is not known."""
    return next((package for glob, package in KNOWN.items() if fnmatch(path, glob)), None)


def keys(root: Path) -> Iterator[str]:
    """Files with a private key in PEM, and those that nobody may read with the name of one."""
    for path, status in files(root, *PLACES):
        if 0 < status.st_size <= LARGEST and (
            (NAME.search(path) and not status.st_mode & 0o007)
            or KEY.search((root / path).read_bytes())
        ):
            yield path


def files(root: Path, *tops: str) -> Iterator[tree.Entry]:
    """The regular files below TOPS of ROOT; of those, what no link leads to."""
    for top in tops:
        if (root / top).is_dir() and not (root / top).is_symlink():
            for path, status in tree.walk(root / top):
                if (root / top / path).is_file() and not (root / top / path).is_symlink():
                    yield f"{top}/{path}", status


def owned(root: Path) -> set[str]:
    """What dpkg(1) has unpacked: the same everywhere, and no secret."""
    lists = (root / "var/lib/dpkg/info").glob("*.list")
    return {line[1:] for each in lists for line in each.read_text().splitlines()}


def renew(root: Path) -> None:
    """Have the packages of the system ROOT make what was taken out, for this machine alone."""
    packages = {maker(path) or "" for path in listed(root)} - {""}
    for package in sorted(packages):
        script = BY_HAND.get(package, f"dpkg-reconfigure --frontend=noninteractive {package}")
        try:
            with TemporaryDirectory() as shared:
                chroot.call(root, ["sh", "-c", script], shared=Path(shared))
        except CommandFailed as failed:  # `report` tells what is missing
            log.info(failed.message)


def report(root: Path) -> None:
    """Say what was taken out of the layer and nobody has put into ROOT again."""
    for path in listed(root):
        if not tree.inside(root, path).exists():
            log.info(f"/{path} is missing: hosts would share it; a secret or provision() makes it")
    tree.inside(root, REMOVED).unlink(missing_ok=True)


def listed(root: Path) -> list[str]:
    file = tree.inside(root, REMOVED)
    return file.read_text().splitlines() if file.is_file() else []


def main() -> None:
    """For bootstraps by a program that calls programs: `python3 -c ... ROOT`."""
    strip(Path(sys.argv[1]))
