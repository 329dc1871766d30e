"""Every external command of a deployment fails, hangs, is killed: one in each run (see nth.py)."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sh

from anemos import disks
from anemos.border import boot
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed
from anemos.border.network import Network
from anemos.files import sha256
from anemos.initramfs import __main__ as initramfs
from anemos.log import BAD_INPUT, FAILED
from anemos.run import CommandFailed, run
from anemos.system import imgbuild, layout
from anemos.system.layout import MIB
from anemos.workstation.deploy import payload, reach
from anemos.workstation.ssh import Endpoint
from tests import brain, nth, sudoer, tiny
from tests.lab import DEPLOYMENT, first_in_check
from tests.nth import Commands
from tests.sshd import make_key
from tests.tree import ROOT

pytestmark = [pytest.mark.root, pytest.mark.real("run")]
RESOLVER = Path("/etc/resolv.conf")
Report = Callable[[str, object], None]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory. No run writes to this machine's own /etc: its resolver stays as it is."""
    before = state(RESOLVER)
    with tempfile.TemporaryDirectory(prefix="anemos-nth-", dir="/dev/shm") as name:
        yield Path(name)
    assert state(RESOLVER) == before


def state(file: Path) -> tuple[int, int, bytes]:
    return file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()


@pytest.fixture
def everything(request: pytest.FixtureRequest) -> bool:
    """All commands, in all ways; else a sample."""
    return bool(request.config.getoption("--all"))


@pytest.fixture
def report(record_property: Report) -> Report:
    return record_property


# The initramfs

IMGBUILD = """\
target=debian
format=disk
layout='
disk system serial=SYSTEM
part root fs=ext4 mount=/ size=48M
part srv fs=ext4 mount=/srv size=16M
part swap type=swap fs=swap size=4M
'
keep='
disk data serial=DATA part=1 mount=/home
part old disk=system number=7
'
provision() { echo provisioned >/etc/proof; }
"""
OLD, OLD_SIZE = 84 * MIB, 8 * MIB  # the kept partition
PATCH = "--- a\n+++ b\n@@ -1 +1 @@\n-root:x:0:0:root:/root:/bin/sh\n+root:x:0:0::/root:/bin/sh\n"
ALONE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--net"]
# $1: the directory; the rest: a command. What is written to /run and /etc is gone with it.
APART = """
set -e
mount -t tmpfs -o size=32m tmpfs /run
mkdir /run/anemos /run/upper /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /etc
top=$1
shift
"""
# The network card is lo, which needs none.
ENTER = f"""{APART}
mount --bind "$top/here" /run/anemos
PATH=$top/bin:$PATH
"$@"
: # no exec: sshd does not go into the background when the first process has started it
"""
NETWORK: Network = {
    "interfaces": [
        {
            "name": "eth0",
            "kind": "ether",
            "mac": "52:54:00:00:00:01",
            "address": "",
            "bus": "",
            "mtu": 1500,
            "needed": True,
            "ipv6": False,
            "addresses": [{"family": "inet", "local": "192.0.2.5", "prefixlen": 24}],
            "routes": [],
            "dhcp": True,
        }
    ],
    "left": [],
    "dns": ["192.0.2.1"],
    "operator": "inet",
}
# What this machine may lack, or what would reach beyond the namespaces.
STAND_INS = {
    "modprobe": "exit 1",  # one of the devices has no driver
    "busybox": "",
    "pvs": 'echo \'{"report": [{"pv": []}]}\'',
    "sync": "",
}
LEFT_OUT = ("python3",)


LOOP = ["losetup", "--partscan", "--show", "--find"]


