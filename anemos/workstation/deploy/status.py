"""What runs on a host now, from server/probe.sh and status.sh."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from anemos import files, log
from anemos.border import events, records
from anemos.border.boot import Seen
from anemos.border.events import Event
from anemos.log import FAILED, Failure, die
from anemos.system import installation, slots
from anemos.workstation import Result, places
from anemos.workstation.deploy import facts, plan, reach
from anemos.workstation.deploy.state import DONE, PASSED, WORD, State, load_state, state_file
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Remote, connect

# What may run on a host:
SYSTEM = "system"  # that Anemos did not deploy
DEPLOYED = "deployed"  # a system that it did
GOING = "preflight"  # the initramfs, before the point of no return
HELD = "held"  # the same, waiting for the operator
INSTALLING = "installing"  # past the point of no return
FAILING = "failing"  # failed before it: about to reboot, if there is an old system
FAILED_THERE = "failed"  # after it, or where there is none: waiting for `resume`
UNREACHABLE = "unreachable"
LEFT = "left for the initramfs"  # the old system; no more is known
LAST = "last-status.json"
END_OF_TIME = 2**33  # seconds since the epoch: localtime(3) takes it
REACHED = {"": LEFT, WORD: "told to install", PASSED: INSTALLING, DONE: DEPLOYED}


@dataclass(frozen=True)
class Known:
    """STATE: "" when nothing is."""

    time: float = 0.0  # seconds since the epoch
    state: str = ""
    deployment: str = ""


@dataclass(frozen=True)
class SlotSeen:
    """A slot, as it counts now. FILLED: seconds since the epoch; 0 and "": nobody knows."""

    name: str
    state: str  # one of slots.STATES
    deployment: str
    filled: int
    default: bool
    runs: bool


@dataclass(frozen=True)
class Status:
    state: str  # one of the above
    deployment: str = ""
    boot_id: str = ""
    kernel: str = ""
    message: str = ""  # the failure's
    line: str = ""  # last one of the log
    left: int = 0  # seconds until the old system is started again,
    stays: bool = False  # unless there is none
    passed: bool = False  # the point of no return
    stamp: Seen = field(default_factory=Seen)
    staged: str = ""  # on a system: what an interrupted deployment left there, see plan.foreign
    slots: list[SlotSeen] = field(default_factory=list)  # none where there are no slots

    @property
    def base(self) -> str:
        """Where the deployment of this system has left its base image."""
        return f"/{installation.BASE.format(self.stamp.base)}"

    @property
    def in_initramfs(self) -> bool:
        return self.state not in (SYSTEM, DEPLOYED)


def ask(remote: Remote) -> Status:
    argv = ["sh", "-c", facts.probe("status.sh"), "status"]
    return parse(remote.sh(argv, shown=["status.sh"]))


def parse(text: str) -> Status:
    """TEXT: `key=value` lines. Raises Failure."""
    try:
        one = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
        stamp = facts.stamp_of(one["stamp"])
        event = records.parse(Event, one.get("event") or "{}")
        return Status(
            state_of(one, stamp, event),
            stamp.deployment,
            one["boot_id"],
            one["kernel"],
            event.message,
            one.get("line", "").strip(),
            int(one.get("left", 0)),
            "stays" in one,
            "passed" in one,
            stamp,
            one.get("staged", ""),
            slots_of(one),
        )
    except (KeyError, ValueError) as error:
        die(f"the status of the server makes no sense: {error}", status=FAILED)


def slots_of(one: dict[str, str]) -> list[SlotSeen]:
    """Raises ValueError."""
    if "record" not in one:
        return []
    record = slots.decoded(facts.record_of(one))
    running = record.running(one.get("root", ""))
    counts = record.settled(running) if running else record
    return [
        SlotSeen(
            name,
            *(slot.state, slot.deployment, slot.filled),
            name == record.default,
            name == running,
        )
        for name, slot in counts.slots.items()
    ]


def state_of(one: dict[str, str], stamp: Seen, event: Event) -> str:
    if one["place"] == "system":
        return DEPLOYED if stamp.deployment else SYSTEM
    if event.event == events.FAILED:
        return FAILED_THERE if "passed" in one or "stays" in one else FAILING
    if "passed" in one:
        return INSTALLING
    return HELD if event.event == events.HELD else GOING


def status(host: Host) -> Result:
    """Tell what runs there; a host that does not answer is no failure."""
    try:
        with connect(reach.endpoint(host), status=FAILED) as remote:
            seen = ask(remote)
        before = remember(host, seen)
    except Failure as failure:
        seen = Status(UNREACHABLE, message=str(failure))
        before = last_known(host)
    for what, which in describe(seen, load_state(host).deployment, before):
        log.tell(f"{what:8} {which}")
    told = {k: v for k, v in asdict(seen).items() if k != "stamp"}
    return {"host": host.name, **told, "last_known": asdict(before) if before.state else {}}


def known(host: Host, seen: Status) -> State:
    """The state of the deployment in the initramfs that was SEEN; what another workstation knew
    comes from the machine itself."""
    state = load_state(host)
    if state.deployment != seen.deployment:
        log.info(f"Deployment {seen.deployment} was not started from here, or long ago")
        base = f"base-{seen.stamp.base}.squashfs"
        kept = seen.stamp.kept or []
        state = State(host.name, seen.deployment, base=base, old_boot_id=seen.boot_id, kept=kept)
        state.stays = seen.stays
        state.save()
    return state


def remember(host: Host, seen: Status) -> Known:
    """For the day when it does not answer any more; what was remembered until now."""
    before = last_known(host)
    known = Known(time.time(), seen.state, seen.deployment)
    files.replace(places.state(host.name) / LAST, records.text(known))
    return before


def old_system(host: Host, deployment: str) -> None:
    """It is back, of DEPLOYMENT or of none: what was known of the one that did not end is over."""
    remember(host, Status(DEPLOYED if deployment else SYSTEM, deployment))


def last_known(host: Host) -> Known:
    """What was seen or done last."""
    state = load_state(host)
    if not state.old_boot_id:  # no jump yet
        return asked(host)
    at = state_file(host.name).stat().st_mtime
    ours = Known(at, REACHED[state.reached], state.deployment)
    return max(asked(host), ours, key=lambda each: each.time)


def asked(host: Host) -> Known:
    """What `status` was told last; nothing, if that file is damaged."""
    with suppress(OSError, ValueError):
        found = records.parse(Known, (places.state(host.name) / LAST).read_bytes())
        return found if 0 <= found.time < END_OF_TIME else Known()
    return Known()


def describe(seen: Status, ours: str, before: Known) -> list[tuple[str, str]]:
    """SEEN as (what, which) lines. OURS: the deployment that this workstation knows of; BEFORE:
    what was last known. Pure."""
    if seen.state == UNREACHABLE:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(before.time))
        known = f"{before.state} {before.deployment} at {when}" if before.state else "nothing"
        return [("runs", "unreachable"), ("why", seen.message), ("known", known.replace("  ", " "))]
    which = (
        f"{seen.deployment}, this workstation's last"
        if seen.deployment == ours
        else seen.deployment
    )
    runs = {
        SYSTEM: "a system that was not deployed by Anemos",
        DEPLOYED: f"the system of deployment {which}",
    }.get(seen.state, f"the initramfs of deployment {which}")
    lines = [("runs", f"{runs}; kernel {seen.kernel}, boot {seen.boot_id}")]
    if seen.staged:
        lines.append(("staged", f"{plan.foreign(seen.staged)}: a task runs, or ./inv clean --host"))
    lines += [(f"slot {each.name}", told_of(each)) for each in seen.slots]
    left = "it stays" if seen.stays else f"{seen.left} s until the old system is started again"
    means = {
        GOING: f"before the point of no return; {left}",
        HELD: f"held; ./inv resume or ./inv abort; {left}",
        FAILING: f"failed before the point of no return: {seen.message}",
        INSTALLING: "past the point of no return",
        FAILED_THERE: f"failed, and waits: ./inv resume: {seen.message}",
    }
    if seen.state in means:
        lines += [("state", means[seen.state]), ("log", seen.line)]
    return lines


def told_of(slot: SlotSeen) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(slot.filled))
    words = {
        slot.state: True,
        f"deployment {slot.deployment}": slot.deployment,
        f"filled {when}": slot.filled,
        "it runs": slot.runs,
        "the default": slot.default,
    }
    return ", ".join(word for word, said in words.items() if said)
