"""Machines that are started by hand: the initramfs that the workstation puts together, in QEMU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.run import run
from tests import lab, tiny
from tests.lab import Room

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]

FAILS = """\
target=debian
format=disk
layout='
disk system serial=SYSTEM
part root fs=ext4 mount=/
'
keep='
disk data wwn=naa.5000c500a1b2c3d4
'
provision() {
    echo 'provision: not today'
    false
}
"""


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with lab.opened() as found:
        yield found


@pytest.fixture(scope="module")
def layer(room: Room) -> Path:
    root = tiny.make(room.directory / "root")
    file = room.directory / "layer.tar.zst"
    run(["tar", "--create", "--zstd", "--file", file, "-C", root, "."])
    return file


def test_failing_provision(room: Room, layer: Path) -> None:
    """Without the word nothing is written; with it, the failure leaves a machine that answers."""
    system = room.drive("system", serial="SYSTEM")
    data = room.drive("data", wwn="naa.5000c500a1b2c3d4")
    before = [lab.sha256(each) for each in (system, data)]
    guest = room.boot(room.parts(FAILS, layer=layer), [system, data])

    seen = guest.await_ssh()
    assert seen.deployment == lab.DEPLOYMENT
    guest.await_line("To be erased")
    assert "taken from the kernel" in guest.serial()
    assert [lab.sha256(each) for each in (system, data)] == before
    guest.go()
    guest.await_line("failed after the point of no return")

    assert "provision: not today" in guest.sh("cat /run/anemos/log")
    assert lab.sha256(system) != before[0]
    assert lab.sha256(data) == before[1]
