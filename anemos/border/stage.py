"""What lies in /run/anemos: on the old system, and then in the initramfs, which has it from there.

Scripts of the shell spell these names, too.
"""

from pathlib import Path

HERE = Path("/run/anemos")
PAYLOAD = HERE / "payload"  # from the workstation
LAYER = HERE / "layer"  # from the workstation, or made on the old system

# On the old system:
INITRAMFS = HERE / "initramfs"
FOUNDATION = HERE / "foundation"  # which base image and layer it begins with

# In the initramfs, from the old system (archive.py):
BASE = HERE / "base.squashfs"
BOOT = HERE / "boot.json"
SSH = HERE / "ssh"
STAY = HERE / "stay"  # empty; only where no old system waits

# In the initramfs, from the workstation:
COMING = HERE / "coming"  # it begins to send what a one-shot boot could not take along
DELIVERED = HERE / "delivered"  # all of that is there
GO = HERE / "go"  # the operator's word, once the workstation has seen who answers here
ABORT = HERE / "abort"  # why not to pass the point of no return; init writes it, too
RESUME = HERE / "resume"  # see resuming.py

# In both, from themselves:
UNPACKED = HERE / "unpacked"  # the payload

# In the initramfs, from itself:
DEADLINE = HERE / "deadline"  # seconds of /proc/uptime
RESUMING = HERE / "resuming"  # RESUME, when init has seen it
RESTARTING = HERE / "restarting"
LEAVING = HERE / "leaving"
PASSED = HERE / "point-of-no-return"
PROGRESS = HERE / "progress.json"
EVENTS = HERE / "events"  # see events.py
LOG = HERE / "log"
