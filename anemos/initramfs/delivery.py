"""What could not come along comes from the workstation, over SSH.

After a one-shot boot, that is what must not lie on a disk; on a small machine, the package layer.
"""

from anemos import log
from anemos.border import archive, stage
from anemos.initramfs import events, sshd

COMING_S = 300.0
DELIVERED_S = 1800.0  # server/kexec.py makes init's deadline so much longer


def receive(port: int) -> None:
    """Wait for it; then answer at PORT under the old system's host keys. Raises Failure."""
    log.info("Waiting for the rest of the deployment")
    events.await_word(COMING_S, stage.COMING)
    events.await_word(DELIVERED_S, stage.DELIVERED)
    if (once := sshd.KEYS / archive.ONCE_KEY).exists():
        once.unlink()
        sshd.restart(port)
    stage.DELIVERED.unlink()  # the workstation waits for that
