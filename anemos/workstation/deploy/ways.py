"""The ways from the old system into the initramfs: one class each, with the same interface.

What a way has to remember between the phases is in the State.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, Protocol

from anemos.border import payload, stage
from anemos.border.deployment import Deployment
from anemos.border.requests import Arm, Build, BuildEntry, Built, Keys, Load
from anemos.log import FAILED, Failure, die
from anemos.system import layout, slots
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Part
from anemos.workstation.deploy import reach, sending, stack
from anemos.workstation.deploy.facts import Entry, Facts
from anemos.workstation.deploy.sizes import MIB, Sizes
from anemos.workstation.deploy.state import State, load_state, payload_file
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Endpoint, Remote, connect

# GRUB writes its environment block in place: no copy on write, no checksums over it.
PLAIN = {"grub": ("ext2", "ext3", "ext4", "xfs", "vfat"), "firmware": ("vfat",)}
# For the first initrd and the kernel.
ENTRY_ROOM = 24 * MIB


class Way(Protocol):
    NAME: str  # in the State
    COPIES: int  # of the initramfs, that the old system's memory holds
    LATE: bool  # whether something is sent to the initramfs
    SUSPECT: str  # what may be the reason when the jump has led back into the old system

    def problems(self, host: Host, facts: Facts, sizes: Sizes) -> Iterator[str]:
        """Why it leads nowhere."""

    def describe(self, host: Host, facts: Facts, sizes: Sizes) -> str:
        """It, for the plan. Only for facts without problems."""

    def send(self, host: Host, state: State, remote: Remote, facts: Facts, sizes: Sizes) -> None:
        """Send what the old system needs beside the base image."""

    def build(self, host: Host, state: State, remote: Remote, asked: Build) -> Built:
        """Have the server put the initramfs together."""

    def check(self, host: Host) -> None:
        """Raise Failure when the jump could not be brought to its end from here."""

    def load(self, state: State, remote: Remote, hold: int) -> Keys:
        """Make the next boot the initramfs's; the host keys to `deliver`."""

    def script(self, state: State) -> list[str]:
        """The script of anemos/server that jumps, and its words."""

    def key(self, state: State) -> str:
        """The initramfs's host key until all is delivered, "" for the pinned one."""

    def deliver(self, host: Host, state: State, where: Endpoint, keys: Keys) -> None:
        """Send the initramfs, which answers, what the old system could not hold for it."""


class Kexec:
    """The old system's memory holds the initramfs, and its kernel starts it: kexec(8)."""

    NAME, COPIES, LATE, SUSPECT = "kexec", 3, False, ""

    def problems(self, host: Host, facts: Facts, sizes: Sizes) -> Iterator[str]:
        return no_kexec(facts)

    def describe(self, host: Host, facts: Facts, sizes: Sizes) -> str:
        if facts.boot_current == facts.boot_first:
            return "kexec"
        return (
            f"kexec; this system was started by the firmware's entry {facts.boot_current}, but"
            f" {facts.boot_first} comes first: the way back is sure only if that one leads here,"
            " too"
        )

    def send(self, host: Host, state: State, remote: Remote, facts: Facts, sizes: Sizes) -> None:
        sending.deployment(host, state, remote)

    def build(self, host: Host, state: State, remote: Remote, asked: Build) -> Built:
        return reach.answer(remote, state.remote_base, asked, Built)

    def check(self, host: Host) -> None:
        pass

    def load(self, state: State, remote: Remote, hold: int) -> Keys:
        return reach.answer(remote, state.remote_base, Load(hold, self.LATE), Keys)

    def script(self, state: State) -> list[str]:
        return ["jump.sh", state.remote_base]

    def key(self, state: State) -> str:
        return ""

    def deliver(self, host: Host, state: State, where: Endpoint, keys: Keys) -> None:
        pass


class Late(Kexec):
    """The same on a small machine: the package layer is sent when the initramfs answers."""

    NAME, LATE = "late", True

    def describe(self, host: Host, facts: Facts, sizes: Sizes) -> str:
        why = "the old system's memory does not hold it"
        return f"{super().describe(host, facts, sizes)}; the package layer follows the jump: {why}"

    def send(self, host: Host, state: State, remote: Remote, facts: Facts, sizes: Sizes) -> None:
        sending.payload(host, state, remote)

    def check(self, host: Host) -> None:
        sending.packed(host)

    def deliver(self, host: Host, state: State, where: Endpoint, keys: Keys) -> None:
        with delivered(where) as remote:
            sending.layer(state, remote)
        state.save()


