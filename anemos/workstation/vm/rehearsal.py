"""`./inv test`: a host in a local VM, from blank disks to verified, with throw-away secrets.

The real secrets, the real GPG key and the real server are never touched. Payload and initramfs are
those of a deployment; the VM starts with the initramfs, and then from its disk.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from anemos import files, keys, log
from anemos.border import records
from anemos.disks import Fingerprint
from anemos.log import UNVERIFIED, Failure, die
from anemos.system import layout
from anemos.system.bootloader.places import disks_below
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Disk, Layout
from anemos.workstation import Result, access, lock, places, report, scratch
from anemos.workstation.deploy import byhand, chain, consent, default, phases, plan, reach, watch
from anemos.workstation.deploy import verify as proof
from anemos.workstation.deploy.state import DONE, load_state
from anemos.workstation.hosts import ROOT, After, Host, known, load
from anemos.workstation.machine import Machine
from anemos.workstation.qemu import Drive
from anemos.workstation.secrets import sources, throwaway, trove
from anemos.workstation.ssh import connect
from anemos.workstation.vm import blank, demo, vm
from anemos.workstation.vm.vm import Vm

EXIT_S = 120.0  # from the last event to the reboot
# Written to each kept file system of the VM: 1 MiB of chance, with an owner of its own.
MARKER = ".anemos-redeploy"
MARK = """set -e
for file; do
    head -c 1048576 /dev/urandom >"$file"; chown 12345:54321 "$file"; chmod 0604 "$file"
done
sync
"""
MARKS = 'for file; do stat -c "%a %u %g %Y %n" "$file" && sha256sum "$file" || exit; done'
HOST_KEY = "ssh_host_ed25519_key"


@dataclass(frozen=True)
class Disks:
    """What `make_disks` has made."""

    wanted: str = ""  # digest of layout and keep
    drives: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # see Drive
    kept: list[Fingerprint] = field(default_factory=list)


@dataclass
class Trial:
    """HOST's test: its DOUBLE is a host of its own, with the same IMGBUILD, at home in MACHINE."""

    host: Host
    machine: Vm
    double: Host
    drives: list[Drive] = field(default_factory=list)
    keys: dict[str, bytes | Path] = field(default_factory=dict)
    seconds: list[Result] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return places.state(self.double.name)

    @property
    def disks(self) -> Path:
        """The Disks."""
        return self.home / "disks.json"

    @property
    def memory(self) -> Path:
        return places.memory(self.double.name)

    @property
    def revealed(self) -> Path:
        return self.memory / "secrets"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        with log.step(f"{name} {self.host.name}"):
            yield
        self.seconds.append({"name": name, "seconds": round(time.monotonic() - start, 1)})

    def start(self, *words: str | Path) -> None:
        """Start the VM; its double answers at another port each time."""
        vm.start(self.machine, self.drives, words, self.host.imgbuild().arch)
        self.double = replace(self.double, forwarded=self.machine.ports)


def prepare(host: Host) -> Trial:
    """Nothing is made yet, and what an earlier test kept is still there."""
    name = f"{host.name}@test"
    _, port = host.new_place
    forward = [port, *host.vm.forward]
    local = Vm(name, places.state(name) / "vm", replace(host.vm, stock="", forward=forward))
    # As root: let_in() makes that sure, and it is what the VM's initramfs is started for.
    here = replace(host, name=name, vm=local.settings, address="127.0.0.1", identity="")
    double = replace(here, port=port, proxy_jump="", user=ROOT, after=After())
    return Trial(host, local, double)


@dataclass(frozen=True)
class Options:
    """KEEP: the VM stays. REUSE: take the one that stayed. REDEPLOY: deploy once more."""

    keep: bool = False
    reuse: bool = False
    redeploy: bool = False


def test(host: Host, options: Options) -> Result:
    """Install HOST in a VM of its own and verify it; the report.

    Raises Failure with the exit statuses of log.py.
    """
    spec = host.imgbuild()
    phases.refuse(host, *plan.bootable(spec), *not_made(spec))
    trial = prepare(host)
    vm.require(trial.machine, spec.arch)
    lock.take(trial.double.name)
    if not options.reuse:
        discard(trial)
    elif not trial.disks.exists():
        hint = f"./inv test --host {host.name} --keep"
        die(f"no VM of {host.name} is left from a test", hint=hint)
    with scratch.ending():
        try:
            with trial.step("secrets"):
                reveal(trial)
            there = options.reuse and unchanged(trial)
            if not there:
                install(trial)
            result = prove_installed(trial)
            if options.redeploy:
                result = redeploy(trial)
        finally:
            phases.forget(trial.double)
            shutil.rmtree(trial.memory / "boot", ignore_errors=True)
            if options.keep or options.reuse:
                stay(trial)
            else:
                discard(trial)
    done = "still runs" if there and not options.redeploy else "was installed"
    report.show(result, f"{host.name} {done} in a local VM and is verified")
    return result


