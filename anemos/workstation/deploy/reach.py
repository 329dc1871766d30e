"""Where a host answers, the wait until it does, and what runs there."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from anemos import log
from anemos.border import records, requests, stage
from anemos.border.records import Kind
from anemos.border.requests import Request
from anemos.log import FAILED, Sink, die
from anemos.run import CommandFailed
from anemos.workstation import hosts, jump, places
from anemos.workstation.deploy import facts
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import WORD, State
from anemos.workstation.hosts import ROOT, Host
from anemos.workstation.machine import Machine
from anemos.workstation.ssh import (
    ConnectionLost,
    Endpoint,
    Login,
    LoginRefused,
    NotRun,
    Remote,
    TimedOut,
    Unreachable,
    WrongHostKey,
    connect,
)

SERVER = places.PACKAGE / "server"
POLL_S = 0.5
QUIET_S = 60.0  # a wait tells now and then what it waits for
REFUSED_S = 60.0  # a system that comes up may not know all of its keys and users yet
# What a system on its way down or up may answer with; a command may be killed with everything else.
GONE = (Unreachable, ConnectionLost, TimedOut, CommandFailed, NotRun)
PRESENT = 'for each; do [ ! -f "$each" ] || echo "$each"; done'
Ready = Callable[[Identity], bool]


@dataclass
class Wait:
    """For WHAT, of at most LIMIT seconds. WHY: what has kept us waiting so far."""

    what: str
    limit: float
    why: str = ""

    def tries(self) -> Iterator[None]:
        """Until the caller leaves, or the time is over; tells each minute what is the matter."""
        start = told = time.monotonic()
        while time.monotonic() < start + self.limit:
            yield
            if time.monotonic() - told >= QUIET_S:
                told = time.monotonic()
                waited = f"{told - start:.0f} s of at most {self.limit:.0f}"
                log.info(f"Still waiting for the {self.what}, {waited}: {self.why}")
            log.noted(self.why)
            time.sleep(POLL_S)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """A system on its way down or up ends no wait."""
        try:
            yield
        except GONE as failure:
            self.why = failure.message


def endpoint(host: Host) -> Endpoint:
    """Where HOST answers, and the key that it is pinned to, in all of its systems.

    Into the initramfs it is always root who logs in.
    """
    if not host.address:  # only a local VM may be without
        die(f"the VM of {host.name} is not running", hint=f"./inv demo --host {host.name}")
    old, new = (host.address, host.port), host.new_place
    before, initramfs, after = (
        Login(address, host.forwarded.get(str(port), port), user, sudo=user != ROOT)
        for (address, port), user in ((old, host.user), (old, ROOT), (new, host.new_user))
    )
    also = () if before == initramfs == after else (initramfs, after)
    return Endpoint(
        before.address,
        before.port,
        host.host_key,
        host.identity_file,
        before.user,
        before.sudo,
        hosts.jumps(host.proxy_jump),
        also,
    )


def await_end(host: Host, where: Endpoint, state: State) -> None:
    """Wait until the old system does not answer any more; remember when it last did."""
    with log.step("Waiting for the old system to end", limit=host.timeouts.down):
        see_end(host, where, state)


def see_end(host: Host, where: Endpoint, state: State) -> None:
    end = time.monotonic() + host.timeouts.down
    while time.monotonic() < end:
        try:
            with connect(where, status=FAILED) as remote:
                seen = facts.identify(remote)
        except (*GONE, WrongHostKey):  # after a one-shot boot the initramfs has another key
            return
        if seen.boot_id != state.old_boot_id:
            return
        state.last_answer = seen.answered
        time.sleep(POLL_S)
    die(f"{host.name}: the old system still runs {host.timeouts.down} s after kexec", status=FAILED)


def rebooted_from(old: str) -> Ready:
    return lambda seen: seen.boot_id != old


def await_boot(
    host: Host,
    where: Endpoint,
    ready: Ready,
    timeout: int,
    what: str,
    other_key: str = "",
    code: int = FAILED,
) -> Identity:
    """Wait for a system that READY accepts; its host key may be OTHER_KEY, too, if there is one.

    Raises Failure, with the status CODE at the end, or after a minute when somebody refuses us, or
    holds another key.
    """
    with log.step(f"Waiting for the {what}", limit=timeout):
        return see_boot(host, where, ready, timeout, what, other_key, code)


def see_boot(
    host: Host, where: Endpoint, ready: Ready, timeout: int, what: str, other_key: str, code: int
) -> Identity:
    wait = Wait(what, timeout, why="another system answers")  # if anybody does
    refused: list[float] = []  # since when
    tries = cycle([replace(where, host_key=other_key), where] if other_key else [where])
    for _ in wait.tries():
        try:
            with wait.patient(), connect(next(tries), status=code) as remote:
                seen = facts.identify(remote)
                if ready(seen):
                    return seen
        except (WrongHostKey, LoginRefused) as failure:
            refused.append(time.monotonic())
            if not other_key and refused[-1] - refused[0] >= REFUSED_S:
                raise
            wait.why = failure.message
    die(
        f"{host.name}: no answer from the {what} within {timeout} s",
        hint=f"the last try: {wait.why}",
        status=code,
    )


def go(host: Host, state: State) -> Identity:
    """Wait for the initramfs of STATE's deployment; tell it that it may erase the system disks."""
    where = endpoint(host)

    def ready(seen: Identity) -> bool:
        return seen.in_initramfs and seen.deployment == state.deployment

    seen = await_boot(host, where, ready, host.timeouts.initramfs, "initramfs")
    state.old_boot_id, state.last_answer = seen.boot_id, seen.answered
    state.save()
    give_word(where, state)
    return seen


