"""How a task ends: whatever was raised, as one message with an exit status (log.py)."""

import traceback

from anemos import log
from anemos.log import FAILED, Failure


def explained(end: BaseException) -> Failure:
    """END in our words. Only a fault of Anemos shows where it comes from."""
    if isinstance(end, Failure):
        return end
    if isinstance(end, KeyboardInterrupt):
        # As a shell tells it, and as scratch.end does of other signals. invoke would end with 1.
        return Failure("interrupted", hint="./inv status tells what runs there", status=130)
    if isinstance(end, OSError):
        where = "" if end.filename is None else f"{end.filename}: "
        return Failure(f"{where}{end.strerror or end}", status=FAILED)
    for line in traceback.format_exception(end):
        log.to_stderr(line.rstrip())
    what = "".join(traceback.format_exception_only(end)).strip()
    return Failure(what, hint="this is a fault of Anemos; the lines above show it", status=FAILED)
