"""The guard of a slot on trial, as PID 1 of a namespace. Its /proc and /dev are plain files."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from anemos.system.installation import TRIAL
from tests import tiny
from tests.tree import ROOT
from tests.waiting import LIMIT_S, until

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

SCRIPT = ROOT / "anemos/system/trial.sh"
INIT = """#!/bin/sh
echo "PID $$: $0 $*" >/run/init
exec sleep 1000
"""
RESET = "s\nb\n"


@dataclass
class Machine:
    root: Path
    words: str = "ro init=/{} anemos.trial=600 anemos.deployment=d-1"
    process: subprocess.Popen[bytes] | None = None

    def start(self, **words: str) -> None:
        line = self.words.format(TRIAL)
        for old, new in words.items():
            line = line.replace(old, new)
        (self.root / "proc/cmdline").write_text(f"{line}\n")
        argv = ["unshare", "--pid", "--fork", "--kill-child", "chroot", os.fspath(self.root)]
        self.process = subprocess.Popen([*argv, f"/{TRIAL}", "--given", "words"])

    def said(self, name: str) -> str:
        file = self.root / name
        return file.read_text() if file.exists() else ""

    def await_(self, done: Callable[[], bool]) -> None:
        until(done, lambda: self.said("dev/kmsg"))

    def await_reset(self) -> str:
        """Why: the first line of the kernel's log. (This machine goes on all the same.)"""
        self.await_(lambda: "b" in self.said("proc/sysrq-trigger"))
        return self.said("dev/kmsg").splitlines()[0]

    def await_guard(self) -> list[int]:
        """Its two processes, when both are there: the watch, which is the timer's parent."""
        self.await_(lambda: len(self.processes(TRIAL)) == 2 and len(self.processes("sleep")) >= 3)
        return sorted(self.processes(TRIAL))

    def processes(self, name: str) -> list[int]:
        """Those in the root whose first or second word ends so, but for PID 1."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (each / "cmdline").read_text().split("\0")[:2]
                inside = (each / "root").samefile(self.root)
                if inside and any(word.endswith(name) for word in words) and not first(each):
                    found.append(int(each.name))
        return found

    def give(self, word: str) -> None:
        (self.root / "run/new").write_text(f"{word}\n")
        (self.root / "run/new").rename(self.root / "run/anemos.word")


def first(process: Path) -> bool:
    """Whether PROCESS is PID 1 of its namespace (proc_pid_status(5), NSpid)."""
    lines = (process / "status").read_text().splitlines()
    (numbers,) = [line.split() for line in lines if line.startswith("NSpid:")]
    return numbers[-1] == "1"


@pytest.fixture(params=["dash", "bash"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    root = tiny.make(tmp_path / "root", request.param)
    shutil.copy2(root / "usr/bin" / request.param, root / "usr/bin/sh")
    files = {
        "sbin/init": INIT,
        TRIAL: SCRIPT.read_text(),
        "proc/cmdline": "",
        "proc/sysrq-trigger": "",
        "proc/sys/kernel/panic": "0\n",
        "dev/kmsg": "",
        "dev/null": "",
        "dev/watchdog0": "",
        "sys/class/watchdog/watchdog0/nowayout": "0\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("sbin/init", TRIAL):
        (root / name).chmod(0o755)
    made = Machine(root)
    yield made
    if made.process:
        made.process.kill()
        made.process.wait()


def test_word(machine: Machine) -> None:
    """The real init gets what the initramfs has given, and nothing is left of the guard."""
    machine.start()
    machine.await_guard()
    assert machine.said("run/init") == "PID 1: /sbin/init --given words\n"
    machine.await_(lambda: machine.said("dev/watchdog0") == "\n\n")

    machine.give("d-0")
    machine.await_(lambda: machine.said("dev/watchdog0") == "\n\n\n")  # it goes on
    machine.give("d-1")

    machine.await_(lambda: not machine.processes(TRIAL))
    machine.await_(lambda: not machine.processes("sleep"))
    assert machine.said("dev/watchdog0").lstrip("\n") == "V"
    assert machine.said("dev/kmsg") == "anemos: the word was given: deployment d-1 stays\n"
    assert machine.said("proc/sysrq-trigger") == ""
    assert machine.said("proc/sys/kernel/panic") == "10\n"


def test_system_that_gives_itself_the_word(machine: Machine) -> None:
    """It is asked only where the command line says so."""
    file = (machine.root / TRIAL).with_name("confirm")
    file.write_text("#!/bin/sh\necho d-1 >/run/anemos.word\n")
    file.chmod(0o700)
    machine.start(ro="ro anemos.confirm")

    machine.await_(lambda: "the word was given" in machine.said("dev/kmsg"))
    machine.await_(lambda: not machine.processes(TRIAL))
    assert machine.said("proc/sysrq-trigger") == ""


def test_deadline(machine: Machine) -> None:
    """A watchdog that nothing could stop later is not started."""
    (machine.root / "sys/class/watchdog/watchdog0/nowayout").write_text("1\n")
    (machine.root / "proc/sys/kernel/panic").write_text("-1\n")
    machine.start(**{"=600": "=3"})

    assert machine.await_reset() == "anemos: no word within 3 s: back to the old system"
    assert machine.said("proc/sysrq-trigger").startswith(RESET)
    assert machine.said("dev/watchdog0") == ""
    assert machine.said("proc/sys/kernel/panic") == "-1\n"  # sysctl.d's own


def test_watch_is_killed(machine: Machine) -> None:
    machine.start(**{"=600": "=5"})
    watch, _ = machine.await_guard()
    os.kill(watch, signal.SIGKILL)

    assert machine.await_reset() == "anemos: no word within 5 s: back to the old system"
    assert "V" not in machine.said("dev/watchdog0")  # the hardware resets, too


def test_timer_is_killed(machine: Machine) -> None:
    machine.start()
    _, timer = machine.await_guard()
    os.kill(timer, signal.SIGKILL)

    assert machine.await_reset() == "anemos: the timer was ended: back to the old system"


def test_programs_of_the_timer_are_killed(machine: Machine) -> None:
    machine.start()
    machine.await_guard()
    for process in machine.processes("sleep"):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    machine.await_reset()
    assert machine.said("proc/sysrq-trigger").startswith(RESET)


def test_real_init(machine: Machine) -> None:
    """That of the definition's own command line."""
    (machine.root / "sbin/init").rename(machine.root / "sbin/other")
    machine.start(**{"ro ": "ro init=/sbin/other "})

    machine.await_guard()
    assert machine.said("run/init") == "PID 1: /sbin/other --given words\n"


