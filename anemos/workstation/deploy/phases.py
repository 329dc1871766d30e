"""The phases of a deployment, each to be run alone or one after the other.

What one leaves for the next is a State (state.py).
"""

import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from anemos import files, log
from anemos.border import records
from anemos.border.payload import manifest
from anemos.border.requests import Bootstrap, Build, Fill, Filled, Keys, Layer, Logins
from anemos.border.stage import HERE
from anemos.files import sha256
from anemos.log import FAILED, Failure, die
from anemos.system import bootstrap, carry, definition
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import Result, access, images, places, repository, scratch, ssh
from anemos.workstation.deploy import (
    consent,
    facts,
    hostkeys,
    outcome,
    payload,
    plan,
    preview,
    reach,
    sending,
    staged,
    ways,
)
from anemos.workstation.deploy.facts import Facts, Identity
from anemos.workstation.deploy.sizes import Sizes, size
from anemos.workstation.deploy.state import (
    Captured,
    State,
    captured_file,
    expected_downtime,
    load_state,
    payload_file,
)
from anemos.workstation.deploy.ways import Slot, Way
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway, trove
from anemos.workstation.ssh import ConnectionLost, Endpoint, Remote, connect
from anemos.workstation.values import values

ID_LENGTH = 64  # of a deployment's id

# --- plan


def make_plan(host: Host, whole: bool = False) -> Result:
    """Tell what a deployment would do. WHOLE: erase disks even where a slot could be filled.

    Raises Failure (status 2): all that stands against it.
    """
    spec = host.imgbuild()
    state = State(host.name, base=images.cached_base(spec.arch))
    with connect(reach.endpoint(host)) as remote:
        seen = facts.gather(remote, state.base_hash)
        ahead = foreseen(host, spec, seen, remote)
    slot = "" if whole else ways.slot(host, spec, seen).other
    sizes = foresee_sizes(host, spec, state, seen, slot)
    wrong = (plan.beside if slot else plan.problems)(host, spec, seen, sizes)
    refuse(host, *wrong, *foresee(host, spec))
    consent.remember(host, spec, seen, slot, sizes.by_server)
    described = (plan.describe_slot if slot else plan.describe)(host, spec, seen, sizes)
    lines = [*described, *ahead, ("downtime", expected_downtime(host))]
    found = consent.identity(host, lines)
    for what, which in (*lines, ("id", found)):
        log.tell(f"{what:8} {which}")
    told = [list(line) for line in lines]
    return {"host": host.name, "id": found, "plan": told, "bytes": sizes.sent}


def foreseen(host: Host, spec: Imgbuild, seen: Facts, remote: Remote) -> list[tuple[str, str]]:
    """What changes against the deployment that runs, as a line of the plan, if that is known."""
    with suppress(Failure):  # `pack` tells what is wrong with the definition
        if seen.deployment and seen.place == "system":
            found = preview.make(host, spec, seen.deployment, remote)
            return [("changes", f"{preview.summary(found)}: ./inv diff")] if found else []
    return []


def foresee(host: Host, spec: Imgbuild) -> Iterator[str]:
    """What secrets and definition tell against a deployment, before anything is revealed."""
    yield hostkeys.foresee(host)
    with suppress(Failure):  # which has just been told
        names = throwaway.secrets_of(host).names(host.directory.name)
        yield trove.lacking(spec, names)
        yield carried(spec, names)
        yield from plan.trying(host, spec)
        yield who(host, spec, names)


def carried(spec: Imgbuild, secrets: Iterable[str]) -> str:
    """What `carry` would put in the place of the definition's own."""
    inputs = access.defined(spec, secrets) if spec.carry else ()
    return carry.problem(spec.carry, (each.removesuffix(definition.PATCH) for each in inputs))


def who(host: Host, spec: Imgbuild, names: Iterable[str]) -> str:
    """Why nobody could log in to the new system. A test has asked before it let itself in."""
    return "" if host.rehearsed else access.problem(spec, names, host.new_user)


def require_access(host: Host) -> None:
    """Refuse a host whose new system nobody could log in to."""
    names = throwaway.secrets_of(host).names(host.directory.name)
    refuse(host, who(host, host.imgbuild(), names))


def require(
    host: Host, spec: Imgbuild, seen: Facts, sizes: Sizes, also: Iterable[str] = ()
) -> None:
    refuse(host, *plan.problems(host, spec, seen, sizes), *also)


def refuse(host: Host, *problems: str) -> None:
    """Die with all PROBLEMS but "", if there are any."""
    if wrong := list(filter(None, problems)):
        die(f"{host.name} cannot be deployed:\n" + "\n".join(f"  - {each}" for each in wrong))


