"""The usual rented server: RAID 1 with LVM on it, and a volume that stays. It is deployed whole,
then into the other slot, and goes back.
"""

from collections.abc import Iterator

import pytest

from tests import story
from tests.story import Story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

# Of hosts/stock. Both halves of each array lie on one disk.
STOCK = {
    "image=6G": "image=9G",
    "part root fs=ext4 mount=/\n": "part root fs=ext4 size=3G mount=/\n",
    "\ne2fsprogs\n": "\ne2fsprogs\nfdisk\nlvm2\n",
}
VOLUME = """
echo 'start=8GiB, size=200MiB, type=lvm' | sfdisk --quiet --append --no-reread --force /dev/vda
partx --add --nr 3 /dev/vda || [ -b /dev/vda3 ]
vgcreate --yes old /dev/vda3
lvcreate --yes --name mail --size 100m old
mkfs.ext4 -q /dev/old/mail
mkdir /srv/mail
mount /dev/old/mail /srv/mail
echo precious >/srv/mail/file
"""
LAYOUT = """\
part b1   type=raid size=64M
part b2   type=raid size=64M
part p1   type=raid size=3500M
part p2   type=raid size=3500M
raid boot level=1 on=system/b1,system/b2 fs=ext4
raid md0  level=1 on=system/p1,system/p2
vg   vg0  on=md0
lv   root on=vg0 size=1600M fs=ext4 mount=/ slots=2
lv   spool on=vg0 size=100M fs=ext4 mount=/srv/spool
"""
KEEP = """
part pv   disk=system number=3
vg   old  on=pv
lv   mail on=old mount=/srv/mail options=nofail
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with story.begun("demo", tmp_path_factory.mktemp("rented")) as given:
        for old, new in STOCK.items():
            given.change("IMGBUILD", old, new, "stock")
        text = given.file("IMGBUILD").read_text()
        plain = text.partition("part boot")[2].partition("'\n")[0]
        given.change("IMGBUILD", f"part boot{plain}", LAYOUT)
        given.change("IMGBUILD", "image=6G", "image=9G")
        given.change("IMGBUILD", "\nkeep='\n", f"\nkeep='{KEEP}")
        given.change("IMGBUILD", "\nkmod\n", "\nkmod\nlvm2\nmdadm\n")
        given.change("host.toml", "up = 1200\n", "up = 1200\ntrial = 1800\n")
        done = given.inv("demo", "--start")
        assert done.status == 0, done.err
        given.sh(VOLUME)
        yield given


@pytest.mark.proves("VM", disk=("RAID", "LVM"), source="Debian 13", target="Debian 13")
def test_whole_disks(server: Story) -> None:
    server.deploy()
    check(server, "a")


@pytest.mark.proves("VM", disk=("RAID", "LVM"), source="Debian 13", target="Debian 13")
def test_other_slot(server: Story) -> None:
    server.sh("echo shared >/srv/spool/file")
    server.deploy()
    phases = [each["name"] for each in server.reports[-1]["phases"]]
    assert phases[-4:] == ["fill", "kexec", "verify", "commit"]
    check(server, "b")
    assert server.sh("cat /srv/spool/file") == "shared\n"


def test_rollback(server: Story) -> None:
    """GRUB reads from the array which slot it is."""
    done = server.inv("rollback", "--yes", "demo")
    assert done.status == 0, done.err
    check(server, "a")


def check(server: Story, slot: str) -> None:
    """SLOT runs, on whole arrays that have the names and UUIDs of mdadm.conf; all is kept."""
    checks = {each["name"]: each["passed"] for each in server.reports[-1]["checks"]}
    assert checks["kept volume old/mail"] and all(checks.values())
    now = server.slots()[slot]
    assert (now["runs"], now["default"], now["state"]) == (True, True, "good")
    assert server.sh("findmnt -n -o SOURCE /") == f"/dev/mapper/vg0-root_{slot}\n"
    assert server.sh("cat /srv/mail/file") == "precious\n"
    assert server.sh("cat /proc/mdstat").count("[UU]") == 2
    named = "sed -n 's/^ARRAY \\([^ ]*\\).* UUID=\\([^ ]*\\).*/\\1 \\2/p'"
    running = server.sh(f"mdadm --detail --scan | {named} | sort")
    assert running == server.sh(f"{named} /etc/mdadm/mdadm.conf | sort") != ""
    assert server.sh("systemctl is-system-running --wait") == "running\n"
