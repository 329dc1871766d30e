"""The initramfs of a deployment: cpio archives, one after the other, as the kernel allows it.

    the base image's first initrd
    anemos/base.squashfs, anemos/layer              the foundation
    anemos/boot.json, anemos/payload, anemos/ssh/   the deployment (see initramfs/boot.py)
    anemos/stay                                     empty; only where no old system waits

It is put together on the old system (server/staging.py), or on the workstation for a machine that
is started by hand (workstation/deploy/byhand.py): the same bytes from the same parts. For a
one-shot boot (server/once.py) layer and payload are not in it, and the host key is ONCE_KEY.
"""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from anemos import cpio
from anemos.cpio import Entry

Keys = Mapping[str, bytes | Path]  # names in anemos/ssh: ssh_host_*_key*, authorized_keys
ONCE_KEY = "ssh_host_once_key"


def read_manifest(payload: Path) -> dict[str, Any]:
    with tarfile.open(payload) as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None
        return dict(json.load(member))


def boot(
    manifest: Mapping[str, Any], base: Path, payload: str, layer: str, **system: Any
) -> dict[str, Any]:
    """What boot.json says. PAYLOAD, LAYER: SHA-256. SYSTEM: ssh_port, network, kept."""
    return {
        "deployment": manifest["deployment"],
        "host": manifest["host"],
        "base": base.stem.removeprefix("base-"),
        "payload": payload,
        "layer": layer,
        "agreed": manifest["agreed"],
        **system,
    }


def found(archive: BinaryIO, initrd: Path, base: Path, layer: Path | None) -> None:
    """Begin ARCHIVE with what is large, and the same for many deployments."""
    archive.write(initrd.read_bytes())
    archive.write(bytes(-archive.tell() % cpio.PADDING))
    layers = [Entry("anemos/layer", layer)] if layer else []
    cpio.append(archive, [Entry("anemos/base.squashfs", base), *layers])


def finish(
    archive: BinaryIO,
    description: Mapping[str, Any],
    payload: Path | None,
    keys: Keys,
    *,
    stay: bool,
) -> None:
    """Add what belongs to one deployment. STAY: there is no old system to go back to."""
    entries = [
        Entry("anemos/boot.json", json.dumps(description).encode()),
        *([Entry("anemos/payload", payload)] if payload else []),
        Entry("anemos/ssh", None, 0o700),
        *(Entry(f"anemos/ssh/{name}", data) for name, data in keys.items()),
    ]
    cpio.append(archive, [*entries, *([Entry("anemos/stay", b"")] if stay else [])])