class Once:
    """GRUB or the firmware takes a boot entry, once (server/once.py). What must not lie on the old
    disk is sent when the initramfs answers, under a host key of its own."""

    NAME, COPIES, LATE = "once", 0, True
    SUSPECT = "its boot loader or firmware does not take the entry"

    def problems(self, host: Host, facts: Facts, sizes: Sizes) -> Iterator[str]:
        if wrong := list(no_entry(host, facts, sizes)):
            yield from no_kexec(facts)
            yield from (f"no boot entry for once: {each}" for each in wrong)

    def describe(self, host: Host, facts: Facts, sizes: Sizes) -> str:
        why = "; ".join(no_kexec(facts)) if host.start == "auto" else "as host.toml says"
        where = entry(facts, sizes)
        assert where
        return f"once, by {where.loader} ({where.directory}): {why}"

    def send(self, host: Host, state: State, remote: Remote, facts: Facts, sizes: Sizes) -> None:
        state.place, state.once_key = entry(facts, sizes), ""

    def build(self, host: Host, state: State, remote: Remote, asked: Build) -> Built:
        assert state.place
        packed = payload.manifest(payload_file(host))
        given = Deployment(packed.deployment, packed.host, packed.keep, packed.agreed)
        wanted = BuildEntry(**vars(asked), directory=state.place.directory, deployment=given)
        answer = reach.answer(remote, state.remote_base, wanted, Built)
        state.once_key = answer.once_key
        return answer

    def check(self, host: Host) -> None:
        load_state(host, "once_key", "build-initramfs")
        sending.packed(host)

    def load(self, state: State, remote: Remote, hold: int) -> Keys:
        where = state.place
        assert where
        asked = Arm(where.loader, where.directory, where.device, hold)
        return reach.answer(remote, state.remote_base, asked, Keys)

    def script(self, state: State) -> list[str]:
        return ["reboot.sh"]

    def key(self, state: State) -> str:
        return state.once_key

    def deliver(self, host: Host, state: State, where: Endpoint, keys: Keys) -> None:
        with delivered(replace(where, host_key=state.once_key)) as remote:
            for name, key in keys.items():
                remote.put(key.encode(), f"{stage.SSH}/{name}", mode=0o600)
            sending.deployment(host, state, remote)
        state.save()


class Beside(NamedTuple):
    """The slots of a server: WHY none can be filled, or else which one runs, and the OTHER one.
    ONCE: why GRUB starts that one, and not kexec."""

    why: str = ""
    running: str = ""
    other: str = ""
    once: str = ""

    @property
    def way(self) -> str:
        return SLOT_ONCE if self.once else "slot"


class Slot:
    """Into the slot that does not run, while the old system serves (server/fill.py). It is no Way:
    the jump, the proof and the way back are others (trial.py)."""

    def problems(self, host: Host, spec: Imgbuild, facts: Facts, sizes: Sizes) -> Iterator[str]:
        if why := slot(host, spec, facts).why:
            yield f"no slot can be filled: {why}"
        if sizes.beside > facts.memory_available:
            there = facts.memory_available // MIB
            less = '; build_on = "workstation" needs less' if sizes.by_server else ""
            yield f"memory: {sizes.beside // MIB} MiB needed, {there} MiB available{less}"

    def send(self, host: Host, state: State, remote: Remote, facts: Facts, sizes: Sizes) -> None:
        sending.payload(host, state, remote)  # the package layer goes straight into the slot


@contextmanager
def delivered(where: Endpoint) -> Iterator[Remote]:
    """The initramfs, which waits for what is sent to it meanwhile, until it has taken all."""
    with connect(where, status=FAILED) as remote:
        try:
            remote.sh(["touch", f"{stage.COMING}"])
            yield remote
            remote.sh(["touch", f"{stage.DELIVERED}"])
            remote.sh(["sh", "-c", f"while [ -e {stage.DELIVERED} ]; do sleep 0.2; done"])
        except BaseException:
            with suppress(Failure):  # half an hour sooner
                remote.put(b"not all was delivered\n", f"{stage.ABORT}", mode=0o600)
            raise


SLOT = Slot()
SLOT_ONCE = "slot, once"  # in the State: GRUB starts it, for one boot
WAYS: dict[str, Way] = {each.NAME: each for each in (Kexec(), Late(), Once())}


def chosen(host: Host, facts: Facts, sizes: Sizes) -> Way:
    """The one that host.toml names, or else the one that the old system leaves."""
    auto = "once" if any(no_kexec(facts)) else "kexec"
    way = WAYS[auto if host.start == "auto" else host.start]
    short = measured(way, sizes).before_jump > facts.memory_available
    return WAYS["late"] if way.NAME == "kexec" and short and sizes.layer else way


def sends_layer(host: Host, spec: Imgbuild, beside: bool, room: bool) -> bool:
    """Whether the workstation makes the package layer. BESIDE: it is for a slot, not for whole
    disks. ROOM: the server has the memory to make it in the slot."""
    if host.build_on == "auto":
        return not beside or spec.target == "arch" or not room
    return host.build_on == "workstation"