def foresee_sizes(host: Host, spec: Imgbuild, state: State, seen: Facts, slot: str) -> Sizes:
    """As `measure`; also who makes the package layer."""
    there = replace(measure(host, state, seen), by_server=bool(slot))
    if not ways.sends_layer(host, spec, bool(slot), there.beside <= seen.memory_available):
        return there
    return measure(host, replace(state, layer=images.cached_layer(spec)), seen)


def measure(host: Host, state: State, seen: Facts) -> Sizes:
    """What is to be sent, as far as it is made, by the way that is chosen here."""
    parts = (size(state.base), size(state.layer), size(payload_file(host)))
    sizes = Sizes(*parts, base_is_there=bool(seen.base))
    return ways.measured(ways.chosen(host, seen, sizes), sizes)


# --- reveal, pack


def reveal(host: Host) -> Result:
    """Decrypt the secrets of HOST into memory."""
    with scratch.ending():
        source = throwaway.secrets_of(host)
        found = trove.reveal(source, host.directory.name, places.memory(host.name) / "secrets")
    log.info(f"Revealed {len(found.files)} files, {len(found.values)} values")
    return {"host": host.name, "files": found.files, "values": sorted(found.values)}


def pack(host: Host, deployment: str = "") -> Result:
    """Make the payload, and all else that is to be sent."""
    check_id(deployment)
    agreed = consent.to_pack(host, host.imgbuild())
    state = State(host.name, deployment=deployment or new_deployment(), agreed=agreed)
    state.payload = make_payload(host, state)
    state.base = str(images.base(host.imgbuild().arch))
    state.save()
    return {"host": host.name, "deployment": state.deployment, "payload_sha256": state.payload}


def check_id(deployment: str) -> None:
    """It goes into the kernel's command line, and with another one into a disk's sector
    (slots.py)."""
    if not re.fullmatch(rf"[A-Za-z0-9_.:+-]{{0,{ID_LENGTH}}}", deployment):
        rule = f"at most {ID_LENGTH} letters, digits and any of _.:+-"
        die(f"--deployment {deployment}: no id: {rule}")


def make_payload(host: Host, state: State) -> str:
    """Payload and package layer for the deployment of STATE; the payload's SHA-256."""
    spec = host.imgbuild()
    digest, given = write_payload(host, spec, state)
    make_layer(host, spec, state)
    if state.layer:
        attempt(host, spec, given, places.memory(host.name) / "secrets/files")
    log.info(f"Deployment {state.deployment}: payload of {size(payload_file(host))} bytes")
    return digest


def write_payload(host: Host, spec: Imgbuild, state: State) -> tuple[str, Mapping[str, str]]:
    """Its SHA-256, and the values of its templates."""
    into = places.memory(host.name) / "secrets"
    revealed = trove.load(into, host.name)
    keys = {name: (into / "files" / name).read_bytes() for name in hostkeys.among(revealed.files)}
    names = [*revealed.files, *revealed.values]
    problems = trove.lacking(spec, names), carried(spec, names), who(host, spec, names)
    refuse(host, hostkeys.problem(host, keys), *plan.trying(host, spec), *problems)
    given = values(host.directory.name, state.deployment, host.identity_file, revealed.values)
    files = into / "files"
    target = payload_file(host)
    state.commit = repository.revision(host.directory)
    stamped = (host.finish, state.agreed, state.commit)
    payload.write(target, spec, state.deployment, given, files, *stamped)
    check_secrets(host, revealed.files)
    return sha256(target), given


def check_secrets(host: Host, revealed: list[str]) -> None:
    """That the payload holds what was REVEALED; another task may have removed it meanwhile."""
    packed = manifest(payload_file(host)).files
    found = sorted(path.removeprefix("secrets/") for path in packed if path.startswith("secrets/"))
    if found != sorted(revealed):
        missing = ", ".join(set(revealed).symmetric_difference(found))
        hint = f"./inv reveal-secrets --host {host.name}"
        die(f"{host.name}: secrets were changed while they were packed: {missing}", hint=hint)


def make_layer(host: Host, spec: Imgbuild, state: State) -> None:
    bootstrap.check(spec)
    state.layer = ""
    if ways.sends_layer(host, spec, bool(state.agreed.slot), state.agreed.by_server):
        layer = images.layer(spec)
        definition.rehearse(layer, [spec.directory / "files"])
        definition.rehearse_loader(spec, layer, [spec.directory / "files"])
        state.layer = str(layer)


