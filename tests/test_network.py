"""The network, captured on the old system and brought up again in the initramfs."""

import ctypes
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from anemos.initramfs import network as initramfs
from anemos.log import Failure
from anemos.run import run
from anemos.server import network as server
from tests import lab

CLONE_NEWNET = 0x40000000  # linux/sched.h

# A server with eth0, a VLAN on it, eth1 in a bridge, and a bridge of containers.
CAPTURED = json.loads((Path(__file__).parent / "data/network.json").read_text())
LINKS = CAPTURED["address show"]
ROUTES = [
    route | {"family": family}
    for family in ("-4", "-6")
    for route in CAPTURED[f"{family} route show"]
]
ETH0 = {
    "name": "eth0",
    "kind": "ether",
    "mac": "52:54:00:00:00:01",
    "mtu": 1500,
    "addresses": [
        {"local": "203.0.113.7", "prefixlen": 24, "family": "inet"},
        {"local": "10.9.9.9", "prefixlen": 32, "family": "inet"},
        {"local": "2001:db8::7", "prefixlen": 64, "family": "inet6"},
    ],
    "routes": [
        {"family": "-4", "dst": "default", "gateway": "203.0.113.1", "metric": 100, "flags": []},
        {"family": "-4", "dst": "10.0.0.0/8", "gateway": "203.0.113.2", "flags": []},
        {"family": "-6", "dst": "default", "gateway": "fe80::1", "metric": 1024, "flags": []},
    ],
    "dhcp": False,
}
BRIDGE = {
    "name": "eth1",
    "kind": "ether",
    "mac": "52:54:00:00:00:02",
    "mtu": 1500,
    "addresses": [{"local": "198.51.100.5", "prefixlen": 24, "family": "inet"}],
    "routes": [],
    "dhcp": False,
}
VLAN = {
    "name": "eth0.100",
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
    found = server.select([link | {"address": link.get("address", "a1")} for link in STACK], [])

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

    found = server.select([bond, *members], [])[-1]

    assert found["options"] == {"mode": "active-backup", "miimon": 250, "primary": "eth1"}


def test_select_nothing() -> None:
    assert server.select([link for link in LINKS if link["ifname"] == "docker0"], ROUTES) == []
    assert server.select([], []) == []


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ip(8)'s answers, to be changed."""
    answers: dict[str, Any] = json.loads(json.dumps(CAPTURED))

    def answer(argv: Sequence[str]) -> str:
        assert argv[:2] == ["ip", "-json"]
        said = answers[" ".join(word for word in argv[2:] if word != "-details")]
        return json.dumps(said) if said else ""

    monkeypatch.setattr(server, "run", answer)
    return answers


def test_capture(captured: dict[str, Any], tmp_path: Path) -> None:
    found = server.capture(tmp_path, "203.0.113.7")

    assert found == {"interfaces": [ETH0, BRIDGE, VLAN], "dns": [], "operator": "inet"}
    assert json.loads(json.dumps(found)) == found


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


# In the initramfs


def test_commands() -> None:
    assert [" ".join(argv) for argv in initramfs.commands("ens3", ETH0, {})] == [
        "ip link set ens3 mtu 1500 up",
        "ip address replace 203.0.113.7/24 dev ens3",
        "ip address replace 10.9.9.9/32 dev ens3",
        "ip address replace 2001:db8::7/64 nodad dev ens3",
        "ip -4 route replace default via 203.0.113.1 metric 100 dev ens3",
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

    assert [" ".join(argv[1:]) for argv in initramfs.commands("x", interface, {})[2:]] == [
        "-4 route replace 10.0.0.1 metric 5 dev x",
        "-6 route replace default dev x",
        "-4 route replace default via 10.0.0.1 onlink dev x",
    ]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /sys/class/net: a network card, and a bridge with its MAC address."""
    for name, mac in (("br0", "52:54:00:00:00:01"), ("ens3", "52:54:00:00:00:01"), ("lo", "0:0")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text(f"{mac}\n")
    (tmp_path / "net/ens3/device").mkdir()
    monkeypatch.setattr(initramfs, "NETWORK", tmp_path / "net")
    return tmp_path / "net"


def test_name_of(net: Path) -> None:
    assert initramfs.name_of("52:54:00:00:00:01") == "ens3"
    assert initramfs.name_of("52:54:00:00:00:02") == ""
    assert initramfs.name_of("0:0") == ""


def test_up(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolv.conf of the base image may be a link: it is replaced, not followed."""
    done: list[str] = []
    monkeypatch.setattr(initramfs, "run", lambda argv: done.append(" ".join(argv)))
    (tmp_path / "precious").write_text("precious")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.symlink_to("precious")

    monkeypatch.setattr(initramfs, "lives", lambda family: False)
    monkeypatch.setattr(initramfs, "NO_IPV6", tmp_path / "no_ipv6")
    dns = ["10.0.2.3", "2001:db8::53"]

    initramfs.up({"interfaces": [ETH0], "dns": dns, "operator": "inet"}, resolv_conf)

    assert done[:2] == ["ip link set lo up", "ip link set ens3 mtu 1500 up"]
    assert len(done) == 8
    assert (tmp_path / "no_ipv6").read_text() == "1"
    assert resolv_conf.read_text() == "nameserver 10.0.2.3\n"
    assert (tmp_path / "precious").read_text() == "precious"


def test_missing_interface(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for(what: str, condition: Callable[[], bool]) -> None:
        assert not condition()
        raise Failure(f"no {what}")

    monkeypatch.setattr(initramfs, "run", lambda argv: None)
    monkeypatch.setattr(initramfs, "wait_for", wait_for)

    with pytest.raises(Failure, match="no network interface with MAC address 52:54:00:00:00:02"):
        initramfs.up({"interfaces": [BRIDGE]}, tmp_path / "resolv.conf")


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
    "both": [
        "address add 203.0.113.7/24 dev eth0",
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "route add default via 203.0.113.1 dev eth0",
        "-6 route add default via fe80::1 dev eth0",
    ],
}
KEYS = ("dst", "gateway", "metric", "flags", "scope", "type")


def state(name: str) -> dict[str, Any]:
    """The addresses and routes of the interface NAME, as the kernel has them now."""
    (link,) = json.loads(run(["ip", "-json", "address", "show", "dev", name]))
    routes = [
        {key: route[key] for key in KEYS if key in route}
        for family in ("-4", "-6")
        for route in json.loads(run(["ip", "-json", family, "route", "show", "dev", name]) or "[]")
    ]
    addresses = [
        {key: each[key] for key in ("local", "address", "prefixlen") if key in each}
        for each in link["addr_info"]
        if each["scope"] == "global"
    ]
    # The first IPv4 address is the primary one; those of IPv6 have no order.
    addresses.sort(key=lambda each: each["local"] if ":" in each["local"] else "")
    return {"mtu": link["mtu"], "addresses": addresses, "routes": sorted(routes, key=str)}


def ip(*lines: str) -> None:
    for line in lines:
        run(["ip", *line.split()])


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_same_network_again(
    setup: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "kind", lambda link: "")  # the cable counts as hardware

    def scene() -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
        ip("link add eth0 type veth peer name far", "link set far up", "link set eth0 up", *setup)
        before = state("eth0")
        (interface,) = server.capture(tmp_path, before["addresses"][0]["local"])["interfaces"]
        ip("link set eth0 down", "address flush dev eth0", "link set eth0 mtu 1500 name wan0")
        assert state("wan0")["addresses"] == state("wan0")["routes"] == []

        for _ in range(2):  # once more changes nothing, and nothing fails
            for argv in initramfs.commands("wan0", json.loads(json.dumps(interface)), {}):
                run(argv)

        assert state("wan0") == before

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
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
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


# In the initramfs itself, whose kernel has bonds and VLANs: a bond of two cards on one cable.

SCENE = """
import json, sys
from pathlib import Path
from anemos.run import run
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

first, second = (initramfs.name_of(f"52:54:00:00:01:0{n}") for n in (1, 2))
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


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.real("run", "ssh")
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
