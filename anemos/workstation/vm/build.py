"""The image of a host, as files: `./inv build`. No server is asked, no secret of one is used."""

import os
from collections.abc import Sequence
from pathlib import Path

from anemos import log
from anemos.log import die
from anemos.system import imgbuild
from anemos.workstation import Result, access, hosts, images, places, scratch
from anemos.workstation.secrets import sources, throwaway, trove
from anemos.workstation.values import values

IMAGES = places.ROOT / "images"


def build(name: str, format: str = "", output: str = "", check: bool = False) -> Result:
    """Build the image of hosts/NAME into the directory OUTPUT; a host.toml is not needed.

    An image lies on a disk, where no secret may be in clear: in its place are throw-away ones, the
    same ones for every build on this workstation. CHECK: build it a second time and compare.
    """
    directory = hosts.find(name)
    spec = imgbuild.load(directory, format)
    out = places.given(output) if output else IMAGES
    make(out)
    real = set(sources.of(name).names(name))
    made = set(throwaway.source(name, name).names(name))
    # What has a boot loader is a machine; an archive or a container needs no login.
    user = hosts.new_user(name)
    if spec.bootloader and (wrong := access.problem(spec, real | made, user)):
        die(f"{name}: {wrong}")
    if missing := sorted(real - made):
        log.info(f"Neither declared nor made by test_secrets(): {', '.join(missing)}")
    options = [f"--output={out}", f"--format={format}", *(["--check"] if check else [])]
    files, _ = image(name, name, "image", options)
    return {"host": name, "format": spec.format, "files": [os.fspath(file) for file in files]}


def image(
    name: str, of: str, deployment: str, options: Sequence[str]
) -> tuple[list[Path], dict[str, str]]:
    """The image of hosts/NAME with the throw-away secrets of the machine OF: its files, and the
    values of its templates. OPTIONS: of the image builder."""
    source = throwaway.source(name, of)  # first, as it may use scratch memory of its own
    with scratch.directory() as memory:
        revealed = trove.reveal(source, name, memory / "secrets")
        given = values(name, deployment, throwaway.operator_key(of), revealed.values)
        words = images.definition(memory, given, memory / "secrets/files")
        return images.image(places.HOSTS / name, [*words, *options]), given


def make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        die(f"{out}: {error.strerror}", hint="--output DIR")