def test_ports_that_nobody_can_hold(machine: Machine) -> None:
    """nft is missing, or ends."""
    machine.start(ro="anemos.ports=22")

    why = "anemos: nobody keeps clients out: back to the old system"
    assert machine.await_reset() == why
    assert machine.said("run/init") == ""


def test_ports_that_the_kernel_cannot_hold(machine: Machine) -> None:
    """It has no table. PID 1 ends, as without a guard."""
    (machine.root / "usr/bin/nft").write_text('#!/bin/sh\n[ "$1" != list ] && cat >/asked\n')
    (machine.root / "usr/bin/nft").chmod(0o755)
    (machine.root / TRIAL).write_text(SCRIPT.read_text().replace("-lt 300", "-lt 3"))
    machine.start(ro="anemos.ports=22,2222")

    assert machine.process
    assert machine.process.wait(LIMIT_S) == 1
    assert machine.said("run/init") == ""
    assert "tcp dport { 22,2222 } accept" in machine.said("asked")


@pytest.mark.parametrize("lost", ["anemos.trial=600", "anemos.deployment=d-1"])
def test_no_trial_without_a_guard(machine: Machine, lost: str) -> None:
    """PID 1 ends: the kernel panics then, and starts the old system."""
    machine.start(**{lost: ""})
    assert machine.process
    assert machine.process.wait(LIMIT_S) != 0
    assert machine.said("run/init") == ""
