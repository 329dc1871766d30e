"""provision() of a server's first definition: people, owners and modes, units."""

import re
import shlex
from collections.abc import Iterable, Iterator

from anemos.workstation.hosts import ROOT
from anemos.workstation.skeleton.layout import Drawn
from anemos.workstation.skeleton.seen import Account, Seen

UNITS = "etc/systemd/system/"
WANTS = re.compile(r"[^/]+\.(?:wants|requires)/(.+)")
# systemd's own, which each Debian has as they are (systemd.preset(5)).
PRESET = (
    *("getty@tty1.service", "remote-fs.target", "systemd-pstore.service"),
    "systemd-time-wait-sync.service",
)


def lines(found: Seen, drawn: Drawn) -> Iterator[str]:
    if (ROOT, "/root/.ssh/authorized_keys") in found.keys:
        yield "chmod 700 /root/.ssh"
    yield from users(found, drawn)
    for each in found.files:
        usual = (0o600,) if each.data is None else (0o644, 0o755)
        if (each.owner, each.group) != (ROOT, ROOT):
            yield shlex.join(["chown", f"{each.owner}:{each.group}", f"/{each.path}"])
        if each.mode not in usual:
            yield shlex.join(["chmod", f"{each.mode:o}", f"/{each.path}"])
    yield from (shlex.join(["rm", "-f", path]) for path in found.gone)
    if any(each.path == "etc/locale.gen" for each in found.files):
        yield "locale-gen >/dev/null"
    for verb, names in zip(("enable", "disable"), units(found), strict=True):
        if names:
            yield shlex.join(["systemctl", "--quiet", verb, *sorted(names)])


def units(found: Seen) -> tuple[set[str], set[str]]:
    """What somebody has enabled, and disabled, beside the packages' own scripts."""
    links = {path.removeprefix(UNITS) for path in found.links}
    now, before = wanted(links), wanted(found.made)
    there = {each for each in now | before if re.sub("@.*[.]", "@.", each) in found.units}
    there -= {*PRESET}
    return wanted(links - found.made) & there, (before - now) & there


def wanted(links: Iterable[str]) -> set[str]:
    """The units that LINKS have started by others."""
    return {match[1] for each in links if (match := WANTS.fullmatch(each))}


def users(found: Seen, drawn: Drawn) -> Iterator[str]:
    """People with their numbers, which own files that are kept; and the groups of both."""
    names = {each.name for each in found.people}
    numbers = {each.gid for each in found.people}
    used = {each.group for each in found.files}
    for group, (gid, members) in sorted(found.groups.items(), key=lambda each: each[1][0]):
        if gid in numbers or members & names or (group in used and 1000 <= gid < 65534):
            if gid >= 1000:
                yield shlex.join(["groupadd", "--gid", f"{gid}", group])
            elif gid > 100:  # up to there they are Debian's own (Debian Policy, 9.2.2)
                yield shlex.join(["groupadd", "--force", "--system", group])
    for each in found.people:
        yield shlex.join(useradd(each, found, drawn))
        ssh = f"{each.home}/.ssh"
        if (each.name, f"{ssh}/authorized_keys") in found.keys and drawn.here(ssh):
            whole = each.home if each.home.startswith("/home/") else ssh
            yield shlex.join(["chown", "-R", f"{each.name}:", whole])
            yield shlex.join(["chmod", "700", ssh])


def useradd(each: Account, found: Seen, drawn: Drawn) -> list[str]:
    groups = [name for name, (_, members) in found.groups.items() if each.name in members]
    kept = not drawn.here(f"{each.home}/")
    return [
        *["useradd", "--uid", f"{each.uid}", "--gid", f"{each.gid}"],
        *(["--groups", ",".join(sorted(groups))] if groups else []),
        *(["--comment", each.comment] if each.comment.strip(",") else []),
        *["--home-dir", each.home, "--shell", each.shell],
        *["--no-create-home" if kept else "--create-home", each.name],
    ]


def linked(path: str, target: str) -> bool:
    """Whether the symbolic link PATH is anybody's but the packages' and systemctl(1)'s."""
    unit = path.removeprefix(UNITS)
    alias = unit != path and "/systemd/system/" in target and unit != "default.target"
    return not (WANTS.fullmatch(unit) or alias)
