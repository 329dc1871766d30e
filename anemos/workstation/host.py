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
    ports = [22, 443]                  # that must listen afterwards (`port` alone)
    start = "auto"                     # into the initramfs: by "kexec", or by a boot entry that is
                                       # taken "once" (kexec, if the kernel allows it)
    finish = "reboot"                  # into the new system; or "kexec": without its firmware

    [timeouts]                         # seconds
    down = 180                         # until the old system has shut down
    initramfs = 300                    # until the initramfs answers
    install = 3600                     # until the installation has ended
    up = 600                           # until the new system is up
    hold = 3600                        # with --hold, until the old system is started again

    [secrets]
    source = "gpg"                     # or "age", "sops", "pass": docs/secrets.md
    identity = "~/.config/age/key"     # of age, which needs it: the file of the private key (none)
    prefix = "anemos"                  # of pass: where entries begin

    [vm]                               # the local VM of `./inv test`
    memory = 1024                      # MiB
    firmware = "bios"                  # or "uefi"
    forward = [443]                    # guest's ports to be reached from here, 22 aside (none)
    address = "10.0.2.15/24"           # the network that the host expects to be in: IPv4
    gateway = "10.0.2.2"
    stock = "stock"                    # (none) instead of address and host_key: a host that is a
                                       # local VM and no more; it starts with this one of hosts/
"""

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from anemos.image import imgbuild
from anemos.image.imgbuild import Imgbuild
from anemos.log import die
from anemos.workstation import places
from anemos.workstation.qemu import Network

BUILD_ON = ("workstation", "server", "initramfs")
FIRMWARES = ("bios", "uefi")
SOURCES = ("gpg", "age", "sops", "pass")
START = ("auto", "kexec", "once")
FINISH = ("reboot", "kexec")
INTERNAL = ("name", "directory", "timeouts", "secrets", "vm", "adopt")  # not plain values there
MAX_PORT = 65535
EXPECTED: dict[Any, str] = {
    str: "a string",
    int: "a number above 0",
    list[int]: "a list of numbers above 0",
}


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
    ports: list[int] = field(default_factory=lambda: [22])
    timeouts: Timeouts = field(default_factory=Timeouts)
    secrets: SecretSettings = field(default_factory=SecretSettings)
    vm: VmSettings = field(default_factory=VmSettings)
    adopt: bool = False  # --adopt: even if the machine was deployed as another host

    @property
    def local(self) -> bool:
        """No machine but a local VM, which `demo` makes."""
        return bool(self.vm.stock)

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
    """The host NAME. Raises Failure that names the file for everything that is wrong in it.

    Without SERVER it need not have one yet: no address, no host key.
    """
    if build_on and build_on not in BUILD_ON:
        die(f"--build-on is {build_on!r}", hint=f"one of: {', '.join(BUILD_ON)}")
    host = replace(interpret(name, find(name), settings(name)), adopt=adopt)
    if server:
        check_server(host)
    return replace(host, build_on=build_on or host.build_on)


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


def interpret(name: str, directory: Path, given: dict[str, Any]) -> Host:
    """Check what host.toml says. Pure but for the name of the file in messages."""
    where = f"hosts/{name}/host.toml"
    tables: dict[str, Any] = {
        key: kind(**checked(f"{where}, [{key}]", kind, given.pop(key)))
        for key, kind in TABLES.items()
        if key in given
    }
    check_source(where, tables.get("secrets"))
    plain = checked(where, Host, given)
    plain.setdefault("ports", [plain.get("port", 22)])
    host = Host(name, directory, **plain, **tables)
    for key, allowed in {"build_on": BUILD_ON, "start": START, "finish": FINISH}.items():
        if (value := getattr(host, key)) not in allowed:
            die(f"{where}: {key} is {value!r}", hint=f"one of: {', '.join(allowed)}")
    if host.vm.firmware not in FIRMWARES:
        die(f"{where}: firmware is {host.vm.firmware!r}", hint=f"one of: {', '.join(FIRMWARES)}")
    if host.local and host.address:
        die(f"{where}: address and, in [vm], stock: a local VM or a server?")
    try:
        host.vm.network.check()
    except ValueError as error:
        die(f"{where}, [vm]: {error}")
    for port in (host.port, *host.ports, *host.vm.forward):
        if port > MAX_PORT:
            die(f"{where}: {port} is not the number of a port")
    return host


def check_server(host: Host) -> None:
    """All that is missing for a connection, at once."""
    where = f"hosts/{host.name}/host.toml"
    hints = {
        "address": "of the server; or stock in [vm], for a local VM",
        "host_key": f"./inv adopt --host {host.name} pins it",
    }
    missing = [name for name in hints if not getattr(host, name)]
    if missing and not host.local:
        die(f"{where}: no {', no '.join(missing)}", hint="; ".join(hints[n] for n in missing))


def secret_settings(name: str) -> SecretSettings:
    """Where the secrets of the host NAME are, which need not have a complete host.toml yet."""
    where = f"hosts/{name}/host.toml"
    given = settings(name) if (find(name) / "host.toml").is_file() else {}
    found = SecretSettings(
        **checked(f"{where}, [secrets]", SecretSettings, given.get("secrets", {}))
    )
    check_source(where, found)
    return found


def check_source(where: str, found: SecretSettings | None) -> None:
    if found and found.source not in SOURCES:
        die(
            f"{where}, [secrets]: source is {found.source!r}",
            hint=f"one of: {', '.join(SOURCES)}",
        )


def checked(where: str, kind: type, given: Any) -> dict[str, Any]:
    """GIVEN, when it is a table with names and types of the dataclass KIND."""
    if not isinstance(given, dict):
        die(f"{where}: {given!r} is not a table")
    types = {each.name: each.type for each in fields(kind) if each.name not in INTERNAL}
    for name, value in given.items():
        if name not in types:
            die(f"{where}: unknown name {name!r}", hint=f"known: {', '.join(types)}")
        if not fits(value, types[name]):
            die(f"{where}: {name} is {value!r}, expected {EXPECTED[types[name]]}")
    return given


def fits(value: Any, kind: Any) -> bool:
    if kind == list[int]:
        return isinstance(value, list) and all(fits(each, int) for each in value)
    return type(value) is kind and (kind is not int or value > 0)
