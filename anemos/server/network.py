"""Captures the network of the running system, by MAC address: whole, or not at all.

An attribute of an address, a route, a rule or an interface that is not known here stops the capture
with its name. What the initramfs cannot make at all (a bridge of containers, a tunnel) is left
behind, unless the operator comes by it, or the default route leaves by it.
"""

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from anemos import files
from anemos.border import records
from anemos.border.network import (
    Address,
    Bond,
    Common,
    Ether,
    Family,
    Interface,
    Network,
    Route,
    Vlan,
)
from anemos.log import FAILED, die
from anemos.run import CommandFailed, run
from anemos.system import tree

Link = dict[str, Any]  # as ip-link(8) prints it: JSON
Record = Mapping[str, Any]  # the same, of addresses, routes, rules
NETWORK = Path("/sys/class/net")

# What is carried, in ip(8)'s words; then what need not be: who made it, and how long it lasts.
ADDRESS_KEYS: tuple[str, ...] = ("local", "address", "prefixlen", "family")  # address: the peer's
ADDRESS_KEYS += ("scope", "metric", "noprefixroute", "deprecated")
ADDRESS_NEEDLESS = {"broadcast", "label", "valid_life_time", "preferred_life_time", "protocol"}
ADDRESS_NEEDLESS |= {"dynamic", "secondary", "mngtmpaddr", "nodad", "stable-privacy", "tentative"}
ADDRESS_NEEDLESS |= {"optimistic"}
ROUTE_KEYS: tuple[str, ...] = ("family", "dst", "gateway", "via", "metric", "flags", "scope")
ROUTE_KEYS += ("prefsrc", "pref", "tos", "metrics")
ROUTE_NEEDLESS = {"dev", "type", "table", "protocol", "nhid", "nexthops", "weight", "expires"}
ROUTE_NEEDLESS |= {"cache", "error", "users", "age"}
ROUTE_METRICS = {"mtu", "advmss", "hoplimit", "window", "initcwnd", "initrwnd", "quickack"}
ROUTE_METRICS |= {"reordering", "cwnd", "ssthresh"}
# What of a bond is carried: ip-link(8)'s word for it -> its name in JSON, the kernel's default.
BOND_OPTIONS = {
    "mode": ("mode", ""),
    "miimon": ("miimon", 0),
    "updelay": ("updelay", 0),
    "downdelay": ("downdelay", 0),
    "peer_notify_delay": ("peer_notify_delay", 0),
    "use_carrier": ("use_carrier", 1),
    "arp_interval": ("arp_interval", 0),
    "arp_missed_max": ("arp_missed_max", 2),
    "arp_ip_target": ("arp_ip_target", []),
    "ns_ip6_target": ("ns_ip6_target", []),
    "arp_validate": ("arp_validate", "none"),
    "arp_all_targets": ("arp_all_targets", "any"),
    "primary": ("primary", ""),
    "primary_reselect": ("primary_reselect", "always"),
    "fail_over_mac": ("fail_over_mac", "none"),
    "xmit_hash_policy": ("xmit_hash_policy", "layer2"),
    "resend_igmp": ("resend_igmp", 1),
    "num_grat_arp": ("num_peer_notif", 1),
    "all_slaves_active": ("all_slaves_active", 0),
    "min_links": ("min_links", 0),
    "lp_interval": ("lp_interval", 1),
    "packets_per_slave": ("packets_per_slave", 1),
    "lacp_active": ("ad_lacp_active", "on"),
    "lacp_rate": ("ad_lacp_rate", "slow"),
    "ad_select": ("ad_select", "stable"),
    "ad_actor_sys_prio": ("ad_actor_sys_prio", 65535),
    "ad_user_port_key": ("ad_user_port_key", 0),
    "ad_actor_system": ("ad_actor_system", "00:00:00:00:00:00"),
    "tlb_dynamic_lb": ("tlb_dynamic_lb", 1),
}
BOND_NEEDLESS = {"active_slave", "ad_info", "coupled_control"}
# ip(8) shows these in every mode, the kernel takes them in some (networking/bonding.rst).
BOND_MODES = {
    "lacp_active": ("802.3ad",),
    "lacp_rate": ("802.3ad",),
    "ad_actor_sys_prio": ("802.3ad",),
    "ad_user_port_key": ("802.3ad",),
    "ad_actor_system": ("802.3ad",),
    "packets_per_slave": ("balance-rr",),
    "tlb_dynamic_lb": ("balance-tlb",),
    "primary": ("active-backup", "balance-tlb", "balance-alb"),
}
VLAN_FLAGS = {"REORDER_HDR", "GVRP", "MVRP", "LOOSE_BINDING", "BRIDGE_BINDING"}
STRANGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
PLAIN_TABLES = ("local", "main", "default")
HINT = "change that in the old system for the deployment, or come in by another address"
# systemd-resolved's list of real servers, where resolv.conf names only itself (its man page).
RESOLVED = "run/systemd/resolve/resolv.conf"


