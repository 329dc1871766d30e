"""What servers say about themselves: the real script here, and captured answers of others."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from anemos.border.boot import Seen
from anemos.disks import Device
from anemos.log import FAILED, Failure
from anemos.run import run
from anemos.workstation.deploy import facts
from anemos.workstation.deploy.facts import Facts, Identity
from tests.tree import ROOT

DATA = ROOT / "tests/data"


def captured(name: str) -> str:
    return (DATA / f"facts-{name}").read_text()


def test_virtio() -> None:
    assert facts.parse(captured("virtio")) == Facts(
        user="0",
        name="demo",
        machine="x86_64",
        kernel="6.1.0-28-cloud-amd64",
        boot_id="0c5b0b9e-2f5e-4b57-9a3b-4f1ad2b1c7de",
        memory_total=1001432 * 1024,
        memory_available=861204 * 1024,
        kexec=True,
        lockdown="[none] integrity confidentiality",
        efi=False,
        boot_next="",
        boot_current="",
        boot_first="",
        contents=(),
        container="",
        modules=("loop", "squashfs"),
        disks=(
            Device("vda", "demo-system", "", 6 * 2**30),
            Device("vdb", "demo-data", "", 2**30),
        ),
        models={"vda": "", "vdb": ""},
        mounts=("/dev/vda2 / ext4", "/dev/vdb1 /home ext4"),
        addresses=(
            "eth0    inet 10.0.2.15/24 brd 10.0.2.255 scope global dynamic eth0",
            "eth0    inet6 fec0::5054:ff:fea2:e005/64 scope global dynamic mngtmpaddr",
        ),
        routes=(
            "default via 10.0.2.2 dev eth0",
            "default via fe80::2 dev eth0 proto ra metric 1024 expires 1793sec hoplimit 64"
            " pref medium",
        ),
        listening=(22,),
        base="",
        place="system",
        stamp=Seen(),
    )


def test_scsi_and_nvme() -> None:
    found = facts.parse(captured("scsi-nvme"))

    assert [(each.name, each.serial, each.wwn) for each in found.disks] == [
        ("nvme0n1", "S64GNE0R700123", "eui.36344730527001230025384e00000001"),
        ("nvme1n1", "S64GNE0R700124", "eui.36344730527001240025384e00000001"),
        ("sda", "ZL2AXYZ1", "naa.5000c500c3d4e5f6"),
        ("sdb", "", ""),
    ]
    assert found.disks[2].size == 23437770752 * 512
    assert found.models["sda"] == "ST12000NM0008-2H"
    assert found.listening == (22, 25, 443, 50000)
    assert found.deployment == "20250101T120000Z-a1b2c3"
    assert found.base.endswith(".squashfs")
    assert found.mounts[-1] == r"/dev/sda1 /srv/a\040b=c xfs"
    assert found.efi


def test_ipv6_only() -> None:
    found = facts.parse(captured("ipv6"))

    assert found.addresses == ("eth0    inet6 2001:db8:a:b::10/64 scope global",)
    assert found.disks[0].wwn == "0QEMU    QEMU HARDDISK   drive-scsi0"
    assert (found.stamp, found.deployment, found.lockdown) == (Seen(), "", "")


def test_initramfs() -> None:
    found = facts.parse(captured("initramfs"))

    assert (found.place, found.deployment) == ("initramfs", "20250101T120000Z-a1b2c3")


def test_banner_and_noise_do_not_matter() -> None:
    noise = "Welcome to mx!\n\nPATH=/bin\nWARNING: nothing works = true\n"

    assert facts.parse(noise + captured("virtio")) == facts.parse(captured("virtio"))


@pytest.mark.parametrize("name", ["virtio", "scsi-nvme", "ipv6", "initramfs"])
def test_truncated_anywhere(name: str) -> None:
    lines = captured(name).splitlines(keepends=True)
    for count in range(len(lines)):
        with pytest.raises(Failure, match="they are not complete") as caught:
            facts.parse("".join(lines[:count]))
        assert caught.value.status == FAILED


@pytest.mark.parametrize(
    "key", ["user", "machine", "boot_id", "memory_total_kib", "place", "stamp"]
)
def test_missing_fact(key: str) -> None:
    lines = [line for line in captured("virtio").splitlines() if not line.startswith(f"{key}=")]

    with pytest.raises(Failure, match=f"the facts of the server make no sense: '{key}'"):
        facts.parse("\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("memory_total_kib=1001432", "memory_total_kib="),
        ("memory_available_kib=861204", "memory_available_kib=861204 kB"),
        ("disk=vda|12582912|demo-system||", "disk=vda|12582912"),
        ("disk=vda|12582912|demo-system||", "disk=vda||demo-system||"),
        ("listen=0016", "listen=port"),
        ("stamp=", "stamp={"),
        ("stamp=", "stamp=[]"),
    ],
)
def test_garbage(old: str, new: str) -> None:
    assert old in captured("virtio")

    with pytest.raises(Failure, match="the facts of the server make no sense") as caught:
        facts.parse(captured("virtio").replace(old, new))

    assert caught.value.status == FAILED


def test_garbage_alone() -> None:
    for text in ("", "\n", "sh: not found\n", "\x00\ufffd" * 50):
        with pytest.raises(Failure, match="they are not complete"):
            facts.parse(text)


# "0": it may be loaded. No such file: a kernel without kexec.
@pytest.mark.parametrize(("value", "expected"), [("0", True), ("1", False), ("", False)])
def test_kexec(value: str, expected: bool) -> None:
    text = captured("virtio").replace("kexec_disabled=0", f"kexec_disabled={value}")

    assert facts.parse(text).kexec is expected


def test_boot_entries() -> None:
    lines = "entry=grub|/boot/grub|vda2|ext4|100\nentry=firmware|/efi||vfat|0\nsecure_boot= 1 \n"
    found = facts.parse(captured("virtio") + lines)

    assert found.entries == (
        facts.Entry("grub", "/boot/grub", "vda2", "ext4", 102400),
        facts.Entry("firmware", "/efi", "", "vfat", 0),
    )
    assert found.secure_boot
    for broken in ("entry=grub|/boot/grub|vda2|ext4\n", "entry=grub|/boot/grub|vda2|ext4|\n"):
        with pytest.raises(Failure, match="the facts of the server make no sense"):
            facts.parse(captured("virtio") + broken)


# The real script.


def shell(name: str) -> list[str]:
    if not shutil.which(name):
        pytest.skip(f"{name} is not here")
    return [name, "sh"] if name == "busybox" else [name]


@pytest.mark.real("run")
@pytest.mark.parametrize("name", ["sh", "dash", "bash", "busybox"])
def test_this_machine(name: str) -> None:
    text = run([*shell(name), "-c", facts.probe("facts.sh"), "facts", ""])
    found = facts.parse(text)

    assert text.endswith("\nend=end\n")
    assert (found.user, found.kernel) == (str(os.geteuid()), os.uname().release)
    assert (found.name, found.machine) == (os.uname().nodename, os.uname().machine)
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert 0 < found.memory_available <= found.memory_total
    assert (found.place, found.base, found.stamp) == ("system", "", Seen())
    assert {each.size % 512 for each in found.disks} <= {0}
    assert all(len(line.split()) == 3 for line in found.mounts)


@pytest.mark.real("run")
def test_nothing_on_standard_error() -> None:
    said = run(["sh", "-c", 'sh -c "$1" facts "" 2>&1 >/dev/null', "sh", facts.probe("facts.sh")])

    assert said == ""


@pytest.mark.real("run")
def test_listening_port(listening_port: int) -> None:
    assert listening_port in facts.parse(here()).listening


@pytest.mark.real("run")
def test_what_is_staged(tmp_path: Path) -> None:
    """The memory of what the next deployment removes is available to it."""
    (tmp_path / "owner").write_text("d-1 anna@laptop 2025-01-01T12:00:00Z\n")
    stage = tmp_path / "stage"
    stage.mkdir()
    for name, size in {"payload": 2**42, "base-1.squashfs": 7, "base-2.squashfs": 2**43}.items():
        with (stage / name).open("wb") as file:
            file.truncate(size)

    text = here(base_hash="1", owner=str(tmp_path / "owner"), stage=f"ls -ln {stage}")

    seen = facts.parse(text)
    assert seen.staged == "d-1 anna@laptop 2025-01-01T12:00:00Z"
    assert seen.memory_available // 2**42 == 3


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def here(**replace: str) -> str:
    """The script's answer here, with other paths in it."""
    text = facts.probe("facts.sh")
    base_hash = replace.pop("base_hash", "")
    for old, new in replace.items():
        text = text.replace(PATHS[old], new)
    return run(["sh", "-c", text, "facts", base_hash])


