"""python3 -m anemos.server: a request on standard input, its answer on standard output (border/
requests.py)."""

import sys
from pathlib import Path

from anemos import disks, log
from anemos.border import records, requests
from anemos.log import Failure
from anemos.run import no_core_dumps
from anemos.server import kexec, layer, once, staging


def answer(request: requests.Request) -> object:
    match request:
        case requests.Fingerprints():
            return disks.fingerprints(request.keep)
        case requests.Bootstrap():
            return layer.make(request.payload)
        case requests.BuildEntry():
            return once.build(request)
        case requests.Build():
            return staging.build(request)
        case requests.Arm():
            return once.arm(request, Path("/proc/cmdline").read_text())
        case requests.Load():
            return kexec.load(request)


def main(text: str) -> None:
    no_core_dumps()
    print(records.text(answer(requests.read(text))))


if __name__ == "__main__":
    try:
        main(sys.stdin.read())
    except Failure as failure:
        log.to_stderr(f"error: {failure}")
        raise
