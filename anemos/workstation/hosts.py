"""A host: hosts/<name>/ with its IMGBUILD and its host.toml.

host.toml, all but address and host_key optional, and without them if [vm] has `stock`. What is
shown is the default, but where parentheses tell that:

    address = "mx.example.org"
    host_key = "ssh-ed25519 AAAA..."   # pinned: an ssh_host_*_key.pub; `./inv adopt` writes it
    port = 22
    identity = "~/.ssh/id_ed25519"     # private key (none: the agent's keys, ssh's default ones)
    build_on = "workstation"           # where the package layer is made, and cached; or "server":
                                       # there, while the old system serves, with more memory; or
                                       # "initramfs": after the jump, with the least memory
    try_here = true                    # before it is sent, try the definition on the workstation,
                                       # provision() and all; never where the server fetches secrets
    ports = [22, 443]                  # that must listen afterwards (`port` alone)
    start = "auto"                     # into the initramfs: by "kexec", or by a boot entry that is
                                       # taken "once" (kexec, if the kernel allows it)
    finish = "reboot"                  # into the new system; or "kexec": without its firmware

    [timeouts]                         # seconds
    down = 180                         # until the old system has shut down
    initramfs = 300                    # until the initramfs answers
    install = 3600                     # until the installation has ended
    up = 600                           # until the new system answers; then, until
                                       # its units have started
    hold = 3600                        # with --hold, until the old system is started again

    [secrets]
    source = "gpg"                     # or "age", "sops", "pass": docs/secrets.md
    identity = "~/.config/age/key"     # of age, which needs it: the file of the private key (none)
    prefix = "anemos"                  # of pass: where entries begin

    [vm]                               # the local VM of `./inv test`
    memory = 1024                      # MiB
    firmware = "bios"                  # or "uefi"
    forward = [443]                    # guest's ports to be reached from here, over TCP and UDP;
                                       # 22 always is (none)
    address = "10.0.2.15/24"           # the network that the host expects to be in: IPv4
    gateway = "10.0.2.2"
    stock = "stock"                    # (none) instead of address and host_key: a host that is a
                                       # local VM and no more; it starts with this one of hosts/
"""

import ipaddress
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from anemos.log import die
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places
from anemos.workstation.qemu import Network

BUILD_ON = ("workstation", "server", "initramfs")
FIRMWARES = ("bios", "uefi")
SOURCES = ("gpg", "age", "sops", "pass")
START = ("auto", "kexec", "once")
FINISH = ("reboot", "kexec")
# No plain values of host.toml.
INTERNAL = ("name", "directory", "timeouts", "secrets", "vm", "adopt", "forwarded")
MAX_PORT = 65535
EXPECTED: dict[Any, str] = {
    str: "a string",
    int: "a number above 0",
    bool: "true or false",
    list[int]: "a list of numbers above 0",
}


# What people write as an address: more than that.
SPELT = re.compile(
    r"(?:ssh://)?(?:[^@/]*@)?(?:\[(?P<six>[^]]*)\]|(?P<name>[^:/]*))(?::(?P<port>\d+))?/?"
)


class Wrong(NamedTuple):
    """What is wrong in host.toml, and what to write."""

    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


@dataclass(frozen=True)
class Timeouts:
    down: int = 180
    initramfs: int = 300
    install: int = 3600
    up: int = 600
    hold: int = 3600


@dataclass(frozen=True)
class SecretSettings:
    source: str = "gpg"
    identity: str = ""
    prefix: str = "anemos"

    @property
    def identity_file(self) -> Path | None:
        return expanded(self.identity)


@dataclass(frozen=True)
class VmSettings:
    stock: str = ""
    memory: int = 1024
    forward: list[int] = field(default_factory=list)
    address: str = Network.address
    gateway: str = Network.gateway
    firmware: str = "bios"

    @property
    def network(self) -> Network:
        return Network(self.address, self.gateway)


