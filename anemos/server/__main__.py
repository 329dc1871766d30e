"""python3 -m anemos.server COMMAND ...: one JSON document on standard output."""

import json
import os
import sys

from anemos import log
from anemos.log import Failure
from anemos.run import no_core_dumps
from anemos.server import kexec, layer, staging


def came_in_by() -> tuple[str, int]:
    """This machine's address and port that the operator came in by (ssh(1), SSH_CONNECTION)."""
    _, _, address, port = os.environ["SSH_CONNECTION"].split()
    return address, int(port)


def main(command: str, *words: str) -> None:
    no_core_dumps()
    match command, words:
        case "fingerprint", [keep]:
            print(json.dumps(staging.fingerprints(json.loads(keep))))
        case "bootstrap", [payload]:
            print(json.dumps(layer.make(payload)))
        case "build-initramfs", [base, payload, digest]:
            image = staging.HOST / base.lstrip("/")
            print(json.dumps(staging.build(image, payload, digest, *came_in_by())))
        case "load", []:
            kexec.load()
        case _:
            raise AssertionError(f"{command} {words}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Failure as failure:
        log.to_stderr(f"error: {failure}")
        raise