def capture(host: Path, needed: str, client: str = "") -> Network:
    """HOST: the system's root. Raises Failure when something would not be carried over, like the
    address NEEDED, by which the operator came, or the way to CLIENT, where he came from.
    """
    try:
        found = chosen(*ask(), needed)
    except STRANGE as error:
        die(f"what ip(8) tells of the network makes no sense: {error}", status=FAILED)
    check_way_back(needed, client, found["interfaces"])
    ipv6 = any(interface["ipv6"] for interface in found["interfaces"])
    found["dns"] = [each for each in nameservers(host) if ipv6 or ":" not in each]
    return found


def ask() -> tuple[list[Link], list[Record], list[Record]]:
    """Links, routes and rules, as ip(8) and sysfs tell them."""

    def told(*words: str) -> list[Link]:
        return records.parse(list[Link], run(["ip", *words]) or "[]")

    links = [hardware(link) | link for link in told("-json", "-details", "address", "show")]
    return (
        links,
        routes_of(*(told("-json", each, "route", "show", "table", "all") for each in ("-4", "-6"))),
        [*told("-4", "-json", "rule", "show"), *told("-6", "-json", "rule", "show")],
    )


def routes_of(four: Iterable[Record], six: Iterable[Record]) -> list[Record]:
    return [{**each, "family": "-4"} for each in four] + [{**each, "family": "-6"} for each in six]


def hardware(link: Link) -> dict[str, str]:
    """What sysfs knows of LINK, and older kernels do not tell ip(8): bus and permanent address.

    The latter is "" when it is not known: set by hand or by chance (kernel: sysfs-class-net).
    """
    place = NETWORK / link["ifname"]
    if not (place / "device").exists():
        return {}
    found = {"parentbus": (place / "device/subsystem").resolve().name}
    hidden = place / "bonding_slave/perm_hwaddr"
    if "permaddr" not in link and hidden.exists():
        found["permaddr"] = hidden.read_text().strip()
    elif "permaddr" not in link and (place / "addr_assign_type").read_text().strip() in "13":
        found["permaddr"] = ""
    return found


def chosen(
    links: list[Link], routes: list[Record], rules: Sequence[Record], needed: str
) -> Network:
    """What `capture` returns, without name servers. Pure. Raises Failure, and STRANGE for what no
    ip(8) should say."""
    interfaces = select(links, routes, needed)
    check_operator(links, interfaces, needed)
    names = {name for interface in interfaces for name in interface["bears"]}
    family: Family = "inet6" if ":" in needed else "inet"
    check_default("-6" if family == "inet6" else "-4", routes, names)
    check_rules(rules, routes, names)
    left = [
        f"{link['ifname']} ({kind(link) or link['link_type']})"
        for link in links
        if link["ifname"] not in names and is_up(link) and any(map(outward, addresses(link)))
    ]
    return {"interfaces": interfaces, "left": left, "dns": [], "operator": family}


def check_operator(links: list[Link], interfaces: Sequence[Interface], needed: str) -> None:
    """The address NEEDED is carried, and something can leave by its interface."""
    for link in interfaces:
        if needed in [each["local"] for each in link["addresses"]]:
            bare = all(each.get("noprefixroute") for each in link["addresses"])
            if bare and not link["routes"]:
                what = f"you came in by {needed}, but no route of the main table leaves by"
                die(f"{what} {link['name']}", hint=HINT)
            return
    hint = "it knows Ethernet, bonds and VLANs, and takes a bridge for what is in it"
    for each in links:
        if has(each, needed):
            hint = f"{each['ifname']} is {kind(each) or each['link_type']}; {hint}"
    die(f"you came in by {needed or '?'}, which the initramfs could not bring up", hint=hint)


