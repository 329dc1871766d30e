"""Makes the package layer on the old system, while that still serves."""

import os
import shutil
from pathlib import Path

from anemos import memory
from anemos.border import stage
from anemos.border.payload import opened
from anemos.border.requests import Layer
from anemos.files import sha256
from anemos.log import FAILED, die
from anemos.run import CommandFailed, run
from anemos.server import staging
from anemos.system import bootstrap, imgbuild

# In the base image's root, in the mount namespace that enter.sh makes: gone with the command.
ETC = Path("/etc")
ROOM = Path("/tmp/anemos")  # noqa: S108 (on a tmpfs of our own)


def make(payload: str) -> Layer:
    """Bootstrap the packages of the staged payload, whose SHA-256 is PAYLOAD, into stage.LAYER.

    In memory, half of what is available and not more: the services go on. Raises Failure.
    """
    staging.check(stage.PAYLOAD, payload)
    ROOM.mkdir(exist_ok=True)
    size = memory.available() // 2
    run(["mount", "-t", "tmpfs", "-o", f"mode=755,size={size}", "tmpfs", ROOM])
    try:
        take_definition(stage.PAYLOAD, ROOM)
        resolve_names(ROOM)
        os.environ["ZSTD_CLEVEL"] = "1"  # zstd(1): it is unpacked once, and from memory
        output = ROOM / "layer.tar.zst"
        bootstrap.bootstrap(imgbuild.load(ROOM / "host"), output)
        return hand_over(output)
    except CommandFailed as failed:
        if "No space left on device" in failed.output:
            die(
                f"the package layer needs more memory than {size >> 20} MiB",
                hint='host.toml: build_on = "workstation"',
                status=FAILED,
            )
        raise
    finally:
        run(["umount", "--lazy", ROOM])


def take_definition(payload: Path, directory: Path) -> None:
    """Unpack what a bootstrap needs from PAYLOAD: no secret, as this memory may be swapped."""
    with opened(payload) as archive:
        members = [each for each in archive if each.name.startswith("host/")]
        archive.extractall(directory, members)


def resolve_names(room: Path) -> None:
    """Names resolve as they do in the old system; the base image has no /etc/resolv.conf. ROOM: a
    directory in memory."""
    copy = room / "etc"
    run(["cp", "--archive", ETC, copy])
    resolver = staging.HOST / "etc/resolv.conf"
    if resolver.exists():
        (copy / "resolv.conf").write_bytes(resolver.read_bytes())
    run(["mount", "--bind", copy, ETC])


def hand_over(output: Path) -> Layer:
    shutil.copyfile(output, stage.LAYER)
    stage.LAYER.chmod(0o600)
    return Layer(sha256(stage.LAYER), stage.LAYER.stat().st_size)
