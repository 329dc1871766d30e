"""The variable `carry` of an IMGBUILD: what a slot takes over from the running system."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from anemos.system import grammar

# What the new system has of its own, beside what grammar.py knows: accounts, who may log in, what
# Anemos writes. Nothing that opens a system goes along by accident.
OWN = re.compile(
    r"/(boot/.*|tmp(/.*)?|root|(.*/)?\.ssh(/.*)?"
    r"|etc/((passwd|group|g?shadow|subuid|subgid)-?|security(/opasswd)?|ssh(/.*)?"
    r"|fstab|crypttab|mdadm(/.*)?))"
)
GLOB = re.compile(r"[*?\[\]\\]")


def check(paths: Iterable[str], mounts: Iterable[str], *, slots: bool) -> None:
    """MOUNTS: what the layout and `keep` mount. Raises ValueError."""
    for path in (f"/{each}" for each in paths):
        if not slots:
            raise ValueError("carry: the layout has no slots=2, and nothing else is carried")
        if path == "/" or not grammar.MOUNT.fullmatch(path) or GLOB.search(path):
            raise ValueError(f"carry: {path!r} is no path below /")
        if any(each.fullmatch(path) for each in (grammar.NEEDED, grammar.OWN, OWN)):
            raise ValueError(f"carry: the new system has a {path} of its own")
        for mount in overlapping(path, mounts):
            raise ValueError(f"carry: {path!r}: {mount} is mounted there, and both slots use it")


def problem(paths: Iterable[str], inputs: Iterable[str]) -> str:
    """Which of PATHS would replace one of INPUTS, files and secrets of the definition, or "": the
    old system's secret must not take the place of the new one."""
    names = [f"/{each}" for each in inputs if "/" in each]
    found = sorted({each for path in paths for each in overlapping(f"/{path}", names)})
    return f"`carry` names what the definition has, too: {', '.join(found)}" if found else ""


def overlapping(path: str, others: Iterable[str]) -> Iterator[str]:
    """Those of OTHERS that are PATH, above it or below it; / never counts."""
    here = PurePosixPath(path)
    for each in others:
        there = PurePosixPath(each)
        if each != "/" and (here.is_relative_to(there) or there.is_relative_to(here)):
            yield each
