"""How much memory there is."""

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Bytes of memory that can be had without swapping (proc_meminfo(5), MemAvailable)."""
    found = re.search(r"(?m)^MemAvailable: *(\d+) kB$", MEMINFO.read_text())
    return int(found[1]) * 1024 if found else 0