def attempt(host: Host, spec: Imgbuild, given: Mapping[str, str], secrets: Path) -> None:
    """Try the definition here: what fails now would fail after the point of no return.

    Raises Failure (status 2).
    """
    if not host.try_here or spec.server_secrets:
        log.info("The definition is not tried here")
        return
    with scratch.directory() as memory:
        words = images.definition(memory, given, secrets)
        try:
            images.image(spec.directory, ["--try", *words])
        except Failure as failure:
            hint = "try_here = false in host.toml, if it can only work on the server"
            die(f"{host.name}: the definition fails:\n{failure.message}", hint=failure.hint or hint)


def new_deployment() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(3)}"


# --- fill


def fill(host: Host) -> Result:
    """Send what was packed, and have the server fill the slot that does not run with it."""
    state = sending.packed(host, "deployment", "pack")
    spec = host.imgbuild()
    consent.check(host, state)
    with connect(reach.endpoint(host)) as remote:
        seen = facts.gather(remote, state.base_hash)
        sizes = replace(measure(host, state, seen), by_server=not state.layer)
        refuse(host, *plan.beside(host, spec, seen, sizes))
        there = ways.slot(host, spec, seen)
        consent.check_slot(host, state, there.other)
        with staged.undone(host):
            stage(state, remote, sizes.beside)
            state.way = there.way
            send_all(host, state, remote, seen, sizes, ways.SLOT)
            layer = Path(state.layer) if state.layer else None
            asked = Fill(state.remote_base, state.payload, sha256(layer) if layer else "")
            limit = host.timeouts.install
            with log.step("Filling the slot, on the server"):
                words = (remote, state.remote_base, asked, Filled, limit, log.info, layer)
                done = reach.answer(*words)
            state.sent["layer"] = size(state.layer)
            staged.unstage(remote, places.who())
    state.remote_base, state.root = "", done.root  # the base image went with what was staged
    state.save()
    log.info(f"Slot {done.slot} of {host.name} holds {state.deployment}")
    return {"host": host.name, "deployment": state.deployment, **asdict(done)}


# --- upload, build-initramfs, kexec


def upload(host: Host) -> Result:
    """Send what the server lacks, into its memory."""
    state = sending.packed(host, "deployment", "pack")
    with connect(reach.endpoint(host)) as remote:
        seen = facts.gather(remote, state.base_hash)
        sizes = measure(host, state, seen)
        require(host, host.imgbuild(), seen, sizes)
        consent.check_slot(host, state, "")
        consent.check_disks(host, state, seen)
        with staged.undone(host):
            stage(state, remote, sizes.before_jump)
            state.way = sizes.way
            send_all(host, state, remote, seen, sizes, ways.of(state))
    return {"host": host.name, "bytes_sent": state.sent}


def stage(state: State, remote: Remote, room: int) -> None:
    """Make ROOM (bytes) for STATE's deployment, in the place of what an earlier one of ours has
    left."""
    who = places.who()
    with bad_input():
        if other := staged.unstage(remote, who, Path(state.base).name):
            die(plan.foreign(other))
        reach.script(remote, "stage.sh", str(room), state.deployment, who)


def send_all(
    host: Host, state: State, remote: Remote, seen: Facts, sizes: Sizes, way: Way | Slot
) -> None:
    state.server_layer = ""  # it went with what was staged before
    state.sent = {"base": 0, "layer": 0, "payload": 0}
    way.send(host, state, remote, seen, sizes)
    state.remote_base = seen.base or f"{HERE / Path(state.base).name}"
    if not seen.base:
        state.sent["base"] = sending.send(remote, Path(state.base), Path(state.remote_base))
    state.save()


@contextmanager
def bad_input() -> Iterator[None]:
    """A refusal of the server inside is an unmet precondition: nothing was started."""
    try:
        yield
    except Failure as failure:
        die(failure.message, hint=failure.hint)


def build_initramfs(host: Host) -> Result:
    """Have the server put its initramfs together."""
    state = sending.packed(host, "remote_base", "upload")
    with staged.undone(host), connect(reach.endpoint(host)) as remote:
        layer = layer_digest(host, state, remote)
        way = ways.of(state)
        words = (state.remote_base, sha256(payload_file(host)), layer, time.time())
        built = way.build(host, state, remote, Build(*words, late=way.LATE))
        check_logins(remote, built.logins)
    state.kept, network = built.boot.kept or [], built.boot.network
    for each in network["left"]:
        log.info(f"The initramfs is without {each}")
    files.replace(captured_file(host), records.text(Captured(network, state.kept)))
    state.save()
    return {"host": host.name, "network": network, "kept": [*map(asdict, state.kept)]}