def select(links: list[Link], routes: list[Record], needed: str = "") -> list[Interface]:
    """What carries an address, and the interfaces below it. Pure. Raises Failure.

    Addresses of a bridge go to the one interface that connects it with the outside. Without one,
    like a bridge of containers, and on all else that is virtual, they are left behind.
    """
    named = {link["ifname"]: link for link in links}
    carried: dict[str, list[Link]] = {}  # name -> links whose addresses it gets
    for link in links:
        if counts(link, needed) and (bearer := bearer_of(link, named)):
            carried.setdefault(bearer["ifname"], []).append(link)
    mine = [top for top, bears in carried.items() if any(has(each, needed) for each in bears)]
    own = {name for top in mine for name in below(named[top], named)}
    order = dict.fromkeys(name for top in [*mine, *carried] for name in below(named[top], named))
    names = {*order, *(each["ifname"] for bears in carried.values() for each in bears)}
    ways = list(one_each(routes, names))
    return [interface(named[name], carried.get(name, []), ways, named, own) for name in order]


def counts(link: Link, needed: str) -> bool:
    """Whether LINK is in use, and for more than the talk with a board's own controller."""
    return is_up(link) and (has(link, needed) or any(map(outward, addresses(link))))


def is_up(link: Link) -> bool:
    return "UP" in link.get("flags", ["UP"])


def has(link: Link, address: str) -> bool:
    return any(each["local"] == address for each in addresses(link))


def outward(address: Record) -> bool:
    own = ipaddress.ip_address(address["local"])
    return not own.is_link_local


def bearer_of(link: Link, named: Mapping[str, Link]) -> Link | None:
    """What bears LINK's addresses in the initramfs, None where nothing can."""
    if master(link, named) and kind(master(link, named)) != "bridge":
        return None  # its frames go to a bond, a VRF, Open vSwitch, a synthetic card
    if kind(link) != "bridge":
        return link if can_be_made(link, named) else None
    members = [each for each in slaves(link, named) if can_be_made(each, named)]
    same = [each for each in members if each["address"] == link["address"]]
    return next(iter(same + members), None)


def can_be_made(link: Link, named: Mapping[str, Link]) -> bool:
    match kind(link):
        case "":
            return bool(link["link_type"] == "ether")
        case "vlan":
            return can_be_made(named[link["link"]], named) if link.get("link") in named else False
        case "bond":
            return bool(slaves(link, named)) and not any(map(kind, slaves(link, named)))
    return False


def master(link: Link, named: Mapping[str, Link]) -> Link:
    """What LINK is a part of, {} for nothing."""
    name = link.get("master")
    return named.get(name, {"ifname": name}) if name else {}


def slaves(link: Link, named: Mapping[str, Link]) -> list[Link]:
    return [each for each in named.values() if each.get("master") == link["ifname"]]


def below(link: Link, named: Mapping[str, Link]) -> Iterator[str]:
    """The names of all that LINK stands on, then its own."""
    if kind(link) == "vlan":
        yield from below(named[link["link"]], named)
    if kind(link) == "bond":
        yield from (each["ifname"] for each in slaves(link, named))
    yield link["ifname"]


def interface(
    link: Link, bears: list[Link], routes: list[Record], named: Mapping[str, Link], needed: Set[str]
) -> Interface:
    """LINK as the initramfs wants it, with addresses and routes of the links that it BEARS. NEEDED:
    the names of what the operator came by."""
    if "NOARP" in link.get("flags", []):
        die(f"{link['ifname']} has NOARP, which is not carried over", hint=HINT)
    names = {link["ifname"], *(each["ifname"] for each in bears)}
    own = [address for each in bears for address in addresses(each)]
    common: Common = {
        "name": link["ifname"],
        "bears": sorted(names),
        "mtu": link["mtu"],
        # A bond works with one of its members.
        "needed": link["ifname"] in needed and kind(master(link, named)) != "bond",
        "ipv6": any(a["family"] == "inet6" for each in bears or [link] for a in each["addr_info"]),
        "addresses": [carried_address(each, link) for each in own],
        "routes": [carried_route(each, own) for each in routes if wanted(each, names, own)],
        "dhcp": any(leased(each) for link in bears for each in link["addr_info"]),
        "mac": "",
    }
    makers: dict[str, Callable[[Link, Mapping[str, Link], Common], Interface]]
    makers = {"bond": bond, "vlan": vlan}
    return makers.get(kind(link), card)(link, named, common)


def bond(link: Link, named: Mapping[str, Link], common: Common) -> Bond:
    members = [each["ifname"] for each in slaves(link, named)]
    own: Common = {**common, "mac": link["address"]}
    return {**own, "kind": "bond", "members": members, "options": bond_options(link)}