def slot(host: Host, spec: Imgbuild, facts: Facts) -> Beside:
    """As far as facts tell it; the server looks at the disks again (server/running.py)."""
    if why := next(no_slot(host, spec, facts), ""):
        return Beside(why)
    known = slots.decoded(facts.record)
    (other,) = {*known.slots} - {known.default}
    return Beside("", known.default, other, why_grub(host, facts))


def why_grub(host: Host, facts: Facts) -> str:
    """Why GRUB starts a slot on trial, "" when kexec does."""
    return "as host.toml says" if host.start == "once" else "; ".join(no_kexec(facts))


def no_slot_by_grub(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """Why GRUB cannot start a slot for one boot."""
    if spec.bootloader != "grub":
        yield f"bootloader={spec.bootloader} starts none for one boot"
        return
    shared = spec.layout.shared()
    if not shared or not isinstance(shared.what, Part):
        yield "GRUB writes to partitions alone, and what both slots share is none"
    if facts.boot_current != facts.boot_first:
        yield not_first(facts)


def no_slot(host: Host, spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """Why none can be filled."""
    if not spec.layout.slots():
        yield "the layout has none"
    if why := why_grub(host, facts):
        yield from (f"no kexec: {why}; and {each}" for each in no_slot_by_grub(spec, facts))
    if why := layout.difference(facts.stamp.layout, spec.layout, spec.kept):
        yield why
    try:
        known = slots.decoded(facts.record)
    except ValueError as error:
        yield str(error)
        return
    if (loader := slots.loader(facts.record)) != spec.bootloader:
        yield f"{loader} starts what runs, not {spec.bootloader}"
    if loader == "systemd-boot" and facts.loader_default:
        yield "the firmware names the entry that starts: bootctl set-default '', as root there"
    if known.slots[known.default].root not in roots(facts):
        yield f"/ is not slot {known.default}, which starts by default"
    if spec.target == "arch" and not sends_layer(host, spec, beside=True, room=True):
        yield 'target=arch needs build_on = "workstation"'


def roots(facts: Facts) -> set[str]:
    """The UUID of what is mounted at /, if it is known."""
    nodes = [node for node, point, _ in (line.split() for line in facts.mounts) if point == "/"]
    names = {name for node in nodes for name in stack.kernel_names(node, facts)}
    return {what.split()[-1] for name, what in facts.identities if name in names and what.split()}


def measured(way: Way, sizes: Sizes) -> Sizes:
    """SIZES for this WAY."""
    return replace(sizes, way=way.NAME, copies=way.COPIES, late=way.LATE)


def of(state: State) -> Way:
    """The one that `upload` has chosen."""
    known = WAYS.get(state.way)
    return known or die(f"{state.host}: way {state.way!r} is unknown", hint="./inv upload")


def no_kexec(facts: Facts) -> Iterator[str]:
    """Why there is no kexec."""
    if not facts.kexec:
        yield "the kernel has no kexec, or it is disabled: /proc/sys/kernel/kexec_load_disabled"
    if re.search(r"\[(integrity|confidentiality)\]", facts.lockdown) and not facts.efi:
        yield f"the kernel is locked down: {facts.lockdown}"


def entry(facts: Facts, sizes: Sizes) -> Entry | None:
    """Where the boot entry is going to be put, None where it would not work."""
    return next((each for each in facts.entries if not any(unfit(each, facts, sizes))), None)


def no_entry(host: Host, facts: Facts, sizes: Sizes) -> Iterator[str]:
    """Why there is no one-shot boot entry."""
    if host.build_on == "server":
        yield 'build_on = "server": the package layer would be gone with the old system'
    if facts.secure_boot:
        yield "Secure Boot: the base image's kernel would have to be trusted"
    if facts.boot_current != facts.boot_first:
        yield not_first(facts)
    if not facts.entries:
        yield (
            "no GRUB has started this system whose grub.cfg reads custom.cfg, and no EFI system"
            " partition is mounted"
        )
    elif not entry(facts, sizes):
        for each in facts.entries:
            yield from unfit(each, facts, sizes)


def not_first(facts: Facts) -> str:
    return (
        f"the firmware starts entry {facts.boot_first} first, but {facts.boot_current} started"
        " this system: efibootmgr -o"
    )


def unfit(where: Entry, facts: Facts, sizes: Sizes) -> Iterator[str]:
    """What keeps GRUB or the firmware from reading it, or GRUB from writing that it was taken."""
    disks = {disk.name for disk in facts.disks}
    plain = disks | {part.name for part in facts.parts if part.disk in disks}
    if where.device not in plain or where.fs not in PLAIN[where.loader]:
        yield (
            f"{where.directory} lies on {where.device or 'no block device'} ({where.fs}), not on a"
            f" partition with {' or '.join(PLAIN[where.loader])}"
        )
    if (room := sizes.base + ENTRY_ROOM) > where.free:
        yield f"{where.directory}: {room // MIB} MiB needed, {where.free // MIB} MiB free"
