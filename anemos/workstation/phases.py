"""The phases of a deployment, each to be run alone or one after the other.

What one leaves for the next is a State, kept as JSON in memory-backed storage.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from anemos import log
from anemos.digest import sha256
from anemos.image import definition
from anemos.image.imgbuild import Imgbuild
from anemos.log import FAILED, Failure, die
from anemos.run import CommandFailed, run
from anemos.workstation import facts, images, payload, places, plan, secrets, stock, vm
from anemos.workstation.facts import Facts, Identity
from anemos.workstation.gpg import Keyring
from anemos.workstation.host import Host
from anemos.workstation.plan import Sizes
from anemos.workstation.ssh import ConnectionLost, Endpoint, Remote, TimedOut, Unreachable, connect

SERVER = places.ROOT / "anemos/server"
STAGE = "/run/anemos"
POLL_S = 0.5
# What a system on its way down or up may answer with; a command may be killed with everything else.
GONE = (Unreachable, ConnectionLost, TimedOut, CommandFailed)
Ready = Callable[[Identity], bool]


@dataclass
class State:
    """A deployment as far as it has come."""

    host: str
    deployment: str = ""
    base: str = ""  # file on the workstation
    layer: str = ""  # the same; "" when the initramfs bootstraps
    remote_base: str = ""  # file on the server
    old_boot_id: str = ""
    last_answer: float = 0.0  # of the old system: seconds since the epoch
    first_answer: float = 0.0  # of the new system
    kept: list[dict[str, Any]] = field(default_factory=list)  # fingerprints in the old system
    sent: dict[str, int] = field(default_factory=dict)  # bytes: base, layer, payload

    def save(self) -> None:
        file = places.memory(self.host) / "state.json"
        fresh = file.with_suffix(".new")
        fresh.touch(0o600)
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(file)


def load_state(host: Host, needs: str = "", hint: str = "") -> State:
    """The state of HOST's deployment. Raises Failure when the field NEEDS is still empty."""
    file = places.memory(host.name) / "state.json"
    state = State(**json.loads(file.read_text())) if file.exists() else State(host.name)
    if needs and not getattr(state, needs):
        die(f"{host.name}: not ready for this phase", hint=f"./inv {hint} --host {host.name}")
    return state


def endpoint(host: Host) -> Endpoint:
    """Where HOST answers, and the key that it is pinned to, in all of its systems."""
    if host.vm is None:
        return Endpoint(host.address, host.port, "root", host.host_key, host.identity_file)
    machine = vm.of(host)
    if not machine.pid:
        die(f"the VM of {host.name} is not running", hint=f"./inv demo --host {host.name}")
    identity = stock.operator_key(host.name)
    return Endpoint("127.0.0.1", machine.port(22), "root", machine.host_key, identity)


def payload_file(host: Host) -> Path:
    return places.memory(host.name) / "payload"


# --- plan


def make_plan(host: Host) -> dict[str, Any]:
    """Tell what a deployment would do. Raises Failure (status 2): all that stands against it."""
    spec = host.imgbuild()
    state = State(host.name, base=images.cached_base(), layer=cached_layer(host, spec))
    with connect(endpoint(host)) as remote:
        seen = facts.gather(remote, base_hash(state))
    sizes = measure(host, state, seen)
    require(host, spec, seen, sizes)
    lines = [*plan.describe(spec, seen, sizes), ("downtime", expected_downtime(host))]
    for what, which in lines:
        log.info(f"{what:8} {which}")
    return {"host": host.name, "plan": [list(line) for line in lines], "bytes": sizes.sent}


def require(host: Host, spec: Imgbuild, seen: Facts, sizes: Sizes) -> None:
    wrong = plan.problems(host, spec, seen, sizes)
    if wrong:
        die(f"{host.name} cannot be deployed:\n" + "\n".join(f"  - {each}" for each in wrong))


def cached_layer(host: Host, spec: Imgbuild) -> str:
    return images.cached_layer(spec) if host.build_on == "workstation" else ""


def base_hash(state: State) -> str:
    return Path(state.base).stem.removeprefix("base-") if state.base else ""


def measure(host: Host, state: State, seen: Facts) -> Sizes:
    """What is to be sent, as far as it is made."""
    return Sizes(size(state.base), size(state.layer), size(payload_file(host)), bool(seen.base))