def vlan(link: Link, named: Mapping[str, Link], common: Common) -> Vlan:
    inherited = named[link["link"]]["address"] == link["address"]
    data = link["linkinfo"]["info_data"]
    own: Common = {**common, "mac": "" if inherited else link["address"]}
    return {
        **own,
        "kind": "vlan",
        "parent": link["link"],
        "id": data["id"],
        "protocol": data["protocol"],
        "options": vlan_options(link),
    }


def card(link: Link, named: Mapping[str, Link], common: Common) -> Ether:
    """How to find the card LINK again, and the address that it has instead of its own."""
    name, mac = link["ifname"], link.get("permaddr", link["address"])
    if not mac:
        die(f"{name} has a MAC address that is not its own, which is not known", hint=HINT)
    alike = [each for each in named.values() if not kind(each) and not each.get("master")]
    for other in alike:
        if other is not link and mac == other.get("permaddr", other.get("address")):
            die(f"{name} and {other['ifname']} have one MAC address: {mac}", hint=HINT)
    # In a bond all have one address: the bond sees to that.
    own = link["address"] == mac or kind(master(link, named)) == "bond"
    address, bus = "" if own else link["address"], link.get("parentbus", "")
    known: Common = {**common, "mac": mac}
    return {**known, "kind": "ether", "address": address, "bus": bus}


def bond_options(link: Link) -> dict[str, str | int]:
    """What differs from the kernel's defaults: the kernel takes not all options in all modes."""
    data = link["linkinfo"]["info_data"]
    known = {key for key, _ in BOND_OPTIONS.values()} | BOND_NEEDLESS
    there = {k: v for k, v in data.items() if v not in (None, 0, "", [], "off")}
    understood(f"bond {link['ifname']}", there, known)
    found = {
        word: data[key]
        for word, (key, default) in BOND_OPTIONS.items()
        if data.get(key) not in (None, "", [], default)
        and data["mode"] in BOND_MODES.get(word, (data["mode"],))
    }
    return {k: ",".join(v) if isinstance(v, list) else v for k, v in found.items()}


def vlan_options(link: Link) -> list[str]:
    """In ip-link(8)'s words."""
    data = link["linkinfo"]["info_data"]
    flags = data.get("flags", ["REORDER_HDR"])
    known = {"id", "protocol", "flags", "ingress_qos", "egress_qos"}
    understood(f"VLAN {link['ifname']}", data, known)
    understood(f"VLAN {link['ifname']}", dict.fromkeys(flags, True), VLAN_FLAGS)
    words = [] if "REORDER_HDR" in flags else ["reorder_hdr", "off"]
    for flag in sorted({*flags} - {"REORDER_HDR"}):
        words += [flag.lower(), "on"]
    for way in ("ingress", "egress"):
        if pairs := data.get(f"{way}_qos"):
            words += [f"{way}-qos-map", *(f"{each['from']}:{each['to']}" for each in pairs)]
    return words