@dataclass
class Machine:
    """A machine in the initramfs: disks, and /run/anemos as the old system has left it."""

    top: Path
    commands: Commands

    def start(self, which: int = 0, way: str = "none") -> int:
        """From the jump, with fresh disks; see `again`."""
        self.renew()
        return self.again(which, way)

    def renew(self) -> None:
        for name in ("here", "disks"):
            shutil.rmtree(self.top / name, ignore_errors=True)
            shutil.copytree(self.top / "fresh" / name, self.top / name)

    def resume(self, **request: str) -> int:
        """REQUEST: fields of progress.Request."""
        (self.here / "resuming").write_text(json.dumps(request))
        return self.again()

    def given(self, **changed: object) -> None:
        """Other words in boot.json."""
        file = self.here / "boot.json"
        boot.save(replace(boot.load(file), **changed), file)  # type: ignore[arg-type]

    def pack(self, text: str) -> str:
        """The payload of the IMGBUILD TEXT in place of the other one; its SHA-256."""
        (self.here / "payload").unlink()
        return pack(self.top, self.here, text)

    def again(self, which: int = 0, way: str = "none") -> int:
        """Exit status of the brain. The command WHICH is broken in this WAY."""
        self.commands.arm(which, way)
        (self.here / "events").unlink(missing_ok=True)
        with attached(self.disk("system")) as system, attached(self.disk("data")) as data:
            argv: list[str | Path] = [*ALONE, "sh", "-c", ENTER, "sh", self.top]
            argv += [sys.executable, "-B", "-m", "tests.brain", self.top, system, data]
            return subprocess.run(argv, cwd=ROOT, timeout=900, check=False).returncode

    @property
    def here(self) -> Path:
        return self.top / "here"

    def disk(self, name: str) -> Path:
        return self.top / "disks" / name

    @property
    def passed(self) -> bool:
        return (self.here / "point-of-no-return").exists()

    def end(self) -> dict[str, Any]:
        """The last event."""
        lines = (self.here / "events").read_text().splitlines()
        return dict(json.loads(lines[-1]))

    def digests(self) -> list[str]:
        return [sha256(self.disk(name)) for name in ("system", "data")]

    def kept(self) -> list[str]:
        """Digests of the kept disk and the kept partition."""
        with self.disk("system").open("rb") as file:
            file.seek(OLD)
            return [hashlib.sha256(file.read(OLD_SIZE)).hexdigest(), sha256(self.disk("data"))]

    def proof(self) -> list[str]:
        """Of the new system: provision(), its secret, its deployment."""
        image = f"{self.disk('system')}?offset={MIB}"
        paths = ("etc/proof", "etc/key", "etc/passwd", "etc/anemos/deployment.json")
        return [run(["debugfs", "-R", f"cat /{path}", image]) for path in paths]

    def left(self) -> str:
        """What of Anemos is in the new system."""
        image = f"{self.disk('system')}?offset={MIB}"
        return run(["debugfs", "-R", "ls /var/lib/anemos", image])


@contextmanager
def attached(file: Path) -> Iterator[str]:
    node = run([*LOOP, file]).strip()
    try:
        run(["blockdev", "--setrw", node])  # one that was a kept disk's before has stayed read-only
        with suppress(CommandFailed):  # most kernels have read the table by themselves
            run(["partx", "--add", node])
        yield node
    finally:
        run(["losetup", "--detach", node])


@pytest.fixture(scope="module")
def machine(place: Path) -> Machine:
    top = place / "machine"
    for name in ("fresh/here/ssh", "fresh/disks", "target", "revealed/etc"):
        (top / name).mkdir(parents=True)
    make_disks(top / "fresh/disks")
    make_here(top, top / "fresh/here")
    return Machine(top, wrapped(top, STAND_INS))


def wrapped(top: Path, stand_ins: Mapping[str, str]) -> Commands:
    """All programs, STAND_INS in place of those of their names."""
    commands = Commands(top)
    commands.install(without=LEFT_OUT)
    for name, script in stand_ins.items():
        (top / f"{name}.sh").write_text(f"#!/bin/sh\n{script}\n")
        (top / f"{name}.sh").chmod(0o755)
        commands.stand_in(name, f"{top}/{name}.sh")
    return commands


