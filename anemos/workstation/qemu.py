"""Disks and network of a local machine, as arguments of qemu(1). Pure."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anemos.border import network
from anemos.disks import plain

MAC = "52:54:00:a2:e0:05"
VIRTIO_SERIAL = 20  # bytes; QEMU cuts what is longer (virtio specification 1.2, 5.2.6)
SCSI_SERIAL = 36  # the same, of its scsi-hd


@dataclass(frozen=True)
class Drive:
    """A disk in FILE with what MATCH (see image/layout.py) says of the real one."""

    name: str
    file: Path
    match: Mapping[str, str]

    def words(self) -> list[str]:
        """Raises ValueError for what no disk of QEMU's can be."""
        if "path" in self.match:
            raise ValueError(f"disk {self.name!r}: a local VM has no slot {self.match['path']}")
        file = escape(str(self.file))
        drive = f"file={file},format=raw,if=none,id={self.name},cache=unsafe,discard=unmap"
        identity = [f"serial={escape(self.serial)}"] if self.serial else []
        if not self.scsi:
            return ["-drive", drive, "-device", device("virtio-blk-pci", self.name, identity)]
        identity += [f"wwn=0x{self.naa}"] if self.naa else []
        return ["-drive", drive, "-device", device("scsi-hd", self.name, identity)]

    @property
    def serial(self) -> str:
        serial = self.match.get("serial", "")
        if len(serial.encode()) > SCSI_SERIAL:
            raise ValueError(f"disk {self.name!r}: a local VM's serials have {SCSI_SERIAL} bytes")
        return serial

    @property
    def naa(self) -> str:
        """The world wide name's digits: the kernel shows it as "naa.5000c500a1b2c3d4"."""
        wwn = self.match.get("wwn", "")
        if wwn and not re.fullmatch(r"(naa\.|0x)[0-9a-fA-F]{16}", wwn):
            raise ValueError(f"disk {self.name!r}: a local VM's wwn is naa. and 16 digits")
        return plain("wwn", wwn)

    @property
    def scsi(self) -> bool:
        """Where virtio-blk has no WWN, or not enough room."""
        return bool(self.naa) or len(self.serial.encode()) > VIRTIO_SERIAL


def device(model: str, drive: str, options: Sequence[str]) -> str:
    return ",".join([model, f"drive={drive}", *options])


def drives(every: Sequence[Drive]) -> list[str]:
    """The arguments for all disks. Raises ValueError, see Drive.words."""
    controller = ["-device", "virtio-scsi-pci"] if any(each.scsi for each in every) else []
    return controller + [word for each in every for word in each.words()]


def escape(value: str) -> str:
    return value.replace(",", ",,")


@dataclass(frozen=True)
class Network:
    """QEMU's user network around a guest with ADDRESS ("10.0.2.15/24"): NAT, DHCP, DNS."""

    address: str = "10.0.2.15/24"
    gateway: str = "10.0.2.2"

    def check(self) -> None:
        """Raises ValueError, with the reason, for what QEMU cannot be."""
        own, gateway = ipaddress.IPv4Interface(self.address), ipaddress.IPv4Address(self.gateway)
        if own.network.num_addresses < 8:
            raise ValueError(f"{self.address}: a local VM's network needs a prefix up to /29")
        if gateway not in own.network or gateway == own.ip:
            raise ValueError(f"{gateway} is no gateway in the network of {self.address}")

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]

    @property
    def dns(self) -> str:
        """The third address, as QEMU has it by itself, or the next that is free."""
        hosts = list(ipaddress.IPv4Interface(self.address).network.hosts())[2:5]
        return next(str(each) for each in hosts if str(each) not in (self.ip, self.gateway))

    def words(self, forward: Mapping[int, int]) -> list[str]:
        """FORWARD: the guest's port -> this machine's, over TCP and UDP.

        DHCP offers the guest its ADDRESS.
        """
        around = str(ipaddress.IPv4Interface(self.address).network)
        options = [f"net={around}", f"host={self.gateway}", f"dns={self.dns}"]
        options += [f"dhcpstart={self.ip}"]
        for guest, here in forward.items():
            ends = f"127.0.0.1:{here}-{self.ip}:{guest}"
            options += [f"hostfwd=tcp:{ends}", f"hostfwd=udp:{ends}"]
        return ["-netdev", ",".join(["user", "id=net", *options])] + [
            "-device",
            f"virtio-net-pci,netdev=net,mac={MAC}",
        ]

    def capture(self) -> network.Network:
        """What server/network.py would capture in the guest."""
        return describe(MAC, self.address, self.gateway, [self.dns])


def describe(mac: str, address: str, gateway: str, dns: Sequence[str]) -> network.Network:
    """A network of one interface, in the format of server/network.py. Raises ValueError."""
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac.lower()):
        raise ValueError(f"{mac} is no MAC address")
    own = ipaddress.ip_interface(address)
    family: network.Family = "inet" if own.version == 4 else "inet6"
    # A gateway outside of the interface's own network is reached directly.
    flags = [] if not gateway or ipaddress.ip_address(gateway) in own.network else ["onlink"]
    default: network.Route = {"family": "-4" if own.version == 4 else "-6", "dst": "default"}
    default |= {"gateway": gateway, "flags": flags}
    interface: network.Ether = {
        "name": "eth0",
        "kind": "ether",
        "mac": mac.lower(),
        "address": "",
        "bus": "",
        "needed": True,
        "ipv6": True,
        "dhcp": False,
        "mtu": 1500,
        "addresses": [{"local": str(own.ip), "prefixlen": own.network.prefixlen, "family": family}],
        "routes": [default] if gateway else [],
    }
    return {"interfaces": [interface], "dns": list(dns), "operator": family}
