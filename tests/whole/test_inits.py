"""Old systems without systemd: their services end in good order before the jump."""

from pathlib import Path

import pytest

from tests import story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

INITS = {"sysvinit": "sysvinit-core\nsysv-rc", "openrc": "sysvinit-core\nopenrc"}
# A service that tells on the kept disk what it was asked to do (LSB, "Init Script Actions").
LEDGER = """\
provision() {
    printf '%s\\n' '#!/bin/sh' '### BEGIN INIT INFO' '# Provides: ledger' \\
        '# Required-Start: $local_fs' '# Required-Stop: $local_fs' \\
        '# Default-Start: 2 3 4 5' '# Default-Stop: 0 1 6' '### END INIT INFO' \\
        'echo "$1" >>/home/ledger' >/etc/init.d/ledger
    chmod 755 /etc/init.d/ledger
    update-rc.d ledger defaults
"""


@pytest.mark.parametrize("init", INITS)
@pytest.mark.proves("VM", source="no systemd", target="Debian 13")
def test_old_system(tmp_path: Path, init: str) -> None:
    with story.begun("demo", tmp_path) as server:
        server.change("IMGBUILD", "\ninit\n", f"\n{INITS[init]}\ninitscripts\n", "stock")
        server.change("IMGBUILD", "provision() {\n", LEDGER, "stock")
        server.deploy()
        assert server.reports[-1]["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
        assert server.sh("cat /home/ledger") == "start\nstop\n"
