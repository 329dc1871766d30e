"""Makes the package layer on the old system, while that still serves."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from anemos import memory
from anemos.files import sha256
from anemos.log import FAILED, die
from anemos.run import CommandFailed, run
from anemos.server import staging
from anemos.system import bootstrap, imgbuild

# In the base image's root, in the mount namespace that enter.sh makes: gone with the command.
ETC = Path("/etc")
ROOM = Path("/tmp/anemos")  # noqa: S108 (on a tmpfs of our own)


def make(payload: str) -> dict[str, Any]:
    """Bootstrap the packages of the staged payload, whose SHA-256 is PAYLOAD, into STAGE/layer.

    In memory, half of what is available and not more: the services go on. Raises Failure.
    """
    staging.check(staging.STAGE / "payload", payload)
    ROOM.mkdir(exist_ok=True)
    size = memory.available() // 2
    run(["mount", "-t", "tmpfs", "-o", f"mode=755,size={size}", "tmpfs", ROOM])
    try:
        take_definition(staging.STAGE / "payload", ROOM)
        resolve_names()
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
    with tarfile.open(payload) as archive:
        members = [each for each in archive if each.name.startswith("host/")]
        archive.extractall(directory, members)


def resolve_names() -> None:
    """Names resolve as they do in the old system; the base image has no /etc/resolv.conf."""
    copy = ROOM / "etc"
    run(["cp", "--archive", ETC, copy])
    resolver = staging.HOST / "etc/resolv.conf"
    if resolver.exists():
        (copy / "resolv.conf").write_bytes(resolver.read_bytes())
    run(["mount", "--bind", copy, ETC])


def hand_over(output: Path) -> dict[str, Any]:
    layer = staging.STAGE / "layer"
    shutil.copyfile(output, layer)
    layer.chmod(0o600)
    return {"layer": sha256(layer), "size": layer.stat().st_size}
