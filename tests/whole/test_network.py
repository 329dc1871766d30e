"""The network, captured on the old system and brought up again in the initramfs."""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from anemos import namespaces
from anemos.border import records
from anemos.border.network import Network
from anemos.initramfs import network as initramfs
from anemos.log import Failure
from anemos.run import run
from anemos.server import network as server
from tests import lab
from tests.tree import ROOT

# A server with eth0, a VLAN on it, eth1 in a bridge, and a bridge of containers.
CAPTURED = json.loads((ROOT / "tests/data/network.json").read_text())
LINKS = CAPTURED["address show"]
ROUTES = [
    route | {"family": family}
    for family in ("-4", "-6")
    for route in CAPTURED[f"{family} route show"]
]
NETWORK: Network = {"interfaces": [], "left": [], "dns": [], "operator": "inet"}
OWN: dict[str, Any] = {"address": "", "bus": "pci", "needed": False, "ipv6": True}
ETH0: Any = {
    **OWN,
    "name": "eth0",
    "bears": ["eth0"],
    "kind": "ether",
    "mac": "52:54:00:00:00:01",
    "mtu": 1500,
    "addresses": [
        {"local": "203.0.113.7", "prefixlen": 24, "family": "inet"},
        {"local": "10.9.9.9", "prefixlen": 32, "family": "inet"},
        {"local": "2001:db8::7", "prefixlen": 64, "family": "inet6"},
        {"local": "fe80::5054:ff:fe00:1", "prefixlen": 64, "family": "inet6", "scope": "link"},
    ],
    "routes": [
        {"family": "-4", "dst": "default", "gateway": "203.0.113.1", "metric": 100, "flags": []}
        | {"prefsrc": "203.0.113.7"},
        {"family": "-4", "dst": "10.0.0.0/8", "gateway": "203.0.113.2", "flags": []},
        {"family": "-6", "dst": "default", "gateway": "fe80::1", "metric": 1024, "flags": []}
        | {"pref": "medium"},
    ],
    "dhcp": False,
}
BRIDGE: Any = {
    **OWN,
    "name": "eth1",
    "bears": ["eth1", "vmbr0"],
    "kind": "ether",
    "mac": "52:54:00:00:00:02",
    "mtu": 1500,
    "addresses": [
        {"local": "198.51.100.5", "prefixlen": 24, "family": "inet"},
        {"local": "fe80::5054:ff:fe00:2", "prefixlen": 64, "family": "inet6", "scope": "link"},
    ],
    "routes": [],
    "dhcp": False,
}
VLAN: Any = {
    "needed": False,
    "ipv6": False,
    "mac": "",
    "options": [],
    "name": "eth0.100",
    "bears": ["eth0.100"],
    "kind": "vlan",
    "parent": "eth0",
    "id": 100,
    "protocol": "802.1Q",
    "mtu": 1500,
    "addresses": [{"local": "192.168.100.2", "prefixlen": 24, "family": "inet"}],
    "routes": [],
    "dhcp": False,
}


def test_select() -> None:
    """No loopback, no bridge without hardware; of addresses no temporary and local one."""
    assert server.select(LINKS, ROUTES) == [ETH0, BRIDGE, VLAN]


def ether(name: str, **more: Any) -> dict[str, Any]:
    return {"ifname": name, "link_type": "ether", "mtu": 1500, "addr_info": [], **more}


