"""Secure Boot: the firmware starts only what is signed, before a deployment and after it."""

from collections.abc import Iterator

import pytest

from tests import story
from tests.story import Story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

SIGNED = "\ngrub-efi-amd64-bin\ngrub-efi-amd64-signed\nshim-signed\n"
BIOS, ESP = "part bios type=bios size=1M\n", "part esp type=esp size=64M fs=vfat mount=/efi\n"
# As the firmware says it (UEFI specification 2.10, 3.3), and the kernel (kernel_lockdown(7)).
ON = """
od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c
cat /sys/kernel/security/lockdown
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with story.begun("demo", tmp_path_factory.mktemp("secure")) as given:
        for host in ("stock", "demo"):
            given.change("IMGBUILD", "\ngrub-pc\n", SIGNED, host)
            given.change("IMGBUILD", BIOS, ESP, host)
        given.change("host.toml", "memory = 1024\n", 'memory = 1024\nfirmware = "secure-boot"\n')
        given.change("host.toml", "up = 1200\n", "up = 1200\ntrial = 1800\n")
        yield given


def on(server: Story) -> bool:
    firmware, lockdown = server.sh(ON).splitlines()
    return firmware.strip() == "1" and "[integrity]" in lockdown


def test_without_a_signature(server: Story) -> None:
    """It is refused: the firmware would not start it."""
    assert server.inv("demo", "--start").status == 0
    assert on(server)
    with server.changed("IMGBUILD", "\nshim-signed\n", "\n"):
        done = server.inv("plan")
    assert done.status == 2
    assert "Secure Boot is on, and would not start the new system: `packages` lacks" in done.err


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13", firmware="UEFI with Secure Boot")
def test_whole_disks(server: Story) -> None:
    server.deploy()
    assert server.reports[-1]["verified"]
    assert on(server)


def test_other_slot(server: Story) -> None:
    """By kexec; then the firmware starts it, too."""
    plan = server.inv("plan")
    assert "slot b (running: a;" in plan.err, plan.err
    server.deploy()
    assert [each["name"] for each in server.reports[-1]["phases"]][-1] == "commit"
    assert on(server)
    server.reboot()
    assert on(server)
