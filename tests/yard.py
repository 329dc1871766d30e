"""A workstation, and the old system that it works on, in namespaces.

    python -m tests.yard TOP USER

The real phases run the real scripts over a real sshd; oldside.py is Anemos in the base image. What
comes of it is in TOP/end, as JSON. test_nth.py has made TOP, which is /run/yard, too.
"""

import json
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread, main_thread
from types import SimpleNamespace
from typing import Any, NoReturn

from anemos import log
from anemos.files import sha256
from anemos.log import FAILED, Failure, die
from anemos.workstation import places, scratch, sudo
from anemos.workstation.deploy import clean, consent, facts, phases, reach, staged
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.sizes import Sizes
from anemos.workstation.deploy.state import State, payload_file
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import TimedOut
from tests import sshd, sudoer
from tests.lab import DEPLOYMENT
from tests.nth import Commands
from tests.oldside import LOADED

JUMPED = Path("/run/jumped")
PORT = 2222
FACTS = SimpleNamespace(base="", kexec=True, lockdown="", memory_available=2**40)


def arrive(*_: object) -> Identity:
    if not JUMPED.exists():
        die("rebooted into the old system", status=FAILED)
    return Identity("2", in_initramfs=True, deployment=DEPLOYMENT, answered=0)


def stand_in(top: Path) -> None:
    """What depends on this machine is not asked; a command that hangs has used up its time."""
    for module, name, value in (
        (places, "SHARED_MEMORY", top / "memory"),
        (reach, "SERVER", top / "scripts"),
        (reach, "give_word", lambda *_: None),
        (staged, "PAUSE_S", 0),
        (facts, "gather", lambda *_: FACTS),
        (phases, "measure", lambda *_: Sizes(0, 0, 0, base_is_there=False)),
        (phases, "require", lambda *_: None),
        (phases, "arrive", arrive),
        (consent, "check", lambda *_: None),
        (consent, "check_disks", lambda *_: None),
        (sudo, "asked", lambda _: sudoer.PASSWORD),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
    signal.signal(signal.SIGUSR1, over)
    Thread(target=watch, args=(Commands(top),), daemon=True).start()


def over(_number: int, _frame: object) -> NoReturn:
    raise TimedOut("no end after 60 s", status=FAILED)


def watch(commands: Commands) -> None:
    while not commands.hangs:
        time.sleep(0.05)
    signal.pthread_kill(main_thread().ident or 0, signal.SIGUSR1)


def deploy(host: Host) -> dict[str, Any]:
    """From the upload to the jump; after a failure also `clean`. How it ended, what is left."""
    told: list[str] = []
    log.sink = told.append
    end: dict[str, Any] = {"status": 0, "message": ""}
    try:
        with scratch.ending():
            phases.upload(host)
            phases.build_initramfs(host)
            phases.kexec(host)
    except Failure as failure:
        end = {"status": failure.status, "message": failure.message, "left": left()}
        end["told"] = any("./inv clean" in line for line in told)
        end["said"] = "\n".join([*told, str(failure), getattr(failure, "output", "")])
        with suppress(Failure):  # it tells what stays; so do we
            clean.there(host, "")
    return end | {"jumped": JUMPED.exists(), "stays": left()}


def left() -> list[str]:
    """What of a deployment is on this system: files, mounts, a loaded kernel."""
    files = [path.name for path in Path("/run/anemos").glob("*")]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    ours = [point for point in mounts if point in ("/run/anemos", "/run/initramfs")]
    return [*files, *ours, *(["a loaded kernel"] if LOADED.read_text() != "0\n" else [])]


def main(top: Path, user: str) -> None:
    stand_in(top)
    key, identity = (top / "host_key.pub").read_text().strip(), str(top / "identity")
    host = Host("mx", top / "mx", "127.0.0.1", key, PORT, user=user, identity=identity)
    shutil.copy(top / "payload", payload_file(host))
    (base,) = top.glob("base-*.squashfs")
    State("mx", DEPLOYMENT, sha256(top / "payload"), str(base)).save()
    with sshd.serving(sshd.Server(top, reach.endpoint(host))):
        (top / "end").write_text(json.dumps(deploy(host)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
