"""The image of a host, as files: `./inv build`. No server is asked, no secret of one is used."""

import json
import os
from pathlib import Path
from typing import Any

from anemos import log
from anemos.log import die
from anemos.system import imgbuild
from anemos.workstation import access, hosts, images, places, scratch
from anemos.workstation.secrets import sources, throwaway, trove
from anemos.workstation.values import values

IMAGES = places.ROOT / "images"


def build(name: str, format: str = "", output: str = "", check: bool = False) -> dict[str, Any]:
    """Build the image of hosts/NAME into the directory OUTPUT; a host.toml is not needed.

    An image lies on a disk, where no secret may be in clear: in its place are throw-away ones, the
    same ones for every build on this workstation. CHECK: build it a second time and compare.
    """
    directory = hosts.find(name)
    spec = imgbuild.load(directory, format)
    out = Path(output).absolute() if output else IMAGES
    make(out)
    source = throwaway.source(name, name)  # which may use scratch memory of its own
    real = set(sources.of(name).names(name))
    made = set(source.names(name))
    # What has a boot loader is a machine; an archive or a container needs no login.
    if spec.bootloader and (wrong := access.problem(spec, real | made)):
        die(f"{name}: {wrong}")
    if missing := sorted(real - made):
        log.info(f"Neither declared nor made by test_secrets(): {', '.join(missing)}")
    with scratch.directory() as memory:
        given = trove.reveal(source, name, memory / "secrets")
        (memory / "secrets/files").mkdir(exist_ok=True)
        file = memory / "values.json"
        file.touch(0o600)
        file.write_text(
            json.dumps(values(name, "image", throwaway.operator_key(name), given.values))
        )
        options: list[str | Path] = ["--output", out, "--cache", places.cache()]
        options += ["--values", file, "--secrets", memory / "secrets/files"]
        options += [f"--format={format}"] if format else []
        options += ["--check"] if check else []
        files = images.image(directory, options)
    return {"host": name, "format": spec.format, "files": [os.fspath(file) for file in files]}


def make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        die(f"{out}: {error.strerror}", hint="--output DIR")