PATHS = {
    "base": "/var/lib/anemos/",
    "staged": "/run/anemos/base",
    "stage": "ls -ln /run/anemos",
    "owner": "/run/anemos.owner",
    "boot": "/run/anemos/boot.json",
    "stamp": "/etc/anemos/deployment.json",
    "grub": "/boot/grub2",
    "cmdline": "cat /proc/cmdline",
    "systemd": "/run/systemd/container",
    "environ": "/proc/1/environ",
    "users": "/proc/self/uid_map",
}


@pytest.mark.real("run")
def test_base_image_counts_only_whole(tmp_path: Path) -> None:
    content = b"squash"
    digest = sha256(content).hexdigest()
    image = tmp_path / f"base-{digest}.squashfs"
    base = f"{tmp_path}/"

    assert facts.parse(here(base=base, base_hash=digest)).base == ""
    image.write_bytes(content[:-1])
    assert facts.parse(here(base=base, base_hash=digest)).base == ""
    image.write_bytes(content)
    assert facts.parse(here(base=base, base_hash=digest)).base == str(image)
    assert facts.parse(here(base=base, base_hash="0" * 64)).base == ""
    assert facts.parse(here(base=base)).base == ""


@pytest.mark.real("run")
def test_stamp_and_place(tmp_path: Path) -> None:
    stamp, boot = tmp_path / "deployment.json", tmp_path / "boot.json"
    paths = {"stamp": str(stamp), "boot": str(boot)}
    stamp.write_text(json.dumps({"deployment": "new", "host": "mx = 1"}, indent=1) + "\n")

    assert facts.parse(here(**paths)).stamp == Seen("new", "mx = 1")
    boot.write_text(json.dumps({"deployment": "now"}))
    found = facts.parse(here(**paths))
    assert (found.place, found.deployment) == ("initramfs", "now")


