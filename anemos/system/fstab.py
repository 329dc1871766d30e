"""/etc/fstab: the lines of a layout, and those that an image has of its own (fstab(5))."""

import posixpath
from collections.abc import Collection
from pathlib import Path

from anemos import log, mounts
from anemos.log import die
from anemos.system import tree

FILE = "etc/fstab"


def write(root: Path, layout: str) -> None:
    """Put the lines LAYOUT before those of files, packages and provision() below ROOT.

    An own one for a mount point of the layout is left out: the system might not start with it.
    """
    file, given = tree.inside(root, FILE), layout.splitlines()
    there = file.read_bytes().decode(errors="surrogateescape") if file.is_file() else ""
    own = [line for line in there.splitlines() if line not in given]  # done again, perhaps
    taken = {point(line) for line in given} - {""}
    for line in own:
        if point(line) in taken:
            log.info(f"/{FILE}: left out, as the layout mounts {point(line)}: {line}")
    kept = [line for line in own if point(line) not in taken]
    text = "".join(f"{line}\n" for line in [*given, *kept])
    tree.write(root, FILE, text.encode(errors="surrogateescape"))


def check(file: Path | str, text: str, taken: Collection[str]) -> None:
    """Raise Failure when TEXT, of the input FILE, has a line for a mount point in TAKEN."""
    for number, line in enumerate(text.splitlines(), 1):
        if point(line) in taken:
            why = f"line {number}: {point(line)} is mounted by layout or keep"
            die(f"{file}: {why}", hint="remove the line; `options=` stand in the IMGBUILD")


def point(line: str) -> str:
    """The mount point in LINE, "" if there is none: comments, swap."""
    words = line.split()
    if len(words) < 2 or words[0].startswith("#") or not words[1].startswith("/"):
        return ""
    return posixpath.normpath(mounts.unescaped(words[1]))
