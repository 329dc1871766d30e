"""Brings up the network that the old system had, interface by interface, by MAC address.

It stays as it was captured: no router's advertisement adds to it, IPv6 stays off where it was off.
What the operator does not need may fail; then it is left out.
"""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from anemos import log
from anemos.border.network import Address, Ether, Family, Interface, Network, Route
from anemos.initramfs import daemons
from anemos.initramfs.hardware import wait_for
from anemos.log import FAILED, Failure, die
from anemos.run import CommandFailed, run

NETWORK = Path("/sys/class/net")
# Parameters: interface; whether IPv6 is off there (kernel: networking/ip-sysctl.rst).
SETTLE = 'cd "/proc/sys/net/ipv6/conf/$0" && echo 0 >accept_ra && echo "$1" >disable_ipv6'
APPEAR_S = 30.0  # for all cards together
FAMILIES: dict[Family, str] = {"inet": "-4", "inet6": "-6"}  # names in addresses -> ip(8)'s option
GATEWAY_S = 10.0  # for a gateway to be found: a switch may take some seconds to forward
DISCARD = 9  # any port: what counts is that the neighbour has to be found first
FOUND = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT", "NOARP"}  # ip-neighbour(8)
Commands = list[list[str]]


def up(network: Network, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
    """NETWORK as server/network.py captured it. Raises Failure when what the operator needs is
    missing or cannot be made."""
    run(["ip", "link", "set", "lo", "up"])
    names: dict[str, str] = {}  # in the old system -> here
    end = time.monotonic() + APPEAR_S
    for interface in network["interfaces"]:
        try:
            make(interface, names, max(end - time.monotonic(), 0))
        except Failure as failure:
            if interface["needed"]:
                raise
            names.pop(interface["name"], None)
            log.info(f"{interface['name']} is left out: {failure.message}")
    dead = [each for each in FAMILIES if each != network["operator"] and not lives(each)]
    for family in dead:
        drop(family)
    write_resolver(resolv_conf, [each for each in network["dns"] if family_of(each) not in dead])


def make(interface: Interface, names: dict[str, str], patience_s: float) -> None:
    """Bring INTERFACE up, once those below it are in NAMES, and add it there. Raises Failure."""
    name = present(interface, patience_s)
    lower = below(interface)
    if lower and not names.keys() & set(lower):
        die(f"{name}: nothing below it works: {', '.join(lower)}", status=FAILED)
    names[interface["name"]] = name
    for argv in commands(name, interface, names):
        log.info(" ".join(argv))
        run(argv)
    if interface["dhcp"]:
        keep_lease(name, interface)


def below(interface: Interface) -> list[str]:
    match interface["kind"]:
        case "bond":
            return interface["members"]
        case "vlan":
            return [interface["parent"]]
    return []


def present(interface: Interface, patience_s: float) -> str:
    """The name of INTERFACE here. One of hardware is waited for."""
    if interface["kind"] != "ether":
        return interface["name"]
    what = f"network interface with MAC address {interface['mac']}"
    wait_for(what, lambda: bool(name_of(interface)), patience_s)
    return name_of(interface)


def name_of(interface: Ether) -> str:
    """The card's name under this kernel, or "". In a bond, its own address is hidden.

    A cloud's synthetic card has the address of the physical one that it commands: its bus tells
    them apart, until it commands it. An address that was set by hand may have outlived the jump.
    """
    macs = {interface["mac"], interface["address"]} - {""}
    for entry in sorted(NETWORK.iterdir()):
        own = [entry / "address", entry / "bonding_slave/perm_hwaddr"]
        if not (entry / "device").exists() or is_commanded(entry):
            continue
        bus = (entry / "device/subsystem").resolve().name
        if interface["bus"] in ("", bus) and macs & {
            f.read_text().strip() for f in own if f.exists()
        }:
            return entry.name
    return ""


def is_commanded(entry: Path) -> bool:
    return (entry / "master").exists() and not (entry / "bonding_slave").exists()


def commands(name: str, interface: Interface, names: Mapping[str, str]) -> Commands:
    """The argv lists that make the interface NAME: link, IPv6, MTU, addresses, routes. Pure.

    NAMES: what the interfaces below it are called here, by their names in the old system.
    """
    return [
        *link_commands(name, interface, names),
        ["sh", "-c", SETTLE, name, "0" if interface["ipv6"] else "1"],
        ["ip", "link", "set", name, "mtu", str(interface["mtu"]), "up"],
        # "replace": the kernel may have been quicker.
        *(
            ["ip", "address", "replace", *address_words(address), "dev", name]
            for address in interface["addresses"]
        ),
        # Routes without a gateway first: they make the gateways of the others reachable.
        *(
            ["ip", route["family"], "route", "replace", *route_words(route), "dev", name]
            for route in sorted(interface["routes"], key=lambda route: bool(gateway_of(route)))
        ),
    ]


def link_commands(name: str, interface: Interface, names: Mapping[str, str]) -> Commands:
    add = ["ip", "link", "add", "name", name]
    match interface["kind"]:
        case "bond":
            options = {key: str(value) for key, value in interface["options"].items()}
            # It names a member, which has to be one by then, and which may be missing.
            first = names.get(options.pop("primary", ""), "")
            primary = [["ip", "link", "set", name, "type", "bond", "primary", first]]
            words = [word for pair in options.items() for word in pair]
            members = [names[each] for each in interface["members"] if each in names]
            return [
                # On its own, the module would make a bond0 (kernel: networking/bonding.rst).
                ["modprobe", "bonding", "max_bonds=0"],
                [*add, "address", interface["mac"], "type", "bond", *words],
                *(["ip", "link", "set", each, "down"] for each in members),
                *(["ip", "link", "set", each, "master", name] for each in members),
                *(primary if first else []),
            ]
        case "vlan":
            parent = ["link", names[interface["parent"]]]
            own = ["address", interface["mac"]] if interface["mac"] else []
            kind = ["type", "vlan", "protocol", interface["protocol"], "id", str(interface["id"])]
            return [[*add[:3], *parent, *add[3:], *own, *kind, *interface["options"]]]
    if interface["address"]:
        return [["ip", "link", "set", name, "address", interface["address"]]]
    return []


def address_words(address: Address) -> list[str]:
    """`LOCAL/LENGTH`, or where the other end has an address: `LOCAL peer ADDRESS/LENGTH`."""
    local, far = address["local"], address.get("address")
    own = [local, "peer", far] if far else [local]
    words = [*own[:-1], f"{own[-1]}/{address['prefixlen']}"]
    words += ["scope", address["scope"]] if "scope" in address else []
    words += ["metric", str(address["metric"])] if "metric" in address else []
    words += ["noprefixroute"] if address.get("noprefixroute") else []
    words += ["valid_lft", "forever", "preferred_lft", "0"] if address.get("deprecated") else []
    # Without duplicate address detection (RFC 4862) an address works at once; it did before.
    return words + (["nodad"] if address["family"] == "inet6" else [])


def route_words(route: Route) -> list[str]:
    gateway = gateway_of(route)
    words = [route["dst"]]
    words += ["tos", route["tos"]] if "tos" in route else []
    words += ["via", *(["inet6"] if "via" in route else []), gateway] if gateway else []
    words += ["src", route["prefsrc"]] if "prefsrc" in route else []
    words += ["metric", str(route["metric"])] if "metric" in route else []
    usual = "link" if not gateway else "global"  # what ip-route(8) takes by itself
    words += ["scope", route["scope"]] if route.get("scope", usual) != usual else []
    words += ["pref", route["pref"]] if route.get("pref", "medium") != "medium" else []
    for metrics in route.get("metrics", []):
        words += [str(word) for pair in metrics.items() for word in pair]
    return words + (["onlink"] if "onlink" in route.get("flags", []) else [])


def gateway_of(route: Route) -> str:
    """The next hop, "" without one. That of an IPv4 route may have an IPv6 address."""
    return route.get("gateway", "") or route.get("via", {}).get("host", "")


def keep_lease(name: str, interface: Interface) -> None:
    """Ask for the old lease, and again whenever it runs out: some switches want to see that.

    The address stays what it was, and not what the server offers: the script does nothing.
    """
    old = next(each["local"] for each in interface["addresses"] if each["family"] == "inet")
    with suppress(CommandFailed):  # it works without
        argv = ["busybox", "udhcpc", "-b", "-i", name, "-r", old, "-s", "/bin/true"]
        daemons.start(argv, timeout=30)


def lives(family: Family) -> bool:
    """Whether a gateway of FAMILY is there, or none is needed."""
    argv = ["ip", "-json", FAMILIES[family], "route", "show", "default"]
    routes = [route for route in json.loads(run(argv) or "[]") if gateway_of(route)]
    return not routes or any(answers(gateway_of(route), route["dev"]) for route in routes)


def answers(gateway: str, name: str) -> bool:
    """Whether GATEWAY is found on the link NAME (ip-neighbour(8)) within GATEWAY_S."""
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


def drop(family: Family) -> None:
    """Take FAMILY's addresses away: programs would wait for it before they try the other one.

    IPv6 itself stays: the gateway of an IPv4 route may have such an address.
    """
    log.info(f"No gateway answers: {family} is dropped")
    run(["ip", FAMILIES[family], "address", "flush", "scope", "global"])
    run(["ip", FAMILIES[family], "route", "flush", "default"])


def family_of(address: str) -> Family:
    return "inet6" if ":" in address else "inet"


def write_resolver(file: Path, servers: list[str]) -> None:
    file.unlink(missing_ok=True)
    file.write_text("".join(f"nameserver {server}\n" for server in servers))
