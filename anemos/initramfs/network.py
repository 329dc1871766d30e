"""Brings up the network that the old system had, interface by interface, by MAC address."""

from pathlib import Path
from typing import Any

from anemos import log
from anemos.initramfs.hardware import wait_for
from anemos.run import run

NETWORK = Path("/sys/class/net")


def up(network: dict[str, Any], resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
    """NETWORK as server/network.py captured it. Raises Failure when an interface is missing."""
    run(["ip", "link", "set", "lo", "up"])
    for interface in network["interfaces"]:
        mac = interface["mac"]
        wait_for(f"network interface with MAC address {mac}", lambda: bool(name_of(mac)))  # noqa: B023
        for argv in commands(name_of(mac), interface):
            log.info(" ".join(argv))
            run(argv)
    resolv_conf.unlink(missing_ok=True)
    resolv_conf.write_text("".join(f"nameserver {server}\n" for server in network["dns"]))


def name_of(mac: str) -> str:
    """The interface's name under this kernel, or ""."""
    for entry in NETWORK.iterdir():
        if (entry / "device").exists() and (entry / "address").read_text().strip() == mac:
            return entry.name
    return ""


def commands(name: str, interface: dict[str, Any]) -> list[list[str]]:
    """The argv lists that give the interface NAME its MTU, addresses and routes. Pure."""
    return [
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
