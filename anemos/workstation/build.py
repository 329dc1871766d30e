"""The image of a host, as files: `./inv build`. No server is asked, no secret of one is used."""

import json
import os
from pathlib import Path
from typing import Any

from anemos import log
from anemos.image import imgbuild
from anemos.log import die
from anemos.workstation import host, images, places, scratch, secrets, sources, stock
from anemos.workstation.secrets import Source

IMAGES = places.ROOT / "images"


def build(name: str, format: str = "", output: str = "", check: bool = False) -> dict[str, Any]:
    """Build the image of hosts/NAME into the directory OUTPUT; a host.toml is not needed.

    An image lies on a disk, where no secret may be in clear: in its place are the throw-away ones
    that test_secrets() makes, the same ones for every build on this workstation. CHECK: build it a
    second time and compare.
    """
    directory = host.find(name)
    spec = imgbuild.load(directory, format)
    out = Path(output).absolute() if output else IMAGES
    make(out)
    throwaway = stock.source(name, name)  # which may use scratch memory of its own
    missing = absent(name, throwaway)
    if missing:
        log.info(f"Not made by test_secrets(): {', '.join(missing)}")
    with scratch.directory() as memory:
        given = secrets.reveal(throwaway, name, memory / "secrets")
        (memory / "secrets/files").mkdir(exist_ok=True)
        values = memory / "values.json"
        values.touch(0o600)
        values.write_text(json.dumps(given.values | builtin_values(name)))
        options: list[str | Path] = ["--output", out, "--cache", places.cache()]
        options += ["--values", values, "--secrets", memory / "secrets/files"]
        options += [f"--format={format}"] if format else []
        options += ["--check"] if check else []
        files = images.image(directory, options)
    return {"host": name, "format": spec.format, "files": [os.fspath(file) for file in files]}


def make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        die(f"{out}: {error.strerror}", hint="--output DIR")


def builtin_values(name: str) -> dict[str, str]:
    """The values that every template may use; the key that logs in is a throw-away one, too."""
    public = stock.operator_key(name).with_suffix(".pub").read_text().strip()
    return {"host": name, "deployment": "image", "operator_key": public}


def absent(name: str, throwaway: Source) -> list[str]:
    """The host's secrets that nothing in the image stands for."""
    return sorted(set(sources.of(name).names(name)) - set(throwaway.names(name)))
