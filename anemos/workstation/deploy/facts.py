"""What server/probe.sh and facts.sh say about a server, as values."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from anemos import disks
from anemos.border import records, stage
from anemos.border.boot import STAMP, Seen
from anemos.disks import SECTOR, Device
from anemos.log import FAILED, die
from anemos.server import network as capture
from anemos.workstation import places
from anemos.workstation.ssh import Remote

ANSWER_S = 10.0  # a machine that reboots meanwhile never answers, nor does its network
GATHER_S = 180.0  # dozens of programs: an emulated machine that was busy took a minute
READ = 'cat "$@" 2>/dev/null || :'  # files, as far as they are there
KIB = 1024
ACTIVE, CATEGORY = 0x1, 0x1F00  # attributes of UEFI's load options


class Partition(NamedTuple):
    disk: str
    name: str
    number: int
    start: int  # bytes
    size: int  # bytes


class Watchdog(NamedTuple):
    name: str
    identity: str
    state: str  # "active", "inactive", or "" where the kernel does not tell
    lasting: bool  # nothing stops it once it ticks: nowayout


class Entry(NamedTuple):
    """Where a boot entry that is taken once may be put."""

    loader: str  # "grub" or "firmware"
    directory: str
    device: str  # "vda1"; "" when it is no block device
    fs: str
    free: int  # bytes


class Network(NamedTuple):
    """ip(8)'s answers, as server/network.py wants them."""

    links: list[capture.Link]
    routes: list[capture.Record]
    rules: Sequence[capture.Record]


@dataclass(frozen=True)
class Facts:
    user: str
    name: str
    machine: str
    kernel: str
    boot_id: str
    memory_total: int  # bytes
    memory_available: int  # bytes, with what an interrupted deployment has left there
    kexec: bool  # the kernel has it, and nobody has disabled it
    lockdown: str  # the kernel's words, "[none] integrity confidentiality"
    efi: bool
    boot_next: str  # UEFI's entry for the next boot only, "" for none
    boot_current: str  # the entry that started this system
    boot_first: str  # the entry that the firmware starts
    container: str
    modules: tuple[str, ...]
    disks: tuple[Device, ...]
    models: dict[str, str]  # disk's name -> model
    contents: tuple[str, ...]  # "name type label" of partitions, as far as the server can tell
    mounts: tuple[str, ...]  # "device mount-point type"
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    listening: tuple[int, ...]
    base: str  # path of the wanted base image on the server, or ""
    place: str  # "system" or "initramfs"
    stamp: Seen
    parts: tuple[Partition, ...] = ()
    slaves: tuple[tuple[str, str], ...] = ()  # (dm-0, vda3): the first lies on the second
    secure_boot: bool = False
    entries: tuple[Entry, ...] = ()  # the best first
    mapped: dict[str, str] = field(default_factory=dict)  # dm-0 -> vg0-root
    degraded: tuple[str, ...] = ()  # arrays that lack a member, or do not run
    groups: tuple[tuple[str, str], ...] = ()  # (/dev/sda2, vg0): a physical volume and its group
    identities: tuple[tuple[str, str], ...] = ()  # (sda2, "btrfs UUID")
    staged: str = ""  # "deployment who since" (server/stage.sh), if anything is
    network: Network | None = None  # None where ip(8) knows no JSON
    watchdogs: tuple[Watchdog, ...] = ()
    record: bytes = b""  # of slots
    connection: tuple[str, ...] = ()  # the operator's address and port, then the server's
    loader_default: bool = False  # the firmware names an entry of systemd-boot's
    sudo_logs: bool = False  # sudo writes down what commands read

    @property
    def deployment(self) -> str:
        return self.stamp.deployment


@dataclass(frozen=True)
class Identity:
    """Which system answers."""

    boot_id: str
    in_initramfs: bool
    deployment: str  # that it belongs to, or "" on a foreign system
    answered: float  # seconds since the epoch


def identify(remote: Remote) -> Identity:
    """Quicker than all facts: what is polled with."""
    answered = time.time()
    files = ["/proc/sys/kernel/random/boot_id", f"{stage.BOOT}", STAMP]
    argv = ["sh", "-c", READ, "cat", *files]
    lines = remote.sh(argv, timeout=ANSWER_S, shown=["identify"]).splitlines()
    try:
        boot_id, *rest = lines
        stamp = stamp_of("".join(rest))
    except ValueError:
        die(f"{remote.endpoint}: cannot tell which system this is: {lines}", status=FAILED)
    return Identity(boot_id, bool(stamp.ssh_port), stamp.deployment, answered)


def stamp_of(text: str) -> Seen:
    """TEXT: JSON, "" on a foreign system. Raises ValueError."""
    return records.parse(Seen, text or "{}")


def gather(remote: Remote, base_hash: str = "") -> Facts:
    """One round trip. BASE_HASH: the base image that the server is asked for."""
    argv = ["sh", "-c", probe("facts.sh"), "facts", base_hash]
    return parse(remote.sh(argv, timeout=GATHER_S, shown=["facts.sh"]))


def probe(*names: str) -> str:
    """The scripts NAMES of server/, behind what all of them ask first."""
    return "".join((places.PACKAGE / "server" / each).read_text() for each in ("probe.sh", *names))


