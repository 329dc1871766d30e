"""Captures the network of the running system, by MAC address."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anemos.log import die
from anemos.run import run

Link = dict[str, Any]  # as ip-link(8) prints it

ADDRESS_KEYS = ("local", "address", "prefixlen", "family")  # address: the peer's
ROUTE_KEYS = ("family", "dst", "gateway", "metric", "flags")
# What of a bond is carried: ip-link(8)'s word for it -> its name in JSON.
BOND_OPTIONS = {
    "mode": "mode",
    "miimon": "miimon",
    "updelay": "updelay",
    "downdelay": "downdelay",
    "xmit_hash_policy": "xmit_hash_policy",
    "lacp_rate": "ad_lacp_rate",
    "primary": "primary",
}
# ip(8) shows these in every mode, the kernel takes them in some (networking/bonding.rst).
BOND_MODES = {
    "lacp_rate": ("802.3ad",),
    "primary": ("active-backup", "balance-tlb", "balance-alb"),
}
# systemd-resolved's list of real servers, where resolv.conf names only itself (its man page).
RESOLVED = "run/systemd/resolve/resolv.conf"


def capture(host: Path, needed: str) -> dict[str, Any]:
    """{"interfaces": [...], "dns": [addresses], "operator": "inet" or "inet6"}.

    An interface is {"name", "kind", "mtu", "addresses", "routes"} and, by its kind: ether: "mac",
    "dhcp" (whether a lease wants to be kept alive); bond: "mac", "members", "options"; vlan:
    "parent", "id", "protocol". Those that others need come before them. HOST: the system's root.
    Addresses and routes are ip-address(8)'s and ip-route(8)'s JSON, cut down to what is carried.
    Raises Failure when the address NEEDED, by which the operator came, would not be.
    """
    links = json.loads(run(["ip", "-json", "-details", "address", "show"]))
    routes = [
        route | route.get("nexthops", [{}])[0] | {"family": family}  # one of several ways will do
        for family in ("-4", "-6")
        for route in json.loads(run(["ip", "-json", family, "route", "show"]) or "[]")
    ]
    interfaces = select(links, routes)
    if needed not in [each["local"] for link in interfaces for each in link["addresses"]]:
        hint = "it knows Ethernet, bonds and VLANs, and takes a bridge for what is in it"
        die(f"you came in by {needed or '?'}, which the initramfs could not bring up", hint=hint)
    family = "inet6" if ":" in needed else "inet"
    return {"interfaces": interfaces, "dns": nameservers(host), "operator": family}


def select(links: list[Link], routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What carries an address, and the interfaces below it. Pure.

    Addresses of a bridge go to the one interface that connects it with the outside. Without one,
    like a bridge of containers, and on whatever else is virtual, they are left behind.
    """
    named = {link["ifname"]: link for link in links}
    carried: dict[str, list[Link]] = {}  # name -> links whose addresses it gets
    for link in links:
        if addresses(link) and (bearer := bearer_of(link, named)):
            carried.setdefault(bearer["ifname"], []).append(link)
    order = dict.fromkeys(name for top in carried for name in below(named[top], named))
    return [interface(named[name], carried.get(name, []), routes, named) for name in order]


def bearer_of(link: Link, named: dict[str, Link]) -> Link | None:
    """What bears LINK's addresses in the initramfs, None where nothing can."""
    if kind(link) != "bridge":
        return link if can_be_made(link, named) else None
    members = [each for each in slaves(link, named) if can_be_made(each, named)]
    same = [each for each in members if each["address"] == link["address"]]
    return next(iter(same + members), None)


def can_be_made(link: Link, named: dict[str, Link]) -> bool:
    match kind(link):
        case "":
            return bool(link["link_type"] == "ether")
        case "vlan":
            return can_be_made(named[link["link"]], named) if link.get("link") in named else False
        case "bond":
            return bool(slaves(link, named)) and not any(map(kind, slaves(link, named)))
    return False


def slaves(link: Link, named: dict[str, Link]) -> list[Link]:
    return [each for each in named.values() if each.get("master") == link["ifname"]]


def below(link: Link, named: dict[str, Link]) -> Iterator[str]:
    """The names of all that LINK stands on, then its own."""
    if kind(link) == "vlan":
        yield from below(named[link["link"]], named)
    if kind(link) == "bond":
        yield from (each["ifname"] for each in slaves(link, named))
    yield link["ifname"]


def interface(
    link: Link, bears: list[Link], routes: list[dict[str, Any]], named: dict[str, Link]
) -> dict[str, Any]:
    """LINK as the initramfs wants it, with addresses and routes of the links that it BEARS."""
    names = [each["ifname"] for each in bears]
    return {
        "name": link["ifname"],
        "kind": kind(link) or "ether",
        **particulars(link, named),
        "mtu": link["mtu"],
        "addresses": [address for each in bears for address in addresses(each)],
        "routes": [cut(route, ROUTE_KEYS) for route in routes if wanted(route, names)],
        "dhcp": any(leased(each) for link in bears for each in link["addr_info"]),
    }


def particulars(link: Link, named: dict[str, Link]) -> dict[str, Any]:
    data = link.get("linkinfo", {}).get("info_data", {})
    match kind(link):
        case "bond":
            found = {
                word: data[key]
                for word, key in BOND_OPTIONS.items()
                if data.get(key) and data["mode"] in BOND_MODES.get(word, (data["mode"],))
            }
            members = [each["ifname"] for each in slaves(link, named)]
            return {"mac": link["address"], "members": members, "options": found}
        case "vlan":
            return {"parent": link["link"], "id": data["id"], "protocol": data["protocol"]}
    # In a bond all have one address; their own is the permanent one.
    return {"mac": link.get("permaddr", link["address"])}


def kind(link: Link) -> str:
    """What a virtual interface is, "" for hardware."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def addresses(link: Link) -> list[dict[str, Any]]:
    """Those that are carried."""
    return [cut(each, ADDRESS_KEYS) for each in link["addr_info"] if lasting(each)]


def lasting(address: dict[str, Any]) -> bool:
    return address["scope"] == "global" and not address.get("temporary")


def leased(address: dict[str, Any]) -> bool:
    """By DHCP. (An IPv6 router's advertisements go on by themselves.)"""
    return lasting(address) and address["family"] == "inet" and bool(address.get("dynamic"))


def wanted(route: dict[str, Any], names: list[str]) -> bool:
    """Routes that the kernel does not make by itself from the addresses."""
    return route.get("dev") in names and route.get("protocol") != "kernel"


def cut(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def nameservers(host: Path) -> list[str]:
    """What answers in another system, too: no resolver on the machine itself."""
    files = [host / "etc/resolv.conf", host / RESOLVED]
    lines = [line.split() for file in files if file.exists() for line in file.open()]
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [each for each in dict.fromkeys(found) if not each.startswith(("127.", "::1"))]
