"""How long a deployment takes: .venv/bin/python bench/deploy.py [RUNS]

Deploys hosts/demo RUNS times (2) to its local VM and prints a line for each run: seconds by phase,
downtime in seconds, MiB sent. The first run also makes what the cache lacks.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MIB = 2**20


def deploy() -> dict[str, Any]:
    argv = [ROOT / "inv", "demo", "--json"]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return dict(json.loads(done.stdout))


def line(report: dict[str, Any]) -> str:
    phases = ", ".join(f"{each['name']} {each['seconds']:.0f}" for each in report["phases"])
    total = sum(each["seconds"] for each in report["phases"])
    sent = sum(report["bytes_sent"].values()) / MIB
    return f"{total:.0f} s ({phases}), downtime {report['downtime_s']:.0f} s, {sent:.0f} MiB sent"


if __name__ == "__main__":
    for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 2):
        print(f"run {number + 1}: {line(deploy())}", flush=True)
