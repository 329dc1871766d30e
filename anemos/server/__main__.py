"""python3 -m anemos.server: a request is the first line of standard input, its answer the last one
of standard output (border/requests.py)."""

import sys
from pathlib import Path

from anemos import log, volumes
from anemos.border import records, requests
from anemos.log import Failure
from anemos.run import no_core_dumps
from anemos.server import drift, fill, kexec, layer, once, staging, trial


def answer(request: requests.Request) -> object:
    said: object
    match request:
        case requests.Fingerprints():
            said = volumes.fingerprints(request.keep)
        case requests.Drift():
            said = drift.find(request.volatile)
        case requests.Bootstrap():
            said = layer.make(request.payload)
        case requests.BuildEntry():
            said = once.build(request)
        case requests.Build():
            said = staging.build(request)
        case requests.Arm():
            said = once.arm(request, Path("/proc/cmdline").read_text())
        case requests.Load():
            said = kexec.load(request)
        case requests.Fill():
            said = fill.answer(request)
        case requests.Try():
            said = trial.start(request)
        case requests.Withdraw():
            said = trial.withdraw(request)
        case requests.Commit():
            said = trial.commit(request)
        case requests.Return():
            said = trial.go_back(request)
    return said


def main(text: str) -> None:
    no_core_dumps()
    try:
        print(records.text(answer(requests.read(text))))
    except Failure as failure:
        log.to_stderr(f"error: {failure}")
        raise


if __name__ == "__main__":
    main(sys.stdin.buffer.readline().decode())  # `fill` reads the rest
