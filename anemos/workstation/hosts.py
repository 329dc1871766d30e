"""A host: hosts/<name>/ with its IMGBUILD and its host.toml. The fields of Settings are the
reference of host.toml: docs/host-toml.md and its JSON Schema are made of them."""

import difflib
import functools
import ipaddress
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from anemos.log import die
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import places, ssh_config
from anemos.workstation.qemu import Network

Positive = Annotated[int, Field(strict=True, gt=0)]
Port = Annotated[int, Field(strict=True, gt=0, le=65535)]
ROOT = "root"
BuildOn = Literal["auto", "workstation", "server", "initramfs"]
RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True)

# What people write as an address: more than that.
SPELT = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@/]*)@)?(?:\[(?P<six>[^]]*)\]|(?P<name>[^:/]*))(?::(?P<port>\d+))?/?"
)
ALIAS = re.compile(r"\w[\w.:@-]*")
JUMP = re.compile(r"(\w[\w.-]*@)?(\[[\w:.]+\]|\w[\w.-]*)(:\d+)?")


class Spelt(NamedTuple):
    address: str
    port: str  # "": not told
    user: str


def is_address(text: str) -> bool:
    """Whether TEXT is an IP address, or may be a DNS name (RFC 1123, 2.1), of any script."""
    with suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    with suppress(UnicodeError):  # an empty label, or a long one
        return bool(re.fullmatch(r"\w[\w.-]{,252}", text.encode("idna").decode()))
    return False


def spelt(text: str) -> Spelt | None:
    """[USER@]ADDRESS[:PORT], also as a URL of ssh, taken apart; None for anything else."""
    found = SPELT.fullmatch(text)
    address = (found["six"] or found["name"]) if found else ""
    if not found or not is_address(address):
        return None
    return Spelt(address, found["port"] or "", found["user"] or "")


def check_address(text: str) -> str:
    """Raises ValueError with what to write instead of TEXT, unless that is a plain address."""
    if not text or is_address(text):
        return text
    if not (found := spelt(text)):
        raise ValueError("write an IP address or a DNS name; ssh_config names an entry there")
    port = f" and port = {found.port}" if found.port else ""
    user = f' and user = "{found.user}"' if found.user else ""
    raise ValueError(f'write address = "{found.address}"{port}{user}')