@dataclass(frozen=True)
class Host:
    name: str
    directory: Path
    address: str = ""
    host_key: str = ""
    port: int = 22
    identity: str = ""
    build_on: str = "workstation"
    start: str = "auto"
    finish: str = "reboot"
    try_here: bool = True
    ports: list[int] = field(default_factory=lambda: [22])
    timeouts: Timeouts = field(default_factory=Timeouts)
    secrets: SecretSettings = field(default_factory=SecretSettings)
    vm: VmSettings = field(default_factory=VmSettings)
    adopt: bool = False  # --adopt: even if the machine was deployed as another host
    forwarded: int = 0  # the port that leads to `port`, where that is another one

    @property
    def local(self) -> bool:
        """No machine but a local VM, which `demo` makes."""
        return bool(self.vm.stock)

    @property
    def rehearsed(self) -> bool:
        """It stands for another host in `test`, with the IMGBUILD of that one."""
        return self.name != self.directory.name

    @property
    def throwaway(self) -> bool:
        """Nobody would miss what is on it; its secrets are made for it."""
        return self.local or self.rehearsed

    @property
    def identity_file(self) -> Path | None:
        return expanded(self.identity)

    def imgbuild(self) -> Imgbuild:
        return imgbuild.load(self.directory)


TABLES = {"timeouts": Timeouts, "secrets": SecretSettings, "vm": VmSettings}


def expanded(path: str) -> Path | None:
    return Path(os.path.expanduser(path)) if path else None  # noqa: PTH111


def known() -> list[str]:
    return sorted(entry.parent.name for entry in places.HOSTS.glob("*/host.toml"))


def load(name: str, *, adopt: bool = False, build_on: str = "", server: bool = True) -> Host:
    """The host NAME. Raises Failure that names the file, for all that is wrong in it at once.

    Without SERVER it need not have one yet: no address, no host key.
    """
    if build_on and build_on not in BUILD_ON:
        die(f"--build-on is {build_on!r}", hint=f"one of: {', '.join(BUILD_ON)}")
    given = settings(name)
    host, wrong = interpret(name, find(name), given)
    refuse(f"hosts/{name}/host.toml", [*wrong, *(missing(host, given) if server else [])])
    return replace(host, adopt=adopt, build_on=build_on or host.build_on)


def refuse(where: str, wrong: Sequence[Wrong]) -> None:
    """Die with all that is WRONG, if anything is."""
    if len(wrong) == 1:
        die(wrong[0].what, hint=wrong[0].hint)
    if wrong:
        die(f"{where}: {len(wrong)} entries are wrong\n" + "\n".join(f"  - {w}" for w in wrong))


def settings(name: str) -> dict[str, Any]:
    """What the host.toml of NAME says, unchecked. Raises Failure."""
    file = find(name) / "host.toml"
    if not file.is_file():
        die(f"hosts/{name}/host.toml is missing", hint=f"known: {', '.join(known())}")
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:  # unreadable, not UTF-8, not TOML
        die(f"hosts/{name}/host.toml: {error}")


def find(name: str) -> Path:
    """The directory of the host NAME, which need not have a host.toml yet. Raises Failure."""
    hint = f"known: {', '.join(known())}"
    if not name:
        die("which host? --host NAME", hint=hint)
    # Not `HOSTS / name`: a name like ../x would leave it.
    directory = next((each for each in places.HOSTS.glob("*/") if each.name == name), None)
    return directory or die(f"unknown host {name!r}: no such directory in hosts/", hint=hint)


def interpret(name: str, directory: Path, given: Mapping[str, Any]) -> tuple[Host, list[Wrong]]:
    """What host.toml says, as far as it can be used, and what is wrong with it. Pure; the
    name of the file is for messages."""
    where, wrong = f"hosts/{name}/host.toml", list[Wrong]()
    tables: dict[str, Any] = {
        key: kind(**checked(f"{where}, [{key}]", kind, given[key], wrong))
        for key, kind in TABLES.items()
        if key in given
    }
    others = {key: value for key, value in given.items() if key not in TABLES}
    plain = checked(where, Host, others, wrong)
    plain.setdefault("ports", [plain.get("port", 22)])
    host = Host(name, directory, **plain, **tables)
    return host, [*wrong, *problems(where, host)]


def problems(where: str, host: Host) -> Iterator[Wrong]:
    """Values that have the right type and mean nothing."""
    yield from choice(where, "build_on", host.build_on, BUILD_ON)
    yield from choice(where, "start", host.start, START)
    yield from choice(where, "finish", host.finish, FINISH)
    yield from choice(where, "firmware", host.vm.firmware, FIRMWARES)
    yield from choice(f"{where}, [secrets]", "source", host.secrets.source, SOURCES)
    if host.local and host.address:
        yield Wrong(f"{where}: address and, in [vm], stock: a local VM or a server?")
    if host.address and not is_address(host.address):
        yield Wrong(f"{where}: address is {host.address!r}", hint=address_meant(host.address))
    if host.host_key and not is_public_key(host.host_key):
        hint = (
            f"write what is in an ssh_host_*_key.pub, or remove it: ./inv adopt --host {host.name}"
        )
        what = f"host_key is {host.host_key!r}: the pinned host key is not a public key"
        yield Wrong(f"{where}: {what}", hint=hint)
    try:
        host.vm.network.check()
    except ValueError as error:
        yield Wrong(f"{where}, [vm]: {error}")
    for port in (host.port, *host.ports, *host.vm.forward):
        if port > MAX_PORT:
            yield Wrong(f"{where}: {port} is not the number of a port")


