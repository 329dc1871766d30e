"""Where kexec is not allowed: Debian's GRUB starts the initramfs, once, and the old system else."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from anemos.workstation import hosts
from anemos.workstation.deploy import chain, reach, recovery, status
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway
from anemos.workstation.ssh import connect
from anemos.workstation.vm import stock, vm
from tests import leaks

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]
pytestmark += [pytest.mark.all]

# Real Debian's grub.cfg, and a file that the administrator has there.
PREPARE = """
echo 1 >/proc/sys/kernel/kexec_load_disabled
update-grub 2>&1
echo '# mine' >/boot/grub/custom.cfg
"""
LOOK = "cd /boot/grub && ls -A && cat custom.cfg && df -k . | tail -n 1 | cut -d ' ' -f 1"


@dataclass
class Server:
    """A stock Debian whose kernel has no kexec for us."""

    host: Host

    @property
    def machine(self) -> vm.Vm:
        return vm.of(self.host)

    def sh(self, script: str) -> str:
        with connect(reach.endpoint(self.host)) as remote:
            return remote.sh(["sh", "-c", script], timeout=120)

    def secret_on_disk(self) -> list[str]:
        """What of the secrets stands on the system disk."""
        source = throwaway.secrets_of(self.host)
        key = source.reveal("demo", "etc/ssl/private/demo.key").splitlines()[1]
        markers = {"key": key, "password": source.reveal("demo", "PASSWORD").strip()}
        return leaks.hits([self.machine.drives[0].file], markers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", os.fspath(tmp_path_factory.mktemp("state")))
        given = Server(hosts.load("demo"))
        stock.create(given.host)
        vm.start(given.machine, given.machine.drives)
        given.host = vm.at_home(given.host)
        try:
            where = reach.endpoint(given.host)
            reach.await_boot(given.host, where, lambda seen: True, 600, "server")
            yield given
        finally:
            vm.remove(given.machine)


def test_abort(server: Server) -> None:
    """The firmware starts the old system again, and nothing is left in its /boot."""
    server.sh(PREPARE)
    before = server.sh(LOOK)

    chain.deploy(server.host, hold=True)

    assert status.status(server.host)["state"] == status.HELD  # under the pinned key
    assert server.secret_on_disk() == []
    assert recovery.abort(server.host)["deployment"] == ""
    assert server.sh(LOOK) == before


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
def test_deploy(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.sh(PREPARE)

    result = chain.deploy(server.host)

    assert result["verified"]
    assert result["bytes_sent"]["payload"] > 0
    assert "once, by grub (/boot/grub): the kernel has no kexec" in capsys.readouterr().err
    assert "Waiting for the rest of the deployment" in server.sh("cat /var/log/anemos.log")
    assert server.sh("ls /etc/ssh").count("once") == 0