def size(file: str | Path) -> int:
    return Path(file).stat().st_size if file and Path(file).exists() else 0


# --- reveal, pack


def reveal(host: Host) -> dict[str, Any]:
    """Decrypt the secrets of HOST into memory."""
    into = places.memory(host.name) / "secrets"
    if host.vm is None:
        found = secrets.reveal(Keyring(None), places.SECRETS, host.name, into)
    else:
        root = places.state(host.name) / "secrets"
        found = secrets.reveal(stock.keyring(host.name, host.name), root, host.name, into)
    log.info(f"Revealed {len(found.files)} files, {len(found.values)} values")
    return {"host": host.name, "files": found.files, "values": sorted(found.values)}


def pack(host: Host, deployment: str = "") -> dict[str, Any]:
    """Make the payload, and whatever else is to be sent."""
    spec = host.imgbuild()
    into = places.memory(host.name) / "secrets"
    revealed = secrets.load(into, host.name)
    check_host_keys(host, into / "files/etc/ssh")
    state = State(host.name, deployment=deployment or new_deployment())
    values = {**revealed.values, **builtin_values(host, state)}
    payload.write(payload_file(host), spec, state.deployment, values, into / "files")
    prepare(host, spec, state)
    state.save()
    digest = sha256(payload_file(host))
    log.info(f"Deployment {state.deployment}: payload of {size(payload_file(host))} bytes")
    return {"host": host.name, "deployment": state.deployment, "payload_sha256": digest}


def check_host_keys(host: Host, directory: Path) -> None:
    """Host keys among the secrets replace the old system's: one must be the pinned one."""
    private = sorted(directory.glob("ssh_host_*_key"))
    if not private:
        return
    public = [run(["ssh-keygen", "-y", "-f", key]).split()[:2] for key in private]
    pinned = vm.of(host).host_key if host.vm else host.host_key
    if pinned.split()[:2] not in public:
        names = ", ".join(key.name for key in private)
        die(f"{host.name}: the pinned host key is none of those among the secrets: {names}")


def prepare(host: Host, spec: Imgbuild, state: State) -> None:
    state.base = str(images.base())
    state.layer = ""
    if host.build_on == "workstation":
        layer = images.layer(spec)
        definition.rehearse(layer, [spec.directory / "files"])
        state.layer = str(layer)


def new_deployment() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(3)}"


def builtin_values(host: Host, state: State) -> dict[str, str]:
    """The values that every template may use."""
    values = {"deployment": state.deployment, "host": host.name}
    identity = stock.operator_key(host.name) if host.vm else host.identity_file
    public = identity.with_name(identity.name + ".pub") if identity else None
    if public and public.is_file():
        values["operator_key"] = public.read_text().strip()
    return values


# --- upload, build-initramfs, kexec


def upload(host: Host) -> dict[str, Any]:
    """Send what the server lacks, into its memory."""
    state = load_state(host, "deployment", "pack")
    with connect(endpoint(host)) as remote:
        seen = facts.gather(remote, base_hash(state))
        sizes = measure(host, state, seen)
        require(host, host.imgbuild(), seen, sizes)
        with bad_input():
            script(remote, "stage.sh", str(sizes.before_jump))
        state.sent = {"base": 0, "layer": 0, "payload": send(remote, payload_file(host), "payload")}
        if state.layer:
            state.sent["layer"] = send(remote, Path(state.layer), "layer")
        state.remote_base = seen.base or f"{STAGE}/{Path(state.base).name}"
        if not seen.base:
            state.sent["base"] = send(remote, Path(state.base), Path(state.base).name)
    state.save()
    return {"host": host.name, "bytes_sent": state.sent}


@contextmanager
def bad_input() -> Iterator[None]:
    """A refusal of the server inside is an unmet precondition: nothing was started."""
    try:
        yield
    except Failure as failure:
        die(failure.message, hint=failure.hint)


def send(remote: Remote, file: Path, name: str) -> int:
    with log.step(f"Sending {name} ({size(file) / 2**20:.1f} MiB)"):
        return remote.put(file, f"{STAGE}/{name}", mode=0o600, timeout=300)