def check_user(text: str) -> str:
    """Raises ValueError unless TEXT may be a user's name (useradd(8))."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", text):
        raise ValueError("not the name of a user")
    return text


def check_jumps(text: str) -> str:
    """Raises ValueError unless TEXT is as ProxyJump of ssh_config(5), also with its entries."""
    if not all(JUMP.fullmatch(each) for each in jumps(text)):
        raise ValueError("write USER@HOST:PORT; several with commas")
    return text


def jumps(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",")) if text else ()


def check_alias(text: str) -> str:
    """Raises ValueError unless ssh(1) takes TEXT for a host."""
    if text and not ALIAS.fullmatch(text):
        raise ValueError("write what follows Host in ~/.ssh/config")
    return text


def check_key(text: str) -> str:
    """Raises ValueError unless TEXT is "TYPE BASE64", of the type that the key itself says
    (RFC 4253, 6.6)."""
    with suppress(ValueError):
        kind, blob = text.split()[:2]
        data = b64decode(blob, validate=True)
        if data[4 : 4 + int.from_bytes(data[:4])] == kind.encode() and len(data) > 4 + len(kind):
            return text
    if text:
        raise ValueError("not a public key; remove it, and let ./inv adopt write it")
    return text


def check_tag(text: str) -> str:
    """Raises ValueError unless a group of Ansible may be called TEXT, and is not already."""
    if re.fullmatch("[a-z][a-z0-9_]*", text) and text not in ("all", "ungrouped"):
        return text
    raise ValueError("write small letters, digits and _, and not all or ungrouped")


def check_network(settings: "VmSettings") -> "VmSettings":
    settings.network.check()
    return settings


@dataclass(frozen=True)
class Timeouts:
    __pydantic_config__ = RULES
    down: Positive = 180
    """Until the old system has shut down."""
    initramfs: Positive = 300
    """Until the initramfs answers."""
    install: Positive = 3600
    """Until the installation has ended."""
    up: Positive = 600
    """Until the new system answers, and then until its units have started."""
    hold: Positive = 3600
    """With `--hold`: until the old system is started again."""
    trial: Positive = 600
    """Of a slot on trial: until the word. Then the old system starts again."""
    hooks: Positive = 300
    """Until a program in `hooks/` has ended."""


@dataclass(frozen=True)
class SecretSettings:
    __pydantic_config__ = RULES
    source: Literal["gpg", "age", "sops", "pass"] = "gpg"
    """The program that keeps the secrets: see [secrets.md](secrets.md#other-sources)."""
    identity: str = ""
    """The file of age's private key; age needs it."""
    prefix: str = "anemos"
    """Where the entries of pass begin."""

    @property
    def identity_file(self) -> Path | None:
        return expanded(self.identity)


@dataclass(frozen=True)
class VmSettings:
    __pydantic_config__ = RULES
    stock: str = ""
    """Makes the host a local VM and no server. It starts with this host's image: no `address`."""
    memory: Positive = 1024
    """MiB."""
    forward: list[Port] = field(default_factory=list)
    """Ports of the VM that the workstation reaches, over TCP and UDP, besides 22."""
    address: str = Network.address
    """The IPv4 address, with its prefix, that the host expects to have."""
    gateway: str = Network.gateway
    """The gateway that the host expects."""
    firmware: Literal["bios", "uefi", "secure-boot"] = "bios"
    """What the VM starts with. `secure-boot`: UEFI, with Secure Boot and Microsoft's keys."""

    @property
    def network(self) -> Network:
        return Network(self.address, self.gateway)


@dataclass(frozen=True)
class After:
    __pydantic_config__ = RULES
    address: Annotated[str, AfterValidator(check_address)] = ""
    """IP address or DNS name of the new system. Without it: `address`."""
    port: Port = 0
    """Port of the new system's sshd. Without it: `port`."""
    user: Annotated[str, AfterValidator(check_user)] = ""
    """Who logs in. Without it: `user`."""


@dataclass(frozen=True)
class Settings:
    """What host.toml says."""

    __pydantic_config__ = RULES
    address: Annotated[str, AfterValidator(check_address)] = ""
    """IP address or DNS name of the server. A deployment needs it."""
    host_key: Annotated[str, AfterValidator(check_key)] = ""
    """The pinned SSH host key, as in `ssh_host_*_key.pub`. `./inv adopt` writes it."""
    port: Port = 22
    """Port of the server's sshd, before and after a deployment."""
    proxy_jump: Annotated[str, AfterValidator(check_jumps)] = ""
    """The way to the server: jump hosts as `USER@HOST:PORT`, with commas, the first one first."""
    user: Annotated[str, AfterValidator(check_user)] = ROOT
    """Who logs in, before and after a deployment. Any other user than root needs sudo."""
    identity: str = ""
    """File of your private SSH key. Without it: the keys of the agent, and ssh's default keys."""
    ssh_config: Annotated[str, AfterValidator(check_alias)] = ""
    """An entry of your `~/.ssh/config`: it says what is left out here of `address`, `port`, `user`,
    `identity` and `proxy_jump`."""
    build_on: BuildOn = "auto"
    """Where the package layer is made. `server`: by the old system while it serves; in its memory,
    or in the slot that does not run. `initramfs`: after the jump, with the least memory and the
    longest downtime. `auto`: by the server for a slot, if it has the memory, or else by the
    workstation."""
    start: Literal["auto", "kexec", "once"] = "auto"
    """How the initramfs, or a slot on trial, starts: by kexec, or by a boot entry that is taken
    once. `auto`: by kexec if the server's kernel allows it."""
    finish: Literal["reboot", "kexec"] = "reboot"
    """How the new system starts. `kexec`: without the firmware."""
    try_here: Annotated[bool, Field(strict=True)] = True
    """Try the definition on the workstation, with `provision()`, before it is sent. Not where the
    server fetches secrets."""
    ports: list[Port] = field(default_factory=lambda: [22])
    """Ports that must listen after a deployment. Without it: the port of the new system's sshd."""
    hold_ports: Annotated[bool, Field(strict=True)] = False
    """Let in nothing but SSH to a slot on trial, until its `commit`: clients write nothing to data
    that both slots use. The new system needs nftables among its `packages`."""
    confirm: Literal["workstation", "self"] = "workstation"
    """Who commits a slot on trial: the workstation, which has verified it, or the new system, when
    its `verify()` succeeds. `self` is for a server that nobody waits for."""
    tags: list[Annotated[str, AfterValidator(check_tag)]] = field(default_factory=list)
    """Names of groups that the server belongs to, for `./inv inventory`."""
    after: After = field(default_factory=After)
    """How the new system is reached, if that is another way than before."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """How long to wait, in seconds."""
    secrets: SecretSettings = field(default_factory=SecretSettings)
    """Where the host's secrets are."""
    vm: Annotated[VmSettings, AfterValidator(check_network)] = field(default_factory=VmSettings)
    """The local VM of `./inv test`."""


@dataclass(frozen=True)
class Place:
    name: str
    directory: Path


@dataclass(frozen=True)
class Host(Settings, Place):
    adopt: bool = False  # --adopt: even if the machine was deployed as another host
    forwarded: Mapping[str, int] = field(default_factory=dict)  # a VM's ports -> those of here

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

    @property
    def new_place(self) -> tuple[str, int]:
        """Address and port of the new system's sshd."""
        return self.after.address or self.address, self.after.port or self.port

    @property
    def new_user(self) -> str:
        """Who logs in to the new system."""
        return self.after.user or self.user

    def imgbuild(self) -> Imgbuild:
        return imgbuild.load(self.directory)


WHICH = "which host? --host NAME"
TABLES = {"after": After, "timeouts": Timeouts, "secrets": SecretSettings, "vm": VmSettings}
Table = TypeVar("Table")


def expanded(path: str) -> Path | None:
    return Path(os.path.expanduser(path)) if path else None  # noqa: PTH111


def known() -> list[str]:
    return sorted(entry.parent.name for entry in places.HOSTS.glob("*/host.toml"))


def load(name: str, *, adopt: bool = False, build_on: str = "", server: bool = True) -> Host:
    """The host NAME. Raises Failure that names the file, for all that is wrong in it at once.

    Without SERVER it need not have one yet: no address, no host key.
    """
    if build_on and build_on not in get_args(BuildOn):
        die(f"--build-on is {build_on!r}", hint=f"one of: {', '.join(get_args(BuildOn))}")
    given = settings(name)
    found = read(name, Settings, given, others=conflicts(name, given, server))
    port = found.after.port or found.port
    changed = {"ports": given.get("ports", [port]), "build_on": build_on or found.build_on}
    return Host(name, find(name), **{**vars(found), **changed}, adopt=adopt)


def settings(name: str) -> dict[str, Any]:
    """What the host.toml of NAME says, and the entry of ssh_config(5) that it names, unchecked.
    Raises Failure."""
    file = find(name) / "host.toml"
    if not file.is_file():
        die(f"hosts/{name}/host.toml is missing", hint=f"known: {', '.join(known())}")
    try:
        given = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:  # unreadable, not UTF-8, not TOML
        die(f"hosts/{name}/host.toml: {error}")
    alias = given.get("ssh_config", "")
    found = isinstance(alias, str) and ALIAS.fullmatch(alias)
    return {**ssh_config.entry(alias), **given} if found else given


def find(name: str) -> Path:
    """The directory of the host NAME, which need not have a host.toml yet. Raises Failure."""
    directory = places.HOSTS / name
    plain = name not in ("", "..") and Path(name).name == name  # ../x would leave hosts/
    if plain and os.path.isdir(directory):  # noqa: PTH112 (which raises for a long name)
        return directory
    what = f"unknown host {name!r}: no such directory in hosts/" if name else WHICH
    die(what, hint=f"known: {', '.join(known())}")


def read(
    name: str, kind: type[Table], given: Any, path: Sequence[str] = (), others: Iterable[str] = ()
) -> Table:
    """GIVEN, which host.toml of the host NAME has at PATH, as KIND. Raises Failure for all that is
    wrong with it, and OTHERS, at once."""
    try:
        found: Table = adapter(kind).validate_python(given)  # type: ignore[arg-type] # has a hash
        if not (wrong := [*others]):
            return found
    except ValidationError as error:
        wrong = [*(explained(path, each) for each in error.errors()), *others]
    where = f"hosts/{name}/host.toml"
    if len(wrong) == 1:
        die(f"{where}: {wrong[0]}")
    die("\n  - ".join([f"{where}: {len(wrong)} entries are wrong", *wrong]))


@functools.cache  # it takes longer than all the rest, and there may be hundreds of hosts
def adapter(kind: type[object]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def explained(path: Sequence[str], error: ErrorDetails) -> str:
    """What pydantic says of the table PATH, in our words."""
    *tables, last = map(str, [*path, *error["loc"]])
    where = ".".join([*tables, last])
    if error["type"] == "unexpected_keyword_argument":
        names = [each.name for each in fields(TABLES[tables[0]] if tables else Settings)]
        close = difflib.get_close_matches(last, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
        return f"unknown name {where!r} ({hint})"
    if error["type"] == "dataclass_type":
        return f"{where} is {error['input']!r}: should be a table"
    shown = "" if isinstance(error["input"], dict) else f" is {error['input']!r}"
    return f"{where}{shown}: {error['msg'].removeprefix('Value error, ').removeprefix('Input ')}"


def has_stock(given: Mapping[str, Any]) -> bool:
    table = given.get("vm")
    return isinstance(table, dict) and bool(table.get("stock"))


def conflicts(name: str, given: Mapping[str, Any], server: bool) -> Iterator[str]:
    """What fields do to each other; with SERVER, all that is missing for a connection."""
    if has_stock(given) and given.get("address"):
        yield "address and vm.stock: a server or a local VM?"
    hints = {
        "address": "of the server; or stock in [vm], for a local VM",
        "host_key": f"./inv adopt --host {name} pins it",
    }
    names = [each for each in hints if given.get(each, "") == ""]
    if server and names and not has_stock(given):
        yield f"no {', no '.join(names)} ({'; '.join(hints[each] for each in names)})"


def incomplete(name: str) -> dict[str, Any]:
    """The settings of the host NAME, which need not have a host.toml yet. Raises Failure."""
    return settings(name) if (find(name) / "host.toml").is_file() else {}


def secret_settings(name: str) -> SecretSettings:
    """Where the secrets of the host NAME are, which need not have a complete host.toml yet."""
    return read(name, SecretSettings, incomplete(name).get("secrets", {}), ["secrets"])


def new_user(name: str) -> str:
    """Who logs in to the new system of the host NAME, which need not have a host.toml yet."""
    return Host(name, find(name), **vars(read(name, Settings, incomplete(name)))).new_user


def is_local(name: str) -> bool:
    """Whether the host NAME, which need not have a complete host.toml yet, is a VM and no more."""
    return has_stock(incomplete(name))
