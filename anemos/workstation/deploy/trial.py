"""A system in a slot on trial: the jump into it, its proof, and the way back without a word.

Until `commit` each reset starts the old system, and the guard (system/trial.sh) sees to one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from anemos import log
from anemos.border.requests import Keys, Try, Withdraw
from anemos.log import FAILED, Failure, die
from anemos.run import CommandFailed
from anemos.workstation import Result
from anemos.workstation.deploy import (
    consent,
    default,
    facts,
    outcome,
    phases,
    reach,
    staged,
    status,
    ways,
    word,
)
from anemos.workstation.deploy import verify as proof
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.outcome import Witnessed
from anemos.workstation.deploy.state import State, load_state
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import ConnectionLost, Remote, connect

HELD = ("nft", "list", "table", "inet", "anemos_trial")  # see system/trial.sh


def start(host: Host) -> Result:
    """Jump into the slot that was filled, and see that its system answers.

    Raises Failure: status 1, when the old system runs on, or again.
    """
    state = load_state(host, "root", "fill")
    consent.check(host, state)
    with staged.undone(host):
        jump(host, state)
    with ending(host):
        seen = arrive(host, state)
        if host.hold_ports:
            check_ports(host)
    return {"host": host.name, "boot_id": seen.boot_id}


def jump(host: Host, state: State) -> None:
    with connect(reach.endpoint(host)) as remote:
        seen = status.ask(remote)
        base = default.own_base(remote, seen)
        state.old_boot_id, state.reached = seen.boot_id, ""
        port = host.new_place[1] if host.hold_ports else 0
        confirm = word.script(host, host.imgbuild(), state) if host.confirm == "self" else ""
        once = state.way == ways.SLOT_ONCE
        with withdrawn(remote, base, seen.boot_id):
            asked = Try(state.deployment, host.timeouts.trial, once, port, confirm)
            reach.answer(remote, base, asked, Keys)
            state.save()
            words = ["reboot.sh"] if once else ["jump.sh", base]
            with suppress(ConnectionLost):  # it may be that quick
                reach.script(remote, *words, timeout=host.timeouts.down)
    state.last_answer = time.time()
    state.save()


@contextmanager
def withdrawn(remote: Remote, base: str, boot_id: str) -> Iterator[None]:
    """If the work inside fails, and the server runs on, no later boot is a trial."""
    try:
        yield
    except BaseException:
        with suppress(Exception, Failure), connect(remote.endpoint, status=FAILED) as again:
            reach.answer(again, base, Withdraw(boot_id), Keys)
        raise


def arrive(host: Host, state: State) -> Identity:
    where = reach.endpoint(host)
    reach.await_end(host, where, state)
    state.save()
    fresh, limit = reach.rebooted_from(state.old_boot_id), host.timeouts.trial + host.timeouts.up
    seen = reach.await_boot(host, where, fresh, limit, "system on trial")
    if seen.deployment != state.deployment:
        suspect = ways.Once.SUSPECT if state.way == ways.SLOT_ONCE else ""
        die(f"{host.name}: the system on trial did not answer", hint=suspect, status=FAILED)
    return seen


def check_ports(host: Host) -> None:
    """Raises Failure unless the guard holds them, or has let go of them: another Anemos may have
    filled the slot."""
    with connect(reach.endpoint(host), status=FAILED) as remote:
        try:
            remote.sh(["env", "PATH=/usr/sbin:/sbin:/usr/bin:/bin", *HELD])
            log.info("Nothing but SSH is let in until the commit")
        except CommandFailed:
            if host.confirm == "workstation" or not word.given(status.ask(remote)):
                raise


def verify(host: Host) -> Result:
    """As verify.verify, of a system on trial. Raises Failure: status 1, if the old one is back."""
    if host.confirm == "self":
        with ending(host):
            word.await_given(host, load_state(host))
        return proof.verify(host)  # nothing leads back any more
    with ending(host):
        return proof.verify(host)


@contextmanager
def ending(host: Host) -> Iterator[None]:
    """What fails inside ends the trial: the old system starts, and that is seen."""
    try:
        yield
    except (Exception, Failure) as raised:
        failure = outcome.explained(raised)
        raise came_back(host, load_state(host), failure) from None


def came_back(host: Host, state: State, failure: Failure) -> Failure:
    """FAILURE, with what is known of the old system now."""
    where = reach.endpoint(host)
    with suppress(Failure), connect(where, status=FAILED) as remote:
        here = facts.identify(remote).deployment == state.deployment
        if here and host.confirm == "workstation":
            log.info("Not committed: the old system is started again")
            reach.script(remote, "reboot.sh")
    limit = host.timeouts.trial + host.timeouts.up  # the guard needs no word of ours

    def old(seen: Identity) -> bool:
        return seen.deployment != state.deployment

    try:
        seen = reach.await_boot(host, where, old, limit, "old system")
    except Failure as unseen:
        hint = f"it should start again by itself: {unseen.message}"
        return Failure(failure.message, hint=hint, status=failure.status)
    tell_trial(host, state)
    status.old_system(host, seen.deployment)
    why = f"{failure.message}\nThe old system runs again: deployment {seen.deployment}"
    return Witnessed(why, hint=failure.hint, status=FAILED)


def tell_trial(host: Host, state: State) -> None:
    """Log what the journal in the slot says of its last boot, and what the kernel left."""
    with suppress(Failure), connect(reach.endpoint(host), status=FAILED) as remote:
        for line in reach.script(remote, "trialed.sh", state.root).splitlines():
            log.info(f"On trial: {line}")
    phases.tell_end(reach.endpoint(host))
