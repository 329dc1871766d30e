"""How a task ends: all that was raised, as one message with an exit status (log.py).

1 and 2 say something about the server. Once the word to erase may have been given, nobody may read
them because of the place in the code that failed, but only on the evidence of the machine itself.
"""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from anemos import log
from anemos.log import FAILED, IN_INITRAMFS, UNVERIFIED, Failure
from anemos.workstation.deploy.state import LEAST, load_state
from anemos.workstation.hosts import Host

UNKNOWN = {
    IN_INITRAMFS: "the word to erase was given; how far it is: ./inv status --host {0}, "
    "./inv watch --host {0}",
    UNVERIFIED: "{0} was deployed; what runs there is not proven: ./inv verify --host {0}",
}


class Witnessed(Failure):
    """The machine itself has shown what its status says."""


@contextmanager
def following(host: Host) -> Iterator[None]:
    """Failures inside get the status that what is known of HOST's deployment asks for."""
    reached = load_state(host).reached
    try:
        yield
    except (Exception, Failure) as end:
        failure = explained(end)
        with suppress(Failure, OSError):  # what can be read no more
            reached = load_state(host).reached
        least = LEAST.get(reached, 0)
        if isinstance(failure, Witnessed) or failure.status >= least:
            raise failure from None
        hints = [failure.hint, UNKNOWN[least].format(host.name)]
        hint = "; ".join(filter(None, hints))
        raise Failure(failure.message, hint=hint, status=least) from None


def explained(end: BaseException) -> Failure:
    """END in our words. Only a fault of Anemos shows where it comes from."""
    if isinstance(end, Failure):
        return end
    if isinstance(end, KeyboardInterrupt):
        # As a shell tells it, and as scratch.end does of other signals. invoke would end with 1.
        return Failure("interrupted", hint="./inv status tells what runs there", status=130)
    if isinstance(end, OSError):
        where = "" if end.filename is None else f"{end.filename}: "
        full = end.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "df -h tells which file system is full" if full else ""
        return Failure(f"{where}{end.strerror or end}", hint=hint, status=FAILED)
    for line in traceback.format_exception(end):
        log.info(line.rstrip())
    what = "".join(traceback.format_exception_only(end)).strip()
    return Failure(what, hint="this is a fault of Anemos; the lines above show it", status=FAILED)
