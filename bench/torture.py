"""Random faults on deployments: .venv/bin/python -m bench.torture [--seed N] [--runs M] [--whole]

hosts/demo in a local VM is deployed M times (40): into its other slot, or with --whole to its whole
disks. Each time one of FAULTS comes at a moment that the seed N (1) chooses. Then exit status and
`status` have to say what is found on the server, the kept files have to be what they were, and a
plain deployment has to succeed. Prints a line for each; ends with 1 if one of them did not hold.

It needs root, for a network whose cable it cuts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, default_int_handler, signal
from tempfile import TemporaryDirectory
from typing import Any

from anemos import namespaces
from anemos.log import Failure
from anemos.run import run
from anemos.workstation.deploy import status
from tests.story import Story
from tests.tree import environment, shared
from tests.whole.test_slot_vm import served

REST_S, POLL_S = 2400, 5
LIMIT_S = 3600
KEPT = "cd /home && find . -type f -print0 | sort -z | xargs -0 sha256sum"
FULL = "dd if=/dev/zero of=/var/tmp/full bs=1M 2>/dev/null || :"
STAMP = "cat /run/anemos/boot.json /etc/anemos/deployment.json 2>/dev/null | head -n 1"
# What each exit status says of the system that runs in the end (docs/recovery.md).
OLD, NEW = {1, 2}, {0, 4}


@dataclass
class Yard:
    """The server of STORY, and what there was before the next fault."""

    story: Story
    words: tuple[str, ...]
    chance: Random
    qemu: list[str] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[str]:
        project = self.story.project
        return subprocess.Popen(
            [sys.executable, "-m", "anemos.workstation.cli.program", *words, "--host=demo"],
            cwd=project.directory,
            env=environment(project.home) | shared(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.story.directory / "log").open("a"),
            text=True,
            start_new_session=True,
        )

    def inv(self, *words: str) -> tuple[int, dict[str, Any]]:
        with self.start(*words, "--json") as task:
            out, _ = task.communicate(timeout=LIMIT_S)
        return task.returncode, json.loads(out or "{}")

    @property
    def pid(self) -> int:
        return int((self.story.home / "vm/pid").read_text())

    def running(self) -> dict[str, Any]:
        """What `status` says as soon as nothing changes by itself any more."""
        end = time.monotonic() + REST_S
        while True:
            _, seen = self.inv("status")
            trial = any(each["runs"] and each["state"] == "trial" for each in seen["slots"])
            if (seen["state"] in RESTING and not trial) or time.monotonic() > end:
                return seen
            time.sleep(POLL_S)

    def deployment(self) -> str:
        """Of what runs, as the server itself has it."""
        return str(json.loads(self.story.sh(STAMP) or "{}").get("deployment", ""))


RESTING = {status.SYSTEM, status.DEPLOYED, status.HELD, status.FAILED_THERE}
Task = subprocess.Popen[str]
Fault = Callable[[Yard, Task], None]


def workstation_killed(_: Yard, task: Task) -> None:
    os.killpg(task.pid, SIGKILL)


def interrupted(_: Yard, task: Task) -> None:
    os.killpg(task.pid, SIGINT)


def workstation_stopped(yard: Yard, task: Task) -> None:
    os.killpg(task.pid, SIGSTOP)
    time.sleep(yard.chance.uniform(5, 180))
    os.killpg(task.pid, SIGCONT)


def cable_cut(yard: Yard, _: Task) -> None:
    run(["ip", "link", "set", "lo", "down"])
    time.sleep(yard.chance.uniform(2, 120))
    run(["ip", "link", "set", "lo", "up"])


def machine_hangs(yard: Yard, _: Task) -> None:
    os.kill(yard.pid, SIGSTOP)
    time.sleep(yard.chance.uniform(2, 60))
    os.kill(yard.pid, SIGCONT)


def power_cut(yard: Yard, _: Task) -> None:
    os.kill(yard.pid, SIGKILL)
    time.sleep(yard.chance.uniform(1, 20))
    run(yard.qemu)


def disk_full(yard: Yard, _: Task) -> None:
    with suppress(Failure):  # nobody answers now
        yard.story.sh(FULL)


def second_run(yard: Yard, task: Task) -> None:
    code, _ = yard.inv("deploy", *yard.words)
    if task.poll() is None and code != 2:
        raise Broken(f"a second run ends with {code}")


FAULTS: list[Fault] = [workstation_killed, interrupted, workstation_stopped, cable_cut]
FAULTS += [machine_hangs, disk_full, second_run]
# Past the point of no return nothing is there that a firmware could start.
WITH_SLOTS: list[Fault] = [*FAULTS, power_cut]


class Broken(Exception):
    """A promise that did not hold."""


def hit(yard: Yard, fault: Fault, moment: float) -> tuple[int, str, str]:
    """The exit status of a deployment with FAULT after MOMENT seconds; what ran before and after.
    Raises Broken."""
    old, kept = yard.deployment(), yard.story.sh(KEPT)
    with yard.start("deploy", *yard.words, "--json") as task:
        with suppress(subprocess.TimeoutExpired):
            task.wait(moment)
        if task.poll() is None:
            fault(yard, task)
        task.communicate(timeout=LIMIT_S)
    seen = yard.running()
    new = check(yard, seen, task.returncode, old)
    recover(yard, seen)
    if yard.story.sh(KEPT) != kept:
        raise Broken("kept files have changed")
    return task.returncode, old, new


def check(yard: Yard, seen: dict[str, Any], code: int, old: str) -> str:
    new = yard.deployment()
    if seen["state"] not in RESTING:
        raise Broken(f"it ended with {code}, and the server is {seen['state']}")
    if seen["deployment"] != new:
        raise Broken(f"`status` says {seen['deployment']}, {new} runs")
    if (code in OLD and new != old) or (code in NEW and new == old):
        raise Broken(f"it ended with {code}: {old} ran, {new} runs")
    return new


def recover(yard: Yard, seen: dict[str, Any]) -> None:
    """As an operator does. Raises Broken unless a plain deployment succeeds."""
    if seen["state"] in (status.HELD, status.FAILED_THERE):
        code, said = yard.inv("resume")
        if code:
            raise Broken(f"`resume` ends with {code}: {said.get('error')}")
    yard.story.sh("rm -f /var/tmp/full")
    code, said = yard.inv("deploy", *yard.words)
    if code:
        raise Broken(f"the next deployment ends with {code}: {said.get('error')}")


def prepared(given: Story, words: tuple[str, ...], chance: Random) -> tuple[Yard, float]:
    """The server in a network of its own, and the seconds of a deployment without a fault."""
    yard = Yard(given, words, chance)
    yard.inv("demo", "--stop")
    namespaces.unshare(namespaces.CLONE_NEWNET)
    run(["ip", "link", "set", "lo", "up"])
    yard.inv("demo", "--start")
    command = Path(f"/proc/{yard.pid}/cmdline").read_bytes().split(b"\0")
    yard.qemu = [os.fsdecode(each) for each in command if each]
    begun = time.monotonic()
    recover(yard, {"state": status.DEPLOYED})
    return yard, time.monotonic() - begun


def torture(yard: Yard, runs: int, faults: list[Fault], whole_s: float) -> int:
    """How many runs broke a promise."""
    broken = 0
    for number in range(1, runs + 1):
        fault, moment = yard.chance.choice(faults), yard.chance.uniform(0, whole_s)
        try:
            code, old, new = hit(yard, fault, moment)
            told = f"status {code}, the {'old' if old == new else 'new'} system: as promised"
        except (Broken, Failure) as failure:
            broken, told = broken + 1, f"BROKEN: {failure}"
            with suppress(Broken):
                recover(yard, yard.running())
        print(f"{number:3} {fault.__name__} after {moment:.0f} s: {told}", flush=True)
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    words = ("--whole",) if given.whole else ()
    signal(SIGINT, default_int_handler)  # in the background it is ignored, by children, too
    with TemporaryDirectory() as name, served(Path(name)) as server:
        server.change("host.toml", "trial = 1800", "trial = 900")
        yard, seconds = prepared(server, words, random.Random(given.seed))  # noqa: S311 (no secret)
        print(f"seed {given.seed}, {seconds:.0f} s without a fault", flush=True)
        broken = torture(yard, given.runs, FAULTS if given.whole else WITH_SLOTS, seconds)
    print(f"{given.runs} runs, {broken} broken promises")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
