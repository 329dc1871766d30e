"""What a machine's journal says of a failure."""

from contextlib import suppress

from anemos.log import Failure, Sink
from anemos.workstation.ssh import Remote

# The last lines of each unit that failed, and the last warnings of all.
TELL = """
for unit in $(systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1); do
    journalctl --boot --no-pager --quiet --lines=20 --unit="$unit"
done
journalctl --boot --no-pager --quiet --lines=40 --priority=warning
"""


def tell(remote: Remote, log: Sink) -> None:
    """Give it to LOG. Raises nothing: there may be no journal, or nobody who answers."""
    with suppress(Failure):
        for line in remote.sh(["sh", "-c", TELL]).splitlines():
            log(f"journal: {line}")
