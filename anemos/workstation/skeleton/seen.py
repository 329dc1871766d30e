"""What server/definition.sh says about a Debian server, as values."""

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from anemos import architecture
from anemos.architecture import AMD64, ARCHITECTURES, Architecture
from anemos.log import FAILED, die
from anemos.system.bootstrap import identity
from anemos.system.volatile import VOLATILE
from anemos.workstation.deploy import facts
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.ssh import Remote

LOOK_S = 600.0  # the checksums of all configuration files, on a slow disk
RELEASES = ("12", "13")
# Not taken over, as globs: what each system makes for itself, and what the definition says in words
# of its own (layout, cmdline, provision()).
NOT_TAKEN = (
    *(each for each in VOLATILE if each != "etc/resolv.conf"),
    *identity.KNOWN,
    *(f"etc/{each}" for each in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")),
    *("etc/fstab", "etc/crypttab", "etc/mdadm/mdadm.conf", "etc/initramfs-tools/conf.d/resume"),
    *("etc/default/grub", "etc/default/grub.d", "etc/anemos", "etc/cloud", "etc/netplan"),
    *("etc/security/opasswd", "etc/dpkg/origins/default", "etc/console-setup/cached_*"),
    *("etc/ssl/certs/ca-certificates.crt", "etc/ssl/certs/java", "etc/.git", "etc/.java"),
    *("etc/udev/hwdb.bin", "etc/systemd/user", "etc/apt/sources.list.d/anemos.list"),
)
GENERATED = re.compile(
    "|".join(translate(f"{each}{end}") for each in NOT_TAKEN for end in ("", "/*"))
)
# Files as scripts of packages make them in Debian 12 or 13: SHA-256. Nobody has changed them.
UNCHANGED = {
    "etc/environment": ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",),
    "etc/hosts.allow": ("9eadbcd7ec16f4e5961ad2035c0228de7c22b2ba0f6761df63b1b3d9bad9d0a7",),
    "etc/hosts.deny": ("1d0a326106184ef6c389d685e061ba7737de6f7f60c600ec66b19682c53c08d1",),
    "etc/initramfs-tools/modules": (
        "66fd46e4c248ec53d9ae0efaf68c591ae810a4c23f77a07a90cb134323652680",
    ),
    "etc/modules": (
        "3cf96140377b898e48b0253522c261de8b473e9aa0ce53317555bda19b4a50bc",
        "c0d37c5c430cb5c978a4ea00e42ddc4551b04f76352d149d6be5d5b65346df65",
    ),
    "etc/pam.d/common-account": (
        "aa8a63d72e79399b6c51ebe4e9f828c954145a799eb4b8f3224724f51cbb9fac",
    ),
    "etc/pam.d/common-auth": ("b787b01c7e71c658fa9acb84cbe153f71786cf380af4b01ae9135210cdc0154d",),
    "etc/pam.d/common-password": (
        "a76bcfdcb12436297ccf72a0d63daed8d9761d8e92996eb08295b81be32567d7",
    ),
    "etc/pam.d/common-session": (
        "93b668185836f7b2df9bc9a1ad80f9a89c7b1580e0a59d21514b5145cbf0bcc7",
        "c43a99cba44390edf1fe48e777e7ca6bfdee49fbbfa14260d32bd4b3b5b771e4",
        "f1ee6802a30cba8a3e93d62bfb4207238d0491cc1a82e9ff328f1ed635227c32",
        "66aae9a343e225975f775a3e93d2e0005164fd3be76c245de5c3683719923bd3",
    ),
    "etc/pam.d/common-session-noninteractive": (
        "d137251095e22fca44fcc5c993699e46446673a085dab8238de6a670fb3cc7f2",
        "5c624c6f8a8c9b1c75e487f339bbb67d02622736c133e26b39cf72600c39399b",
    ),
    "etc/shells": (
        "7c3c5b8e005446bad0b8f5ba8a121a9a0501c8dc417510871a0097d2ca329755",
        "e37b8c458013dfe795000820b56304dca70f653b125ea61496a6881b61e45ca3",
    ),
}
# What may name a file here, and stand in an IMGBUILD: nothing that a shell would run.
PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._+@:,~-]+)+")
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
Alternatives = tuple[str, ...]


class Package(NamedTuple):
    """BASE: each bootstrap has it. PROVIDES: its own name, too."""

    base: bool
    priority: str
    depends: tuple[Alternatives, ...]
    recommends: tuple[Alternatives, ...]
    provides: frozenset[str]


