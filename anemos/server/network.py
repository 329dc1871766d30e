"""Captures the network of the running system, by MAC address."""

import json
from pathlib import Path
from typing import Any

from anemos.run import run

ADDRESS_KEYS = ("local", "prefixlen", "family")
ROUTE_KEYS = ("dst", "gateway", "metric", "flags", "scope", "prefsrc")


def capture(resolv_conf: Path) -> dict[str, Any]:
    """{"interfaces": [{"mac", "mtu", "addresses", "routes"}], "dns": [addresses]}.

    Addresses and routes are ip-address(8)'s and ip-route(8)'s JSON, cut down to what is carried.
    """
    links = json.loads(run(["ip", "-json", "-details", "address", "show"]))
    routes = [
        route
        for family in ("-4", "-6")
        for route in json.loads(run(["ip", "-json", family, "route", "show"]) or "[]")
    ]
    return {"interfaces": select(links, routes), "dns": nameservers(resolv_conf)}


def select(links: list[dict[str, Any]], routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Ethernet interfaces that have an address of their own. Pure."""
    return [
        {
            "mac": link["address"],
            "mtu": link["mtu"],
            "addresses": addresses,
            "routes": [cut(route, ROUTE_KEYS) for route in routes if wanted(route, link["ifname"])],
        }
        for link in links
        if link["link_type"] == "ether"
        and (addresses := [cut(a, ADDRESS_KEYS) for a in link["addr_info"] if global_(a)])
    ]


def global_(address: dict[str, Any]) -> bool:
    return address["scope"] == "global" and not address.get("temporary")


def wanted(route: dict[str, Any], interface: str) -> bool:
    """Routes that the kernel does not make by itself from the addresses."""
    return route.get("dev") == interface and route.get("protocol") != "kernel"


def cut(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def nameservers(resolv_conf: Path) -> list[str]:
    if not resolv_conf.exists():
        return []
    lines = [line.split() for line in resolv_conf.read_text().splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
