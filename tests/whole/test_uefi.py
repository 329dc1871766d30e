"""A server as it is rented out, started by UEFI firmware, becomes one with all kinds of volumes.

The whole chain, as an operator runs it: one disk in use and a blank one become mirrored disks with
RAID, LVM and LUKS. Then one of them is lost, with the firmware's boot entry; it comes back, and
the machine is deployed once more over what lies there.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from anemos.workstation import places
from anemos.workstation.deploy import reach
from anemos.workstation.hosts import Host, Timeouts, VmSettings
from anemos.workstation.qemu import Drive
from anemos.workstation.ssh import Endpoint, connect
from anemos.workstation.vm import vm
from tests import tree
from tests.tree import Tree

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

UP_S = 600

# What makes hosts/stock such a server. At its first boot it does what Debian's installer would have
# done: GRUB goes into the distribution's directory, and gets an entry, the first.
RENTED = {
    "\ngrub-pc\n": "\nefibootmgr\ngrub-efi-amd64\n",
    "provision() {\n": """provision() {
    printf '%s\\n' '[Unit]' Before=ssh.service RequiresMountsFor=/boot/efi '[Service]' \\
        Type=oneshot ExecStart=/usr/sbin/grub-install '[Install]' WantedBy=multi-user.target \\
        >/etc/systemd/system/grub-install.service
    systemctl enable grub-install.service
""",
}
DISKS = """
layout='
disk first serial=rented-first image=2500M
part esp type=esp size=64M fs=vfat mount=/boot/efi
part root fs=ext4 mount=/
disk second serial=rented-second image=2500M
'
"""
HOST = """
[timeouts]
down = 360
initramfs = 600
up = 1200

[vm]
stock = "rented"
firmware = "uefi"
memory = 1536
"""
PAIR = r"""
target=debian
debian_suite=bookworm
bootloader=grub
cmdline='console=tty0 console=ttyS0 net.ifnames=0'
packages='
btrfs-progs
cryptsetup
efibootmgr
grub-efi-amd64
ifupdown
init
iproute2
kmod
linux-image-cloud-amd64
lvm2
mdadm
openssh-server
udev
xfsprogs
'
layout='
disk first  serial=rented-first
part esp    type=esp size=64M fs=vfat mount=/boot/efi
part r1     type=raid
disk second serial=rented-second
part esp    type=esp size=64M fs=vfat
part r2     type=raid
raid md0    level=1 on=first/r1,second/r2
vg   vg0    on=md0
lv   root   on=vg0 size=1400M fs=ext4 mount=/
lv   swap   on=vg0 size=64M fs=swap
lv   home   on=vg0 size=200M fs=btrfs mount=/home
lv   secret on=vg0 size=400M
luks crypt  on=secret key=etc/luks/crypt.key fs=xfs mount=/srv options=noatime
'
verify() {
    grep -q '\[UU\]' /proc/mdstat
    cryptsetup status crypt | grep 'type: *LUKS2'
    findmnt -n -o FSTYPE /home | grep btrfs
    findmnt -n -o OPTIONS /srv | grep noatime
    tail -n 1 /proc/swaps | grep partition
    echo 'RAID, LVM, LUKS and swap are in use'
}
test_secrets() {
    mkdir -p etc/luks
    head -c 64 /dev/urandom >etc/luks/crypt.key
}
"""
# An initramfs that emulation makes in less than minutes: no modules but these and those that the
# hooks of mdadm and lvm2 ask for.
FILES = {
    "hostname": "pair\n",
    "initramfs-tools/conf.d/list": "MODULES=list\n",
    "initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
}
MOUNTED = {"/": "lvm ext4", "/boot/efi": "part vfat", "/home": "lvm btrfs", "/srv": "crypt xfs"}


@dataclass
class Pair:
    project: Tree
    runs: list[dict[str, Any]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        (found,) = self.project.home.glob(".local/state/anemos/*/pair")
        return found

    @property
    def machine(self) -> vm.Vm:
        settings = VmSettings("rented", memory=1024, firmware="uefi")
        return vm.Vm("pair", self.state / "vm", settings)

    @property
    def where(self) -> Endpoint:
        machine = self.machine
        key = self.state / "id_ed25519"
        return Endpoint("127.0.0.1", machine.port(22), machine.host_key, key)

    def deploy(self) -> None:
        done = self.project.demo("pair")
        self.runs.append(json.loads(done.out))
        self.logs.append(done.err)

    def start_with(self, name: str) -> None:
        """Start the machine with this disk only, and wait for its system."""
        file = self.machine.directory / f"stock-{name}.img"
        vm.start(self.machine, [Drive(name, file, {"serial": f"rented-{name}"})])
        host = Host("pair", self.project.directory, timeouts=Timeouts(up=UP_S))
        reach.await_boot(host, self.where, lambda seen: not seen.in_initramfs, UP_S, "system")

    def sh(self, script: str) -> str:
        with connect(self.where) as remote:
            return remote.sh(["sh", "-c", script], timeout=300)

    def boot_order(self) -> list[str]:
        """What the firmware tries, in its order: labels. The one that it took comes first."""
        said = self.sh("efibootmgr")
        (current,) = re.findall(r"^BootCurrent: (\w{4})$", said, re.MULTILINE)
        (order,) = re.findall(r"^BootOrder: (.*)$", said, re.MULTILINE)
        labels = dict(re.findall(r"^Boot(\w{4})\*? ([^\t\n]*)", said, re.MULTILINE))
        return [labels.get(each, "") for each in (current, *order.split(","))]

    def mounts(self) -> dict[str, str]:
        """What is mounted, by its place."""
        lines = self.sh("lsblk --list -n -o MOUNTPOINT,TYPE,FSTYPE").splitlines()
        words = [line.split() for line in lines if line.startswith("/")]
        return {place: f"{kind} {fs}" for place, kind, fs in words}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as project:
        prepare(project.directory / "hosts")
        machine = Pair(project)
        try:
            machine.deploy()
            yield machine
        finally:
            project.inv("demo", "--host", "pair", "--stop")


def prepare(hosts: Path) -> None:
    """The rented server, which is hosts/stock but for its way of starting, and the new one."""
    shutil.copytree(places.HOSTS / "stock", hosts / "rented")
    stock = hosts / "rented/IMGBUILD"
    text = stock.read_text()
    for old, new in RENTED.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    stock.write_text(text + DISKS)
    shutil.copytree(places.HOSTS / "stock/files", hosts / "pair/files")
    (hosts / "pair/host.toml").write_text(HOST)
    (hosts / "pair/IMGBUILD").write_text(PAIR)
    for name, text in FILES.items():
        file = hosts / "pair/files/etc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_old_system(pair: Pair) -> None:
    """Its own entry comes first by now; the plan says that another one has started it."""
    assert re.search(r"boot +kexec; this system was started by the firmware's entry", pair.logs[0])


@pytest.mark.proves(
    "VM",
    source="Debian 13",
    target="Debian 12",
    firmware="UEFI",
    disk=("virtio", "RAID", "LVM", "LUKS"),
)
def test_new_system(pair: Pair) -> None:
    """Our entries come before the old system's. The layout's volumes carry it."""
    report = pair.runs[0]
    labels = pair.boot_order()

    assert report["verified"] is True
    assert "ok   units: running" in pair.logs[0]
    assert labels[:3] == ["anemos"] * 3
    assert labels.count("anemos") == 3
    assert "debian" in labels
    assert pair.mounts() == MOUNTED


def test_entry_for_once(pair: Pair) -> None:
    """What the firmware starts next is not the old system: there would be no way back."""
    pair.sh("efibootmgr --quiet --bootnext 0000")
    done = pair.project.inv("plan", "--host", "pair")
    pair.sh("efibootmgr --quiet --delete-bootnext")

    assert done.status == 2
    assert "the firmware starts entry 0000 next, not the old system" in done.err


def test_lost_disk(pair: Pair) -> None:
    """A power cut, and one disk is gone, and the boot entries: the firmware finds the other's boot
    loader unasked, in spite of the old system's entry.
    """
    ours = r"s/^Boot\(....\)[* ] anemos.*/\1/p"
    pair.sh(
        f"efibootmgr | sed -n '{ours}' | xargs -n 1 efibootmgr -q -B -b; echo kept >/srv/file; sync"
    )
    assert pair.boot_order()[1] == "debian"
    vm.stop(pair.machine)
    pair.start_with("second")

    assert pair.sh("systemctl is-system-running --wait") == "running\n"
    assert "[_U]" in pair.sh("cat /proc/mdstat")
    assert pair.sh("cat /srv/file") == "kept\n"
    lost = {"/boot/efi": MOUNTED["/boot/efi"]}
    assert pair.mounts() | lost == MOUNTED
    assert pair.mounts().keys().isdisjoint(lost)


def test_deployed_again(pair: Pair) -> None:
    """Over all that lies there: the first disk is back with an array's older half."""
    vm.stop(pair.machine)
    pair.deploy()
    labels = pair.boot_order()

    assert pair.runs[1]["verified"] is True
    assert pair.runs[1]["boot_id"]["old"] != pair.runs[0]["boot_id"]["new"]
    assert labels[:3] == ["anemos"] * 3
    assert labels.count("anemos") == 3
    assert pair.mounts() == MOUNTED
    assert pair.sh("ls /srv") == ""
