"""An initramfs that is put together here, for a machine that is started by hand, or a local VM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anemos import archive, files
from anemos.archive import Keys
from anemos.files import sha256
from anemos.run import run
from anemos.server import kexec
from anemos.workstation import images
from anemos.workstation.deploy.state import State

Kept = Sequence[Mapping[str, Any]] | None  # fingerprints; None: there are none to compare


@dataclass(frozen=True)
class Parts:
    """What goes into it."""

    base: Path
    layer: Path | None  # None: the initramfs bootstraps
    payload: Path
    keys: Keys  # of its sshd, and who may log in
    network: Mapping[str, Any]  # see server/network.py
    kept: Kept = None
    port: int = 22
    stay: bool = True  # after a failure: there is no old system to go back to


def of(
    state: State, payload: Path, keys: Keys, network: Mapping[str, Any], kept: Kept, port: int
) -> Parts:
    """Those of STATE's deployment."""
    layer = Path(state.layer) if state.layer else None
    return Parts(Path(state.base), layer, payload, keys, network, kept, port)


def write(directory: Path, parts: Parts) -> None:
    """Write `kernel`, `initrd` (mode 0600) and `cmdline` into DIRECTORY."""
    with images.boot_files(parts.base) as (kernel, initrd):
        run(["cp", kernel, directory / "kernel"])
        with files.private(directory / "initrd") as file:
            archive.found(file, initrd, parts.base, parts.layer)
            archive.finish(file, boot(parts), parts.payload, parts.keys, stay=parts.stay)
    (directory / "cmdline").write_text(kexec.cmdline("") + "\n")


def host_keys(revealed: Path) -> dict[str, Path]:
    """The SSH host keys among the REVEALED secrets, by name."""
    return {file.name: file for file in sorted(revealed.glob("files/etc/ssh/ssh_host_*_key"))}


def boot(parts: Parts) -> dict[str, Any]:
    return archive.boot(
        archive.read_manifest(parts.payload),
        parts.base,
        sha256(parts.payload),
        sha256(parts.layer) if parts.layer else "",
        ssh_port=parts.port,
        network=parts.network,
        kept=parts.kept,
    )


def qemu_words(directory: Path) -> list[str | Path]:
    """qemu(1)'s arguments that start what `write` left in DIRECTORY; a reboot is QEMU's end."""
    kernel, initrd = directory / "kernel", directory / "initrd"
    line = (directory / "cmdline").read_text().strip()
    return ["-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", line]
