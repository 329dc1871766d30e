"""What differs between two manifests: packages, accounts, units, and files.

What a package that is another one now has brought is not told file by file, outside of /etc.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from anemos.system.manifest import Entry, Manifest, Table, Volatile, parent

Entries = dict[str, Entry]  # by path
ADDED, REMOVED = "added", "removed"
# What is enabled: links of systemd.unit(5), of OpenRC's runlevels.
ENABLED = re.compile(r"etc/(?:systemd/system/(.+)\.(?:wants|requires)|runlevels/(.+))/([^/]+)")


@dataclass(frozen=True)
class Change:
    kind: str  # "package", "user", "group", "unit" or "file"
    name: str  # of a file: its path
    what: str  # "added", "removed", or what of it is another one


def between(
    before: Manifest, after: Manifest, skip: Volatile, apart: Collection[str]
) -> list[Change]:
    """SKIP, APART: paths that do not count, with all below them."""
    old, new = counted(before, skip, apart), counted(after, skip, apart)
    packages = list(table("package", before.packages, after.packages))
    moved = {each.name for each in packages}
    return [
        *packages,
        *table("user", before.users, after.users),
        *table("group", before.groups, after.groups),
        *table("unit", units(old), units(new)),
        *files(old, new, moved),
    ]


def counted(manifest: Manifest, skip: Volatile, apart: Collection[str]) -> Entries:
    left: set[str] = set()
    for path in (each.path for each in manifest.entries):
        if parent(path) in left or path in apart or skip(path):
            left.add(path)
    return {each.path: each for each in manifest.entries if each.path not in left}


def table(kind: str, before: Table, after: Table) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield Change(kind, name, f"{REMOVED if new is None else ADDED}: {new or old}")
        elif old != new:
            yield Change(kind, name, f"{old} -> {new}")


def units(entries: Entries) -> Table:
    """What enables them, by name: targets of systemd, runlevels of OpenRC."""
    found: dict[str, list[str]] = {}
    for path in sorted(entries):
        if match := ENABLED.fullmatch(path):
            found.setdefault(match[3], []).append(match[1] or match[2])
    return {name: ", ".join(by) for name, by in found.items()}


def files(old: Entries, new: Entries, moved: Collection[str]) -> Iterator[Change]:
    """MOVED: packages that are other ones, or gone: their names tell of their files. Not in /etc,
    where somebody may have changed them, too."""
    below: dict[str, list[str]] = {}  # a directory that was added or removed, and what is in it
    told: dict[str, str] = {}
    for path in sorted({*old, *new}):
        both = [each for each in (old.get(path), new.get(path)) if each]
        what = differences(*both) if len(both) == 2 else ADDED if path in new else REMOVED
        by_package = any(each.package in moved for each in both) and not path.startswith("etc/")
        by_unit = len(both) == 1 and ENABLED.fullmatch(path)
        if not what or by_package or by_unit:
            continue
        above = below.get(parent(path)) if len(both) == 1 else None
        if above is None:
            told[path] = what
        else:
            above.append(path)
        if len(both) == 1 and both[0].type == "directory":
            below[path] = [] if above is None else above
    for path, what in told.items():
        more = f", with {len(below[path])} below it" if below.get(path) else ""
        yield Change("file", "/" if path == "." else f"/{path}", what + more)


def differences(old: Entry, new: Entry) -> str:
    if old.type != new.type:
        return f"{old.type} -> {new.type}"
    found = []
    if old.type == "link" and old.content != new.content:
        found.append(f"leads to {new.content}, before to {old.content}")
    elif old.content != new.content:
        found.append("content")
    elif old.secret and old.time != new.time:
        found.append("written to")
    if old.mode != new.mode:
        found.append(f"mode {old.mode:04o} -> {new.mode:04o}")
    if (old.uid, old.gid) != (new.uid, new.gid):
        found.append(f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}")
    return ", ".join(found)


def summary(changes: list[Change]) -> str:
    """How many there are of each kind."""
    count: dict[str, int] = {}
    for each in changes:
        count[each.kind] = count.get(each.kind, 0) + 1
    words = (f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in count.items())
    return ", ".join(words) or "nothing"