def give_word(where: Endpoint, state: State) -> None:
    """The operator's. Whether one without an answer has arrived, the events tell."""
    with suppress(ConnectionLost, TimedOut), connect(where, status=FAILED) as remote:
        state.reach(WORD)
        remote.sh(["touch", f"{stage.GO}"])


def login(where: Endpoint, known_hosts: Path) -> list[str]:
    """ssh(1) that knows nothing but the pinned key, which is written to KNOWN_HOSTS.

    It logs in as ssh.Remote does: by the identity alone, if there is one, never by a password.
    """
    known_hosts.write_text(f"{where.known_as} {where.host_key}\n")
    options = {
        "IdentitiesOnly": "yes" if where.identity else "no",
        "PreferredAuthentications": "publickey",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        **({"ProxyCommand": jump.proxy_command(where.jumps)} if where.jumps else {}),
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    identity = ["-i", os.fspath(where.identity)] if where.identity else []
    port = ["-p", str(where.port)]
    return ["ssh", "-F", "none", *words, *identity, *port, f"{where.user}@{where.address}"]


def tested(host: Host, secrets: str = "") -> Machine:
    """HOST's machine, as its own tests are given it. SECRETS: see Machine."""
    where, home = endpoint(host).logins[-1], places.state(host.name)
    notes = os.fspath(home / "notes.json")
    return Machine(where, login(where, home / "known_hosts"), host.forwarded, notes, secrets)


def script(
    remote: Remote,
    name: str,
    *words: str,
    data: bytes = b"",
    file: Path | None = None,
    timeout: float = 60,
    sink: Sink | None = None,
) -> str:
    """Run a script of anemos/server on the server. DATA, FILE, SINK: as DATA, FILE, LOG of
    Remote.sh."""
    argv = ["sh", "-c", (SERVER / name).read_text(), name, *words]
    shown = [name, *words]
    return remote.sh(argv, data=data, file=file, timeout=timeout, log=sink, shown=shown)


def present(remote: Remote, *files: str) -> list[str]:
    """Which of FILES are there."""
    return remote.sh(["sh", "-c", PRESENT, "sh", *files], shown=["files"]).splitlines()


def enter(
    remote: Remote,
    base: str,
    request: Request,
    timeout: float = 300,
    sink: Sink | None = None,
    file: Path | None = None,
) -> str:
    """Put REQUEST, and then FILE, to `python3 -m anemos.server` on the server, in the base image;
    what it says."""
    data = requests.text(request).encode()
    return script(remote, "enter.sh", base, data=data, file=file, timeout=timeout, sink=sink)


def answer(
    remote: Remote,
    base: str,
    request: Request,
    kind: type[Kind],
    timeout: float = 300,
    sink: Sink | None = None,
    file: Path | None = None,
) -> Kind:
    """The same, for the answer in the last line, which SINK does not get."""

    def told(line: str) -> None:
        if sink and not line.startswith('{"'):
            sink(line)

    said = enter(remote, base, request, timeout, sink and told, file)
    line = said.rstrip("\n").rpartition("\n")[2]
    return records.load(kind, line, f"{type(request).__name__}: the server's answer")
