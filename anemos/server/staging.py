"""Puts the initramfs of a deployment together on the old system.

Everything stays in memory (/run/anemos is a ramfs).
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anemos import archive, disks, files
from anemos.files import sha256
from anemos.log import FAILED, die
from anemos.server import drivers, logins, network
from anemos.system.layout import Kept

HOST = Path("/host")  # the old system's root, see enter.sh
STAGE = Path("/run/anemos")
BASE_INITRD = Path("/boot/initrd")
INITRAMFS = STAGE / "initramfs"
NO_DNS = 'host.toml: build_on = "workstation"'


def build(
    base: Path, payload: str, layer: str, now: float, address: str, port: int, client: str = ""
) -> dict[str, Any]:
    """Write the initramfs; PAYLOAD and LAYER are the SHA-256 that the staged files must have.

    NOW is the workstation's time, in seconds since the epoch. ADDRESS and PORT are where its sshd
    is going to be looked for, from CLIENT. Returns what boot.json says, and "logins", see
    logins.public. Raises Failure.
    """
    check(STAGE / "payload", payload)
    manifest = archive.read_manifest(STAGE / "payload")
    boot = describe(base, manifest, payload, layer, now, address, port, client)
    assemble(boot, base)
    return boot | {"logins": logins.public(HOST)}


def describe(
    base: Path,
    manifest: Mapping[str, Any],
    payload: str,
    layer: str,
    now: float,
    address: str,
    port: int,
    client: str = "",
) -> dict[str, Any]:
    """What boot.json says: the deployment, and this system as it is now. Parameters as of `build`;
    MANIFEST: the payload's."""
    drivers.check_disks(manifest)
    captured = network.capture(HOST, address, client)
    drivers.check_network(captured)
    boot = archive.boot(
        manifest,
        base,
        payload,
        layer,
        ssh_port=port,
        network=captured,
        kept=fingerprints(manifest["keep"]),
        time=now,
    )
    if not layer and not boot["network"]["dns"]:
        die("no name server that the initramfs could ask for packages", hint=NO_DNS)
    return boot


def check(file: Path, digest: str) -> None:
    if not file.is_file() or sha256(file) != digest:
        die(f"{file.name}: not there as it was sent", hint="./inv upload again", status=FAILED)


def fingerprints(keep: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fingerprints of what is kept (KEEP: as layout.Kept), as this kernel reads it."""
    found = disks.devices()
    named = [(Kept(**each), disks.resolve(each["name"], each["match"], found)) for each in keep]
    return [asdict(disks.fingerprint(kept.name, device, kept.only)) for kept, device in named]


def assemble(boot: dict[str, Any], base: Path) -> None:
    """Base and layer are put in once, as memory is dear; the small rest anew every time."""
    keys = logins.ssh_keys(HOST)
    length = foundation(base, boot["layer"])
    with INITRAMFS.open("r+b") as file:
        file.seek(length)
        file.truncate()
        archive.finish(file, boot, STAGE / "payload", keys, stay=False)


def foundation(base: Path, layer: str) -> int:
    """Begin the initramfs with first initrd, base image and layer, in whose place it takes memory.

    Returns its length in bytes.
    """
    mark = STAGE / "foundation"
    wanted = f"{base.name} {layer}"
    if mark.exists() and mark.read_text().startswith(f"{wanted} "):
        return int(mark.read_text().split()[-1])
    if layer:
        check(STAGE / "layer", layer)
    with files.private(INITRAMFS) as file:
        archive.found(file, BASE_INITRD, base, STAGE / "layer" if layer else None)
        length = file.tell()
    (STAGE / "layer").unlink(missing_ok=True)
    mark.write_text(f"{wanted} {length}")
    return length