def kind(link: Link) -> str:
    """What a virtual interface is, "" for hardware."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def understood(what: str, record: Record, known: Set[str]) -> None:
    """Raises Failure that names what of RECORD is not KNOWN: to drop it may cut the way back."""
    if strange := sorted(record.keys() - known):
        said = ", ".join(f"{key}={record[key]}" for key in strange)
        die(f"{what} has {said}, which is not carried over", hint=HINT)


def addresses(link: Link) -> list[Link]:
    """Those that are carried, as ip-address(8) has them."""
    return [each for each in link["addr_info"] if each and lasting(each)]


def lasting(address: Record) -> bool:
    """Not this machine's own affair, nor one that is changed all the time, or somebody else's."""
    inside = address["scope"] not in ("global", "site", "link")
    return not (inside or address.get("temporary") or address.get("dadfailed"))


def carried_address(address: Record, link: Link) -> Address:
    what = f"{link['ifname']}: address {address['local']}"
    understood(what, address, {*ADDRESS_KEYS, *ADDRESS_NEEDLESS})
    found = {key: address[key] for key in ADDRESS_KEYS if key in address}
    if found.get("scope") == "global":
        del found["scope"]
    return cast(Address, found)


def leased(address: Record) -> bool:
    """By DHCP."""
    return lasting(address) and address["family"] == "inet" and bool(address.get("dynamic"))


def one_each(routes: Iterable[Record], names: Set[str]) -> Iterator[Record]:
    """Of several routes with one destination and metric one, and one of its ways: that will do.

    One that works, by an interface in NAMES if there is any.
    """
    best: dict[tuple[object, ...], Record] = {}
    for route in routes:
        hops = route.get("nexthops", [route])
        hops = [hop for hop in hops if not {"dead", "linkdown"} & {*hop.get("flags", [])}] or hops
        hop = next((hop for hop in hops if hop.get("dev") in names), hops[0])
        key = tuple(route.get(each) for each in ("family", "table", "dst", "tos", "metric", "type"))
        whole = {**route, **hop}
        if key not in best or rank(whole, names) > rank(best[key], names):
            best[key] = whole
    return iter(best.values())


def rank(route: Record, names: Set[str]) -> tuple[bool, int]:
    """RFC 4191: a router may say how much it wants to be preferred."""
    order = ("low", "medium", "high")
    return route.get("dev") in names, order.index(route.get("pref", "medium"))


def wanted(route: Record, names: Set[str], own: list[Link]) -> bool:
    """Routes of the main table by NAMES that the kernel does not make by itself from OWN."""
    if route.get("dev") not in names or route.get("table", "main") != "main":
        return False
    if route.get("protocol") != "kernel":
        return True
    made = [
        ipaddress.ip_interface(f"{each.get('address', each['local'])}/{each['prefixlen']}").network
        for each in own
        if not each.get("noprefixroute")
    ]
    return network_of(route) not in [*made, ipaddress.ip_network("fe80::/64")]


def network_of(route: Record) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    everything = "::/0" if route["family"] == "-6" else "0.0.0.0/0"
    return ipaddress.ip_network(route["dst"].replace("default", everything))


def carried_route(route: Record, own: list[Link]) -> Route:
    what = f"route {route['dst']} by {route['dev']}"
    understood(what, route, {*ROUTE_KEYS, *ROUTE_NEEDLESS})
    if (kind := route.get("type", "unicast")) != "unicast":
        understood(what, {"type": kind}, set())
    for metrics in route.get("metrics", []):
        understood(what, metrics, ROUTE_METRICS)
    if (source := route.get("prefsrc")) and source not in [each["local"] for each in own]:
        understood(what, {"src": source}, set())
    return cast(Route, {key: route[key] for key in ROUTE_KEYS if key in route})


def check_default(family: str, routes: Iterable[Record], names: Set[str]) -> None:
    """A default route of the operator's FAMILY has to be carried, if there is any."""
    devices = {
        hop.get("dev")
        for route in routes
        if route["family"] == family and route["dst"] == "default"
        if route.get("table", "main") == "main" and route.get("type", "unicast") == "unicast"
        for hop in route.get("nexthops", [route])
    }
    if devices and not devices & names:
        said = ", ".join(sorted(map(str, devices)))
        die(f"the default route leaves by {said}, which the initramfs could not make", hint=HINT)


def check_rules(rules: Iterable[Record], routes: Iterable[Record], names: Set[str]) -> None:
    """There are no rules in the initramfs: refuse those that lead to an interface in NAMES."""
    for rule in rules:
        table = rule.get("table", "main")
        leads = {
            hop.get("dev")
            for route in routes
            if route.get("table", "main") == table
            for hop in route.get("nexthops", [route])
        }
        if table not in PLAIN_TABLES and (not leads or leads & names):
            source = f"from {rule.get('src', 'all')}"
            die(f"a rule ({source}, table {table}), which is not carried over: ip rule", hint=HINT)


def check_way_back(needed: str, client: str, interfaces: Iterable[Interface]) -> None:
    """What goes to CLIENT has to leave by one of INTERFACES, if not by the machine itself."""
    names = {"lo", *(name for interface in interfaces for name in interface["bears"])}
    with suppress(CommandFailed):  # ip(8) does not know it: then it says nothing against it
        words = ["ip", "-json", "route", "get", client, "from", needed]
        for route in json.loads(run(words)) if client else []:
            if route["dev"] not in names:
                what = f"the way back to you, {client}, leaves by {route['dev']}"
                die(f"{what}, which the initramfs could not make", hint=HINT)


def nameservers(host: Path) -> list[str]:
    """What answers in another system, too: no resolver on the machine itself."""
    places = [tree.resolved(host, path) for path in ("etc/resolv.conf", RESOLVED)]
    lines = [line.split() for file in places for line in files.text(file).splitlines()]
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [each for each in dict.fromkeys(found) if outside(each)]


def outside(server: str) -> bool:
    """Whether SERVER is an address, and of another machine."""
    with suppress(ValueError):
        return not ipaddress.ip_address(server).is_loopback
    return False