def not_made(spec: Imgbuild) -> list[str]:
    """Only a kernel that has LVM and md makes their volumes."""
    why = "a VM cannot be made with such a volume in it"
    return [f"keep: {each.kind} {each.name!r}: {why}" for each in spec.kept_volumes]


def test_all(options: Options) -> Result:
    """Test each host, one after the other; the reports.

    Raises Failure at the end, with the status of the first host that failed.
    """
    reports, failed = [], {}
    for name in known():
        try:
            reports.append(test(load(name, server=False), options))
        except Failure as failure:
            if failure.status > 128:  # a signal, which is meant for all of it
                raise
            log.info(f"error: {failure}")
            failed[name] = failure.status
    if failed:
        die(f"tests failed: {', '.join(failed)}", status=next(iter(failed.values())))
    return {"hosts": reports}


def unchanged(trial: Trial) -> bool:
    """Whether the VM runs what is described now, the host's own tests aside."""
    known = load_state(trial.double)
    if not trial.machine.pid or known.reached != DONE:
        return False
    now, spec = replace(known), trial.double.imgbuild()
    with trial.step("comparison"):
        if phases.write_payload(trial.double, spec, now)[0] != known.payload:
            return False
        phases.make_layer(trial.double, spec, now)
    trial.double = replace(trial.double, forwarded=trial.machine.ports)
    return now.layer == known.layer


def install(trial: Trial) -> None:
    """Install on the VM's disks, blank or used, and start the new system."""
    vm.stop(trial.machine)
    with trial.step("pack"):
        consent.withdraw(trial.double)  # of an earlier --redeploy
        phases.pack(trial.double)
    with trial.step("disks"):
        prints = make_disks(trial)
    with trial.step("initramfs"):
        boot(trial, prints)
    with trial.step("in RAM"):
        watch.watch(trial.double, lambda: bool(trial.machine.pid))
        if trial.host.finish == "reboot":  # kexec never leaves the machine
            vm.await_exit(trial.machine, EXIT_S)
            trial.start()


def prove_installed(trial: Trial) -> Result:
    result = prove(trial)
    gone = ("downtime_s", "bytes_sent")  # there was no server
    return {key: value for key, value in result.items() if key not in gone}


def redeploy(trial: Trial) -> Result:
    """Deploy to the VM as to the server, over SSH and with kexec; what was kept is still there."""
    with trial.step("secrets"):
        reveal(trial)
    before = mark(trial)
    with trial.step("plan"):
        phases.make_plan(trial.double)
    slot = consent.recall(trial.double).slot
    for name, phase in chain.rest(slot, hold=False).items():
        if name not in ("reveal-secrets", "verify", "commit"):  # these are the test's own
            with trial.step(name):
                phase(trial.double)
    result = prove(trial)
    if slot:
        with trial.step("commit"):
            default.commit(trial.double)
    if (after := marks(trial)) != before:
        die(f"kept files changed: {before!r} became {after!r}", status=UNVERIFIED)
    return result


def prove(trial: Trial) -> Result:
    """Verify the new system, have the host's own tests look at it; the report."""
    with trial.step("verify"):
        result = proof.verify(trial.double)
    with trial.step("own tests"):
        result = proof.with_tests(trial.double, result, as_machine(trial))
    return result | {"host": trial.host.name, "phases": trial.seconds}


def mark(trial: Trial) -> str:
    """Write a file to each kept file system of the VM; their digests."""
    with connect(reach.endpoint(trial.double)) as remote:
        remote.sh(["sh", "-c", MARK, "sh", *kept_paths(trial)])
    return marks(trial)


def marks(trial: Trial) -> str:
    """Modes, owners and SHA-256 of the files that `mark` has written, as text."""
    with connect(reach.endpoint(trial.double), status=UNVERIFIED) as remote:
        return remote.sh(["sh", "-c", MARKS, "sh", *kept_paths(trial)])


def kept_paths(trial: Trial) -> list[str]:
    return [f"{each.mount}/{MARKER}" for each in trial.host.imgbuild().keep if each.mount]