class Account(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str
    shell: str
    comment: str

    @property
    def person(self) -> bool:
        """Whether no package has made it (Debian Policy, 9.2.2)."""
        return 1000 <= self.uid < 65534

    @property
    def logs_in(self) -> bool:
        return not self.shell.endswith(("/nologin", "/false"))


class File(NamedTuple):
    """DATA: None for what only its name is told of."""

    path: str  # without leading slash
    mode: int
    owner: str
    group: str
    data: bytes | None


@dataclass(frozen=True)
class Seen:
    facts: Facts
    release: str
    suite: str
    cmdline: str
    packages: dict[str, Package]  # that are installed
    manual: frozenset[str]
    accounts: tuple[Account, ...]
    groups: dict[str, tuple[int, frozenset[str]]]  # number and members
    keys: dict[tuple[str, str], list[str]]  # (user, path) -> lines of authorized_keys
    files: tuple[File, ...]  # that are taken over, if only by name
    left: frozenset[str]  # paths of those that are not: NOT_TAKEN
    large: tuple[str, ...]
    links: dict[str, str]
    units: frozenset[str]  # there are
    made: frozenset[str]  # links below /etc/systemd/system that packages have made
    gone: tuple[str, ...]
    odd: tuple[str, ...]
    tables: dict[str, str]  # disk -> kind of its partition table
    fstab: tuple[str, ...]  # its mount points
    beside: dict[str, str]  # directory -> number of files in it

    @property
    def arch(self) -> Architecture:
        return architecture.of(self.facts.machine) or AMD64

    @property
    def people(self) -> list[Account]:
        return [each for each in self.accounts if each.person]

    @property
    def hidden(self) -> list[File]:
        return [each for each in self.files if each.data is None]


def look(remote: Remote) -> Seen:
    """One round trip. Raises Failure for what no definition is begun from."""
    script = facts.probe("facts.sh", "definition.sh")
    return parse(remote.sh(["sh", "-c", script, "look"], timeout=LOOK_S, shown=["definition.sh"]))


def parse(text: str) -> Seen:
    """TEXT: as for facts.parse. Raises Failure."""
    found = facts.parse(text)
    lines = [line.partition("=")[::2] for line in text.split("\n")]
    refuse(found, dict(lines).get("system", ""))
    if ("seen", "end") not in lines:
        die("what the server says of itself is not complete", status=FAILED)
    try:
        return interpret(found, lines)
    except (LookupError, TypeError, ValueError) as error:
        die(f"what the server says of itself makes no sense: {error}", status=FAILED)


def refuse(found: Facts, system: str) -> None:
    name, release, *_ = [*system.split("|"), ""]
    if found.user != "0":
        die("commands do not run as root there")
    if found.place != "system":
        die(f"this is the initramfs of deployment {found.deployment}, not a running system")
    if name != "debian" or release not in RELEASES or not architecture.of(found.machine):
        known = " and ".join(RELEASES)
        hint = "./inv new --host NAME begins a definition without a server"
        what = f"{name or 'unknown'} {release} on {found.machine}"
        machines = " or ".join(each.machine for each in ARCHITECTURES.values())
        die(f"the server runs {what}: only Debian {known} on {machines}", hint=hint)


def interpret(found: Facts, lines: list[tuple[str, str]]) -> Seen:
    """Raises LookupError, TypeError, ValueError."""

    def every(key: str, count: int = 1) -> list[list[str]]:
        return [value.split("|", count - 1) for name, value in lines if name == key]

    [[_, release, suite, cmdline]] = every("system", 4)
    if not NAME.fullmatch(suite):
        raise ValueError(f"suite {suite!r}")
    keys: dict[tuple[str, str], list[str]] = {}
    for user, path, line in every("key", 3):
        keys.setdefault((user, path), []).append(line)
    files = [file(*words, told=True) for words in every("file", 6)]
    files += [file(*words, told=False) for words in every("hidden", 6)]
    return Seen(
        facts=found,
        release=release,
        suite=suite,
        cmdline=cmdline,
        packages=dict(installed(value for name, value in lines if name == "package")),
        manual=frozenset(name.partition(":")[0] for [name] in every("manual")),
        accounts=tuple(
            Account(name, int(uid), int(gid), *words)
            for name, uid, gid, *words in every("account", 6)
        ),
        groups={
            name: (int(gid), frozenset(filter(None, members.split(","))))
            for name, gid, members in every("team", 3)
        },
        keys=keys,
        files=tuple(each for each in files if not left(each)),
        left=frozenset(each.path for each in files if left(each)),
        large=tuple(path for path, *_ in every("large", 6)),
        links={inside(path): to for path, to in every("link", 2) if not generated(inside(path))},
        units=frozenset(name for [name] in every("unit")),
        made=frozenset(path for [path] in every("made")),
        gone=tuple(path for [path] in every("gone") if not generated(inside(path))),
        odd=tuple(path for [path] in every("odd")),
        tables={name: kind for name, kind in every("table", 2)},
        fstab=tuple(point for [point] in every("fstab")),
        beside={top: count for top, count in every("beside", 2)},
    )


def generated(path: str) -> bool:
    """Whether each system makes it for itself, or the definition says it in words of its own."""
    return bool(GENERATED.match(path))


def left(found: File) -> bool:
    """Whether it is not taken over."""
    known = UNCHANGED.get(found.path, ())
    return generated(found.path) or (
        found.data is not None and hashlib.sha256(found.data).hexdigest() in known
    )


def file(path: str, mode: str, owner: str, group: str, _: str, data: str, *, told: bool) -> File:
    content = b64decode(data, validate=True) if told else None
    return File(inside(path), int(mode, 8), owner, group, content)


def inside(path: str) -> str:
    """PATH without leading slash. Raises ValueError for one that leads elsewhere."""
    if not path.startswith("/etc/") or not PATH.fullmatch(path):
        raise ValueError(f"path {path!r}")
    return path[1:]


def installed(lines: Iterable[str]) -> Iterator[tuple[str, Package]]:
    for line in lines:
        name, state, essential, priority, depends, recommends, provides = line.split("\t")
        if state == "installed" and NAME.fullmatch(name):
            base = essential == "yes" or priority == "required" or name == "apt"
            names = frozenset({name}.union(*alternatives(provides)))
            yield (
                name,
                Package(base, priority, alternatives(depends), alternatives(recommends), names),
            )


def alternatives(field: str) -> tuple[Alternatives, ...]:
    """Debian Policy, 7.1: `a (>= 1) | b:any, c`, without versions and architectures."""
    groups = (group.split("|") for group in field.split(",") if group.strip())
    return tuple(
        tuple(re.split(r"[ :(\[<]", each.strip())[0] for each in group) for group in groups
    )
