"""What runs on the operator's machine: hosts, secrets, SSH, the local VM, the phases."""

from typing import Any

Result = dict[str, Any]  # of a task: what `--json` prints
