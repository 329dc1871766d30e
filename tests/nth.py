"""Breaks the n-th external command of whatever runs, as SQLite's tests break the n-th allocation.

    commands = nth.Commands(directory)      # programs of this machine, all behind a wrapper
    commands.arm()                          # count only: commands.calls()
    commands.arm(7, "kill")                 # the seventh
    run([...], env={"PATH": commands.path})

Nothing in the product knows of it: the wrappers come first in PATH. They count what shell scripts
and programs start, too. In a pipeline, which of two is the n-th may change from run to run.
"""

import math
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, main_thread
from typing import NoReturn

from anemos import run
from anemos.run import SYSTEM_PATH

# fail: it does nothing, and says so. hang: it does nothing, and does not end. kill: it does its
# work, and is killed before it can say so.
WAYS = ("fail", "hang", "kill")
SEED = 20261129
BROKEN = 77  # exit status: nobody's own

# Without any other command. The redirection with `set -C` is open(2) with O_EXCL.
WRAPPER = """#!/bin/sh
here=${{0%/*}}/../nth n=1
set -C
until echo "{name} $*" 2>/dev/null >"$here/calls/$n"; do n=$((n + 1)); done
set +C
[ ! -e "$here/fault" ] || {{ call="{name} $*"; . "$here/fault"; }}
read -r which way <"$here/broken"
[ "$n" = "$which" ] || exec {program} "$@"
case $way in
fail) echo "{name}: broken on purpose" >&2; exit {status} ;;
hang) echo $$ >"$here/hangs"; exec /bin/sleep 1000 ;;
kill) {program} "$@"; kill -KILL $$ ;;
esac
"""

FAULT = """\
usual=$PATH PATH=/usr/sbin:/usr/bin:/sbin:/bin
reached() {{ : >"$here/reached"; }}
first() {{ mkdir "$here/first" 2>/dev/null; }}
case $call in {}) {} ;; esac
PATH=$usual
"""


@dataclass(frozen=True)
class Commands:
    """DIRECTORY/bin: the wrappers; DIRECTORY/nth: what they have counted."""

    directory: Path

    def install(self, without: Sequence[str] = ()) -> None:
        """Wrap every program; those WITHOUT are called as they are."""
        (self.directory / "bin").mkdir()
        places = [Path(each) for each in os.environ["PATH"].split(":") + SYSTEM_PATH.split(":")]
        for name in {file.name for place in places if place.is_dir() for file in place.iterdir()}:
            program = shutil.which(name)
            if program and name not in without and re.fullmatch(r"[\w.-]+", name):
                self.stand_in(name, program)

    def stand_in(self, name: str, program: str) -> None:
        """Wrap PROGRAM as NAME."""
        file = self.directory / "bin" / name
        file.write_text(WRAPPER.format(name=name, program=program, status=BROKEN))
        file.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.directory}/bin"

    def arm(self, which: int = 0, way: str = "none", fault: tuple[str, str] = ("", "")) -> None:
        """FAULT: a pattern of sh(1) and what a command that fits, `NAME ARGUMENTS`, does first."""
        state = self.directory / "nth"
        shutil.rmtree(state, ignore_errors=True)
        (state / "calls").mkdir(parents=True)
        (state / "calls").chmod(0o777)  # an ordinary user's count, too
        (state / "broken").write_text(f"{which} {way}\n")
        if fault[0]:
            (state / "fault").write_text(FAULT.format(*fault))

    def calls(self) -> list[str]:
        """What was called, in its order."""
        files = sorted((self.directory / "nth/calls").iterdir(), key=lambda file: int(file.name))
        return [file.read_text(errors="replace").strip() for file in files]

    @property
    def reached(self) -> bool:
        """Whether the fault was met: it has to say so, by `reached`."""
        return (self.directory / "nth/reached").exists()

    @property
    def hangs(self) -> int:
        """The process that hangs; 0: none."""
        file = self.directory / "nth/hangs"
        return int(file.read_text() or 0) if file.exists() else 0

    @property
    def by_hand(self) -> bool:
        """Whether what hung had no limit."""
        return (self.directory / "nth/by-hand").exists()


def breaks(count: int, sample: int = 0) -> list[tuple[int, str]]:
    """Which of COUNT commands to break, and how: all, or a SAMPLE of that, by SEED."""
    every = [(n, way) for n in range(1, count + 1) for way in WAYS]
    return random.Random(SEED).sample(every, sample) if sample else every  # noqa: S311


def impatient(commands: Commands) -> Callable[[int, Mapping[int, run.Output], float], None]:
    """In place of run's wait: a command that hangs has used up its time at once, however slow all
    is. One without a limit is ended by hand, by the operator."""
    wait = run._follow

    def over(_number: int, _frame: object) -> NoReturn:
        raise TimeoutError

    def watch(done: Event, limit: float) -> None:
        while not (hanging := commands.hangs) and not done.wait(0.05):
            pass
        if not hanging:
            return
        (commands.directory / "nth/hangs").unlink()
        if limit < math.inf:
            signal.pthread_kill(main_thread().ident or 0, signal.SIGUSR1)
        else:
            (commands.directory / "nth/by-hand").touch()
            os.kill(hanging, signal.SIGKILL)

    def follow(ended: int, streams: Mapping[int, run.Output], limit: float) -> None:
        done = Event()
        Thread(target=watch, args=(done, limit), daemon=True).start()
        try:
            wait(ended, streams, limit)
        finally:
            done.set()

    signal.signal(signal.SIGUSR1, over)
    return follow
