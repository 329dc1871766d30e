"""Captures the network of the running system, by MAC address."""

import json
from pathlib import Path
from typing import Any

from anemos.log import die
from anemos.run import run

ADDRESS_KEYS = ("local", "address", "prefixlen", "family")  # address: the peer's
ROUTE_KEYS = ("family", "dst", "gateway", "metric", "flags")
# systemd-resolved's list of real servers, where resolv.conf names only itself (its man page).
RESOLVED = "run/systemd/resolve/resolv.conf"
SHARING = ("vlan", "macvlan", "ipvlan")


def capture(host: Path, needed: str) -> dict[str, Any]:
    """{"interfaces": [{"mac", "mtu", "addresses", "routes"}], "dns": [addresses]}.

    HOST: the system's root. Addresses and routes are ip-address(8)'s and ip-route(8)'s JSON, cut
    down to what is carried. Raises Failure when the address NEEDED would not be.
    """
    links = json.loads(run(["ip", "-json", "-details", "address", "show"]))
    routes = [
        route | route.get("nexthops", [{}])[0] | {"family": family}  # one of several ways will do
        for family in ("-4", "-6")
        for route in json.loads(run(["ip", "-json", family, "route", "show"]) or "[]")
    ]
    interfaces = select(links, routes)
    if needed not in [each["local"] for link in interfaces for each in link["addresses"]]:
        hint = "it knows plain Ethernet only: no VLAN, no tunnel"
        die(f"you came in by {needed or '?'}, which the initramfs could not bring up", hint=hint)
    return {"interfaces": interfaces, "dns": nameservers(host)}


def select(links: list[dict[str, Any]], routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Ethernet interfaces that have an address of their own. Pure.

    A bridge or a bond stands for the hardware whose MAC address it has. What has no hardware, like
    a container's bridge, and a VLAN, which shares the MAC address of another network, do not count.
    """
    hardware = {link["address"] for link in links if not kind(link)}
    return [
        {
            "mac": link["address"],
            "mtu": link["mtu"],
            "addresses": addresses,
            "routes": [cut(route, ROUTE_KEYS) for route in routes if wanted(route, link["ifname"])],
        }
        for link in links
        if link["link_type"] == "ether"
        and link["address"] in hardware
        and kind(link) not in SHARING
        and (addresses := [cut(a, ADDRESS_KEYS) for a in link["addr_info"] if global_(a)])
    ]


def kind(link: dict[str, Any]) -> str:
    """What a virtual interface is, "" for hardware."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def global_(address: dict[str, Any]) -> bool:
    return address["scope"] == "global" and not address.get("temporary")


def wanted(route: dict[str, Any], interface: str) -> bool:
    """Routes that the kernel does not make by itself from the addresses."""
    return route.get("dev") == interface and route.get("protocol") != "kernel"


def cut(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def nameservers(host: Path) -> list[str]:
    """What answers in another system, too: no resolver on the machine itself."""
    files = [host / "etc/resolv.conf", host / RESOLVED]
    lines = [line.split() for file in files if file.exists() for line in file.open()]
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [each for each in dict.fromkeys(found) if not each.startswith(("127.", "::1"))]
