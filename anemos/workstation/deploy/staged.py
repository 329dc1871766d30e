"""What a deployment has put onto a running system, and how it goes away again in every case."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from anemos import log
from anemos.log import FAILED, Failure
from anemos.workstation import places
from anemos.workstation.deploy import reach
from anemos.workstation.deploy.state import load_state
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import LoginRefused, NotRun, Remote, WrongHostKey, connect

PATIENCE_S = 60.0  # an sshd that starts again, a moment without memory
PAUSE_S = 2.0
END_S = 180.0  # the kernel may be reading an initramfs of hundreds of MiB
HOPELESS = (WrongHostKey, LoginRefused, NotRun)
INITRAMFS = "initramfs"  # unstage.sh says so


@contextmanager
def undone(host: Host) -> Iterator[None]:
    """If the work inside ends before its time, nothing of it is left on the server."""
    try:
        yield
    except BaseException:
        leave_nothing(host)
        raise


def leave_nothing(host: Host) -> None:
    """Never raises, as another failure is being told, perhaps to a terminal that is gone."""
    try:
        if not remove(host, places.who()):
            tell(f"What was staged on {host.name} is removed")
        state = load_state(host)
        state.remote_base = ""  # `upload` has to come first again
        state.save()
    except (Failure, Exception) as error:
        tell(f"It may still be there, secrets included: {error}")
        tell(f"As soon as it answers: ./inv clean --host {host.name}")


def tell(line: str) -> None:
    with suppress(Exception):
        log.info(line)


def remove(host: Host, who: str) -> str:
    """Have HOST as it was before WHO ("": whoever) staged anything; tried again for a minute.

    Returns "", or what is there and is not WHO's, as server/unstage.sh tells it. Raises Failure
    (status 1) when something may be left.
    """
    end, told = monotonic() + PATIENCE_S, False
    while True:
        try:
            with connect(reach.endpoint(host), status=FAILED) as remote:
                return unstage(remote, who)
        except HOPELESS:
            raise
        except Failure as failure:
            if monotonic() > end:
                raise
            if not told:
                tell(f"{host.name}: not yet removed what was staged: {failure.message}")
            told = True
        sleep(PAUSE_S)


def unstage(remote: Remote, who: str, base: str = "") -> str:
    """The same, once. BASE: name of a base image that may stay."""
    if other := reach.script(remote, "unstage.sh", who, base, timeout=END_S).strip():
        return other
    reach.script(remote, "disarm.sh")
    return ""
