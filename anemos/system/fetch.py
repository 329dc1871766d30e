"""Secrets that the server fetches itself, from wherever the IMGBUILD's fetch_secrets() says."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.log import FAILED, die
from anemos.run import read
from anemos.system.imgbuild import Imgbuild

DEADLINE_S = 120.0
# Called with the revealed secrets around it; nobody else may read what it writes.
CALL = 'set -e; umask 077; . "$0"; fetch_secrets'


def fetch(spec: Imgbuild, secrets: Path) -> None:
    """Have fetch_secrets() write what `server_secrets` lists and the tree SECRETS lacks.

    Throw-away secrets of a VM may hold all of it: then nothing is asked for. Its standard output
    goes nowhere, its standard error is shown when it fails. It works on a copy of SECRETS, into
    which only what is complete comes. Raises Failure (status 1), also when it writes something
    else, or less.
    """
    before = files(secrets)
    missing = set(spec.server_secrets) - before
    if not missing:
        return
    secrets.mkdir(mode=0o700, exist_ok=True)
    with (
        log.step("Running fetch_secrets()"),
        TemporaryDirectory(prefix="anemos-", dir=secrets.parent) as scratch,
    ):
        room = Path(scratch) / "secrets"
        shutil.copytree(secrets, room, symlinks=True)
        argv = ["sh", "-c", CALL, os.fspath(spec.file.resolve())]
        read(argv, "fetch_secrets()", cwd=room, timeout=DEADLINE_S)
        take(room, secrets, files(room) - before, missing)
    log.info(f"Fetched {len(missing)} secrets")


def take(room: Path, secrets: Path, came: set[str], missing: set[str]) -> None:
    """Move what CAME in ROOM to SECRETS, if it is what was MISSING."""
    for name in sorted(came ^ missing):
        why = "wrote no" if name in missing else "wrote a file that server_secrets does not list:"
        die(f"fetch_secrets() {why} {name}", status=FAILED)
    for name in sorted(came):
        file = room / name
        if file.is_symlink() or not file.is_file() or not file.stat().st_size:
            die(f"fetch_secrets() wrote {name}, which is empty or no regular file", status=FAILED)
    for name in came:
        (secrets / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (room / name).rename(secrets / name)


def files(top: Path) -> set[str]:
    return {path.relative_to(top).as_posix() for path in top.rglob("*") if not path.is_dir()}
