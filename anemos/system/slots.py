"""The record of slots: which one starts, and what is in each. The boot loader and Anemos read it.

It is an environment block of GRUB (its manual, "The GRUB environment block"): lines, filled up to
1024 bytes. systemd-boot has it as the beginning of its loader.conf(5), where one line more counts:
`default`. The first sector holds all that changes, and is written in its place: after a power cut
there is the old record or the new one. A rename would need a journal, which neither replays.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from anemos import files
from anemos.log import die
from anemos.system.layout import SLOTS, Layout, fs_uuid

ONCE = "anemos-once.cfg"  # beside it: what GRUB does at the next boot, if the record says so
# On the file system that both slots start from (Layout.shared).
FILE = "anemos-slots"  # GRUB's
LOADER_CONF = "loader/loader.conf"  # systemd-boot's
PREFIX = "anemos-{}"  # what systemd-boot's entries and files of a slot are called by
HEAD = "# GRUB Environment Block\n"
SIZE = 1024
SECTOR = 512
EMPTY, FILLING, FILLED, TRIAL, GOOD, BAD = STATES = (
    "empty",  # there is nothing to start
    "filling",
    "filled",  # complete, and never started
    "trial",  # started once, without the word yet
    "good",  # the word was given
    "bad",  # it was started, and the word was not given
)


class Slot(NamedTuple):
    """What is in a slot. ROOT: the UUID of its root file system, by which GRUB finds it.

    DEPLOYMENT: the id of the one that filled it, when FILLED: seconds since the epoch. "" and 0 of
    an image, which no deployment has written.
    """

    state: str = EMPTY
    root: str = ""
    deployment: str = ""
    filled: int = 0


@dataclass(frozen=True)
class Record:
    """DEFAULT: the name of the slot that starts. SLOTS: by name. ONCE: the next boot is by the file
    ONCE, and GRUB takes that back before."""

    default: str
    slots: Mapping[str, Slot]
    once: bool = False

    def holding(self, name: str, slot: Slot) -> "Record":
        """The record when the slot NAME, which is not the default, is SLOT. No trial is to be."""
        assert name != self.default
        return Record(self.default, {**self.slots, name: slot})

    def committed(self, name: str) -> "Record":
        """The record when the slot NAME has got the word: it is good, and the default."""
        return Record(name, {**self.slots, name: self.slots[name]._replace(state=GOOD)})

    def settled(self, running: str) -> "Record":
        """The record as it counts while the slot RUNNING runs: a trial elsewhere has ended, and no
        other one is to be."""
        ended = [name for name, slot in self.slots.items() if slot.state == TRIAL]
        bad = {name: self.slots[name]._replace(state=BAD) for name in ended if name != running}
        return Record(self.default, {**self.slots, **bad})

    def running(self, root: str) -> str:
        """The name of the slot with the file system ROOT, a UUID; "" if there is none."""
        return next((name for name, slot in self.slots.items() if root == slot.root != ""), "")


def first(layout: Layout, seed: str, deployment: str = "", filled: int = 0) -> Record:
    """The record of a new system on LAYOUT, in one of its slots. SEED: see layout.fs_uuid; the
    others: see Slot."""
    root = layout.root()
    whole = Slot(GOOD, fs_uuid(root, seed), deployment, filled)
    return Record(root.what.slot, {**dict.fromkeys(SLOTS, Slot()), root.what.slot: whole})


def encoded(record: Record, file: str = FILE) -> bytes:
    """FILE, or how it begins."""
    lines = [f"slot={record.default}\n", f"once={record.once:d}\n"]
    for name, slot in record.slots.items():
        lines += [f"{field}_{name}={value}\n" for field, value in slot._asdict().items()]
    lines += [f"default {PREFIX.format(record.default)}-*\n"] if file == LOADER_CONF else []
    data = (HEAD + "".join(lines)).encode()
    assert len(data) < SECTOR
    return data.ljust(SECTOR - 1, b"#") + b"\n" if file == LOADER_CONF else data.ljust(SIZE, b"#")


def decoded(data: bytes) -> Record:
    """Raises ValueError for what is no record. An older one does not tell who filled a slot."""
    values = dict(re.findall(r"(?m)^(\w+)=(.*)$", data[:SECTOR].decode(errors="replace")))
    names = [key for name in SLOTS for key in (f"state_{name}", f"root_{name}")]
    if missing := [key for key in ("slot", *names) if key not in values]:
        raise ValueError(f"no record of slots: it has no {missing[0]}")
    slots = {name: slot_of(values, name) for name in SLOTS}
    if values["slot"] not in SLOTS or not {each.state for each in slots.values()} <= {*STATES}:
        raise ValueError(f"no record of slots: {values}")
    return Record(values["slot"], slots, values.get("once") == "1")


def slot_of(values: Mapping[str, str], name: str) -> Slot:
    """Raises ValueError."""
    who, when = values.get(f"deployment_{name}", ""), values.get(f"filled_{name}", "0")
    return Slot(values[f"state_{name}"], values[f"root_{name}"], who, int(when))


def loader(data: bytes) -> str:
    """Whose record DATA is, as IMGBUILD names boot loaders."""
    return "systemd-boot" if re.search(rb"(?m)^default$|^default ", data[:SECTOR]) else "grub"


def file(top: Path) -> Path | None:
    """The record on the file system that is mounted at TOP, if it has one."""
    found = [each for name in (FILE, LOADER_CONF) if (each := top / name).is_file()]
    return next((each for each in found if each.read_text(errors="replace").startswith(HEAD)), None)


def read(file: Path) -> Record:
    """Raises OSError, or Failure for what is no record."""
    try:
        return decoded(file.read_bytes())
    except ValueError as error:
        die(f"{file}: {error}")


def write(file: Path, record: Record) -> None:
    """Put RECORD in the place of the one in FILE, on the disk. Raises OSError, Failure."""
    data = encoded(record, LOADER_CONF if file.match(LOADER_CONF) else FILE)
    fd = os.open(file, os.O_RDWR)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    files.forget(file)
    if read(file) != record:
        die(f"{file}: what was written is not there")
