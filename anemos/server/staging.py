"""Puts the initramfs of a deployment together on the old system.

Everything stays in memory (/run/anemos is a ramfs). Paths of requests are the old system's.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from anemos import files, volumes
from anemos.border import archive, stage
from anemos.border.boot import Boot, base_hash
from anemos.border.deployment import Deployment
from anemos.border.payload import manifest
from anemos.border.requests import Build, Built
from anemos.files import sha256
from anemos.log import FAILED, die
from anemos.server import drivers, logins, network

HOST = Path("/host")  # the old system's root, see enter.sh
BASE_INITRD = Path("/boot/initrd")
NO_DNS = 'host.toml: build_on = "workstation"'


class Came(NamedTuple):
    """How the operator came in: this machine's address and port, and where he came from."""

    address: str
    port: int
    client: str


def came_in_by() -> Came:
    """By ssh(1), SSH_CONNECTION."""
    client, _, address, port = os.environ["SSH_CONNECTION"].split()
    return Came(address, int(port), client)


def old(path: str) -> Path:
    """PATH of the old system, from here."""
    return HOST / path.lstrip("/")


def build(asked: Build) -> Built:
    """Write the initramfs. Raises Failure."""
    check(stage.PAYLOAD, asked.payload)
    boot = describe(asked, manifest(stage.PAYLOAD))
    keys = logins.ssh_keys(HOST)
    assemble(boot, old(asked.base), keys)
    return Built(boot, logins.public(keys))


def describe(asked: Build, given: Deployment) -> Boot:
    """The deployment GIVEN, and this system as it is now."""
    came = came_in_by()
    drivers.check_disks(given)
    drivers.check_watchdogs()
    captured = network.capture(HOST, came.address, came.client)
    drivers.check_network(captured)
    if not asked.layer and not captured["dns"]:
        die("no name server that the initramfs could ask for packages", hint=NO_DNS)
    return Boot(
        given.deployment,
        given.host,
        base_hash(asked.base),
        asked.payload,
        asked.layer,
        came.port,
        captured,
        volumes.fingerprints(given.keep),
        asked.now,
        asked.late,
        given.agreed,
    )


def check(file: Path, digest: str) -> None:
    if not file.is_file() or sha256(file) != digest:
        die(f"{file.name}: not there as it was sent", hint="./inv upload again", status=FAILED)


def assemble(boot: Boot, base: Path, keys: Mapping[str, bytes]) -> None:
    """Base and layer are put in once, as memory is dear; the small rest anew every time."""
    length = foundation(base, "" if boot.late else boot.layer)
    with stage.INITRAMFS.open("r+b") as file:
        file.seek(length)
        file.truncate()
        archive.finish(file, boot, stage.PAYLOAD, keys, stay=False)


def foundation(base: Path, layer: str) -> int:
    """Begin the initramfs with first initrd, base image and layer, in whose place it takes memory.

    Returns its length in bytes.
    """
    wanted = f"{base.name} {layer}"
    if stage.FOUNDATION.exists() and stage.FOUNDATION.read_text().startswith(f"{wanted} "):
        return int(stage.FOUNDATION.read_text().split()[-1])
    if layer:
        check(stage.LAYER, layer)
    with files.private(stage.INITRAMFS) as file:
        archive.found(file, BASE_INITRD, base, stage.LAYER if layer else None)
        length = file.tell()
    stage.LAYER.unlink(missing_ok=True)
    stage.FOUNDATION.write_text(f"{wanted} {length}")
    return length