def choice(where: str, key: str, value: str, allowed: Sequence[str]) -> Iterator[Wrong]:
    if value not in allowed:
        yield Wrong(f"{where}: {key} is {value!r}", hint=f"one of: {', '.join(allowed)}")


def is_address(text: str) -> bool:
    """Whether TEXT is an IP address, or may be a DNS name (RFC 1123, 2.1), of any script."""
    with suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    with suppress(UnicodeError):  # an empty label, or a long one
        return bool(re.fullmatch(r"\w[\w.-]{,252}", text.encode("idna").decode()))
    return False


def address_meant(text: str) -> str:
    """What to write instead of TEXT, which has more in it than an address."""
    found = SPELT.fullmatch(text)
    address = (found["six"] or found["name"]) if found else ""
    if not found or not is_address(address):
        return "an IP address or a DNS name; no entry of ~/.ssh/config"
    port = f" and port = {found['port']}" if found["port"] else ""
    root = "; the login is always root's" if "@" in text else ""
    return f'write address = "{address}"{port}{root}'


def is_public_key(text: str) -> bool:
    """Whether TEXT is "TYPE BASE64", and the type is what the key itself says (RFC 4253, 6.6)."""
    try:
        kind, blob = text.split()[:2]
        data = b64decode(blob, validate=True)
        return data[4 : 4 + int.from_bytes(data[:4])] == kind.encode() and len(data) > 4 + len(kind)
    except ValueError:
        return False


def missing(host: Host, given: Mapping[str, Any]) -> list[Wrong]:
    """All that is missing for a connection, at once."""
    hints = {
        "address": "of the server; or stock in [vm], for a local VM",
        "host_key": f"./inv adopt --host {host.name} pins it",
    }
    names = [name for name in hints if given.get(name, "") == ""]
    if not names or host.local:
        return []
    what = f"hosts/{host.name}/host.toml: no {', no '.join(names)}"
    return [Wrong(what, hint="; ".join(hints[name] for name in names))]


def secret_settings(name: str) -> SecretSettings:
    """Where the secrets of the host NAME are, which need not have a complete host.toml yet."""
    where, wrong = f"hosts/{name}/host.toml", list[Wrong]()
    given = settings(name) if (find(name) / "host.toml").is_file() else {}
    table = checked(f"{where}, [secrets]", SecretSettings, given.get("secrets", {}), wrong)
    found = SecretSettings(**table)
    refuse(where, [*wrong, *choice(f"{where}, [secrets]", "source", found.source, SOURCES)])
    return found


def is_local(name: str) -> bool:
    """Whether the host NAME, which need not have a complete host.toml yet, is a VM and no more."""
    given = settings(name) if (find(name) / "host.toml").is_file() else {}
    table = given.get("vm")
    return isinstance(table, dict) and bool(table.get("stock"))


def checked(where: str, kind: type, given: Any, wrong: list[Wrong]) -> dict[str, Any]:
    """What of the table GIVEN has names and types of the dataclass KIND. The rest goes to WRONG."""
    if not isinstance(given, dict):
        wrong.append(Wrong(f"{where}: {given!r} is not a table"))
        return {}
    types = {each.name: each.type for each in fields(kind) if each.name not in INTERNAL}
    good = {}
    for name, value in given.items():
        if name not in types:
            known = f"known: {', '.join(types)}"
            wrong.append(Wrong(f"{where}: unknown name {name!r}", hint=known))
        elif not fits(value, types[name]):
            expected = EXPECTED[types[name]]
            wrong.append(Wrong(f"{where}: {name} is {value!r}, expected {expected}"))
        else:
            good[name] = value
    return good


def fits(value: Any, kind: Any) -> bool:
    if kind == list[int]:
        return isinstance(value, list) and all(fits(each, int) for each in value)
    return type(value) is kind and (kind is not int or value > 0)