def make_disks(directory: Path) -> None:
    for name, size, start, length in (
        ("system", 96, OLD // MIB, OLD_SIZE // MIB),
        ("data", 16, 1, 14),
    ):
        file = directory / name
        file.write_bytes(os.urandom(MIB))
        os.truncate(file, size * MIB)
        table = f"label: gpt\n{7 if name == 'system' else 1}: start={start}MiB, size={length}MiB\n"
        run(["sfdisk", "--quiet", file], data=table.encode())
        run(["mkfs.ext4", "-q", "-F", "-E", f"offset={start * MIB}", file, f"{length}M"])


def pack(top: Path, here: Path, text: str) -> str:
    (top / "mx/IMGBUILD").write_text(text)
    spec = imgbuild.load(top / "mx")
    payload.write(here / "payload", spec, DEPLOYMENT, {}, top / "revealed")
    return sha256(here / "payload")


def make_here(top: Path, here: Path) -> None:
    (top / "mx/files/etc").mkdir(parents=True)
    (top / "mx/files/etc/passwd.makeimg.patch").write_text(PATCH)
    (top / "revealed/etc/key").write_text("secret")
    packed = pack(top, here, IMGBUILD)
    layer = tiny.make(top / "root")
    run(["tar", "--create", "--zstd", "--file", here / "layer", "-C", layer, "."])
    (here / "base.squashfs").write_bytes(b"hsqs")
    (here / "go").touch()  # the operator's word
    make_key(here / "ssh/ssh_host_ed25519_key")
    layered = sha256(here / "layer")
    with attached(top / "fresh/disks/system") as system, attached(top / "fresh/disks/data") as data:
        found = [
            disks.fingerprint("data", brain.device(data, "DATA")),
            disks.fingerprint("old", brain.device(system, "SYSTEM"), 7),
        ]
    words = Boot(DEPLOYMENT, "mx", "0" * 64, packed, layered, brain.PORT, NETWORK, found)
    boot.save(words, here / "boot.json")


WORKS = ["provisioned\n", "secret", "root:x:0:0::/root:/bin/sh\n"]


def failure(machine: Machine) -> str:
    told = machine.end()
    assert told["event"] == "failed"
    return str(told["message"])


def test_installation(machine: Machine, everything: bool, report: Report) -> None:
    """Before the point of no return the disks are as they were, and PID 1 reboots; after it the
    machine waits, and the same run again ends with the new system. Kept bytes never change."""
    assert machine.start() == 0, machine.end()
    commands = machine.commands.calls()
    kept, fresh = machine.kept(), Machine(machine.top / "fresh", machine.commands)
    assert (machine.proof()[:3], kept) == (WORKS, fresh.kept())
    assert "manifest.json.gz" in machine.left()

    def attempt(which: int, way: str) -> str:
        status = machine.start(which, way)
        assert machine.kept() == kept
        by_hand = ", ended by hand" if machine.commands.by_hand else ""
        if status == 0:
            assert machine.proof()[:3] == WORKS
            return f"went on{by_hand}"
        assert status == initramfs.TOLD
        assert "Traceback" not in failure(machine)
        if not machine.passed:
            assert machine.digests() == fresh.digests()
            return f"old system{by_hand}"
        assert machine.resume() == 0, machine.end()
        assert (machine.proof()[:3], machine.kept()) == (WORKS, kept)
        return f"resumed{by_hand}"

    try_all(commands, attempt, 0 if everything else 6, report)


# Faults by name: docs/reliability.md has them, too


def other_file(machine: Machine) -> None:
    file = machine.here / "payload"
    run(["tar", "--delete", "--file", file, "secrets/etc/key"])
    machine.given(payload=sha256(file))


def other_disk(machine: Machine) -> None:
    spec = imgbuild.load(machine.top / "mx")
    shown = {"system": disks.Device("sda", "OTHER", "", MIB)}
    machine.given(agreed=Agreed(layout.digest(spec.layout, spec.kept), shown))


def other_layer(machine: Machine) -> None:
    (machine.here / "layer").write_bytes(b"none")


def other_file_system(machine: Machine) -> None:
    options = ["-q", "-F", "-E", f"offset={MIB}"]
    run(["mkfs.ext4", *options, machine.disk("data"), "14M"])


def no_card(machine: Machine) -> None:
    interface = {**NETWORK["interfaces"][0], "mac": ""}
    machine.given(network={**NETWORK, "interfaces": [interface]})


def repacked(machine: Machine, old: str, new: str) -> None:
    """Another IMGBUILD came."""
    assert old in IMGBUILD
    machine.given(payload=machine.pack(IMGBUILD.replace(old, new)))


BEFORE: dict[str, tuple[Callable[[Machine], object], str]] = {
    # name: (what is done to the machine, what it says)
    "payload-missing": (lambda m: (m.here / "payload").unlink(), "payload: not there"),
    "payload-without-a-file": (other_file, "secrets/etc/key is not what was packed"),
    "layer-damaged": (other_layer, "layer: damaged on the way"),
    "another-layout-than-shown": (lambda m: m.given(agreed=Agreed("other")), "not what the plan"),
    "another-disk-than-shown": (other_disk, "the plan has shown sda"),
    "kept-file-system-made-anew": (other_file_system, "is not what it was"),
    "kept-partition-gone": (
        lambda m: run(["sfdisk", "--quiet", "--delete", m.disk("system"), "7"]),
        "no partition 7",
    ),
    "boot-json-damaged": (lambda m: (m.here / "boot.json").write_bytes(b"{"), "boot.json: no JSON"),
    "network-card-missing": (no_card, "no network interface with MAC address"),
    "system-disk-missing": (
        lambda m: repacked(m, "serial=SYSTEM", "serial=OTHER"),
        "no disks match serial=OTHER",
    ),
    "kept-disk-missing": (
        lambda m: repacked(m, "serial=DATA", "serial=OTHER"),
        "no disks match serial=OTHER",
    ),
    "layout-too-large": (lambda m: repacked(m, "size=48M", "size=480M"), "system"),
    "no-word": (lambda m: (m.here / "go").unlink(), "no word from the operator"),
    "operator-aborts": (lambda m: (m.here / "abort").write_text("she says no"), "she says no"),
}


@pytest.mark.parametrize("name", first_in_check(BEFORE))
def test_before_the_point_of_no_return(machine: Machine, name: str, report: Report) -> None:
    damage, says = BEFORE[name]
    machine.renew()
    damage(machine)
    before = machine.digests()
    assert machine.again() == initramfs.TOLD
    report("fault", ("returned", "" if machine.digests() == before else "kept bytes changed"))
    assert says in failure(machine)
    assert not machine.passed
    assert machine.digests() == before


AFTER = {
    # name: (the IMGBUILD's provision(), what it says)
    "provision-fails": ("provision() { false; }\n", "in provision(): `"),
    "disk-full": ("provision() { cat /dev/zero >/zeros; }\n", "No space left"),
    "provision-kills-all": ("provision() { kill -KILL -1; }\n", "No such process"),
}


@pytest.mark.parametrize("name", first_in_check(AFTER))
def test_after_the_point_of_no_return(machine: Machine, name: str, report: Report) -> None:
    """The machine waits, and a corrected payload makes the new system."""
    text, says = AFTER[name]
    machine.renew()
    kept = machine.kept()
    machine.given(payload=machine.pack(f"{IMGBUILD.partition('provision')[0]}{text}"))
    assert machine.again() == initramfs.TOLD
    assert says in failure(machine)
    assert machine.passed
    assert machine.resume(payload=machine.pack(IMGBUILD)) == 0, machine.end()
    report("fault", ("went on", "" if machine.kept() == kept else "kept bytes changed"))
    assert (machine.proof()[:3], machine.kept()) == (WORKS, kept)


@pytest.mark.all
def test_layer_that_is_none(machine: Machine, report: Report) -> None:
    """It is what was sent. Another one is sent."""
    machine.renew()
    kept = machine.kept()
    other_layer(machine)
    machine.given(layer=sha256(machine.here / "layer"))
    assert machine.again() == initramfs.TOLD
    assert "tar" in failure(machine)
    assert machine.passed
    shutil.copy(machine.top / "fresh/here/layer", machine.here)
    assert machine.resume(layer=sha256(machine.here / "layer")) == 0, machine.end()
    report("fault", ("went on", "" if machine.kept() == kept else "kept bytes changed"))
    assert (machine.proof()[:3], machine.kept()) == (WORKS, kept)


# The old system, and the workstation's phases

LIBRARIES = Path(sh.__file__).resolve().parents[1]
# In the base image, which has only links to the programs of this machine.
OLD_SIDE = f"env PYTHONPATH=/host{ROOT}:/host{LIBRARIES} /host{Path(sys.executable).resolve()}"
OLD_STAND_INS = {
    "chroot": f"""\
root=$1; shift
case $1 in
kexec) exec "$@" ;; # it is a stand-in, too
python3) exec {shutil.which("chroot")} "$root" {OLD_SIDE} -B -m tests.oldside ;;
*) exec {shutil.which("chroot")} "$root" "$@" ;;
esac""",
    "kexec": 'case "$*" in *--unload*) echo 0 ;; *) echo 1 ;; esac >/run/loaded',
    "modprobe": "exit 1",
    "systemctl": "touch /run/jumped",
}
YARD = f"""{APART}
mkdir -p /run/yard /run/sshd /run/systemd/system
mount --bind "$top" /run/yard
echo 0 >/run/loaded
[ ! -e /root/.bashrc ] || mount --bind /dev/null /root/.bashrc # what it starts does not count
ip link set lo up
{{}}
"$@"
: # no exec, as above
"""


@dataclass
class Yard:
    """An old system with the disks of MACHINE, and a workstation that deploys to it."""

    top: Path
    commands: Commands
    machine: Machine

    def start(
        self,
        which: int = 0,
        way: str = "none",
        fault: tuple[str, str] = ("", ""),
        *,
        user: str = "root",
        known: str = ":",
    ) -> dict[str, Any]:
        """From the upload to the jump, by USER, whom the script KNOWN makes. The command WHICH, on
        the server, is broken in this WAY."""
        self.commands.arm(which, way, fault)
        (self.top / "end").unlink(missing_ok=True)
        disks = self.machine.top / "fresh/disks"
        with attached(disks / "system") as system, attached(disks / "data") as data:
            (self.top / "nodes").write_text(f"{system} {data}")
            argv: list[str | Path] = [*ALONE, "sh", "-c", YARD.format(known), "sh", self.top]
            argv += [sys.executable, "-B", "-m", "tests.yard", self.top, user]
            env = {"PATH": os.environ["PATH"], "HOME": f"{self.top}/home"}
            subprocess.run(argv, cwd=ROOT, env=env, timeout=900, check=True)
        return dict(json.loads((self.top / "end").read_text()))


@pytest.fixture(scope="module")
def old_system(place: Path, machine: Machine) -> Yard:
    top = place / "yard"
    for name in ("scripts", "home", "memory", "base/boot"):
        (top / name).mkdir(parents=True)
    shutil.copy(machine.top / "fresh/here/payload", top)
    (top / "mx").symlink_to(machine.top / "mx")
    for script in reach.SERVER.glob("*.sh"):
        text = script.read_text().replace("/sys/kernel/kexec_loaded", "/run/loaded")
        (top / "scripts" / script.name).write_text(text)
    make_key(top / "host_key")
    (top / "authorized_keys").write_text(make_key(top / "identity") + "\n")
    paths = ("hostkey /run/yard/host_key", "authorizedkeysfile /run/yard/authorized_keys")
    (top / "settings").write_text("\n".join(paths))
    make_base(top)
    return Yard(top, wrapped(top, OLD_STAND_INS), machine)


def make_base(top: Path) -> None:
    for name in ("tmp", "host", "proc", "sys", "dev", "run"):
        (top / "base" / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib64", "usr", "etc", "root"):
        (top / "base" / name).symlink_to(f"host/{name}")
    (top / "base/boot/initrd").write_bytes(b"initrd")
    (top / "base/boot/vmlinuz").write_bytes(b"kernel")
    run(["mksquashfs", top / "base", top / "base.squashfs", "-quiet", "-no-progress"])
    (top / "base.squashfs").rename(top / f"base-{sha256(top / 'base.squashfs')}.squashfs")


def test_old_system(old_system: Yard, everything: bool, report: Report) -> None:
    """It jumps, or nothing is left on it: perhaps only after `clean`, and then that is said."""
    end = old_system.start()
    assert (end["status"], end["jumped"]) == (0, True), end
    commands = old_system.commands.calls()

    def attempt(which: int, way: str) -> str:
        end = old_system.start(which, way)
        if end["status"] == 0:
            assert end["jumped"]
            return "went on"
        assert end["status"] in (FAILED, BAD_INPUT)
        assert end["message"]
        assert "Traceback" not in end["message"]
        assert not end["stays"], end
        assert not end["left"] or end["told"], end
        if end["jumped"]:  # it gets no word: it comes back by itself
            return "old system, after a jump"
        return "old system, by clean" if end["left"] else "old system"

    try_all(commands, attempt, 0 if everything else 3, report)


def test_old_system_by_an_ordinary_user(old_system: Yard) -> None:
    """The way is the same, and sudo gets the password, nothing else."""
    top, nobody = old_system.top, Endpoint("", 0, "", None)
    server = sudoer.Server(top, nobody)
    sudoer.furnish(server)
    top.parent.chmod(0o755)
    words = shlex.join(map(str, sudoer.words(top)))
    end = old_system.start(user=sudoer.USER, known=f'set -- {words} "$@"{sudoer.KNOWN}')
    assert (end["status"], end["jumped"]) == (0, True), end
    assert set(server.tokens) == {sudoer.PASSWORD}


def says(setting: str, file: str) -> str:
    """sshd tells another FILE."""
    change = f"sed 's,{setting} .*,{setting} {file},' /run/yard/settings >/run/settings"
    return f"reached; {change}; mount --bind /run/settings /run/yard/settings"


STARVE = "echo 'MemAvailable: 9 kB' >/run/meminfo; mount --bind /run/meminfo /proc/meminfo"
ENTERS = "unshare*python3*"  # Anemos in the base image
LOADS = "kexec*--load*"
ON_THE_OLD_SYSTEM = {
    # name: (a command on the server, what happens before it, what is told, exit status)
    "reboot-refused": ("systemctl*", "reached; exit 1", "exit status 1", FAILED),
    "run-full": ("date*", "reached; cat /dev/zero >/run/fill", "No space left", BAD_INPUT),
    "little-memory": ("sed*MemAvailable*", f"reached; {STARVE}", "bytes of memory", BAD_INPUT),
    "memory-gone-before-the-load": (
        ENTERS,
        f"[ ! -e /run/anemos/initramfs ] || {{ reached; {STARVE}; }}",
        "MiB needed to load it",
        FAILED,
    ),
    "payload-damaged": (ENTERS, "reached; echo x >/run/anemos/payload", "as it was sent", FAILED),
    "base-image-damaged": (
        ENTERS,
        "reached; for base in /run/anemos/base-*; do echo x >$base; done",
        "mount",
        FAILED,
    ),
    "staged-by-somebody-else": (
        "date*",
        "reached; echo d-9 bert@desk today >/run/anemos.owner",
        "of bert@desk is staged here since today",
        BAD_INPUT,
    ),
    "host-key-gone": (ENTERS, says("hostkey", "/none"), "no host key", FAILED),
    "another-host-key": (
        ENTERS,
        says("hostkey", "/run/yard/identity"),
        "would not have the pinned host key",
        BAD_INPUT,
    ),
    "nobody-may-log-in": (
        ENTERS,
        says("authorizedkeysfile", "/none"),
        "nobody is listed",
        FAILED,
    ),
    "another-key-may-log-in": (
        ENTERS,
        says("authorizedkeysfile", "/run/yard/host_key.pub"),
        "would not let you in by the key",
        BAD_INPUT,
    ),
    "kexec-refused": (LOADS, "reached; exit 1", "kexec", FAILED),
    "kexec-loads-nothing": (LOADS, "reached; exit 0", "kexec", FAILED),
    "sessions-end": (
        ENTERS,
        "first && reached && pkill -KILL -f '^sshd: root@'",
        "connection",
        FAILED,
    ),
    "clean-up-fails-once": (
        "systemctl*|rm*-rf*/run/anemos/*",
        "case $call in rm*) ! first || { reached; exit 1; } ;; *) exit 1 ;; esac",
        "exit status 1",
        FAILED,
    ),
    "workstation-is-told-to-end": (
        ENTERS,
        "first && reached && pkill -TERM -f tests.yard",
        "SIGTERM",
        128 + signal.SIGTERM,
    ),
    "terminal-is-closed": (
        ENTERS,
        "first && reached && pkill -HUP -f tests.yard",
        "SIGHUP",
        128 + signal.SIGHUP,
    ),
}


@pytest.mark.parametrize("name", first_in_check(ON_THE_OLD_SYSTEM))
def test_on_the_old_system(old_system: Yard, name: str, report: Report) -> None:
    """It serves on. Nothing is left there, perhaps only after `clean`, and then that is said."""
    pattern, script, told, status = ON_THE_OLD_SYSTEM[name]
    end = old_system.start(fault=(pattern, script))
    assert old_system.commands.reached
    assert told in end["said"]
    assert (end["status"], end["jumped"], end["stays"]) == (status, False, [])
    assert not end["left"] or end["told"]
    report("fault", ("returned", ""))


Attempt = Callable[[int, str], str]


def try_all(commands: Sequence[str], attempt: Attempt, sample: int, report: Report) -> None:
    """ATTEMPT breaks one of COMMANDS and says in which state all ends. Fails for all at once."""
    ends, problems = Counter[str](), []
    for which, way in nth.breaks(len(commands), sample):
        try:
            end = attempt(which, way)
        except AssertionError as error:
            end = "FAILED"
            problems.append(f"{which} {way}: {commands[which - 1][:200]}\n{error}")
        print(which, way, end, commands[which - 1][:100].replace("\n", " "), sep="\t")
        ends[end] += 1
    report("seen", f"{len(commands)} commands, {ends.total()} runs: {dict(ends)}")
    assert not problems, "\n".join(problems)
