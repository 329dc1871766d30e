"""What is installed in a root file system, by the package manager's own records."""

import re
from collections.abc import Iterator
from pathlib import Path

from anemos.system import tree

PACMAN = "var/lib/pacman/local"
APK = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
Package = tuple[str, str, str]  # name, version, architecture


def installed(root: Path) -> list[Package]:
    return sorted({*debian(root), *arch(root), *alpine(root)})


def debian(root: Path) -> Iterator[Package]:
    """dpkg(1): stanzas of /var/lib/dpkg/status."""
    for stanza in read(root, "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Status|Version|Architecture): (.*)$", stanza))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"], fields["Architecture"]


def arch(root: Path) -> Iterator[Package]:
    """pacman(8): a directory for each package below /var/lib/pacman/local."""
    for file in sorted((root / PACMAN).glob("*/desc")):
        fields = dict(re.findall(r"(?m)^%(NAME|VERSION|ARCH)%\n(.*)$", file.read_text()))
        yield fields["NAME"], fields["VERSION"], fields["ARCH"]


def alpine(root: Path) -> Iterator[Package]:
    """apk(8): stanzas of its "installed" file, one letter a field."""
    for place in APK:
        for stanza in read(root, place).split("\n\n"):
            fields = dict(re.findall(r"(?m)^([PVA]):(.*)$", stanza))
            if "P" in fields:
                yield fields["P"], fields["V"], fields["A"]


def owners(root: Path) -> dict[str, str]:
    """The package that each path below ROOT belongs to, by the same records."""
    aliases = {each.name: f"{each.readlink()}" for each in root.iterdir() if each.is_symlink()}
    found = {}
    for package, path in (*listed(root), *local(root), *database(root)):
        top, slash, rest = path.partition("/")  # dpkg's lists may have /lib for /usr/lib
        found[aliases.get(top, top).strip("/") + slash + rest] = package
    return found


def listed(root: Path) -> Iterator[tuple[str, str]]:
    """dpkg's: /var/lib/dpkg/info/PACKAGE.list, or PACKAGE:ARCH.list."""
    for file in (root / "var/lib/dpkg/info").glob("*.list"):
        for line in file.read_text(errors="replace").splitlines():
            yield file.stem.partition(":")[0], line[1:]


def local(root: Path) -> Iterator[tuple[str, str]]:
    """pacman's: below %FILES%, directories with a slash at their end."""
    for file in (root / PACMAN).glob("*/files"):
        package = file.parent.name.rsplit("-", 2)[0]  # NAME-VERSION-RELEASE
        names = file.read_text(errors="replace").partition("%FILES%\n")[2].partition("\n\n")[0]
        for line in names.splitlines():
            yield package, line.rstrip("/")


def database(root: Path) -> Iterator[tuple[str, str]]:
    """apk's: F, a directory, and R, files in it."""
    for place in APK:
        package = directory = ""
        for line in read(root, place).splitlines():
            field, value = line[:2], line[2:]
            package = value if field == "P:" else package
            directory = value if field == "F:" else directory
            if field == "R:":
                yield package, f"{directory}/{value}".lstrip("/")


def read(root: Path, path: str) -> str:
    file = tree.inside(root, path)
    return file.read_text(errors="replace") if file.is_file() and not file.is_symlink() else ""
