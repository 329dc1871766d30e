"""Proves that the machine became what was described: positive evidence for every check."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from anemos import log
from anemos.border.requests import Fingerprints
from anemos.disks import Fingerprint
from anemos.log import FAILED, UNVERIFIED, Failure, die
from anemos.run import CommandFailed
from anemos.system import functions
from anemos.workstation import Result, journal, machine
from anemos.workstation.deploy import facts, outcome, reach, status
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.outcome import Witnessed
from anemos.workstation.deploy.state import DONE, PASSED, State, load_state, remember_downtime
from anemos.workstation.hosts import Host
from anemos.workstation.machine import Machine
from anemos.workstation.ssh import Endpoint, Remote, connect, fingerprint

LATER = {"noauto", "x-systemd.automount"}  # mount(8), systemd.mount(5)
OWN_S = 300.0  # verify() of the IMGBUILD
ALONE = "neither systemd nor OpenRC"
# $0: how many seconds the last jobs of the boot may take. timeout(1) ends with 124.
SYSTEMD = """
timeout "$0" systemctl is-system-running --wait
[ $? != 124 ] || { echo "still starting after $0 s"; systemctl list-jobs --plain --no-legend; }
systemctl list-units --failed --plain --no-legend
"""
# OpenRC keeps its state in /run/openrc (librc.h). What failed to start counts as stopped later on.
UNITS = f"""
if [ -d /run/systemd/system ]; then
{SYSTEMD}
elif [ -d /run/openrc ]; then
    until [ "$(cat /run/openrc/softlevel)" = default ] && [ ! -e /run/openrc/rc.starting ]; do
        sleep 1
    done
    echo running
    for each in sysinit boot default; do rc-status --nocolor $each; done | grep ']$' |
        grep -v '\\[ *started' || :
else
    echo '{ALONE}'
fi
"""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    evidence: str


class Disproved(Failure):
    """Some of CHECKS have failed."""

    def __init__(self, message: str, checks: list[Check]) -> None:
        super().__init__(message, status=UNVERIFIED)
        self.checks = checks


def verify(host: Host, tests: bool = False) -> Result:
    """Wait for the new system and check it, with TESTS also by the host's own that are `safe`.

    Raises Failure: status 1 when the old system came back, 4 when a check fails, or nothing can be
    checked.
    """
    state = load_state(host, "old_boot_id", "kexec")
    with outcome.following(host):
        result = prove(host, state)
        if not tests:
            return result
        return with_tests(host, result, reach.tested(host))


def with_tests(host: Host, result: Result, where: Machine) -> Result:
    """RESULT, and that HOST's own tests pass. Raises Failure when one does not."""
    said = machine.check(host.directory, where, log.info)
    if not said:
        log.info(f"{host.name} has no tests of its own")
        return result
    return result | {"checks": [*result["checks"], asdict(Check("own tests", True, said))]}


def prove(host: Host, state: State) -> Result:
    where = reach.endpoint(host)
    up = reach.await_boot(host, where, fresh(state), host.timeouts.up, "new system")
    if up.deployment != state.deployment:
        if state.reached not in (PASSED, DONE):
            status.old_system(host, up.deployment)
            raise Witnessed(f"{host.name} runs the old system: nothing was deployed", status=FAILED)
        die(f"{host.name}: a system answers that is not the new one", status=FAILED)
    state.first_answer = state.first_answer or up.answered
    state.reached = DONE
    state.save()
    with connect(where, status=UNVERIFIED) as remote:
        units = check_units(host, remote)  # first: at the end of the boot all ports listen
        seen = facts.gather(remote, state.base_hash)
        checks = [*examine(host, state, seen, where), units, *check_mounts(host, seen)]
        checks += [*check_kept(host, state, remote, seen), *check_own(host, remote)]
        for each in checks:
            log.info(f"{'ok  ' if each.passed else 'FAIL'} {each.name}: {each.evidence}")
        if not all(each.passed for each in checks):
            journal.tell(remote, log.info)
    remember_downtime(host, state)
    return conclude(host, state, seen, checks)


def fresh(state: State) -> reach.Ready:
    return lambda seen: seen.boot_id != state.old_boot_id and not seen.in_initramfs


