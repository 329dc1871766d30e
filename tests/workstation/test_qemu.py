"""Disks and network of local machines as QEMU's arguments."""

from itertools import pairwise
from pathlib import Path

import pytest

from anemos.initramfs import network as initramfs
from anemos.workstation import qemu
from anemos.workstation.qemu import MAC, Drive, Network


def drive(**match: str) -> Drive:
    return Drive("d", Path("/x,y/d.img"), match)


def devices(*drives: Drive) -> list[str]:
    return [value for word, value in pairwise(qemu.drives(drives)) if word == "-device"]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"serial": "S" * 20}, [f"virtio-blk-pci,drive=d,serial={'S' * 20}"]),
        ({"size": "512"}, ["virtio-blk-pci,drive=d"]),
        (
            {"serial": "a,b", "wwn": "naa.5000c500a1b2c3d4"},
            ["virtio-scsi-pci", "scsi-hd,drive=d,serial=a,,b,wwn=0x5000c500a1b2c3d4"],
        ),
        (
            {"wwn": "0x5000C500a1b2c3d4"},
            ["virtio-scsi-pci", "scsi-hd,drive=d,wwn=0x5000c500a1b2c3d4"],
        ),
        ({"serial": "S" * 21}, ["virtio-scsi-pci", f"scsi-hd,drive=d,serial={'S' * 21}"]),
    ],
)
def test_disk_is_what_the_layout_says(match: dict[str, str], expected: list[str]) -> None:
    assert devices(drive(**match)) == expected


def test_comma_in_the_name_of_a_file() -> None:
    assert "file=/x,,y/d.img,format=raw" in drive(serial="S").words()[1]


@pytest.mark.parametrize("match", [{"serial": "S" * 37}, {"wwn": "eui.0025385b71b0a0b1"}])
def test_disk_that_qemu_does_not_have(match: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="disk 'd': a local VM's"):
        drive(**match).words()


def test_network_of_a_real_host() -> None:
    network = Network("203.0.113.5/24", "203.0.113.1")

    network.check()
    assert network.words({22: 4022})[1] == (
        "user,id=net,net=203.0.113.0/24,host=203.0.113.1,dns=203.0.113.3,dhcpstart=203.0.113.5,"
        "hostfwd=tcp:127.0.0.1:4022-203.0.113.5:22,hostfwd=udp:127.0.0.1:4022-203.0.113.5:22"
    )
    assert Network("203.0.113.3/29", "203.0.113.4").dns == "203.0.113.5"


@pytest.mark.parametrize(
    ("address", "gateway", "route"),
    [
        ("203.0.113.5/24", "203.0.113.1", "-4 route replace default via 203.0.113.1 dev eth0"),
        ("203.0.113.5/32", "192.0.2.1", "-4 route replace default via 192.0.2.1 onlink dev eth0"),
        ("2001:db8::5/64", "fe80::1", "-6 route replace default via fe80::1 onlink dev eth0"),
    ],
)
def test_initramfs_understands_a_description(address: str, gateway: str, route: str) -> None:
    (interface,) = qemu.describe(MAC.upper(), address, gateway, ["9.9.9.9"])["interfaces"]

    assert interface["mac"] == MAC
    commands = [" ".join(argv) for argv in initramfs.commands("eth0", interface, {})]
    assert any(f"address replace {address}" in each for each in commands)
    assert commands[-1] == f"ip {route}"


def test_no_slots() -> None:
    with pytest.raises(ValueError, match="disk 'd': a local VM has no slot pci-"):
        drive(path="pci-0000:00:04.0").words()
