"""The trial of a slot's system: its one boot, the word for it, and the way back later."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import files, kexec, mounts
from anemos.border.requests import Commit, Keys, Return, Try, Withdraw
from anemos.log import FAILED, Failure, die
from anemos.server import shared, staging
from anemos.server.kexec import SAFETY, load_if_it_fits
from anemos.server.shared import Found
from anemos.system import slots, tree
from anemos.system.bootloader import LOADERS, grub
from anemos.system.installation import CONFIRM, TRIAL
from anemos.system.slots import FILLED, GOOD, Record, Slot
from anemos.system.slots import TRIAL as ON_TRIAL

WORD = Path("/run/anemos.word")  # see system/trial.sh
PROCESSES = Path("/proc")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
END_S = 60.0  # the guard looks every two seconds
POLL_S = 0.2

# --- in the old system


def start(asked: Try) -> Keys:
    """Have the slot's kernel be the next one; the record says `trial` before anybody can jump.

    A failure leaves the record at `filled` and nothing loaded. Raises Failure.
    """
    with shared.found() as found:
        slot = to_try(found, asked)
        tried = found.known.holding(found.other, slot._replace(state=ON_TRIAL))
        try:
            prepare(slot, asked, found.file)
            found.write(replace(tried, once=asked.once))
        except BaseException:
            with suppress(Exception):  # the reason of it all is the other one
                kexec.unload()
            with suppress(Exception):
                found.write(found.known)
            raise
    return {}


def withdraw(asked: Withdraw) -> Keys:
    """Nobody has jumped, and nobody will: the slot may be tried again. Raises Failure."""
    if BOOT_ID.read_text().strip() != asked.boot_id:
        die("it has jumped already", status=FAILED)
    with shared.found() as found:
        slot, known = slots.read(found.file).slots[found.other], found.known
        if slot.state == ON_TRIAL:
            known = known.holding(found.other, slot._replace(state=FILLED))
        with suppress(Failure):  # GRUB's entry, or nothing any more
            kexec.unload()
        found.write(known)
    return {}


def to_try(found: Found, asked: Try) -> Slot:
    """The slot that may be tried. What its state counts as is written down now."""
    found.write(found.known)
    slot = found.known.slots[found.other]
    if found.running != found.known.default:  # every reset would end elsewhere
        die(f"slot {found.running} runs, but {found.known.default} is the default", status=FAILED)
    require(found.other, slot, FILLED, asked.deployment)
    return slot


def require(name: str, slot: Slot, state: str, deployment: str) -> None:
    if (slot.state, slot.deployment) != (state, deployment):
        there = f"{slot.state}, by deployment {slot.deployment or 'unknown'}"
        die(f"slot {name} is {there}; wanted: {state}, by {deployment}", status=FAILED)


def prepare(slot: Slot, asked: Try, record: Path) -> None:
    """What the boot loader would start, and how; and what ends each failure in a reset."""
    words = ["--rw" if asked.confirm else "--read-only", "-o", "nosuid,nodev,noexec"]
    words.append(f"UUID={slot.root}")
    with (
        TemporaryDirectory() as name,
        mounts.mounted(*words, at=Path(name), patience_s=shared.PATIENCE_S),
    ):
        entry = LOADERS[slots.loader(record.read_bytes())].first_entry(Path(name))
        if asked.confirm:
            tree.write(Path(name), CONFIRM, asked.confirm, 0o700)
        line = cmdline(entry.words, asked)
        if asked.once:
            kernel, initrd = (f"/{file.relative_to(name)}" for file in entry[:2])
            record.with_name(slots.ONCE).write_text(grub.once(slot.root, kernel, initrd, line))
        else:
            load_if_it_fits(entry.kernel, entry.initrd, line)


def cmdline(own: str, asked: Try) -> str:
    trial = [f"anemos.trial={asked.seconds}", f"anemos.deployment={asked.deployment}"]
    if asked.port:  # others may lead to it by another port
        ports = sorted({asked.port, staging.came_in_by().port})
        trial.append(f"anemos.ports={','.join(map(str, ports))}")
    if asked.confirm:
        trial.append("anemos.confirm")
    return " ".join([own, *SAFETY, f"init=/{TRIAL}", *trial])


# --- in the new system


def commit(asked: Commit) -> Record:
    """The running system is good, and the default. Only then the guard gets the word.

    It may be done again. Raises Failure, also when the guard does not end.
    """
    with shared.found() as found:
        slot, known = found.known.slots[found.running], found.known.committed(found.running)
        if found.known != known:
            require(found.running, slot, ON_TRIAL, asked.deployment)
            found.write(known)
        require(found.running, known.slots[found.running], GOOD, asked.deployment)
    give_word(asked.deployment)
    return known


def give_word(deployment: str) -> None:
    files.replace(WORD, f"{deployment}\n", 0o600)
    end = time.monotonic() + END_S
    while guards():
        if time.monotonic() > end:
            what = "it is committed, but the guard goes on: at its deadline the machine restarts"
            die(f"{what}, into this slot", status=FAILED)
        time.sleep(POLL_S)


def guards() -> list[str]:
    """The processes of trial.sh, and nft (proc_pid_cmdline(5)). PID 1 is the real init by now."""
    found = []
    for file in PROCESSES.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may end meanwhile
            if f"/{TRIAL}".encode() in file.read_bytes().split(b"\0")[1:3]:
                found.append(file.parent.name)
    return found


# --- in either


def go_back(asked: Return) -> Record:
    """The other slot is the default: it has been before. Raises Failure."""
    with shared.found() as found:
        require(found.other, found.known.slots[found.other], GOOD, asked.deployment)
        known = found.known.committed(found.other)
        found.write(known)
    return known
