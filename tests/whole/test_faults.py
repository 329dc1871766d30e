"""What can go wrong in RAM, tried in QEMU: before the point of no return the machine goes back by
itself and no byte has changed; after it, it answers, and can be made to go on.

Where the firmware would start the old system, QEMU ends (-no-reboot). `inv check --all` runs the
whole table; the terminal shows the figures of docs/reliability.md at the end.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anemos.border import archive
from anemos.disks import Fingerprint
from anemos.files import sha256
from anemos.log import IN_INITRAMFS, Failure
from anemos.run import run
from anemos.server import kexec
from anemos.workstation import images, places, qemu
from anemos.workstation.deploy import payload, phases, reach, recovery, status, verify, watch
from anemos.workstation.deploy.state import State, load_state, payload_file
from anemos.workstation.hosts import Host, Timeouts
from anemos.workstation.qemu import Drive
from anemos.workstation.ssh import ConnectionLost
from tests import lab, tiny
from tests.lab import Guest, Room, first_in_check

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]
MIB = 2**20
IMGBUILD = """\
target=debian
format=disk
layout='
disk system serial=SYSTEM
part root fs=ext4 mount=/
'
keep='
disk data wwn=naa.5000c500a1b2c3d4
'
"""
NO_MIRROR = IMGBUILD + "mirror=http://10.0.2.2:9/debian\n"  # nobody; only asked without a layer
FAILS = IMGBUILD + "provision() { echo 'provision: not today'; false; }\n"
WORKS = IMGBUILD + "provision() { echo corrected >/etc/proof; }\n"
SLOW = IMGBUILD + "provision() { sleep 40; echo slow >/etc/proof; }\n"
FILLS = IMGBUILD + "provision() { cat /dev/zero >/zeros; }\n"
KEEPS = IMGBUILD.replace("keep='\n", "keep='\npart old disk=system number=3\n")
OLD = 192 * MIB  # where that begins
# Writes to the kept partition, and wherever the kept disk could be.
HOSTILE = """
provision() {
    IFS=: read -r major minor </sys/class/block/vda3/dev
    mknod /tmp/old b "$major" "$minor"
    blockdev --setrw /tmp/old
    echo hostile >/tmp/old
    for minor in 0 16 32 48; do
        mknod /tmp/disk$minor b 8 $minor
        blockdev --setrw /tmp/disk$minor || true
        ! echo hostile >/tmp/disk$minor || exit 9
    done
}
"""
# Writes into the kept partition by way of its disk.
ROUNDABOUT = f"""
provision() {{
    IFS=: read -r major minor </sys/class/block/vda/dev
    mknod /tmp/system b "$major" "$minor"
    echo hostile | dd of=/tmp/system bs=512 seek={OLD // 512 + 8} conv=notrunc
}}
"""
WATCHDOG = ("-device", "i6300esb")
HOST = Host("lab", Path("hosts/lab"), "127.0.0.1", "key", timeouts=Timeouts(install=300, up=1))

Report = Callable[[str, object], None]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with lab.opened() as found:
        yield found


@pytest.fixture(autouse=True)
def alone(room: Room) -> Iterator[None]:
    """Whatever a test leaves running ends with it."""
    yield
    for guest in room.guests:
        guest.cut()


@pytest.fixture(scope="module")
def layer(room: Room) -> Path:
    root = tiny.make(room.directory / "root")
    file = room.directory / "layer.tar.zst"
    run(["tar", "--create", "--zstd", "--file", file, "-C", root, "."])
    return file


@dataclass
class Machine:
    """Disks, and the bytes that were on them."""

    drives: list[Drive]
    before: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for drive in self.drives:
            with drive.file.open("r+b") as file:
                file.write(os.urandom(MIB))
        self.before = self.bytes()

    def bytes(self) -> list[str]:
        return [lab.sha256(drive) for drive in self.drives]


def disks(room: Room, **system: str) -> list[Drive]:
    match = {"serial": "SYSTEM", **system}
    return [room.drive("system", 256 * MIB, **match), data(room)]


def data(room: Room) -> Drive:
    return room.drive("data", 64 * MIB, wwn="naa.5000c500a1b2c3d4")


class ReadOnly(Drive):
    """The machine cannot write to it."""

    def words(self) -> list[str]:
        return [word.replace("if=none", "if=none,readonly=on") for word in super().words()]


def read_only(room: Room) -> list[Drive]:
    system, kept = disks(room)
    return [ReadOnly(system.name, system.file, system.match), kept]


@contextmanager
def counted(report: Report, machine: Machine, kept: int = -1) -> Iterator[None]:
    """Have the figures shown at the end, whatever comes of the fault."""
    outcome = "FAILED"
    try:
        yield
        outcome = "returned" if kept < 0 else "went on"
    finally:
        changed = machine.bytes()[kept:] != machine.before[kept:]
        report("fault", (outcome, "kept bytes changed" if changed else ""))


# Before the point of no return


def signal(name: str, pattern: str) -> str:
    """A script that sends the signal NAME to all whose command lines match, and it does not."""
    matches = f"tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -Eq '{pattern}'"
    return f"for p in /proc/[0-9]*; do ! {matches} || kill -{name} ${{p#/proc/}}; done"


# Overwrites the text of PID 1, as it ignores signals: it dies by SIGSEGV or SIGILL.
KILL_INIT = """python3 -c '
area = next(line for line in open("/proc/1/maps") if "r-xp" in line).split()[0]
start, end = [int(word, 16) for word in area.split("-")]
memory = open("/proc/1/mem", "r+b", 0)
memory.seek(start)
memory.write(b"\\xff" * (end - start))
'"""
# File systems in memory end at half of it by themselves.
FILL_MEMORY = "mount -t tmpfs -o size=100% fill /mnt && cat /dev/zero >/mnt/zeros"
BRAIN = "[m] anemos.initramfs"
GUARD = "[s]h /init"  # and PID 1, which does not care


@dataclass(frozen=True)
class Fault:
    """What is wrong from the start, or done to the machine that waits for the operator's word."""

    says: str  # on the console
    options: dict[str, Any] = field(default_factory=dict)  # of Parts
    system: dict[str, str] = field(default_factory=dict)  # the system disk's identity
    drives: Callable[[Room], list[Drive]] | None = None  # instead of the usual ones
    damage: Callable[[bytes], bytes] | None = None  # to the payload, after its digest was taken
    script: str = ""  # run over SSH
    words: tuple[str, ...] = WATCHDOG
    cmdline: str = ""


KEPT = Fingerprint("data", "", 0, "0" * 64, ())
ELSEWHERE = qemu.describe("52:54:00:00:00:01", "10.0.2.15/24", "10.0.2.2", [])
BEFORE = {
    "payload-corrupted": Fault("payload: damaged", damage=lambda data: data[:-9] + b"corrupted"),
    "kernel-panic": Fault("Rebooting in 10 seconds", script="echo c >/proc/sysrq-trigger"),
    # Neither the brain nor init's guard moves: nothing but the hardware is left.
    "lockup": Fault("anemos: deployment", script=signal("STOP", f"{BRAIN}|{GUARD}")),
    "payload-truncated": Fault("payload: damaged", damage=lambda data: data[:512]),
    "wrong-serial": Fault("no disks match serial=SYSTEM", system={"serial": "OTHER"}),
    "two-disks-match": Fault(
        "2 disks match",
        drives=lambda room: [*disks(room), room.drive("twin", 256 * MIB, serial="SYSTEM")],
    ),
    "disk-read-only": Fault("the kernel says that it is read-only", drives=read_only),
    "kept-disk-missing": Fault("no disks match wwn=", drives=lambda room: disks(room)[:1]),
    "kept-disk-changed": Fault("is not what it was", options={"kept": [KEPT]}),
    "mirror-unreachable": Fault("no answer from the mirror", options={"layer": None}),
    "no-network": Fault("no network interface", options={"network": ELSEWHERE}),
    "out-of-memory": Fault("Out of memory", script=FILL_MEMORY),
    "init-killed": Fault("Attempted to kill init", script=KILL_INIT),
    "brain-killed": Fault("the installer was ended", script=signal("KILL", BRAIN)),
    "brain-hangs": Fault(
        "no point of no return within 100 s",
        script=signal("STOP", BRAIN),
        cmdline="anemos.deadline=100",
    ),
    "workstation-gone": Fault("no word from the operator after 300 s"),
}


@pytest.mark.parametrize("name", first_in_check(BEFORE))
def test_before_the_point_of_no_return(
    room: Room,
    layer: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Report,
) -> None:
    fault = BEFORE[name]
    machine = Machine(fault.drives(room) if fault.drives else disks(room, **fault.system))
    if fault.damage:
        damage(monkeypatch, room, fault.damage)
    with counted(record_property, machine, kept=-1):
        parts = room.parts(NO_MIRROR, **{"layer": layer, "stay": False, **fault.options})
        line = f"{kexec.cmdline('')} {fault.cmdline}"
        guest = room.boot(parts, machine.drives, *fault.words, "-append", line, memory=768)
        if fault.script:
            guest.await_line("To be erased")
            with suppress(ConnectionLost):  # a panic may be quicker than the answer
                guest.sh(f"({fault.script}) >/dev/null 2>&1 </dev/null &")
        guest.await_end(timeout=400)

        assert fault.says in guest.serial()
        assert "POINT OF NO RETURN" not in guest.serial()
        assert machine.bytes() == machine.before


def damage(monkeypatch: pytest.MonkeyPatch, room: Room, change: Callable[[bytes], bytes]) -> None:
    finish = archive.finish

    def damaged(file: Any, description: Any, payload: Path, keys: Any, *, stay: bool) -> None:
        other = room.directory / "damaged"
        other.write_bytes(change(payload.read_bytes()))
        finish(file, description, other, keys, stay=stay)

    monkeypatch.setattr(archive, "finish", damaged)


@pytest.mark.all
def test_hold(
    room: Room, layer: Path, monkeypatch: pytest.MonkeyPatch, record_property: Report
) -> None:
    """Held, nothing is touched: not even the kept disk is taken away. `abort` ends it."""
    machine = Machine(disks(room))
    with counted(record_property, machine):
        line = kexec.cmdline("", hold=1000)
        parts = room.parts(WORKS, layer=layer, stay=False)
        guest = room.boot(parts, machine.drives, "-append", line, memory=768)
        known_as(monkeypatch, guest)
        guest.await_line("Held: nothing is touched")

        assert status.status(HOST)["state"] == status.HELD
        assert "naa.5000c500a1b2c3d4" in guest.sh("cat /sys/block/*/device/wwid")
        shell = reach.login(guest.endpoint, room.directory / "known_hosts")
        assert "boot.json" in run([*shell, "ls", "/run/anemos"])
        with pytest.raises(Failure, match="no answer from the old system"):
            recovery.abort(HOST)
        guest.await_end()

        assert "the operator wants the old system back" in guest.serial()
        assert machine.bytes() == machine.before


# After it


def known_as(monkeypatch: pytest.MonkeyPatch, guest: Guest, *, stays: bool = False) -> None:
    """Have the workstation's tasks meet GUEST as HOST. STAYS: it was started by hand."""
    monkeypatch.setattr(reach, "endpoint", lambda host: guest.endpoint)
    monkeypatch.setattr(places, "memory", lambda name: guest.console.parent)
    monkeypatch.setattr(places, "state", lambda name: guest.console.parent)
    monkeypatch.setattr(verify, "verify", lambda host: {"verified": "not here"})
    State(HOST.name, lab.DEPLOYMENT, stays=stays).save()


def begun(room: Room, machine: Machine, text: str, layer: Path, *words: str) -> Guest:
    """A machine that installs the IMGBUILD TEXT, with the package LAYER."""
    parts = room.parts(text, layer=layer, stay=False)
    guest = room.boot(parts, machine.drives, *words, memory=768)
    guest.await_ssh()
    guest.go()
    return guest


def correct(
    monkeypatch: pytest.MonkeyPatch, room: Room, text: str, layer: Path | None = None
) -> None:
    """Let `resume --repack` make a payload of the IMGBUILD TEXT, with the package LAYER."""

    def make(host: Host, state: State) -> str:
        payload_file(host).write_bytes(room.payload(text).read_bytes())
        state.layer = str(layer or "")
        return sha256(payload_file(host))

    monkeypatch.setattr(phases, "reveal", lambda host: {})
    monkeypatch.setattr(phases, "make_payload", make)


def proof(machine: Machine, path: str = "/etc/proof") -> str:
    """A file on the system disk's first partition."""
    image = f"{machine.drives[0].file}?offset={MIB}"
    return run(["debugfs", "-R", f"cat {path}", image])


@pytest.mark.all
def test_resume(
    room: Room, layer: Path, monkeypatch: pytest.MonkeyPatch, record_property: Report
) -> None:
    """provision() fails: it waits, says why, tries a step again, goes on with another payload."""
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        parts = room.parts(FAILS, layer=layer, stay=False)
        guest = room.boot(parts, machine.drives, *WATCHDOG, memory=768)
        known_as(monkeypatch, guest)
        guest.await_ssh()
        assert status.status(HOST)["state"] == status.GOING
        guest.go()
        with pytest.raises(Failure, match="provision: not today") as caught:
            watch.watch(HOST)
        assert caught.value.status == IN_INITRAMFS
        seen = status.status(HOST)
        assert (seen["state"], seen["deployment"]) == (status.FAILED_THERE, lab.DEPLOYMENT)
        assert "not today" in guest.sh("cat /run/anemos/log")
        with pytest.raises(Failure, match="cannot go back"):
            recovery.abort(HOST)

        with pytest.raises(Failure, match="provision: not today"):
            recovery.resume(HOST, step="definition")
        correct(monkeypatch, room, WORKS, layer)
        assert recovery.resume(HOST, repack=True) == {"verified": "not here"}
        guest.await_end()

        assert proof(machine) == "corrected\n"
        assert machine.bytes()[1] == machine.before[1]
        assert load_state(HOST).deployment == lab.DEPLOYMENT


@pytest.mark.all
def test_finish_by_kexec(
    room: Room, layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new system's kernel starts without firmware. Here it is the base image's, which says a
    word and powers off; the watchdog must not go off before that."""
    root = room.directory / "root"
    with images.boot_files(images.base()) as (kernel, initrd):
        (root / "boot").mkdir()
        run(["cp", kernel, root / "boot/vmlinuz-1"])
        run(["cp", initrd, root / "boot/initrd.img-1"])
    bootable = room.directory / "bootable.tar.zst"
    run(["tar", "--create", "--zstd", "--file", bootable, "-C", root, "."])
    write = partial(payload.write, finish="kexec")
    monkeypatch.setattr(payload, "write", write)
    machine = Machine(disks(room))
    text = WORKS + "cmdline='console=ttyS0 anemos.probe'\n"
    guest = begun(room, machine, text, bootable, *WATCHDOG)
    guest.await_end()

    said = guest.serial()
    assert said.index("i6300ESB timer") < said.index("anemos: deployment")  # before Python starts
    assert said.index("Rebooting into") < said.index("anemos: the machine works")
    assert machine.bytes()[1] == machine.before[1]


AFTER = {
    # name: (IMGBUILD, what is done to the machine after a moment, what it says)
    "disk-full": (FILLS, "", "No space left"),
    "brain-killed-late": (SLOW, signal("KILL", BRAIN), "the installer was ended"),
}


@pytest.mark.all
@pytest.mark.parametrize("name", AFTER)
def test_after_the_point_of_no_return(
    room: Room,
    layer: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Report,
) -> None:
    text, script, says = AFTER[name]
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        guest = begun(room, machine, text, layer, *WATCHDOG)
        known_as(monkeypatch, guest)
        guest.await_line("Running provision()")
        if script:
            guest.sh(script)
        with pytest.raises(Failure, match=says):
            watch.watch(HOST)
        correct(monkeypatch, room, WORKS, layer)
        recovery.resume(HOST, repack=True)
        guest.await_end()

        assert proof(machine) == "corrected\n"
        assert machine.bytes()[1] == machine.before[1]


@pytest.mark.all
def test_hostile_provision(
    room: Room, layer: Path, monkeypatch: pytest.MonkeyPatch, record_property: Report
) -> None:
    """The kept disk is out of its reach; what it does to a kept partition does not stay unseen."""
    machine = Machine(disks(room))
    table = f"label: gpt\n3 : start={OLD // 512}, size=8MiB\n"
    run(["sfdisk", "--quiet", machine.drives[0].file], data=table.encode())
    with counted(record_property, machine, kept=1):
        guest = begun(room, machine, KEEPS + HOSTILE, layer)
        known_as(monkeypatch, guest)
        with pytest.raises(
            Failure, match=r"written to, although kept: 8 sectors of partition 'old'"
        ):
            watch.watch(HOST)
        correct(monkeypatch, room, KEEPS + ROUNDABOUT, layer)
        with pytest.raises(Failure, match=r"kept: 8 sectors of /dev/vda, outside its partitions"):
            recovery.resume(HOST, repack=True)
        correct(monkeypatch, room, KEEPS + WORKS.removeprefix(IMGBUILD), layer)
        recovery.resume(HOST, repack=True)
        guest.await_end()

        with machine.drives[0].file.open("rb") as disk:  # it was not for want of trying
            disk.seek(OLD)
            assert disk.read(8) == b"hostile\n"
            disk.seek(OLD + 8 * 512)
            assert disk.read(8) == b"hostile\n"
        assert machine.bytes()[1] == machine.before[1]


@pytest.mark.all
def test_started_by_hand(
    room: Room, layer: Path, monkeypatch: pytest.MonkeyPatch, record_property: Report
) -> None:
    """There is no old system to go back to: a failed preflight waits for a corrected payload."""
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        wrong = WORKS.replace("serial=SYSTEM", "serial=OTHER")
        guest = room.boot(room.parts(wrong, layer=layer), machine.drives, memory=768)
        known_as(monkeypatch, guest, stays=True)
        guest.await_ssh()
        with pytest.raises(Failure, match="no disks match serial=OTHER") as caught:
            watch.watch(HOST)
        assert "resume" in caught.value.hint
        with pytest.raises(Failure, match="cannot go back"):
            recovery.abort(HOST)
        assert machine.bytes() == machine.before

        correct(monkeypatch, room, WORKS, layer)
        assert "verified" not in recovery.resume(HOST, repack=True)
        guest.await_line("To be erased")
        guest.go()
        guest.await_end()

        assert proof(machine) == "corrected\n"
        assert machine.bytes()[1] == machine.before[1]


@pytest.mark.all
def test_broken_layer(
    room: Room, layer: Path, monkeypatch: pytest.MonkeyPatch, record_property: Report
) -> None:
    """The package layer arrives as it was sent, and is none: another one is sent."""
    broken = room.directory / "broken"
    broken.write_bytes(b"no tar")
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        guest = begun(room, machine, WORKS, broken)
        known_as(monkeypatch, guest)
        with pytest.raises(Failure, match="tar"):
            watch.watch(HOST)
        correct(monkeypatch, room, WORKS, layer)
        recovery.resume(HOST, repack=True)
        guest.await_end()

        assert proof(machine) == "corrected\n"


@pytest.mark.all
def test_lost_network_and_workstation(room: Room, layer: Path, record_property: Report) -> None:
    """Past the point of no return nobody is needed: it goes on, and ends, alone."""
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        guest = begun(room, machine, SLOW, layer)
        guest.await_line("Running provision()")
        down = "ip link set $(ip -o route show default | sed 's/.*dev \\([^ ]*\\).*/\\1/') down"
        guest.sh(f"(sleep 1; {down}) >/dev/null 2>&1 </dev/null &")
        guest.await_end()

        assert proof(machine) == "slow\n"


@pytest.mark.all
@pytest.mark.parametrize("moment", ["Package layer ...", "Running provision()", "Boot loader ..."])
def test_power_cut(room: Room, layer: Path, moment: str, record_property: Report) -> None:
    """The same initramfs, started by hand, finds half a system and makes a whole one."""
    machine = Machine(disks(room))
    with counted(record_property, machine, kept=1):
        guest = begun(room, machine, SLOW, layer)
        guest.await_line(moment)
        guest.cut()
        again = room.boot(room.parts(WORKS, layer=layer), machine.drives, memory=768)
        again.await_ssh()
        again.go()
        again.await_end()

        assert proof(machine) == "corrected\n"
        assert machine.bytes()[1] == machine.before[1]