def examine(host: Host, state: State, seen: Facts, where: Endpoint) -> Iterator[Check]:
    yield Check(
        "boot id", seen.boot_id != state.old_boot_id, f"{state.old_boot_id} -> {seen.boot_id}"
    )
    yield Check("deployment", seen.deployment == state.deployment, seen.deployment)
    yield Check("host key", True, f"answered with {fingerprint(where.host_key)}")
    for port in host.ports:
        listens = port in seen.listening
        yield Check(f"port {port}", listens, "listens" if listens else "nobody listens")


def check_units(host: Host, remote: Remote) -> Check:
    wait = host.timeouts.up
    said = remote.sh(["sh", "-c", UNITS, str(wait)], timeout=wait + 60).splitlines()
    return Check("units", said in (["running"], [ALONE]), "; ".join(said) or "systemd says nothing")


def check_mounts(host: Host, seen: Facts) -> Iterator[Check]:
    """What fstab mounts at the boot: with `nofail`, a unit that gave up has not failed."""
    spec = host.imgbuild()
    there = {line.split()[1] for line in seen.mounts}
    wanted = [(each.mount, each.options) for each in spec.layout.mounts()]
    wanted += [(each.mount, each.options) for each in spec.kept if each.mount]
    for point, options in wanted:
        if LATER.isdisjoint(options.split(",")):
            mounted = point in there
            yield Check(f"mount {point}", mounted, "mounted" if mounted else "not mounted")


def check_kept(host: Host, state: State, remote: Remote, seen: Facts) -> Iterator[Check]:
    """The kept disks' fingerprints, taken by the same code as in the old system."""
    wanted = host.imgbuild().wanted
    if not wanted:
        return
    if not seen.base:
        yield Check("kept disks", False, "the base image, which compares them, is not there")
        return
    try:
        found = reach.answer(remote, seen.base, Fingerprints(wanted), list[Fingerprint])
    except Failure as failure:
        yield Check("kept disks", False, failure.message.splitlines()[-1].strip(" |"))
        return
    known = state.kept or seen.stamp.kept or []  # the latter: by the initramfs itself
    before, now = ({each.name: each for each in each_time} for each_time in (known, found))
    for each in (each for each in wanted if each.kind != "vg"):
        old, new = before.get(each.name), now[each.name]
        evidence = f"{old.digest[:16] if old else 'nothing'} before, {new.digest[:16]} now"
        what = "volume" if each.kind else "disk"
        yield Check(f"kept {what} {new.serial}", old == new, evidence)


# $1: the script that calls verify() of the IMGBUILD on standard input.
OWN = """
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
cat >"$directory/IMGBUILD"
if command -v bash >/dev/null; then set -- bash --posix -c "$1"; else set -- sh -c "$1"; fi
"$@" IMGBUILD "$directory/IMGBUILD"
"""


def check_own(host: Host, remote: Remote) -> Iterator[Check]:
    """verify() of the host's IMGBUILD, run on the new system: all its commands must succeed."""
    spec = host.imgbuild()
    if "verify" not in spec.functions:
        return
    argv, text = ["sh", "-c", OWN, "sh", functions.script(spec, "verify")], spec.file.read_bytes()
    try:
        said = remote.sh(argv, data=text, timeout=OWN_S, shown=["verify()"]).splitlines()
        yield Check("verify()", True, said[-1] if said else "succeeded")
    except Failure as failure:
        if isinstance(failure, CommandFailed):
            failure = functions.explained(spec, "verify", failure)
        evidence = " ".join(line.strip(" |") for line in failure.message.splitlines())
        yield Check("verify()", False, evidence)


def conclude(host: Host, state: State, seen: Facts, checks: list[Check]) -> Result:
    wrong = [f"{each.name} ({each.evidence})" for each in checks if not each.passed]
    if wrong:
        raise Disproved(f"{host.name} was deployed, but fails: {', '.join(wrong)}", checks)
    kept = [each for each in checks if each.name.startswith("kept disk ")]
    return {
        "host": host.name,
        "deployment": state.deployment,
        "verified": True,
        "kernel": seen.kernel,
        "boot_id": {"old": state.old_boot_id, "new": seen.boot_id},
        "downtime_s": state.downtime,
        "bytes_sent": state.sent,
        "kept_disks": [
            {"serial": each.name.removeprefix("kept disk "), "unchanged": each.passed}
            for each in kept
        ],
        "checks": [asdict(each) for each in checks],
    }