def parse(text: str) -> Facts:
    """TEXT: `key=value` lines; the last says that they are complete. Raises Failure."""
    try:
        return interpret([line.split("=", 1) for line in text.split("\n") if "=" in line])
    except (
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # something is not there, or not as it should be
        die(f"the facts of the server make no sense: {error}", status=FAILED)


def interpret(pairs: list[list[str]]) -> Facts:
    """Raises KeyError, ValueError."""
    one = dict(pairs)
    if "end" not in one:
        raise ValueError("they are not complete")

    def every(key: str) -> tuple[str, ...]:
        return tuple(value for name, value in pairs if name == key)

    found = [value.split("|", 4) for value in every("disk")]
    slots = {name: slot(*where) for name, *where in (each.split("|") for each in every("slot"))}
    return Facts(
        user=one["user"],
        name=one["name"],
        machine=one["machine"],
        kernel=one["kernel"],
        boot_id=one["boot_id"],
        memory_total=bytes_of(one["memory_total_kib"], KIB),
        memory_available=bytes_of(one["memory_available_kib"], KIB)
        + sum(map(bytes_of, every("left"))),
        kexec=one["kexec_disabled"] == "0",
        lockdown=one["lockdown"],
        efi=one["efi"] == "yes",
        boot_next=one.get("BootNext", "").strip(),
        boot_current=one.get("BootCurrent", "").strip(),
        boot_first=first_option(every("option")),
        container=one.get("container", ""),
        modules=every("module"),
        disks=tuple(
            Device(name, serial, wwn, bytes_of(size, SECTOR), slots.get(name, ""))
            for name, size, serial, wwn, _ in found
        ),
        models={name: model for name, *_, model in found},
        contents=tuple(line for line in map(blanks, every("content")) if len(line.split()) > 1),
        mounts=tuple(line for line in map(blanks, every("mount")) if len(line.split()) == 3),
        addresses=every("address"),
        routes=every("route"),
        listening=tuple(sorted(int(port, 16) for port in every("listen"))),
        base=one.get("base", ""),
        place=one["place"],
        stamp=stamp_of(one["stamp"]),
        parts=tuple(partition(*value.split("|")) for value in every("part")),
        slaves=pairs_of(every("slave")),
        secure_boot=one.get("secure_boot", "").strip() == "1",
        entries=tuple(entry(*value.split("|")) for value in every("entry")),
        mapped=dict(pairs_of(every("mapped"))),
        degraded=every("degraded"),
        groups=pairs_of(every("group")),
        identities=pairs_of(every("identity")),
        staged=one.get("staged", ""),
        network=network(one, every("ip_rules")),
        watchdogs=tuple(watchdog(*value.split("|")) for value in every("watchdog")),
        record=record_of(one),
        connection=tuple(one.get("connection", "").split()),
        loader_default="loader_default" in one,
        sudo_logs="sudo_logs" in one,
    )


def bytes_of(text: str, unit: int = 1) -> int:
    """TEXT, a number of UNIT bytes. Raises ValueError, also for what no machine has."""
    found = int(text) * unit
    if not 0 <= found < records.LARGE:
        raise ValueError(f"{text[:40]} is no size")
    return found


def record_of(one: Mapping[str, str]) -> bytes:
    """The record of slots, as system/slots.py reads it; empty if there are none."""
    return one.get("record", "").replace(" ", "\n").encode()


def blanks(line: str) -> str:
    """LINE, whose words blanks divide, with others than the plain ones as proc(5) writes them."""
    return re.sub(r"[^\S ]", lambda other: f"\\{ord(other[0]):03o}", line)


def pairs_of(values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((value.split("|")[0], value.split("|")[1]) for value in values)


def network(one: Mapping[str, str], rules: tuple[str, ...]) -> Network | None:
    def told(text: str) -> list[capture.Link]:
        return records.parse(list[capture.Link], text)

    try:
        links = told(one["ip_links"])
        routes = [told(one.get(f"ip_routes{family}", "[]")) for family in (4, 6)]
        said = [rule for each in rules for rule in told(each)]
    except (KeyError, ValueError):
        return None
    return Network(links, capture.routes_of(*routes), said)


def first_option(options: tuple[str, ...]) -> str:
    """The entry that the firmware starts, of "NUMBER ATTRIBUTES" in its order: the first active one
    that is no application, like the firmware's setup (UEFI specification 2.10, 3.1.3).
    """
    for number, *attributes in (each.split() for each in options):
        if attributes and int(attributes[0], 16) & (CATEGORY | ACTIVE) == ACTIVE:
            return number.lower()
    return ""


def slot(place: str, number: str, first: str) -> str:
    return disks.slot(place, number, int(first or 0))


def watchdog(name: str, identity: str, state: str, nowayout: str) -> Watchdog:
    return Watchdog(name, identity, state, nowayout == "Y")


def partition(disk: str, name: str, number: str, start: str, size: str) -> Partition:
    return Partition(disk, name, int(number), bytes_of(start, SECTOR), bytes_of(size, SECTOR))


def entry(loader: str, directory: str, device: str, fs: str, free: str) -> Entry:
    return Entry(loader, directory, device, fs, bytes_of(free, KIB))