def virtual(name: str, kind: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return ether(name, linkinfo={"info_kind": kind, "info_data": data}, **more)


ADDRESS = {"family": "inet", "local": "192.0.2.7", "prefixlen": 24, "scope": "global"}
STACK = [
    virtual("vmbr0", "bridge", {}, address="a1", addr_info=[ADDRESS | {"dynamic": True}]),
    virtual("bond0.7", "vlan", {"protocol": "802.1Q", "id": 7}, link="bond0", master="vmbr0"),
    virtual("bond0", "bond", {"mode": "802.3ad", "miimon": 100, "ad_lacp_rate": "fast"})
    | {"address": "a1"},
    ether("eth0", address="a1", permaddr="a1", master="bond0"),
    ether("eth1", address="a1", permaddr="a2", master="bond0"),
    virtual("tap0", "tun", {}, address="a0", master="vmbr0"),
    virtual("wg0", "wireguard", {}, addr_info=[ADDRESS]) | {"link_type": "none"},
    virtual("dummy0", "dummy", {}, address="a3", addr_info=[ADDRESS]),
]


def test_stack() -> None:
    """A bridge with a VLAN on a bond of two: the VLAN gets the address, on what it stands on."""
    links = [link | {"address": link.get("address", "a1")} for link in STACK]
    found: Any = server.select(links, [])

    assert [each["name"] for each in found] == ["eth0", "eth1", "bond0", "bond0.7"]
    eth0, eth1, bond, vlan = found
    assert (eth0["mac"], eth1["mac"], bond["mac"]) == ("a1", "a2", "a1")
    assert bond["members"] == ["eth0", "eth1"]
    assert bond["options"] == {"mode": "802.3ad", "miimon": 100, "lacp_rate": "fast"}
    assert (vlan["parent"], vlan["id"]) == ("bond0", 7)
    assert [len(each["addresses"]) for each in found] == [0, 0, 0, 1]
    assert [each["dhcp"] for each in found] == [False, False, False, True]


def test_bond_in_another_mode() -> None:
    """What the kernel would refuse in that mode is left out, though ip(8) shows it."""
    data = {"mode": "active-backup", "miimon": 250, "ad_lacp_rate": "slow", "primary": "eth1"}
    bond = virtual("bond0", "bond", data, address="a1", addr_info=[ADDRESS])
    members = [ether(name, address="a1", master="bond0") for name in ("eth0", "eth1")]

    found: Any = server.select([bond, *members], [])[-1]

    assert found["options"] == {"mode": "active-backup", "miimon": 250, "primary": "eth1"}


def test_select_nothing() -> None:
    assert server.select([link for link in LINKS if link["ifname"] == "docker0"], ROUTES) == []
    assert server.select([], []) == []


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ip(8)'s answers, to be changed."""
    answers: dict[str, Any] = json.loads(json.dumps(CAPTURED))

    def answer(argv: Sequence[str]) -> str:
        assert argv[0] == "ip"
        assert "-json" in argv
        words = " ".join(word for word in argv[1:] if word not in ("-json", "-details"))
        said = answers.get(words.removesuffix(" table all"), [])
        return json.dumps(said) if said else ""

    monkeypatch.setattr(server, "run", answer)
    monkeypatch.setattr(server, "NETWORK", Path("/nonexistent"))
    return answers


def test_capture(captured: dict[str, Any], tmp_path: Path) -> None:
    found = server.capture(tmp_path, "203.0.113.7")

    assert found == {
        "interfaces": [ETH0 | {"needed": True}, BRIDGE, VLAN],
        "left": ["docker0 (bridge)"],
        "dns": [],
        "operator": "inet",
    }
    assert records.parse(Network, json.dumps(found)) == found


@pytest.mark.parametrize("address", ["198.51.100.5", "192.168.100.2", "2001:db8::7"])
def test_way_back_to_the_operator(captured: dict[str, Any], tmp_path: Path, address: str) -> None:
    captured["-6 route show"] = []

    assert server.capture(tmp_path, address)["interfaces"]


@pytest.mark.parametrize("address", ["172.17.0.1", "127.0.0.1", "203.0.113.8", "fe80::1%eth0", ""])
def test_no_way_back_to_the_operator(
    captured: dict[str, Any], tmp_path: Path, address: str
) -> None:
    """By a bridge of containers, say: nobody would reach the machine in its initramfs."""
    with pytest.raises(Failure, match=f"you came in by {address or '[?]'}, which the initramfs"):
        server.capture(tmp_path, address)


def test_one_of_several_ways(captured: dict[str, Any], tmp_path: Path) -> None:
    hops = [{"gateway": "203.0.113.1", "dev": "eth0", "weight": 1, "flags": ["onlink"]}]
    hops += [{"gateway": "198.51.100.1", "dev": "vmbr0", "weight": 1, "flags": []}]
    captured["-4 route show"] = [
        {"dst": "default", "flags": [], "nexthops": hops},
        {"type": "blackhole", "dst": "10.10.0.0/16", "flags": []},
    ]
    captured["-6 route show"] = []

    eth0, bridge, _ = server.capture(tmp_path, "203.0.113.7")["interfaces"]

    assert eth0["routes"] == [
        {"family": "-4", "dst": "default", "gateway": "203.0.113.1", "flags": ["onlink"]}
    ]
    assert bridge["routes"] == []


# Whole, or not at all


def with_gateway(**more: Any) -> dict[str, Any]:
    return {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0", "flags": [], **more}


def chosen(
    links: list[dict[str, Any]],
    four: Sequence[dict[str, Any]] = (),
    rules: Sequence[dict[str, Any]] = (),
    needed: str = "192.0.2.7",
) -> Any:
    links = [{"address": f"a-{link['ifname']}", **link} for link in links]
    return server.chosen(links, server.routes_of(four, []), list(rules), needed)


ETHER = ether("eth0", addr_info=[ADDRESS])
OTHER = ether("eth1", addr_info=[ADDRESS | {"local": "198.51.100.7"}])


@pytest.mark.parametrize(
    ("route", "named"),
    [
        ({"encap": "mpls"}, "encap=mpls"),
        ({"from": "2001:db8::/64"}, "from=2001:db8::/64"),
        ({"flow_to": "7"}, "flow_to=7"),
        ({"metrics": [{"mtu": 1400, "rto_min": 5}]}, "rto_min=5"),
        ({"prefsrc": "10.0.0.1"}, "src=10.0.0.1"),
        ({"type": "nat"}, "type=nat"),
        ({"nexthops": [{"gateway": "192.0.2.2", "dev": "eth0", "encap": "ip"}]}, "encap=ip"),
    ],
)
def test_route_that_is_not_understood(route: dict[str, Any], named: str) -> None:
    with pytest.raises(Failure, match=f"route default by eth0 has {named}, which is not carried"):
        chosen([ETHER], [with_gateway(**route)])
    assert chosen([ETHER], [with_gateway(), with_gateway(**route) | {"dev": "docker0"}])


@pytest.mark.parametrize("strange", [{"anycast": "192.0.2.9"}, {"home": True}, {"ifa_flags": "ff"}])
def test_address_that_is_not_understood(strange: dict[str, Any]) -> None:
    (name,) = strange
    with pytest.raises(Failure, match=f"eth0: address 192.0.2.7 has {name}="):
        chosen([ether("eth0", addr_info=[ADDRESS | strange])])


def bonded(**data: Any) -> list[dict[str, Any]]:
    bond = virtual("bond0", "bond", {"mode": "active-backup", **data}, addr_info=[ADDRESS])
    return [bond, ether("eth0", master="bond0"), ether("eth1", master="bond0")]


def test_bond_options() -> None:
    """What is not the kernel's default, in ip(8)'s words."""
    data = {"miimon": 0, "arp_interval": 500, "arp_ip_target": ["192.0.2.1", "192.0.2.2"]}
    data |= {"arp_validate": "active", "use_carrier": 0, "num_peer_notif": 3, "ns_ip6_target": []}
    data |= {"fail_over_mac": "active", "resend_igmp": 1, "lp_interval": 1, "ad_info": {"a": 1}}
    data |= {"tlb_dynamic_lb": 1, "packets_per_slave": 1, "ad_lacp_active": "on"}
    data |= {"arp_missed_max": 2, "primary": None, "of_newer_kernels": "off"}

    *members, bond = chosen(bonded(**data))["interfaces"]

    assert [each["needed"] for each in (*members, bond)] == [False, False, True]
    assert bond["options"] == {
        "mode": "active-backup",
        "use_carrier": 0,
        "arp_interval": 500,
        "arp_ip_target": "192.0.2.1,192.0.2.2",
        "arp_validate": "active",
        "fail_over_mac": "active",
        "num_grat_arp": 3,
    }
    lines = initramfs.commands("bond0", bond, {"eth0": "a", "eth1": "b"})
    assert "arp_ip_target 192.0.2.1,192.0.2.2" in " ".join(lines[1])
    with pytest.raises(Failure, match="bond bond0 has new_mode=7, which is not carried over"):
        chosen(bonded(new_mode=7))


def test_vlan_options() -> None:
    data = {"protocol": "802.1ad", "id": 5, "flags": ["GVRP"], "egress_qos": [{"from": 0, "to": 3}]}
    vlan = virtual("eth0.5", "vlan", data, link="eth0", addr_info=[ADDRESS], address="a5")

    _, found = chosen([ether("eth0"), vlan])["interfaces"]

    assert " ".join(initramfs.commands("eth0.5", found, {"eth0": "ens3"})[0]) == (
        "ip link add link ens3 name eth0.5 address a5 type vlan protocol 802.1ad id 5"
        " reorder_hdr off gvrp on egress-qos-map 0:3"
    )
    data["flags"] = ["REORDER_HDR", "80"]
    with pytest.raises(Failure, match=r"VLAN eth0\.5 has 80="):
        chosen([ether("eth0"), vlan])


def test_card_with_another_address() -> None:
    by_hand = ether("eth0", address="02:01", permaddr="a8:a1", addr_info=[ADDRESS])

    (found,) = chosen([by_hand])["interfaces"]

    assert (found["mac"], found["address"]) == ("a8:a1", "02:01")
    lines = [" ".join(argv) for argv in initramfs.commands("ens3", found, {})]
    assert lines[0] == "ip link set ens3 address 02:01"
    with pytest.raises(Failure, match="eth0 has a MAC address that is not its own"):
        chosen([by_hand | {"permaddr": ""}])
    with pytest.raises(Failure, match="eth0 and eth1 have one MAC address: a8:a1"):
        chosen([by_hand, ether("eth1", address="a8:a1")])


@pytest.mark.parametrize("master", ["vrf", "team", "openvswitch", "hsr"])
def test_part_of_something_else(master: str) -> None:
    link = ETHER | {"master": "top"}

    with pytest.raises(Failure, match=r"you came in by 192\.0\.2\.7, which") as caught:
        chosen([link, virtual("top", master, {})])
    assert "eth0 is" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["macsec", "macvlan", "ipvlan", "team", "openvswitch", "dummy"])
def test_what_cannot_be_made(kind: str) -> None:
    """Left behind, unless the operator came by it."""
    strange = virtual("x0", kind, {}, addr_info=[ADDRESS | {"local": "198.51.100.9"}])

    assert chosen([ETHER, strange])["left"] == [f"x0 ({kind})"]
    with pytest.raises(Failure, match=r"you came in by 198\.51\.100\.9") as caught:
        chosen([ETHER, strange], needed="198.51.100.9")
    assert f"x0 is {kind}" in (caught.value.hint or "")


def test_default_route_that_would_be_lost() -> None:
    """By a VLAN on a bridge, say: who is not on the link would not reach the machine."""
    lost = with_gateway(dev="vmbr0.50")

    with pytest.raises(Failure, match=r"the default route leaves by vmbr0\.50, which"):
        chosen([ETHER], [lost])
    assert chosen([ETHER], [lost, with_gateway(metric=9)])
    assert server.chosen([{"address": "a", **ETHER}], server.routes_of([], [lost]), [], "192.0.2.7")


def test_several_default_routes() -> None:
    """With a metric each they are all carried; of those with one, the router's own preference."""
    six = [with_gateway(gateway="fe80::1", metric=5), with_gateway(gateway="fe80::2", metric=5)]
    six[1]["pref"] = "high"
    links = [{"address": f"a-{link['ifname']}", **link} for link in (ETHER, OTHER)]
    four = [with_gateway(metric=1), with_gateway(metric=2), with_gateway(metric=2, dev="eth1")]

    found = server.select(links, server.routes_of(four, six))

    assert [[r.get("gateway", "") for r in each["routes"]] for each in found] == [
        ["192.0.2.1", "192.0.2.1", "fe80::2"],
        [],
    ]


def test_way_that_works() -> None:
    """Of several: not the dead one, nor one by an interface that is left behind."""
    dead = {"gateway": "192.0.2.2", "dev": "eth0", "flags": ["dead", "linkdown"]}
    hops: list[dict[str, Any]] = [dead, {"gateway": "10.0.0.1", "dev": "tun0", "flags": []}]
    hops += [{"via": {"family": "inet6", "host": "fe80::9"}, "dev": "eth0", "flags": []}]

    (found,) = chosen([ETHER], [{"dst": "default", "flags": [], "nexthops": hops}])["interfaces"]

    (route,) = found["routes"]
    assert " ".join(initramfs.route_words(route)) == "default via inet6 fe80::9"


STANDARD = [{"priority": 0, "src": "all", "table": "local"}]
STANDARD += [{"priority": 32766, "src": "all", "table": "main"}]


def test_rules() -> None:
    """None is carried: those that lead to what is carried are refused."""
    by_source = {"priority": 32765, "src": "198.51.100.7", "table": "10002"}
    there = with_gateway(dev="eth1", table="10002")
    away = with_gateway(dev="tailscale0", table="10002")
    harmless: list[dict[str, Any]] = [
        {
            "priority": 5210,
            "src": "all",
            "fwmark": "0x80000",
            "fwmask": "0xff0000",
            "table": "main",
        },
        {"priority": 5250, "src": "all", "fwmark": "0x80000", "action": "unreachable"},
        {"priority": 5, "src": "all", "table": "main", "suppress_prefixlen": 0},
    ]

    several = {"dst": "default", "table": "10002", "nexthops": [there]}

    assert chosen([ETHER, OTHER], [away], [*STANDARD, *harmless, by_source])
    tables: list[list[dict[str, Any]]] = [[there], [there, away], [several], []]
    for routes in tables:
        with pytest.raises(Failure, match=r"a rule \(from 198.51.100.7, table 10002\)"):
            chosen([ETHER, OTHER], routes, [*STANDARD, by_source])


def test_address_without_a_way_out() -> None:
    """Its routes are in a table of their own."""
    lone = ether("eth1", addr_info=[ADDRESS | {"local": "198.51.100.7", "noprefixroute": True}])

    with pytest.raises(Failure, match="no route of the main table leaves by eth1"):
        chosen([ETHER, lone], [with_gateway()], needed="198.51.100.7")


def test_way_back(captured: dict[str, Any], tmp_path: Path) -> None:
    """An operator inside of a tunnel that ends on the machine."""
    asked = "route get 10.8.0.2 from 203.0.113.7"
    captured[asked] = [{"dst": "10.8.0.2", "dev": "eth0", "flags": []}]
    assert server.capture(tmp_path, "203.0.113.7", "10.8.0.2")

    captured[asked][0]["dev"] = "wg0"
    with pytest.raises(Failure, match=r"the way back to you, 10\.8\.0\.2, leaves by wg0"):
        server.capture(tmp_path, "203.0.113.7", "10.8.0.2")


def test_links_that_do_not_count() -> None:
    """The talk with a board's own controller; what is down; an address that somebody else has."""
    bmc = ether("usb0", addr_info=[ADDRESS | {"local": "169.254.3.1", "prefixlen": 16}])
    down = OTHER | {"flags": ["BROADCAST", "NO-CARRIER"]}
    taken = ether("eth2", addr_info=[ADDRESS | {"local": "198.51.100.9", "dadfailed": True}])

    found = chosen([ETHER, bmc, down, taken])

    assert [each["name"] for each in found["interfaces"]] == ["eth0"]
    assert found["left"] == []
    assert chosen([ETHER, bmc], needed="169.254.3.1")["interfaces"][0]["name"] == "usb0"


def test_the_operators_own_way_comes_first() -> None:
    found = chosen([OTHER, ETHER])["interfaces"]

    assert [(each["name"], each["needed"]) for each in found] == [("eth0", True), ("eth1", False)]


def test_no_name_server_of_a_family_that_is_off(captured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("nameserver 2001:db8::53\nnameserver 10.0.2.3\n")
    captured["-6 route show"] = []
    for link in captured["address show"]:
        link["addr_info"] = [each for each in link["addr_info"] if each["family"] == "inet"]

    found = server.capture(tmp_path, "203.0.113.7")

    assert found["dns"] == ["10.0.2.3"]
    assert not any(each["ipv6"] for each in found["interfaces"])


def test_older_kernels_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That ip(8) does not hear the permanent address from."""
    monkeypatch.setattr(server, "NETWORK", tmp_path)
    add_card(tmp_path / "eth0", "a1", "virtio")
    (tmp_path / "eth0/addr_assign_type").write_text("0\n")
    (tmp_path / "br0").mkdir()
    assert server.hardware({"ifname": "br0"}) == {}
    assert server.hardware({"ifname": "eth0"}) == {"parentbus": "virtio"}

    (tmp_path / "eth0/addr_assign_type").write_text("3\n")
    assert server.hardware({"ifname": "eth0"})["permaddr"] == ""
    assert "permaddr" not in server.hardware({"ifname": "eth0", "permaddr": "a2"})

    (tmp_path / "eth0/bonding_slave").mkdir()
    (tmp_path / "eth0/bonding_slave/perm_hwaddr").write_text("a3\n")
    assert server.hardware({"ifname": "eth0"})["permaddr"] == "a3"


# Name servers


@pytest.mark.parametrize(
    ("resolv_conf", "resolved", "expected"),
    [
        (
            "nameserver 203.0.113.53\nnameserver 2001:db8::53\n",
            None,
            ["203.0.113.53", "2001:db8::53"],
        ),
        ("# nameserver 1.1.1.1\nsearch example.org\noptions edns0\nnameserver\n", None, []),
        ("nameserver 127.0.0.53\n", "nameserver 10.0.2.3\n", ["10.0.2.3"]),
        (
            "nameserver 10.0.2.3\n",
            "nameserver 10.0.2.3\nnameserver 10.0.2.4\n",
            ["10.0.2.3", "10.0.2.4"],
        ),
        ("nameserver 127.0.0.1\nnameserver ::1\n", None, []),
        ("", None, []),
        (None, None, []),
    ],
)
def test_nameservers(
    tmp_path: Path, resolv_conf: str | None, resolved: str | None, expected: list[str]
) -> None:
    """A resolver on the old system itself does not answer in the initramfs."""
    for path, text in (("etc/resolv.conf", resolv_conf), (server.RESOLVED, resolved)):
        (tmp_path / path).parent.mkdir(parents=True)
        if text is not None:
            (tmp_path / path).write_text(text)

    assert server.nameservers(tmp_path) == expected


@pytest.mark.parametrize("link", ["/run/own/resolv.conf", "../run/own/resolv.conf"])
def test_resolv_conf_is_a_link(tmp_path: Path, link: str) -> None:
    """In the old system, seen from the base image."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").symlink_to(link)
    (tmp_path / "run/own").mkdir(parents=True)
    (tmp_path / "run/own/resolv.conf").write_text("nameserver 192.0.2.53\n")

    assert server.nameservers(tmp_path) == ["192.0.2.53"]


# In the initramfs


def test_commands() -> None:
    settle, *rest = initramfs.commands("ens3", ETH0, {})

    assert settle == ["sh", "-c", initramfs.SETTLE, "ens3", "0"]
    assert [" ".join(argv) for argv in rest] == [
        "ip link set ens3 mtu 1500 up",
        "ip address replace 203.0.113.7/24 dev ens3",
        "ip address replace 10.9.9.9/32 dev ens3",
        "ip address replace 2001:db8::7/64 nodad dev ens3",
        "ip address replace fe80::5054:ff:fe00:1/64 scope link nodad dev ens3",
        "ip -4 route replace default via 203.0.113.1 src 203.0.113.7 metric 100 dev ens3",
        "ip -4 route replace 10.0.0.0/8 via 203.0.113.2 dev ens3",
        "ip -6 route replace default via fe80::1 metric 1024 dev ens3",
    ]


def test_routes_without_gateway_come_first() -> None:
    interface = BRIDGE | {
        "routes": [
            {"family": "-4", "dst": "default", "gateway": "10.0.0.1", "flags": ["onlink"]},
            {"family": "-4", "dst": "10.0.0.1", "metric": 5, "flags": []},
            {"family": "-6", "dst": "default", "flags": []},
        ]
    }

    assert [" ".join(argv[1:]) for argv in initramfs.commands("x", interface, {})[4:]] == [
        "-4 route replace 10.0.0.1 metric 5 dev x",
        "-6 route replace default dev x",
        "-4 route replace default via 10.0.0.1 onlink dev x",
    ]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /sys/class/net: a network card, and a bridge with its MAC address."""
    for name, mac in (("br0", "52:54:00:00:00:01"), ("lo", "0:0")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text(f"{mac}\n")
    add_card(tmp_path / "net/ens3", "52:54:00:00:00:01")
    monkeypatch.setattr(initramfs, "NETWORK", tmp_path / "net")
    return tmp_path / "net"


def add_card(place: Path, mac: str, bus: str = "pci") -> None:
    (place / "device").mkdir(parents=True)
    (place / "address").write_text(f"{mac}\n")
    (place / "device/subsystem").symlink_to(f"/bus/{bus}")


def card(mac: str, **more: str) -> Any:
    return {"mac": mac, "address": "", "bus": "", **more}


def test_name_of(net: Path) -> None:
    assert initramfs.name_of(card("52:54:00:00:00:01")) == "ens3"
    assert initramfs.name_of(card("52:54:00:00:00:02")) == ""
    assert initramfs.name_of(card("0:0")) == ""
    # Some cards keep the address that was set by hand.
    assert initramfs.name_of(card("02:01", address="52:54:00:00:00:01")) == "ens3"


@pytest.mark.parametrize("commanded", [False, True])
def test_synthetic_card(net: Path, commanded: bool) -> None:
    """A cloud's: the physical one that it commands, now or soon, has its address, too."""
    mac = "00:22:48:aa:bb:cc"
    add_card(net / "eth7", mac, "vmbus")
    for physical in ("enP30832s1", "zz"):  # before it and behind it in the directory
        add_card(net / physical, mac)
        if commanded:
            (net / physical / "master").symlink_to("../eth7")

    assert initramfs.name_of(card(mac, bus="vmbus")) == "eth7"
    if commanded:
        assert initramfs.name_of(card(mac)) == "eth7"


def test_up(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolv.conf of the base image may be a link: it is replaced, not followed."""
    done: list[str] = []
    monkeypatch.setattr(initramfs, "run", lambda argv: done.append(" ".join(argv)))
    (tmp_path / "precious").write_text("precious")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.symlink_to("precious")

    monkeypatch.setattr(initramfs, "lives", lambda family: False)
    dns = ["10.0.2.3", "2001:db8::53"]

    initramfs.up({"interfaces": [ETH0], "dns": dns, "operator": "inet"}, resolv_conf)

    assert done[0] == "ip link set lo up"
    assert done[2] == "ip link set ens3 mtu 1500 up"
    assert done[-2:] == [
        "ip -6 address flush scope global",
        "ip -6 route flush default",
    ]
    assert len(done) == 12
    assert resolv_conf.read_text() == "nameserver 10.0.2.3\n"
    assert (tmp_path / "precious").read_text() == "precious"


def wait_for(what: str, condition: Callable[[], bool], patience_s: float) -> None:
    if not condition():
        raise Failure(f"no {what}")


def test_missing_interface(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "run", lambda argv: None)
    monkeypatch.setattr(initramfs, "wait_for", wait_for)

    with pytest.raises(Failure, match="no network interface with MAC address 52:54:00:00:00:02"):
        initramfs.up(
            NETWORK | {"interfaces": [BRIDGE | {"needed": True}]}, tmp_path / "resolv.conf"
        )


def test_what_the_operator_does_not_need_may_fail(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A card that is not there, what lies on it, and a command that fails."""
    done: list[str] = []

    def run(argv: Sequence[str]) -> str:
        done.append(" ".join(argv))
        if "office" in argv:
            raise Failure("ip link add: refused")
        return ""

    monkeypatch.setattr(initramfs, "run", run)
    monkeypatch.setattr(initramfs, "wait_for", wait_for)
    lost = VLAN | {"name": "eth1.5", "parent": "eth1"}
    bond = VLAN | {"name": "bond0", "kind": "bond", "members": ["eth1"]}
    interfaces = [ETH0 | {"needed": True}, BRIDGE, lost, bond, VLAN | {"name": "office"}]
    resolv_conf = tmp_path / "resolv.conf"

    initramfs.up({"interfaces": interfaces, "dns": ["192.0.2.1"], "operator": "inet"}, resolv_conf)

    assert resolv_conf.read_text() == "nameserver 192.0.2.1\n"
    assert not [line for line in done if "bond0" in line or "eth1" in line]
    said = capsys.readouterr().err
    assert "eth1 is left out: no network interface with MAC address" in said
    assert "eth1.5 is left out: eth1.5: nothing below it works: eth1" in said
    assert "bond0 is left out" in said
    assert "office is left out: ip link add: refused" in said


def test_bond_without_one_of_its_members() -> None:
    options = {"mode": "active-backup", "primary": "eth1", "miimon": 100}
    bond = VLAN | {"kind": "bond", "mac": "a1", "members": ["eth0", "eth1"], "options": options}

    lines = [" ".join(argv) for argv in initramfs.commands("bond0", bond, {"eth0": "ens3"})]

    assert "ip link set ens3 master bond0" in lines
    assert not [line for line in lines if "eth1" in line or "primary" in line]


# With a real kernel: a network namespace with one end of a cable, which gets another name.

SETUPS = {
    "static": [
        "address add 203.0.113.7/24 brd + dev eth0",
        "route add default via 203.0.113.1 dev eth0",
        "route add 198.51.100.0/24 via 203.0.113.2 dev eth0 metric 7",
    ],
    "host route": [
        "address add 203.0.113.7/32 dev eth0",
        "route add 172.31.1.1 dev eth0",
        "route add default via 172.31.1.1 dev eth0",
    ],
    "onlink": [
        "address add 203.0.113.7/32 dev eth0",
        "route add default via 203.0.113.1 dev eth0 onlink",
    ],
    "point to point": [
        "address add 203.0.113.7 peer 203.0.113.1/32 dev eth0",
        "route add default via 203.0.113.1 dev eth0",
    ],
    "several": [
        "link set eth0 mtu 1400",
        "address add 203.0.113.7/24 dev eth0",
        "address add 203.0.113.8/24 dev eth0",
        "address add 10.1.2.3/8 dev eth0",
        "route add default via 203.0.113.1 dev eth0 metric 100",
        "route add default via 10.0.0.1 dev eth0 metric 200",
    ],
    "IPv6": [
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "-6 address add 2001:db8::8/128 dev eth0 nodad",
        "-6 route add default via 2001:db8::1 dev eth0",
    ],
    "IPv6, link-local gateway": [
        "-6 address add 2001:db8::7/128 dev eth0 nodad",
        "-6 route add default via fe80::1 dev eth0 metric 512",
        "-6 route add 2001:db8:1::/48 dev eth0",
    ],
    "IPv6, onlink": [
        "-6 address add 2001:db8::7/128 dev eth0 nodad",
        "-6 route add default via 2001:db9::1 dev eth0 onlink",
    ],
    "IPv6 next hop": [
        "address add 203.0.113.7/32 dev eth0",
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "-4 route add default via inet6 fe80::1 dev eth0",
    ],
    "source": [
        "address add 10.7.0.5/24 dev eth0",
        "address add 203.0.113.9/32 dev eth0",
        "route add default via 10.7.0.1 dev eth0 src 203.0.113.9",
    ],
    "route's own": [
        "address add 203.0.113.7/24 dev eth0",
        "route add default via 203.0.113.1 dev eth0 mtu 1400 advmss 1360 initcwnd 20",
        "route add 10.0.0.0/8 via 203.0.113.1 dev eth0 tos 0x10",
        "route add 10.1.0.0/16 dev eth0 scope site",
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "-6 route add default via fe80::1 dev eth0 pref high hoplimit 9",
    ],
    "address's own": [
        "address add 203.0.113.7/24 dev eth0 metric 77",
        "address add 198.51.100.7/24 dev eth0 noprefixroute",
        "route add 198.51.100.0/25 dev eth0 proto kernel src 198.51.100.7 metric 100",
        "address add 169.254.7.7/16 dev eth0 scope link",
        "-6 address add 2001:db8::7/64 dev eth0 nodad preferred_lft 0",
        "-6 address add 2001:db8::8/64 dev eth0 nodad noprefixroute",
        "-6 address add fe80::77/64 dev eth0 nodad",
        "-6 route add 2001:db8:5::/64 dev eth0 proto kernel",
    ],
    "no IPv6": ["address add 203.0.113.7/24 dev eth0", "NO IPv6"],
    "both": [
        "address add 203.0.113.7/24 dev eth0",
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "route add default via 203.0.113.1 dev eth0",
        "-6 route add default via fe80::1 dev eth0",
    ],
}
KEYS: tuple[str, ...] = (
    "dst",
    "gateway",
    "via",
    "metric",
    "metrics",
    "flags",
    "scope",
    "type",
    "prefsrc",
    "pref",
)
KEYS += ("tos",)
PARTS = ("local", "address", "prefixlen", "scope", "metric", "noprefixroute", "deprecated")


def state(name: str) -> dict[str, Any]:
    """The addresses and routes of the interface NAME, as the kernel has them now."""
    (link,) = json.loads(run(["ip", "-json", "address", "show", "dev", name]))
    routes = [
        {key: route[key] for key in KEYS if key in route}
        for family in ("-4", "-6")
        for route in json.loads(run(["ip", "-json", family, "route", "show", "dev", name]) or "[]")
    ]
    addresses = [{key: each[key] for key in PARTS if key in each} for each in link["addr_info"]]
    # The first IPv4 address is the primary one; those of IPv6 have no order.
    addresses.sort(key=lambda each: each["local"] if ":" in each["local"] else "")
    found = {"addresses": addresses, "routes": sorted(routes, key=str)}
    return found | {key: link[key] for key in ("mtu", "address")}


def ip(*lines: str) -> None:
    for line in lines:
        run(["ip", *line.split()] if line != "NO IPv6" else NO_IPV6)


NO_IPV6 = ["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"]
IPV6 = ["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6"]


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.proves(network=("static IPv4", "static IPv6", "IPv6 only", "on-link gateway"))
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_same_network_again(
    setup: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "kind", lambda link: "")  # the cable counts as hardware

    def scene() -> None:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        ip("link add eth0 address 02:00:00:00:00:07 type veth peer name far", "link set far up")
        ip("link set eth0 up", *setup)
        before = state("eth0")
        (interface,) = server.capture(tmp_path, before["addresses"][0]["local"])["interfaces"]
        ip("link delete eth0", "link add wan0 address 02:00:00:00:00:07 type veth peer name far")
        ip("link set far up")
        run(IPV6)

        for _ in range(2):  # once more changes nothing, and nothing fails
            for argv in initramfs.commands("wan0", json.loads(json.dumps(interface)), {}):
                run(argv)

        assert state("wan0") == before
        assert run(["cat", "/proc/sys/net/ipv6/conf/wan0/accept_ra"]).strip() == "0"

    with ThreadPoolExecutor() as pool:
        pool.submit(scene).result()


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("there", [[], ["inet"], ["inet6"], ["inet", "inet6"]], ids=str)
def test_gateway_that_answers(there: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the other end of the cable, the gateways of the families THERE."""
    monkeypatch.setattr(initramfs, "GATEWAY_S", 3.0)
    far = f"anemos-{os.getpid()}-{len(there)}"
    address = {"inet": "203.0.113.1/24", "inet6": "fe80::1/64 nodad"}

    def scene() -> dict[str, bool]:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        ip("link add eth0 type veth peer name far", f"link set far netns {far}")
        ip("link set eth0 up", f"-n {far} link set far up", *SETUPS["both"])
        ip(*(f"-n {far} address add {address[family]} dev far" for family in there))
        return {family: initramfs.lives(family) for family in initramfs.FAMILIES}

    ip(f"netns add {far}")
    try:
        with ThreadPoolExecutor() as pool:
            found = pool.submit(scene).result()
    finally:
        ip(f"netns delete {far}")

    assert found == {family: family in there for family in initramfs.FAMILIES}


@pytest.mark.root
@pytest.mark.real("run")
def test_drop_a_family() -> None:
    """IPv6 goes but for the IPv4 route's gateway; then IPv4."""

    def scene() -> list[list[dict[str, Any]]]:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        ip("link add eth0 type veth peer name far", "link set far up", "link set eth0 up")
        ip(*SETUPS["IPv6 next hop"], "-6 route add default via fe80::1 dev eth0")
        found = []
        for family in ("inet6", "inet6", "inet"):
            initramfs.drop(family)
            routes = [run(["ip", "-json", each, "route"]) for each in ("-4", "-6")]
            found.append([route for said in routes for route in json.loads(said or "[]")])
        return found

    with ThreadPoolExecutor() as pool:
        once, again, none = pool.submit(scene).result()

    assert again == once
    assert [each["via"]["host"] for each in once if each["dst"] == "default"] == ["fe80::1"]
    assert not [each for each in once if each["dst"].startswith("2001")]
    assert {each["dst"] for each in none} == {"fe80::/64"}


# In the initramfs itself, whose kernel has bonds and VLANs: a bond of two cards on one cable.

SCENE = """
import json, sys
from pathlib import Path
from anemos.run import run
from anemos.border import records
from anemos.border.network import Network
from anemos.initramfs import network as initramfs
from anemos.server import network as server

def ip(line):
    run(["ip", *line.split()])

def state(name):
    (link,) = json.loads(run(["ip", "-json", "-details", "address", "show", "dev", name]))
    info = link["linkinfo"]["info_data"]
    routes = sorted(run(["ip", each, "route", "show", "dev", name]) for each in ("-4", "-6"))
    return [
        link["mtu"], link["address"], routes,
        {key: info.get(key) for key in ("mode", "miimon", "id", "protocol")},
        [each["local"] for each in link["addr_info"] if each["scope"] == "global"],
    ]

first, second = (
    initramfs.name_of({"mac": f"52:54:00:00:01:0{n}", "address": "", "bus": ""}) for n in (1, 2)
)
run(["modprobe", "bonding", "max_bonds=0"])
ip("link add bond0 type bond mode active-backup miimon 250")
ip(f"link set {first} master bond0")
ip(f"link set {second} master bond0")
ip("link set bond0 mtu 1400 up")
ip("address add 192.0.2.7/24 dev bond0")
ip("link add link bond0 name office type vlan id 7")
ip("link set office up")
ip("address add 198.51.100.7/32 dev office")
ip("-6 address add 2001:db8::7/64 dev office nodad")
ip("route add 198.51.100.1 dev office")
ip("route add 203.0.113.0/24 via 198.51.100.1 dev office metric 7")
before = [state("bond0"), state("office")]
captured = json.loads(json.dumps(server.capture(Path("/"), "192.0.2.7")))
ip("link delete bond0")
for interface in captured["interfaces"]:
    interface["dhcp"] = interface["name"] not in ("bond0", "office", first, second)
initramfs.up(captured, Path("/tmp/resolv.conf"))
print(json.dumps([before, [state("bond0"), state("office")]]))
"""


@pytest.mark.all
@pytest.mark.vm
@pytest.mark.root
@pytest.mark.real("run", "ssh")
@pytest.mark.proves(network=("DHCP", "bond", "VLAN"), arch="amd64")
def test_bond_and_vlan() -> None:
    """Captured, taken down, made again; and the lease of the card that leads here is kept."""
    cards: list[str] = []
    for number in (1, 2):
        cards += ["-netdev", f"hubport,hubid=1,id=h{number}", "-device"]
        cards += [f"virtio-net-pci,netdev=h{number},mac=52:54:00:00:01:0{number}"]
    with lab.opened() as room:
        guest = room.boot(room.parts("target=debian\n"), [], *cards)
        guest.await_ssh()
        before, after = json.loads(guest.sh(f"python3 -B -c '{SCENE}'").splitlines()[-1])

        assert after == before
        assert before[0][3]["mode"] == "active-backup"
        assert "203.0.113.0/24 via 198.51.100.1 metric 7" in before[1][2][0]
        assert "udhcpc -b -i" in guest.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "10.0.2.15/24" in guest.sh("ip -4 address show")
