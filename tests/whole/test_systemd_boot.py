"""A server with slots that systemd-boot starts from the EFI system partition."""

from collections.abc import Iterator

import pytest

from tests import story
from tests.story import Story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

BIOS, BOOT = "part bios type=bios size=1M\n", "part boot fs=ext4 size=64M\n"
ESP = "part esp type=esp size=600M fs=vfat mount=/efi\n"
KERNELS = "cd /efi; find anemos-{0} loader/entries/anemos-{0}-* -type f -exec sha256sum {{}} +"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """hosts/demo, deployed whole to a stock server that GRUB starts by UEFI."""
    with story.begun("demo", tmp_path_factory.mktemp("demo")) as given:
        given.change("IMGBUILD", "\ngrub-pc\n", "\ngrub-efi-amd64-bin\n", "stock")
        given.change("IMGBUILD", BIOS, ESP, "stock")
        given.change("IMGBUILD", "\ngrub-pc\n", "\nsystemd-boot\n")
        given.change("IMGBUILD", "=grub\n", "=systemd-boot\n")
        given.change("IMGBUILD", BIOS + BOOT, ESP)
        given.change("host.toml", "memory = 1024\n", 'memory = 1024\nfirmware = "uefi"\n')
        given.change("host.toml", "up = 1200\n", "up = 1200\ntrial = 1800\n")
        given.deploy()
        yield given


def runs(server: Story) -> str:
    """The slot that runs, which is good and the default."""
    (name,) = [name for name, each in server.slots().items() if each["runs"]]
    slot = server.slots()[name]
    assert (slot["state"], slot["default"]) == ("good", True)
    return name


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13", firmware="UEFI")
def test_other_slot(server: Story) -> None:
    """By kexec; then the firmware starts it, too. Kernels of one slot are left alone by the other
    one's upgrades."""
    assert runs(server) == "a"
    before = server.sh(KERNELS.format("a"))
    server.deploy()
    assert [each["name"] for each in server.reports[-1]["phases"]][-1] == "commit"
    assert runs(server) == "b"
    server.reboot()
    assert runs(server) == "b"
    own = server.sh(KERNELS.format("b"))
    assert len(own.splitlines()) == len(before.splitlines()) == 3
    server.sh("rm -r /efi/anemos-b /efi/loader/entries/anemos-b-*")
    server.sh("dpkg-reconfigure linux-image-$(uname -r)")
    assert len(server.sh(KERNELS.format("b")).splitlines()) == 3
    assert server.sh(KERNELS.format("a")) == before
    server.reboot()
    assert runs(server) == "b"


def test_rollback(server: Story) -> None:
    done = server.inv("rollback", "--yes", "demo")
    assert done.status == 0, done.err
    assert runs(server) == "a"
    server.reboot()
    assert runs(server) == "a"
