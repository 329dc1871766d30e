"""python3 -m anemos.server COMMAND ...: one JSON document on standard output."""

import json
import os
import sys

from anemos import log
from anemos.log import Failure
from anemos.server import kexec, staging


def ssh_port() -> int:
    """The port that the operator came in by (sshd(8), SSH_CONNECTION)."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return int(words[3]) if len(words) == 4 else 22


def main(command: str, *words: str) -> None:
    match command, words:
        case "fingerprint", [keep]:
            print(json.dumps(staging.fingerprints(json.loads(keep))))
        case "build-initramfs", [base, payload, layer]:
            image = staging.HOST / base.lstrip("/")
            print(json.dumps(staging.build(image, payload, layer, ssh_port())))
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
