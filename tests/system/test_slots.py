"""The record of slots: what it holds, and that it is readable without a journal."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anemos import files, mounts
from anemos.log import Failure
from anemos.run import run
from anemos.system import grammar, layout, slots
from anemos.system.slots import SECTOR, SIZE, Record, Slot
from anemos.workstation.deploy import phases
from tests.imaging import attached

UUID = "01234567-89ab-cdef-0123-456789abcdef"
RECORD = Record("a", {"a": Slot("good", UUID, "d-1", 1700000000), "b": Slot()})
OTHER = Record("b", {"a": Slot("good", UUID), "b": Slot("good", UUID.replace("0", "f"))})
LAYOUT = """
disk system serial=S
part esp  type=esp size=64M fs=vfat mount=/efi
part root fs=ext4 size=1G mount=/ slots=2
"""


def test_text() -> None:
    data = slots.encoded(RECORD)
    text = data.rstrip(b"#").decode()
    assert text == (
        f"# GRUB Environment Block\nslot=a\nonce=0\n"
        f"state_a=good\nroot_a={UUID}\ndeployment_a=d-1\nfilled_a=1700000000\n"
        "state_b=empty\nroot_b=\ndeployment_b=\nfilled_b=0\n"
    )
    assert len(data) == SIZE
    assert data[SECTOR:] == slots.encoded(OTHER)[SECTOR:]  # all that changes is in one sector


def test_beginning_of_loader_conf() -> None:
    """One sector of whole lines. GRUB's record is known from it; a menu of its own is none."""
    data = slots.encoded(RECORD, slots.LOADER_CONF)
    assert (len(data), data[-1:]) == (SECTOR, b"\n")
    assert data.rstrip(b"#\n").endswith(b"\nfilled_b=0\ndefault anemos-a-*")
    assert slots.decoded(data + b"timeout 1\nslot=b\n") == RECORD
    assert (slots.loader(data), slots.loader(slots.encoded(RECORD))) == ("systemd-boot", "grub")


@pytest.mark.parametrize("file", [slots.FILE, slots.LOADER_CONF])
def test_where_it_is(tmp_path: Path, file: str) -> None:
    assert slots.file(tmp_path) is None
    (tmp_path / "loader").mkdir()
    (tmp_path / slots.LOADER_CONF).write_text("timeout 1\n")
    assert slots.file(tmp_path) is None
    (tmp_path / file).write_bytes(slots.encoded(RECORD, file))
    assert slots.file(tmp_path) == tmp_path / file


@pytest.mark.parametrize("file", [slots.FILE, slots.LOADER_CONF])
@given(
    default=st.sampled_from("ab"),
    first=st.sampled_from(slots.STATES),
    second=st.sampled_from(slots.STATES),
    once=st.booleans(),
)
def test_every_record_is_read_again(
    file: str, default: str, first: str, second: str, once: bool
) -> None:
    """The longest one fits into its sector, too."""
    longest = ("i" * phases.ID_LENGTH, 10**10)
    known = {"a": Slot(first, UUID, *longest), "b": Slot(second, UUID, *longest)}
    record = Record(default, known, once)
    assert slots.decoded(slots.encoded(record, file)) == record


def test_an_older_record() -> None:
    text = f"slot=a\nstate_a=good\nroot_a={UUID}\nstate_b=empty\nroot_b=\n"
    assert slots.decoded(text.encode()) == Record("a", {"a": Slot("good", UUID), "b": Slot()})


def test_what_a_record_counts_as() -> None:
    """A trial has ended when its slot does not run; the word makes it the default."""
    trial = RECORD.holding("b", Slot("trial", "B"))
    assert trial.settled("b") == trial
    assert trial.settled("a") == RECORD.holding("b", Slot("bad", "B"))
    assert trial.settled("") == trial.settled("a")
    assert trial.committed("b") == Record("b", {**RECORD.slots, "b": Slot("good", "B")})
    assert [trial.running(root) for root in (UUID, "B", "", "C")] == ["a", "b", "", ""]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has no slot"),
        (b"\xff" * SIZE, "it has no slot"),
        (slots.encoded(RECORD).replace(b"root_b", b"root_c"), "it has no root_b"),
        (slots.encoded(RECORD).replace(b"slot=a", b"slot=c"), "no record of slots: {'slot': 'c'"),
        (slots.encoded(RECORD).replace(b"good", b"fine"), "'state_a': 'fine'"),
        (slots.encoded(RECORD).replace(b"17000", b"today"), "today00000"),
    ],
)
def test_what_is_no_record(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "record").write_bytes(data)
    with pytest.raises(Failure, match=f"{tmp_path}/record: .*{message}"):
        slots.read(tmp_path / "record")


@pytest.mark.parametrize("slot", ["a", "b"])
def test_first(slot: str) -> None:
    whole = grammar.parse(LAYOUT).into(slot)
    record = slots.first(whole, "seed", "d-1", 5)
    uuid = layout.fs_uuid(whole.carriers()[f"system/root_{slot}"], "seed")
    assert record.default == slot
    assert {*record.slots} == {"a", "b"}
    assert [each for each in record.slots.values() if each.state != "empty"] == [
        Slot("good", uuid, "d-1", 5)
    ]


def test_nothing_to_write_to(tmp_path: Path) -> None:
    """A commit never makes a record: then the boot loader reads another one, or none."""
    with pytest.raises(FileNotFoundError):
        slots.write(tmp_path / "record", RECORD)
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_loses_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "record").write_bytes(slots.encoded(RECORD))
    monkeypatch.setattr(os, "pwrite", lambda *_: SIZE)
    with pytest.raises(Failure, match="what was written is not there"):
        slots.write(tmp_path / "record", OTHER)


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("block", ["1024", "4096"])
def test_readable_without_the_journal(tmp_path: Path, block: str) -> None:
    """What lies on the disk right after the call, the file system still mounted, with its journal
    as it is: one sector differs, in the file's first block."""
    disk, point = tmp_path / "disk", tmp_path / "point"
    disk.write_bytes(bytes(64 * layout.MIB))
    run(["mkfs.ext4", "-q", "-b", block, disk])
    point.mkdir()
    with attached(disk) as node, mounts.mounted(node, at=point):
        (point / slots.FILE).write_bytes(slots.encoded(RECORD))
        files.sync(point / slots.FILE)
        before = disk.read_bytes()
        slots.write(point / slots.FILE, OTHER)
        after = disk.read_bytes()
        assert slots.read(point / slots.FILE) == OTHER
    start = before.index(slots.encoded(RECORD))
    assert after[start : start + SIZE] == slots.encoded(OTHER)
