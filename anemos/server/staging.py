"""Puts the initramfs of a deployment together on the old system.

The parts are cpio archives, one after the other: the base image's initrd; the base image; what
belongs to the deployment. Everything stays in memory (/run/anemos is a ramfs).
"""

import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anemos import cpio, disks
from anemos.cpio import Entry
from anemos.digest import sha256
from anemos.log import FAILED, die
from anemos.server import network

HOST = Path("/host")  # the old system's root, see enter.sh
STAGE = Path("/run/anemos")
BASE_INITRD = Path("/boot/initrd")
INITRAMFS = STAGE / "initramfs"
NO_DNS = 'host.toml: build_on = "workstation"'


def build(base: Path, payload: str, layer: str, address: str, port: int) -> dict[str, Any]:
    """Write the initramfs; PAYLOAD and LAYER are the SHA-256 that the staged files must have.

    ADDRESS and PORT are where its sshd is going to be looked for. Raises Failure.
    """
    check(STAGE / "payload", payload)
    manifest = read_manifest(STAGE / "payload")
    boot = {
        "deployment": manifest["deployment"],
        "host": manifest["host"],
        "base": base.stem.removeprefix("base-"),
        "payload": payload,
        "layer": layer,
        "ssh_port": port,
        "network": network.capture(HOST, address),
        "kept": fingerprints(manifest["keep"]),
    }
    if not layer and not boot["network"]["dns"]:
        die("no name server that the initramfs could ask for packages", hint=NO_DNS)
    assemble(boot, base)
    return boot


def check(file: Path, digest: str) -> None:
    if not file.is_file() or sha256(file) != digest:
        die(f"{file.name}: not there as it was sent", hint="./inv upload again", status=FAILED)


def read_manifest(payload: Path) -> dict[str, Any]:
    with tarfile.open(payload) as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        return dict(json.load(member))


def fingerprints(keep: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fingerprints of the kept disks, as this kernel reads them."""
    found = disks.devices()
    named = [(each["name"], disks.resolve(each["name"], each["match"], found)) for each in keep]
    return [asdict(disks.fingerprint(name, device)) for name, device in named]


def assemble(boot: dict[str, Any], base: Path) -> None:
    """Base and layer are put in once, as memory is dear; the small rest anew every time."""
    entries = [
        Entry("anemos/boot.json", json.dumps(boot).encode()),
        Entry("anemos/payload", STAGE / "payload"),
        *ssh_entries(HOST),
    ]
    length = foundation(base, boot["layer"])
    with INITRAMFS.open("r+b") as archive:
        archive.seek(length)
        archive.truncate()
        cpio.append(archive, entries)


def foundation(base: Path, layer: str) -> int:
    """Begin the initramfs with first initrd, base image and layer, in whose place it takes memory.

    Returns its length in bytes.
    """
    mark = STAGE / "foundation"
    wanted = f"{base.name} {layer}"
    if mark.exists() and mark.read_text().startswith(f"{wanted} "):
        return int(mark.read_text().split()[-1])
    entries = [Entry("anemos/base.squashfs", base)]
    if layer:
        check(STAGE / "layer", layer)
        entries.append(Entry("anemos/layer", STAGE / "layer"))
    INITRAMFS.unlink(missing_ok=True)
    INITRAMFS.touch(0o600)
    with INITRAMFS.open("wb") as archive:
        archive.write(BASE_INITRD.read_bytes())
        archive.write(bytes(-archive.tell() % cpio.PADDING))
        cpio.append(archive, entries)
        length = archive.tell()
    (STAGE / "layer").unlink(missing_ok=True)
    mark.write_text(f"{wanted} {length}")
    return length


def ssh_entries(host: Path) -> list[Entry]:
    """The old system's host keys, and who may log in to it as root.

    Raises Failure without them: nobody could log in to the initramfs.
    """
    keys = sorted((host / "etc/ssh").glob("ssh_host_*_key*"))
    allowed = host / "root/.ssh/authorized_keys"
    if not keys:
        die("no host key in /etc/ssh: the initramfs could not prove what it is")
    if not allowed.is_file() or not allowed.read_bytes().strip():
        die("/root/.ssh/authorized_keys lists nobody: nobody could log in to the initramfs")
    return [
        Entry("anemos/ssh", None, 0o700),
        *(Entry(f"anemos/ssh/{key.name}", key) for key in keys),
        Entry("anemos/ssh/authorized_keys", allowed),
    ]
