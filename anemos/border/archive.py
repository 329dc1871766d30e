"""The initramfs of a deployment: cpio archives, one after the other, as the kernel allows it.

    the base image's first initrd
    anemos/base.squashfs, anemos/layer              the foundation
    anemos/boot.json, anemos/payload, anemos/ssh/   the deployment
    anemos/stay                                     only where no old system waits

What is in anemos/ there lies in stage.HERE when the initramfs runs.

It is put together on the old system (server/staging.py), or on the workstation for a machine that
is started by hand (workstation/deploy/byhand.py): the same bytes from the same parts. For a
one-shot boot (server/once.py) layer and payload are not in it, and the host key is ONCE_KEY.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from anemos import cpio
from anemos.border import records, stage
from anemos.border.boot import Boot
from anemos.cpio import Entry

Keys = Mapping[str, bytes | Path]  # names in stage.SSH: ssh_host_*_key*, authorized_keys
ONCE_KEY = "ssh_host_once_key"


def name(path: Path) -> str:
    """What lies at PATH in the initramfs, as the archive calls it."""
    return f"anemos/{path.name}"


def found(archive: BinaryIO, initrd: Path, base: Path, layer: Path | None) -> None:
    """Begin ARCHIVE with what is large, and the same for many deployments."""
    archive.write(initrd.read_bytes())
    archive.write(bytes(-archive.tell() % cpio.PADDING))
    layers = [Entry(name(stage.LAYER), layer)] if layer else []
    cpio.append(archive, [Entry(name(stage.BASE), base), *layers])


def finish(archive: BinaryIO, boot: Boot, payload: Path | None, keys: Keys, *, stay: bool) -> None:
    """Add what belongs to one deployment. STAY: there is no old system to go back to."""
    entries = [
        Entry(name(stage.BOOT), records.text(boot).encode()),
        *([Entry(name(stage.PAYLOAD), payload)] if payload else []),
        Entry(name(stage.SSH), None, 0o700),
        *(Entry(f"{name(stage.SSH)}/{key}", data) for key, data in keys.items()),
    ]
    cpio.append(archive, [*entries, *([Entry(name(stage.STAY), b"")] if stay else [])])
