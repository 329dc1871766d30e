"""A slot is tried and gets the word: what the record says at each step, on real file systems.

The machine that jumps is in test_on_trial_vm.py, the guard in test_guard.py.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from anemos import kexec, memory, mounts
from anemos.border import requests
from anemos.border.requests import Commit, Return, Try, Withdraw
from anemos.log import FAILED, Failure
from anemos.run import run
from anemos.server import shared, staging, trial
from anemos.server.__main__ import answer
from anemos.system import slots
from anemos.system.installation import CONFIRM, TRIAL
from anemos.system.layout import MIB, SHARED, identity
from anemos.system.slots import Record, Slot
from tests.imaging import attached
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

# Other tests, and other runs of these, may have such disks at the same time.
ROOTS = {name: identity(f"{os.getpid()}", name) for name in "ab"}
WORDS = "root=UUID={} ro console=ttyS0"
GRUB_CFG = """\
menuentry Linux {{
    search --no-floppy --fs-uuid --set=root {0}
    linux /boot/vmlinuz-6.1 {1}
    initrd /boot/initrd.img-6.1
}}
menuentry 'of an upgrade' {{
    linux /boot/vmlinuz-5.0 other
    initrd /boot/initrd.img-5.0
}}
"""
OLD = Slot("good", ROOTS["a"], "d-0", 1)
FILLED = Slot("filled", ROOTS["b"], "d-1", 2)
ASKED = Try("d-1", 600)


@dataclass
class Server:
    """Slot a runs, at HOST. LOADED: what the kernel was given for kexec."""

    host: Path
    nodes: dict[str, Path]
    loaded: list[tuple[str, str, str]] = field(default_factory=list)

    def write(self, record: Record) -> None:
        with shared.found() as found:
            found.write(record)

    @property
    def record(self) -> Record:
        """As it is on the disk."""
        return slots.decoded(self.shared(slots.FILE))

    def shared(self, name: str) -> bytes:
        """A file that both slots share."""
        point = self.host.parent / "look"
        point.mkdir(exist_ok=True)
        with mounts.mounted(self.nodes["boot"], at=point):
            return (point / name).read_bytes()

    def load(self, kernel: Path, initrd: Path, line: str) -> None:
        self.loaded.append((kernel.read_text(), initrd.read_text(), line))

    def run(self, slot: str) -> None:
        run(["umount", self.host])
        run(["mount", self.nodes[slot], self.host])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    point, host = tmp_path / "point", tmp_path / "host"
    point.mkdir()
    host.mkdir()
    uuids = {**ROOTS, "boot": identity(os.fspath(tmp_path), "boot")}
    with ExitStack() as stack:
        nodes = {}
        for name, uuid in uuids.items():
            file = tmp_path / f"{name}.img"
            with file.open("wb") as disk:
                disk.truncate(16 * MIB)
            run(["mkfs.ext4", "-q", "-U", uuid, file])
            nodes[name] = stack.enter_context(attached(file))
            with mounts.mounted(nodes[name], at=point):
                fill(point, name, uuids)
        stack.enter_context(mounts.mounted(nodes["a"], at=host))
        made = Server(host, nodes)
        monkeypatch.setattr(staging, "HOST", host)
        monkeypatch.setattr(memory, "available", lambda: 2**30)
        monkeypatch.setattr(kexec, "load", made.load)
        monkeypatch.setattr(kexec, "unload", made.loaded.clear)
        monkeypatch.setattr(trial, "WORD", tmp_path / "word")
        yield made


def fill(root: Path, name: str, uuids: dict[str, str]) -> None:
    if name == "boot":
        record = Record("a", {"a": OLD, "b": FILLED})
        (root / slots.FILE).write_bytes(slots.encoded(record))
        return
    for path in ("etc", "boot/grub"):
        (root / path).mkdir(parents=True)
    line = f"UUID={uuids['boot']} {SHARED} ext4 noauto 0 2\n"
    (root / "etc/fstab").write_text(f"# comment\nUUID={uuids[name]} / ext4 defaults 0 1\n{line}")
    (root / "boot/grub/grub.cfg").write_text(GRUB_CFG.format(name, WORDS.format(name)))
    (root / "boot/vmlinuz-6.1").write_text(f"kernel {name}")
    (root / "boot/initrd.img-6.1").write_text(f"initrd {name}")


def test_trial(server: Server) -> None:
    """Nothing that it has mounted stays so."""
    assert answer(requests.read(requests.text(ASKED))) == {}

    own = f"{WORDS.format('b')} panic=10 oops=panic init=/{TRIAL}"
    line = f"{own} anemos.trial=600 anemos.deployment=d-1"
    assert server.loaded == [("kernel b", "initrd b", line)]
    assert server.record == Record("a", {"a": OLD, "b": FILLED._replace(state="trial")})
    assert [each.point for each in mounts.listed() if each.source in server.nodes.values()] == [
        server.host
    ]


def test_trial_and_word_with_systemd_boot(server: Server) -> None:
    """Its loader.conf is the record, and says what starts."""
    point = server.host.parent / "look"
    point.mkdir()
    with mounts.mounted(server.nodes["boot"], at=point):
        record = slots.decoded((point / slots.FILE).read_bytes())
        (point / slots.FILE).unlink()
        (point / "loader").mkdir()
        data = slots.encoded(record, slots.LOADER_CONF)
        (point / slots.LOADER_CONF).write_bytes(data + b"timeout 1\n")
    with mounts.mounted(server.nodes["b"], at=point):
        (point / "boot/grub/grub.cfg").unlink()
        (point / "etc/kernel").mkdir()
        (point / "etc/kernel/cmdline").write_text(f"{WORDS.format('b')}\n")

    trial.start(ASKED)
    own = f"{WORDS.format('b')} panic=10 oops=panic init=/{TRIAL}"
    line = f"{own} anemos.trial=600 anemos.deployment=d-1"
    assert server.loaded == [("kernel b", "initrd b", line)]
    server.run("b")
    trial.commit(Commit("d-1"))
    assert b"\ndefault anemos-b-*\n" in (text := server.shared(slots.LOADER_CONF))
    assert text.endswith(b"#\ntimeout 1\n")


def test_trial_by_grub(server: Server) -> None:
    """It starts the same, once, and the record says so."""
    trial.start(replace(ASKED, once=True))

    tried = Record("a", {"a": OLD, "b": FILLED._replace(state="trial")}, once=True)
    assert (server.loaded, server.record) == ([], tried)
    text = server.shared(slots.ONCE).decode()
    assert text.startswith(f"search --no-floppy --fs-uuid --set=root {ROOTS['b']}\n")
    own = f"{WORDS.format('b')} panic=10 oops=panic init=/{TRIAL}"
    assert f"linux /boot/vmlinuz-6.1 {own} anemos.trial=600 anemos.deployment=d-1;" in text
    assert "initrd /boot/initrd.img-6.1;" in text


def test_trial_that_confirms_itself(server: Server) -> None:
    """The slot gets the script for it, for root alone, and the guard starts it."""
    trial.start(replace(ASKED, confirm="#!/bin/sh\n"))

    assert server.loaded[0][2].endswith(" anemos.deployment=d-1 anemos.confirm")
    (point := server.host.parent / "look").mkdir()
    with mounts.mounted("-r", server.nodes["b"], at=point):
        file = point / CONFIRM
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("#!/bin/sh\n", 0o700)


@pytest.mark.parametrize("once", [False, True])
def test_trial_that_is_withdrawn(server: Server, once: bool) -> None:
    """No later boot is one. It may be tried again."""
    trial.start(replace(ASKED, once=once))
    with pytest.raises(Failure, match="it has jumped already"):
        trial.withdraw(Withdraw("another boot"))
    trial.withdraw(Withdraw(trial.BOOT_ID.read_text().strip()))
    assert (server.loaded, server.record) == ([], Record("a", {"a": OLD, "b": FILLED}))
    trial.start(ASKED)


def test_withdrawal_of_nothing(server: Server) -> None:
    server.write(known := Record("a", {"a": OLD, "b": FILLED._replace(state="bad")}))
    trial.withdraw(Withdraw(trial.BOOT_ID.read_text().strip()))
    assert server.record == known


@pytest.mark.parametrize(("port", "words"), [(22, "22"), (2222, "22,2222")])
def test_held_ports(server: Server, monkeypatch: pytest.MonkeyPatch, port: int, words: str) -> None:
    """The operator may have come in by another port than the server's own."""
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.1 50000 192.0.2.1 22")
    answer(requests.read(requests.text(replace(ASKED, port=port))))
    assert server.loaded[0][2].endswith(f" anemos.deployment=d-1 anemos.ports={words}")