def as_machine(trial: Trial) -> Machine:
    """The VM as the host's own tests are given it."""
    return reach.tested(trial.double, os.fspath(trial.revealed))


def reveal(trial: Trial) -> None:
    """Throw-away secrets, an operator's key, and host keys where there are none among them."""
    name = trial.host.directory.name
    made = trove.reveal(throwaway.source(name, trial.double.name), name, trial.revealed)
    require_access(trial, made.files)
    operator = throwaway.operator_key(trial.double.name)
    let_in(trial, operator.with_suffix(".pub").read_text())
    own = byhand.host_keys(trial.revealed)
    if not own:
        if not (trial.home / HOST_KEY).exists():
            keys.make(trial.home / HOST_KEY, "throw-away")
        own = {each: trial.home / each for each in (HOST_KEY, f"{HOST_KEY}.pub")}
    public = keys.public(next(iter(own.values())).read_bytes())
    trial.double = replace(trial.double, host_key=public, identity=os.fspath(operator))
    trial.keys = {**own, "authorized_keys": operator.with_suffix(".pub")}


def require_access(trial: Trial, made: list[str]) -> None:
    """Refuse a server that nobody could log in to, before the test's own key hides that."""
    name = trial.host.directory.name
    with suppress(Failure):  # of the real secrets only the names count; they need not be in order
        made = [*made, *sources.of(name).names(name)]
    host = trial.host
    phases.refuse(host, access.problem(host.imgbuild(), made, host.new_user))


def let_in(trial: Trial, public: str) -> None:
    """Have the new system accept the operator's throw-away key PUBLIC, too.

    A template for its list of keys is left alone: it has the value operator_key.
    """
    top = trial.revealed / "files"
    secret = [path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()]
    name = access.where(trial.host.imgbuild(), secret)
    given = trial.host.directory / "files" / name
    if given.with_name(f"{given.name}.makeimg.template").exists():
        return
    before = next((each.read_text() for each in (top / name, given) if each.is_file()), "")
    scratch.write_private(trial.revealed, f"files/{name}", f"{before}\n{public}".encode())


def make_disks(trial: Trial) -> list[Fingerprint]:
    """Blank disks for the layout, used ones for `keep`; the fingerprints of these.

    Those of an earlier test stay, for as long as the IMGBUILD wants the same.
    """
    spec = trial.host.imgbuild()
    wanted = layout.digest(spec.layout, spec.keep)
    text = trial.disks.read_bytes() if trial.disks.exists() else b"{}"
    known = records.load(Disks, text, f"{trial.disks}")
    if known.wanted != wanted:
        made = new_disks(spec, trial.machine.directory)
        drives = [(each.name, os.fspath(each.file), dict(each.match)) for each, _ in made]
        known = Disks(wanted, drives, [found for _, prints in made for found in prints])
        files.replace(trial.disks, records.text(known))
    trial.drives = [Drive(name, Path(file), match) for name, file, match in known.drives]
    return known.kept


def new_disks(spec: Imgbuild, directory: Path) -> list[tuple[Drive, list[Fingerprint]]]:
    scratch.remove(directory)
    directory.mkdir(mode=0o700)
    made = [blank.disk(each, spec.keep, directory) for each in boot_first(spec.layout)]
    return made + [blank.kept_disk(each, directory) for each in spec.keep if not each.disk]


def boot_first(plan: Layout) -> list[Disk]:
    """The disks, those that the new system starts from first, as the firmware wants them."""
    first = disks_below(plan, "/boot")
    return sorted(plan.disks, key=lambda disk: disk not in first)


def boot(trial: Trial, prints: list[Fingerprint]) -> None:
    """Start the initramfs, and give it the word to go on."""
    state = load_state(trial.double)
    network = trial.machine.settings.network.capture()
    parts = byhand.of(trial.double, state, trial.keys, network, prints)
    directory = trial.memory / "boot"
    directory.mkdir(mode=0o700)
    byhand.write(directory, parts)
    trial.start(*byhand.qemu_words(directory))
    state.kept, state.stays = prints, True
    reach.go(trial.double, state)


def discard(trial: Trial) -> None:
    """Remove what a test has made."""
    vm.stop(trial.machine)
    for each in (trial.home, trial.memory):
        scratch.remove(each)


def stay(trial: Trial) -> None:
    if trial.machine.pid:
        end = f"./inv test --host {trial.host.name} --stop"
        demo.goodbye(trial.double, trial.machine, end)


def stop(host: Host) -> Result:
    """Remove the VM that a test of HOST kept."""
    discard(prepare(host))
    return {"host": host.name}
