"""An initramfs that is put together here, for a machine that is started by hand, or a local VM."""

from dataclasses import dataclass
from pathlib import Path

from anemos import files
from anemos.architecture import AMD64, Architecture
from anemos.border import archive
from anemos.border.archive import Keys
from anemos.border.boot import Boot, base_hash
from anemos.border.network import Network
from anemos.border.payload import manifest
from anemos.disks import Fingerprint
from anemos.files import sha256
from anemos.run import run
from anemos.server import kexec
from anemos.workstation import images
from anemos.workstation.deploy.state import State, payload_file
from anemos.workstation.hosts import Host

Kept = list[Fingerprint] | None  # None: there are none to compare


@dataclass(frozen=True)
class Parts:
    """What goes into it."""

    base: Path
    layer: Path | None  # None: the initramfs bootstraps
    payload: Path
    keys: Keys  # of its sshd, and who may log in
    network: Network
    kept: Kept = None
    port: int = 22
    stay: bool = True  # after a failure: there is no old system to go back to
    arch: Architecture = AMD64


def of(host: Host, state: State, keys: Keys, network: Network, kept: Kept) -> Parts:
    """Those of STATE's deployment of HOST."""
    layer = Path(state.layer) if state.layer else None
    parts = (Path(state.base), layer, payload_file(host), keys, network, kept, host.port)
    return Parts(*parts, arch=host.imgbuild().arch)


def write(directory: Path, parts: Parts) -> None:
    """Write `kernel`, `initrd` (mode 0600) and `cmdline` into DIRECTORY."""
    with images.boot_files(parts.base) as (kernel, initrd):
        run(["cp", kernel, directory / "kernel"])
        with files.private(directory / "initrd") as file:
            archive.found(file, initrd, parts.base, parts.layer)
            archive.finish(file, boot(parts), parts.payload, parts.keys, stay=parts.stay)
    (directory / "cmdline").write_text(kexec.cmdline("", serial=parts.arch.serial) + "\n")


def host_keys(revealed: Path) -> dict[str, Path]:
    """The SSH host keys among the REVEALED secrets, by name."""
    return {file.name: file for file in sorted(revealed.glob("files/etc/ssh/ssh_host_*_key"))}


def boot(parts: Parts) -> Boot:
    given = manifest(parts.payload)
    return Boot(
        given.deployment,
        given.host,
        base_hash(parts.base),
        sha256(parts.payload),
        sha256(parts.layer) if parts.layer else "",
        parts.port,
        parts.network,
        parts.kept,
        agreed=given.agreed,
    )


def qemu_words(directory: Path) -> list[str | Path]:
    """qemu(1)'s arguments that start what `write` left in DIRECTORY; a reboot is QEMU's end."""
    kernel, initrd = directory / "kernel", directory / "initrd"
    line = (directory / "cmdline").read_text().strip()
    return ["-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", line]