@pytest.mark.parametrize("fails", ["load", "write"])
def test_failure(server: Server, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Nothing is loaded, and the slot may be tried again."""
    real = slots.write

    def load(kernel: Path, initrd: Path, line: str) -> None:
        server.load(kernel, initrd, line)
        raise Failure("it does not load")

    def write(file: Path, record: Record) -> None:
        real(file, record)
        if record.slots["b"].state == "trial":
            raise Failure("what was written is not there")

    if fails == "load":
        monkeypatch.setattr(kexec, "load", load)
    else:
        monkeypatch.setattr(slots, "write", write)
    with pytest.raises(Failure, match="not"):
        trial.start(ASKED)
    assert (server.loaded, server.record) == ([], Record("a", {"a": OLD, "b": FILLED}))


@pytest.mark.parametrize(
    ("default", "slot", "message"),
    [
        ("b", FILLED, "slot a runs, but b is the default"),
        ("a", FILLED._replace(state="empty"), "slot b is empty, by deployment d-1; wanted: filled"),
        ("a", FILLED._replace(state="good"), "slot b is good"),
        ("a", FILLED._replace(deployment="d-2"), "slot b is filled, by deployment d-2"),
        ("a", FILLED._replace(deployment=""), "by deployment unknown; wanted: filled, by d-1"),
    ],
)
def test_what_is_not_tried(server: Server, default: str, slot: Slot, message: str) -> None:
    server.write(known := Record(default, {"a": OLD, "b": slot}))
    with pytest.raises(Failure, match=message) as caught:
        trial.start(ASKED)
    assert caught.value.status == FAILED
    assert (server.loaded, server.record) == ([], known)


def test_trial_that_came_back(server: Server) -> None:
    """The old system runs, so there was no word: it is written down, and nothing is tried twice."""
    trial.start(ASKED)
    with pytest.raises(Failure, match="slot b is bad"):
        trial.start(ASKED)
    assert server.record.slots["b"] == FILLED._replace(state="bad")


def test_slot_without_a_kernel(server: Server, tmp_path: Path) -> None:
    with mounts.mounted(server.nodes["b"], at=tmp_path / "point"):
        (tmp_path / "point/boot/grub/grub.cfg").write_text("menuentry Linux {\n}\n")
    with pytest.raises(Failure, match="names no kernel and initramfs"):
        trial.start(ASKED)
    assert server.record.slots["b"] == FILLED


@pytest.mark.parametrize(
    ("fstab", "message"),
    [
        ("", "no slots here"),
        ("UUID={b} /efi vfat defaults 0 2\n", "no slots here"),  # an ESP without a record
    ],
)
def test_system_without_slots(server: Server, fstab: str, message: str) -> None:
    (server.host / "etc/fstab").write_text(fstab.format(**ROOTS))
    with pytest.raises(Failure, match=message):
        trial.start(ASKED)


def test_efi_system_partition(server: Server) -> None:
    """It may be what both slots share."""
    uuid = run(["blkid", "-p", "-o", "value", "-s", "UUID", server.nodes["boot"]]).strip()
    (server.host / "etc/fstab").write_text(f"UUID={uuid} /efi vfat umask=0077 0 2\n")
    trial.start(ASKED)
    assert server.record.slots["b"].state == "trial"


def test_root_that_is_no_slot(server: Server) -> None:
    known = Record("a", {"a": OLD._replace(root="A"), "b": FILLED})
    server.write(known)
    with pytest.raises(Failure, match=f"/ is no slot of the record: its file system is {OLD.root}"):
        trial.start(ASKED)
    assert server.record == known


def test_status_looks_meanwhile(server: Server, tmp_path: Path) -> None:
    """It has the record's file system read-only for a moment."""
    point = tmp_path / "point"
    script = f"mount -r {server.nodes['boot']} {point}; echo; sleep 1; umount {point}"
    with subprocess.Popen(["sh", "-e", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        trial.start(ASKED)
        assert process.wait() == 0
    assert server.record.slots["b"].state == "trial"


@pytest.fixture
def tried(server: Server) -> Server:
    """The machine after the jump."""
    trial.start(ASKED)
    server.run("b")
    return server


COMMITTED = Record("b", {"a": OLD, "b": FILLED._replace(state="good")})


def test_commit(tried: Server) -> None:
    """The record comes first; a guard that is gone already is none to wait for."""
    assert answer(requests.read(requests.text(Commit("d-1")))) == COMMITTED
    assert tried.record == COMMITTED
    assert trial.WORD.read_text() == "d-1\n"
    assert trial.commit(Commit("d-1")) == COMMITTED  # the answer to the first one was lost


def test_commit_that_is_not_written(tried: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word: then the guard brings the old system back."""
    before = tried.record
    monkeypatch.setattr(os, "pwrite", lambda *_: slots.SIZE)
    with pytest.raises(Failure, match="what was written is not there"):
        trial.commit(Commit("d-1"))
    assert not trial.WORD.exists()
    assert tried.record == before


@pytest.mark.parametrize(
    ("state", "deployment", "message"),
    [
        ("trial", "d-2", "slot b is trial, by deployment d-1; wanted: trial, by d-2"),
        ("bad", "d-1", "slot b is bad"),
        ("filled", "d-1", "slot b is filled"),
    ],
)
def test_what_is_not_committed(tried: Server, state: str, deployment: str, message: str) -> None:
    known = Record("a", {"a": OLD, "b": FILLED._replace(state=state)})
    tried.write(known)
    with pytest.raises(Failure, match=message):
        trial.commit(Commit(deployment))
    assert not trial.WORD.exists()
    assert tried.record == known


def test_old_system_is_not_committed_for_the_new_one(server: Server) -> None:
    """The machine came back just before the word."""
    trial.start(ASKED)
    with pytest.raises(Failure, match="slot a is good, by deployment d-0; wanted: good, by d-1"):
        trial.commit(Commit("d-1"))
    assert not trial.WORD.exists()
    assert server.record.default == "a"


@pytest.mark.parametrize(("ends", "more"), [(True, []), (True, ["-I"]), (False, [])])
def test_guard(
    tried: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, more: list[str]
) -> None:
    """The commit waits for its end, by positive evidence; a guard that hangs is told of. So is
    nft, which has the script's name as an option."""
    word = trial.WORD if ends else tmp_path / "never"
    script = tmp_path / "trial"
    script.write_text(f'until [ -e "{word}" ]; do sleep 0.1; done\n')
    monkeypatch.setattr(trial, "TRIAL", f"{script}".lstrip("/"))
    monkeypatch.setattr(trial, "END_S", 60.0 if ends else 0.5)
    with subprocess.Popen(["dash", *more, script]) as process:
        until(trial.guards)
        if ends:
            assert trial.commit(Commit("d-1")) == COMMITTED
            assert process.wait() == 0
        else:
            with pytest.raises(Failure, match="it is committed, but the guard goes on"):
                trial.commit(Commit("d-1"))
            process.kill()
    assert tried.record == COMMITTED
    assert trial.guards() == []


def test_return(tried: Server) -> None:
    """The slot that ran before is the default again; the one that runs stays what it is."""
    trial.commit(Commit("d-1"))
    known = answer(requests.read(requests.text(Return("d-0"))))
    assert known == tried.record == Record("a", COMMITTED.slots)
    tried.run("a")
    assert trial.go_back(Return("d-1")) == COMMITTED


def test_return_to_what_is_not_good(server: Server) -> None:
    for deployment in ("d-1", "d-2"):
        with pytest.raises(Failure, match=f"slot b is filled, .*; wanted: good, by {deployment}"):
            trial.go_back(Return(deployment))
    assert server.record.default == "a"


def test_older_base_image() -> None:
    with pytest.raises(Failure, match="older Anemos: it knows no Future"):
        requests.read('{"command": "Future"}')
