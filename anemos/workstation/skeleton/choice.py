"""Which packages a server's definition names, and from where they come.

Those that somebody wanted, and what the bootstrap would not bring by itself. It installs what
packages depend on, not what they recommend.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from anemos.workstation.skeleton.seen import Alternatives, File, Package, Seen

# By another name, with the boot loader; or not meant for a system that a definition describes.
LEFT_OUT = re.compile(
    r"linux-(image|headers)-[0-9].*|grub-.*|shim-.*|systemd-boot.*|cloud-init|cloud-initramfs-.*"
)
KERNEL = re.compile(r"linux-image-((cloud|rt)-)?(amd64|arm64)")
# Named where they are installed, whoever brings them: without them nobody would come in.
NEEDED = ("ifupdown", "init", "iproute2", "kmod", "openssh-server", "sudo", "udev")
SOURCE = re.compile(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)(.*)")
DEBIAN = re.compile(r"[a-z+]+:(//.*/debian(-security)?/?|/etc/apt/mirrors/debian.*)")
COMPONENTS = {"main", "contrib", "non-free", "non-free-firmware"}
PLAIN = ("optional", "extra")


class Choice(NamedTuple):
    """RECOMMENDED: by packages that are there, and installed."""

    packages: tuple[str, ...]
    recommended: tuple[str, ...]


def choose(seen: Seen, loader: Iterable[str]) -> Choice:
    """LOADER: packages of the boot loader, and of the file systems."""
    known = seen.packages
    base = {name for name, package in known.items() if package.base}
    brought = closure(base, known)
    usual = f"linux-image-{seen.arch.name}"
    kernels = [name for name in known if KERNEL.fullmatch(name)] or [usual]
    sure = {*kernels, *loader, "openssh-server", *(known.keys() & set(NEEDED))}
    wanted = {each for each in seen.manual & known.keys() - brought if not LEFT_OUT.fullmatch(each)}
    packages = leaves(wanted | sure, base, sure, known)
    more: set[str] = set()
    while fresh := set(offered(closure({*base, *packages, *more}, known), known)):
        more |= fresh
    return Choice(tuple(packages), tuple(leaves(more, {*base, *packages}, set(), known, all=True)))


def closure(names: Iterable[str], known: dict[str, Package]) -> set[str]:
    """NAMES and all that comes with them: of alternatives, apt takes the first."""
    found, todo = set[str](), set(names)
    while todo:
        found |= todo
        packages = (known[each] for each in todo if each in known)
        todo = {group[0] for each in packages for group in each.depends} & known.keys() - found
    return found


def offered(there: set[str], known: dict[str, Package]) -> Iterator[str]:
    """What is recommended, or not the first alternative, to packages that are THERE."""
    for package in (known[each] for each in there if each in known):
        for group in (*package.depends, *package.recommends):
            found = providers(group, known)
            if not there & set(found):
                yield from (each for each in found if not LEFT_OUT.fullmatch(each))


def providers(group: Alternatives, known: dict[str, Package]) -> list[str]:
    """The installed one of GROUP; of what is no package itself, all that provide it."""
    named = [each for each in group if each in known]
    return named[:1] or [name for name in known if known[name].provides & {*group}]


def leaves(
    names: set[str], base: set[str], sure: set[str], known: dict[str, Package], all: bool = False
) -> list[str]:
    """NAMES without what others bring: libraries and the usual base system, or ALL of it."""
    left = set(names)
    for each in sorted(names - sure):
        plain = known[each].priority in PLAIN and not each.startswith("lib")
        if (all or not plain) and each in closure(base | left - {each}, known):
            left.remove(each)
    return sorted(left)


def sources(found: Seen) -> tuple[list[str], list[str]]:
    """The components of Debian that apt uses there, and the URLs of other repositories."""
    used, others = {"main"}, set()
    for url, suite, names in (each for file in found.files for each in repositories(file)):
        if DEBIAN.fullmatch(url) and suite.startswith(found.suite) and set(names) <= COMPONENTS:
            used |= set(names)
        else:
            others.add(url)
    return sorted(used), sorted(others)


def repositories(file: File) -> Iterator[tuple[str, str, list[str]]]:
    """URL, suite and components, of both forms of sources.list(5)."""
    text = (file.data or b"").decode(errors="replace")
    if re.fullmatch(r"etc/apt/sources\.list(\.d/.*\.list)?", file.path):
        found = (SOURCE.match(line.partition("#")[0].strip()) for line in text.splitlines())
        yield from ((each[1], each[2], each[3].split()) for each in found if each)
    elif re.fullmatch(r"etc/apt/sources\.list\.d/.*\.sources", file.path):
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"(?m)^([A-Za-z-]+):\s*(.*)$", stanza))
            urls, suites, names = (
                fields.get(e, "").split() for e in ("URIs", "Suites", "Components")
            )
            yield from ((url, suite, names) for url in urls for suite in suites)