def build_initramfs(host: Host) -> dict[str, Any]:
    """Have the server put its initramfs together."""
    state = load_state(host, "remote_base", "upload")
    layer = sha256(Path(state.layer)) if state.layer else ""
    with connect(endpoint(host)) as remote:
        words = [state.remote_base, sha256(payload_file(host)), layer]
        answer = json.loads(enter(remote, state.remote_base, "build-initramfs", *words))
    state.kept = answer["kept"]
    state.save()
    return {"host": host.name, "network": answer["network"], "kept": state.kept}


def kexec(host: Host) -> dict[str, Any]:
    """Load the initramfs, jump, see that it is ours that answers, and give it the word to go on."""
    state = load_state(host, "remote_base", "upload")
    where = endpoint(host)
    with connect(where) as remote:
        state.old_boot_id = facts.identify(remote).boot_id
        enter(remote, state.remote_base, "load")
        state.save()
        with suppress(ConnectionLost):  # it may be that quick
            script(remote, "jump.sh", state.remote_base, timeout=host.timeouts.down)
    state.last_answer = time.time()
    state.save()
    with log.step("Waiting for the old system to end"):
        await_end(host, where, state)
    state.save()
    with log.step("Waiting for the initramfs"):
        ready = rebooted_from(state.old_boot_id)
        seen = await_boot(host, where, ready, host.timeouts.initramfs, "initramfs")
    if not seen.in_initramfs or seen.deployment != state.deployment:
        die(f"{host.name} rebooted into the old system instead of the initramfs", status=FAILED)
    # Whether a lost word has arrived, the events tell.
    with suppress(ConnectionLost), connect(where, status=FAILED) as remote:
        remote.sh(["touch", f"{STAGE}/go"])
    return {"host": host.name, "boot_id": seen.boot_id}


def await_end(host: Host, where: Endpoint, state: State) -> None:
    """Wait until the old system does not answer any more; remember when it last did."""
    end = time.monotonic() + host.timeouts.down
    while time.monotonic() < end:
        try:
            with connect(where, status=FAILED) as remote:
                seen = facts.identify(remote)
        except GONE:
            return
        if seen.boot_id != state.old_boot_id:
            return
        state.last_answer = seen.answered
        time.sleep(POLL_S)
    die(f"{host.name}: the old system still runs {host.timeouts.down} s after kexec", status=FAILED)


def rebooted_from(old: str) -> Ready:
    return lambda seen: seen.boot_id != old


def await_boot(host: Host, where: Endpoint, ready: Ready, timeout: int, what: str) -> Identity:
    """Wait for a system that READY accepts. Raises Failure (status 1) at the end."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with suppress(*GONE), connect(where, status=FAILED) as remote:
            seen = facts.identify(remote)
            if ready(seen):
                return seen
        time.sleep(POLL_S)
    die(f"{host.name}: no answer from the {what} within {timeout} s", status=FAILED)


def script(remote: Remote, name: str, *words: str, timeout: float = 60) -> str:
    """Run a script of anemos/server on the server."""
    argv = ["sh", "-c", (SERVER / name).read_text(), name, *words]
    return remote.sh(argv, timeout=timeout, shown=[name, *words])


def enter(remote: Remote, base: str, *words: str) -> str:
    """Run `python3 -m anemos.server WORDS` on the server, in the base image."""
    return script(remote, "enter.sh", base, *words, timeout=300)


def remember_downtime(host: Host, state: State) -> None:
    """For the next plan."""
    file = places.state(host.name) / "downtime"
    file.write_text(f"{state.first_answer - state.last_answer:.0f}")


def expected_downtime(host: Host) -> str:
    file = places.state(host.name) / "downtime"
    return f"{file.read_text()} s, as the last time" if file.exists() else "unknown yet"


def unstage(host: Host) -> None:
    """Free the server's memory of what was staged there, unless it is the initramfs by now."""
    with suppress(Failure), connect(endpoint(host), status=FAILED) as remote:
        remote.sh(["sh", "-c", f"test -e {STAGE}/boot.json || umount -l {STAGE}"])


def clean() -> dict[str, Any]:
    """Remove all that interrupted runs left in memory, for any host."""
    top = places.memory("any").parent
    found = sorted(entry.name for entry in top.iterdir() if entry.name != "any")
    shutil.rmtree(top)
    return {"removed": found}


def forget(host: Host) -> None:
    """Remove HOST's revealed secrets and payload from memory; `verify` still knows its state."""
    shutil.rmtree(places.memory(host.name) / "secrets", ignore_errors=True)
    payload_file(host).unlink(missing_ok=True)
