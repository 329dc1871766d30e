"""python3 -m anemos.server COMMAND: a JSON array on standard input, one JSON document on standard
output. Arguments can be seen by every user of this machine."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from anemos import log
from anemos.log import Failure
from anemos.run import no_core_dumps
from anemos.server import kexec, layer, once, staging


def came_in_by() -> tuple[str, int, str]:
    """This machine's address and port that the operator came in by, and where he came from (ssh(1),
    SSH_CONNECTION)."""
    client, _, address, port = os.environ["SSH_CONNECTION"].split()
    return address, int(port), client


def old(path: str) -> Path:
    """PATH of the old system, from here."""
    return staging.HOST / path.lstrip("/")


def main(command: str, given: list[Any]) -> None:
    no_core_dumps()
    match command, given:
        case "fingerprint", [keep]:
            print(json.dumps(staging.fingerprints(keep)))
        case "bootstrap", [payload]:
            print(json.dumps(layer.make(payload)))
        case "build-initramfs", [base, payload, digest, now]:
            print(json.dumps(staging.build(old(base), payload, digest, now, *came_in_by())))
        case "build-once", [base, directory, manifest, payload, digest, now]:
            words = (old(base), manifest, payload, digest, now)
            described = staging.describe(*words, *came_in_by())
            print(json.dumps(once.build(old(base), described, old(directory))))
        case "arm", [loader, directory, device, hold]:
            line = Path("/proc/cmdline").read_text()
            print(json.dumps(once.arm(loader, old(directory), device, line, hold)))
        case "load", [hold]:
            kexec.load(hold)
        case _:
            raise AssertionError(f"{command}: {len(given)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1], json.load(sys.stdin))
    except Failure as failure:
        log.to_stderr(f"error: {failure}")
        raise