def check_logins(remote: Remote, there: Logins) -> None:
    """The initramfs will answer under the pinned key, and let in whoever is logged in now.

    Raises Failure.
    """
    pinned = " ".join(remote.endpoint.host_key.split()[:2])
    if pinned not in there.host_keys:
        die(
            f"{remote.endpoint}: the initramfs would not have the pinned host key",
            hint="it takes the HostKey files that sshd -T names on the server",
        )
    if remote.login_key not in there.authorized:
        die(
            f"{remote.endpoint}: the initramfs would not let you in by the key"
            f" {ssh.fingerprint(remote.login_key)}",
            hint="it takes the AuthorizedKeysFile that sshd -T names for"
            f" {remote.endpoint.user} on the server, and knows no certificates and no"
            " AuthorizedKeysCommand: list your key there",
        )


def layer_digest(host: Host, state: State, remote: Remote) -> str:
    """SHA-256 of the package layer, "" without one. The server makes it now, if that is its job."""
    if host.build_on == "server" and not state.server_layer:
        state.server_layer = bootstrap_on_server(host, state, remote)
        state.save()
    return state.server_layer or (sha256(Path(state.layer)) if state.layer else "")


def bootstrap_on_server(host: Host, state: State, remote: Remote) -> str:
    """Have the server make the package layer, while it serves: its SHA-256."""
    asked = Bootstrap(sha256(payload_file(host)))
    limit = host.timeouts.install
    with log.step("Package layer, on the server"):
        made = reach.answer(remote, state.remote_base, asked, Layer, limit, log.info)
    # Only now it is known how much memory that takes in the initramfs.
    sizes = Sizes(size(state.base), made.size, size(payload_file(host)), base_is_there=True)
    sizes = ways.measured(ways.of(state), sizes)
    require(host, host.imgbuild(), facts.gather(remote, state.base_hash), sizes)
    return made.layer


def kexec(host: Host, hold: bool = False) -> Result:
    """Load the initramfs, jump, see that it is ours that answers, and give it the word to go on.

    With HOLD it gets no word, and waits for `resume` or `abort`.
    """
    state = load_state(host, "remote_base", "upload")
    ways.of(state).check(host)
    with outcome.following(host), staged.undone(host):
        consent.check(host, state)
        seen = arrive(host, state, jump(host, state, hold))
        if not hold:
            reach.give_word(reach.endpoint(host), state)
    if hold:
        log.info(f"{host.name} is held for {host.timeouts.hold} s: ./inv rescue, resume, abort")
    return {"host": host.name, "boot_id": seen.boot_id, "held": hold}


def jump(host: Host, state: State, hold: bool) -> Keys:
    """Load and jump. Returns the host keys to deliver, as Way.load does."""
    with connect(reach.endpoint(host)) as remote:
        seen = facts.identify(remote)
        if seen.in_initramfs:
            die(f"{host.name} is in the initramfs already", hint="./inv status")
        state.old_boot_id, state.reached = seen.boot_id, ""
        way = ways.of(state)
        keys = way.load(state, remote, host.timeouts.hold if hold else 0)
        state.save()
        with suppress(ConnectionLost):  # it may be that quick
            reach.script(remote, *way.script(state), timeout=host.timeouts.down)
    state.last_answer = time.time()
    state.save()
    return keys


def arrive(host: Host, state: State, keys: Keys) -> Identity:
    """Wait for the initramfs, and see that it is ours. KEYS: see Way.deliver."""
    where, way = reach.endpoint(host), ways.of(state)
    reach.await_end(host, where, state)
    state.save()
    ready = reach.rebooted_from(state.old_boot_id)
    limit, key = host.timeouts.initramfs, way.key(state)
    if where.sudo:  # a system that shuts down lets root alone in (pam_nologin(8))
        limit += host.timeouts.down
    seen = reach.await_boot(host, where, ready, limit, "initramfs", other_key=key)
    if not seen.in_initramfs or seen.deployment != state.deployment:
        tell_end(where)
        what = "rebooted into the old system instead of the initramfs"
        die(f"{host.name} {what}", hint=way.SUSPECT, status=FAILED)
    way.deliver(host, state, where, keys)
    return seen


def tell_end(where: Endpoint) -> None:
    """Log how the boot before this one ended: why a jump led back, if the server knows."""
    with suppress(Failure), connect(where, status=FAILED) as remote:
        for line in reach.script(remote, "ended.sh").splitlines():
            log.info(f"Before the jump: {line}")


@contextmanager
def forgotten(host: Host) -> Iterator[None]:
    """See to it that `forget` is what all ends in: failures, signals and a closed terminal, too."""
    with scratch.ending():
        try:
            yield
        finally:
            forget(host)


def forget(host: Host) -> None:
    """Remove HOST's revealed secrets and payload from memory; `verify` still knows its state."""
    shutil.rmtree(places.memory(host.name) / "secrets", ignore_errors=True)
    payload_file(host).unlink(missing_ok=True)
