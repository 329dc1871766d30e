"""Brings up the network that the old system had, interface by interface, by MAC address."""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anemos import log
from anemos.initramfs import daemons
from anemos.initramfs.hardware import wait_for
from anemos.run import CommandFailed, run

NETWORK = Path("/sys/class/net")
NO_IPV6 = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")  # kernel: networking/ip-sysctl.rst
FAMILIES = {"inet": "-4", "inet6": "-6"}  # names in addresses -> ip(8)'s option
GATEWAY_S = 10.0  # for a gateway to be found: a switch may take some seconds to forward
DISCARD = 9  # any port: what counts is that the neighbour has to be found first
FOUND = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT", "NOARP"}  # ip-neighbour(8)
Interface = dict[str, Any]
Commands = list[list[str]]


def up(network: dict[str, Any], resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
    """NETWORK as server/network.py captured it. Raises Failure when an interface is missing."""
    run(["ip", "link", "set", "lo", "up"])
    names: dict[str, str] = {}  # in the old system -> here
    for interface in network["interfaces"]:
        names[interface["name"]] = name = present(interface)
        for argv in commands(name, interface, names):
            log.info(" ".join(argv))
            run(argv)
        if interface["dhcp"]:
            keep_lease(name, interface)
    dead = [each for each in FAMILIES if each != network["operator"] and not lives(each)]
    for family in dead:
        drop(family)
    write_resolver(resolv_conf, [each for each in network["dns"] if family_of(each) not in dead])


def present(interface: Interface) -> str:
    """The name of INTERFACE here. One of hardware is waited for."""
    if interface["kind"] != "ether":
        return str(interface["name"])
    mac = interface["mac"]
    wait_for(f"network interface with MAC address {mac}", lambda: bool(name_of(mac)))
    return name_of(mac)


def name_of(mac: str) -> str:
    """The interface's name under this kernel, or "". In a bond, its own address is hidden."""
    for entry in NETWORK.iterdir():
        own = [entry / "address", entry / "bonding_slave/perm_hwaddr"]
        if (entry / "device").exists() and mac in [
            f.read_text().strip() for f in own if f.exists()
        ]:
            return entry.name
    return ""


def commands(name: str, interface: Interface, names: Mapping[str, str]) -> Commands:
    """The argv lists that make the interface NAME: link, MTU, addresses, routes. Pure.

    NAMES: what the interfaces below it are called here, by their names in the old system.
    """
    return [
        *link_commands(name, interface, names),
        ["ip", "link", "set", name, "mtu", str(interface["mtu"]), "up"],
        # "replace": a router's advertisement may have been quicker.
        *(
            ["ip", "address", "replace", *address_words(address), "dev", name]
            for address in interface["addresses"]
        ),
        # Routes without a gateway first: they make the gateways of the others reachable.
        *(
            ["ip", route["family"], "route", "replace", *route_words(route), "dev", name]
            for route in sorted(interface["routes"], key=lambda route: "gateway" in route)
        ),
    ]


def link_commands(name: str, interface: Interface, names: Mapping[str, str]) -> Commands:
    add = ["ip", "link", "add", "name", name]
    match interface["kind"]:
        case "bond":
            options = {key: str(value) for key, value in interface["options"].items()}
            if "primary" in options:  # it names a member, which has to be one by then
                primary = [["ip", "link", "set", name, "type", "bond", "primary"]]
                primary[0].append(names[options.pop("primary")])
            else:
                primary = []
            words = [word for pair in options.items() for word in pair]
            members = [names[each] for each in interface["members"]]
            return [
                # On its own, the module would make a bond0 (kernel: networking/bonding.rst).
                ["modprobe", "bonding", "max_bonds=0"],
                [*add, "address", interface["mac"], "type", "bond", *words],
                *(["ip", "link", "set", each, "down"] for each in members),
                *(["ip", "link", "set", each, "master", name] for each in members),
                *primary,
            ]
        case "vlan":
            parent = ["link", names[interface["parent"]]]
            kind = ["type", "vlan", "protocol", interface["protocol"], "id", str(interface["id"])]
            return [[*add[:3], *parent, *add[3:], *kind]]
    return []


def address_words(address: dict[str, Any]) -> list[str]:
    """`LOCAL/LENGTH`, or where the other end has an address: `LOCAL peer ADDRESS/LENGTH`."""
    local, far = address["local"], address.get("address")
    own = [local, "peer", far] if far else [local]
    # Without duplicate address detection (RFC 4862) an address works at once; it did before.
    nodad = ["nodad"] if address["family"] == "inet6" else []
    return [*own[:-1], f"{own[-1]}/{address['prefixlen']}", *nodad]


def route_words(route: dict[str, Any]) -> list[str]:
    words = [route["dst"]]
    words += ["via", route["gateway"]] if "gateway" in route else []
    words += ["metric", str(route["metric"])] if "metric" in route else []
    return words + (["onlink"] if "onlink" in route.get("flags", []) else [])


def keep_lease(name: str, interface: Interface) -> None:
    """Ask for the old lease, and again whenever it runs out: some switches want to see that.

    The address stays what it was, whatever the server offers: the script does nothing.
    """
    old = next(each["local"] for each in interface["addresses"] if each["family"] == "inet")
    with suppress(CommandFailed):  # it works without
        argv = ["busybox", "udhcpc", "-b", "-i", name, "-r", old, "-s", "/bin/true"]
        daemons.start(argv, timeout=30)


def lives(family: str) -> bool:
    """Whether a gateway of FAMILY is there, or none is needed."""
    argv = ["ip", "-json", FAMILIES[family], "route", "show", "default"]
    routes = [route for route in json.loads(run(argv) or "[]") if "gateway" in route]
    return not routes or any(map(answers, routes))


def answers(route: dict[str, Any]) -> bool:
    """Whether the gateway of ROUTE is found on its link (ip-neighbour(8)) within GATEWAY_S."""
    gateway, name = route["gateway"], route["dev"]
    end = time.monotonic() + GATEWAY_S
    while time.monotonic() < end:
        provoke(gateway, name)
        said = run(["ip", "-json", "neighbour", "show", gateway, "dev", name])
        if any(FOUND & set(entry.get("state", [])) for entry in json.loads(said or "[]")):
            return True
        time.sleep(0.5)
    return False


def provoke(gateway: str, name: str) -> None:
    """Send something to GATEWAY: the kernel has to look for it."""
    kind = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    with suppress(OSError), socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        scope = socket.if_nametoindex(name)
        sender.sendto(b"", (gateway, DISCARD, 0, scope) if ":" in gateway else (gateway, DISCARD))


def drop(family: str) -> None:
    """Take FAMILY's addresses away: programs would wait for it before they try the other one."""
    log.info(f"No gateway answers: {family} is dropped")
    if family == "inet6":  # or a router's advertisement would bring it back
        NO_IPV6.write_text("1")
    else:
        run(["ip", "-4", "address", "flush", "scope", "global"])


def family_of(address: str) -> str:
    return "inet6" if ":" in address else "inet"


def write_resolver(file: Path, servers: list[str]) -> None:
    file.unlink(missing_ok=True)
    file.write_text("".join(f"nameserver {server}\n" for server in servers))