@pytest.mark.real("run")
def test_container(tmp_path: Path) -> None:
    """LXC leaves none of the files that other containers have."""
    names = {name: tmp_path / name for name in ("systemd", "environ", "users")}
    paths = {name: str(file) for name, file in names.items()}
    names["environ"].write_bytes(b"PATH=/bin\0mycontainer=x\0")
    names["users"].write_text("         0          0 4294967295\n")
    before = facts.parse(here(**paths)).container
    assert before in ("", "/.dockerenv", "/run/.containerenv")  # where these tests run

    names["environ"].write_bytes(b"PATH=/bin\0container=lxc\0TERM=linux\0")
    assert facts.parse(here(**paths)).container == "lxc"
    names["systemd"].write_text("lxc-libvirt")
    assert facts.parse(here(**paths)).container == "lxc-libvirt"
    names["users"].write_text("         0     100000      65536\n")
    assert facts.parse(here(**paths)).container == "user namespace"


READS = """
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("text", "cmdline", "there"),
    [
        (READS, "BOOT_IMAGE=/boot/vmlinuz ro", True),
        (READS, "root=/dev/vda1", False),
        ("# source custom.cfg\n", "BOOT_IMAGE=/boot/vmlinuz", False),
    ],
)
def test_where_grub_lies(tmp_path: Path, text: str, cmdline: str, there: bool) -> None:
    paths = {"grub": str(tmp_path), "cmdline": f"echo {cmdline}"}
    assert facts.parse(here(**paths)).entries == ()
    (tmp_path / "grub.cfg").write_text(text)

    found = facts.parse(here(**paths)).entries

    assert [(each.loader, each.directory) for each in found] == [("grub", str(tmp_path))] * there
    for each in found:
        assert each.fs == run(["findmnt", "-no", "FSTYPE", "-T", tmp_path]).strip()
        assert abs(each.free - shutil.disk_usage(tmp_path).free) < each.free / 10


# Which system it is.


class Answer:
    """A Remote that says TEXT."""

    endpoint = "root@mx:22"

    def __init__(self, text: str) -> None:
        self.text = text

    def sh(self, argv: list[str], **options: object) -> str:
        return self.text


def identify(text: str) -> Identity:
    answer: Any = Answer(text)
    return facts.identify(answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id\n", ("id", False, "")),
        ('id\n{"deployment": "d", "host": "mx"}\n', ("id", False, "d")),
        ('id\n{\n "deployment": "d"\n}\n', ("id", False, "d")),
        ('id\n{"deployment": "d", "ssh_port": 22}', ("id", True, "d")),
    ],
)
def test_identify(text: str, expected: tuple[str, bool, str]) -> None:
    found = identify(text)

    assert (found.boot_id, found.in_initramfs, found.deployment) == expected


@pytest.mark.parametrize("text", ["", "id\n{", "id\nsh: broken\n"])
def test_identify_garbage(text: str) -> None:
    with pytest.raises(Failure, match="root@mx:22: cannot tell which system this is") as caught:
        identify(text)

    assert caught.value.status == FAILED


def test_partitions_and_what_lies_on_them() -> None:
    lines = "part=vda|vda3|3|2048|4096\nslave=dm-0|vda3\nslave=dm-0|md127\n"
    found = facts.parse(captured("virtio") + lines)
    assert found.parts == (facts.Partition("vda", "vda3", 3, 2**20, 2**21),)
    assert found.slaves == (("dm-0", "vda3"), ("dm-0", "md127"))
    lines = "mapped=dm-0|vg0-root\ngroup=/dev/vda3|vg0\nidentity=vda3|LVM2_member a-b\n"
    found = facts.parse(captured("virtio") + lines)
    assert (found.mapped, found.groups) == ({"dm-0": "vg0-root"}, (("/dev/vda3", "vg0"),))
    assert found.identities == (("vda3", "LVM2_member a-b"),)
    for broken in ("part=vda|vda3|3|2048\n", "part=vda|vda3|x|1|1\n", "slave=dm-0\n"):
        with pytest.raises(Failure, match="the facts of the server make no sense"):
            facts.parse(captured("virtio") + broken)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ""),
        (["0000 00000109", "000A 00000001", "0001 00000001"], "000a"),  # the firmware's setup
        (["0001 00000000", "0002", "0003 00000009"], "0003"),  # switched off, not there, hidden
    ],
)
def test_entry_that_the_firmware_starts(options: list[str], expected: str) -> None:
    text = captured("virtio").replace(
        "efi=no\n", "".join(["efi=yes\n", *(f"option={each} \n" for each in options)])
    )

    assert facts.parse(text).boot_first == expected


def test_network() -> None:
    lines = (
        'ip_links=[{"ifname":"eth0"}]\nip_routes4=[{"dst":"default"}]\nip_rules=[{"priority":0}]\n'
    )
    lines += 'ip_rules=[{"priority":1}]\nconnection=192.0.2.9 40000 192.0.2.7 22\n'

    found = facts.parse(captured("virtio") + lines)

    assert found.network == (
        [{"ifname": "eth0"}],
        [{"dst": "default", "family": "-4"}],
        [{"priority": 0}, {"priority": 1}],
    )
    assert found.connection == ("192.0.2.9", "40000", "192.0.2.7", "22")
    assert facts.parse(captured("virtio") + "ip_links=[{]\n").network is None


@pytest.mark.real("run")
def test_watchdogs_by_every_number(tmp_path: Path) -> None:
    for number, state in {0: "active", 15: "inactive"}.items():
        place = tmp_path / f"class/watchdog{number}"
        place.mkdir(parents=True)
        for name, said in {"identity": "i|TCO wdt", "state": state, "nowayout": "0"}.items():
            (place / name).write_text(f"{said}\n")
    (tmp_path / "ipmi").write_text("Y\n")
    text = facts.probe("facts.sh")
    for old, new in {
        "/sys/class/watchdog/": f"{tmp_path}/class/",
        "/sys/module/ipmi_watchdog/parameters/nowayout": f"{tmp_path}/ipmi",
    }.items():
        assert old in text
        text = text.replace(old, new)

    assert facts.parse(run(["sh", "-c", text, "facts", ""])).watchdogs == (
        ("watchdog0", "iTCO wdt", "active", False),
        ("watchdog15", "iTCO wdt", "inactive", False),
        ("watchdog", "IPMI", "", True),
    )


@pytest.mark.real("run")
def test_arrays_that_cannot_be_kept(tmp_path: Path) -> None:
    """One that lacks a member, one that does not run; RAID 0 knows no lack of a member."""
    states = {"md0": "clean", "md1": "active", "md2": "inactive", "md3": "readonly"}
    lacks = {"md0": "0", "md1": "1", "md3": "12"}
    for name, state in {**states, "md4": "clean"}.items():
        (tmp_path / name / "md").mkdir(parents=True)
        (tmp_path / name / "md/array_state").write_text(f"{state}\n")
    for name, lack in lacks.items():
        (tmp_path / name / "md/degraded").write_text(f"{lack}\n")
    place = "/sys/block/md*/md"
    text = facts.probe("facts.sh")
    assert text.count(place) == 1

    text = text.replace(place, f"{tmp_path}/md*/md")

    assert facts.parse(run(["sh", "-c", text, "facts", ""])).degraded == ("md1", "md2", "md3")


@pytest.mark.real("run")
def test_devices_that_go_away(tmp_path: Path) -> None:
    """Between the look at the directory and the look at its files."""
    for name in ("vda", "vda/vda1", "vda/vda2", "vdb", "dm-0/dm", "dm-1/dm"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("vda/vda1", "vda/vda2"):
        (tmp_path / name / "partition").write_text("1\n")
        (tmp_path / name / "start").write_text("2048\n")
    for name in ("vda", "vda/vda1"):
        (tmp_path / name / "size").write_text("4096\n")
    (tmp_path / "dm-0/dm/name").write_text("vg0-root\n")
    (tmp_path / "dm-1/dm/name").symlink_to("nothing")
    text = facts.probe("facts.sh")
    text = re.sub(r"/sys/block/(?=\*|dm-)", f"{tmp_path}/", text)

    found = facts.parse(run(["sh", "-c", text, "facts", ""]))

    assert [disk.name for disk in found.disks] == ["vda"]
    assert found.parts == (("vda", "vda1", 1, 2048 * 512, 4096 * 512),)
    assert found.mapped == {"dm-0": "vg0-root"}


@pytest.mark.real("run")
def test_network_of_this_machine() -> None:
    text = run(["sh", "-c", facts.probe("facts.sh"), "facts", ""])

    found = facts.parse(text).network

    assert found
    assert "lo" in [link["ifname"] for link in found.links]
    assert {"local", "main"} <= {rule["table"] for rule in found.rules if "table" in rule}
