"""An image built twice and compared: by the manifests of both, and then byte by byte."""

import json
from collections.abc import Iterator
from filecmp import cmp
from pathlib import Path

from anemos import log
from anemos.image import build, reproducible
from anemos.log import FAILED, die
from anemos.run import CommandFailed, run
from anemos.system import tree
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild

SHOWN = 10
HINT = "diffoscope(1) tells what differs in two images: build them with two --output"


def check(imgbuild: Imgbuild, given: Definition, out: Path) -> None:
    """Build again what lies in OUT, from nothing, and compare. Raises Failure if they differ."""
    described = json.loads((out / f"{imgbuild.name}.manifest.json").read_text())
    with (
        log.step(f"Building {imgbuild.name} again"),
        build.workspace() as scratch,
        reproducible.environment(described["source_date_epoch"]),
    ):
        cache, again = scratch / "cache", scratch / "again"
        cache.mkdir()
        again.mkdir()
        build.build(imgbuild, given, again, cache=cache)
        require_same(imgbuild.name, out, again)


def require_same(name: str, one: Path, two: Path) -> None:
    """Raises Failure that names the first differences of what two builds made.

    ONE, TWO: directories with the manifest of the image NAME, and the files that belong to it.
    """
    found = list(differences(name, one, two))
    if found:
        lines = "\n".join(f"  | {line}" for line in found[:SHOWN])
        more = f"\n  | and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        die(f"{name}: two builds differ:\n{lines}{more}", hint=HINT, status=FAILED)


def differences(name: str, one: Path, two: Path) -> Iterator[str]:
    """What diff(1) tells of the manifests, a line a file; then the files with other bytes."""
    manifest = f"{name}.manifest.json"
    try:
        run(["diff", one / manifest, two / manifest])
    except CommandFailed as differ:
        yield from differ.output.splitlines()
    for image in sorted({path.name for path in two.iterdir()} - {manifest}):
        for path, _ in tree.walk(two / image) if (two / image).is_dir() else [(".", None)]:
            file, before = two / image / path, one / image / path
            same = before.is_file() and file.is_file() and cmp(before, file, shallow=False)
            if file.is_file() and not (file.is_symlink() or same):
                yield f"{file.relative_to(two)}: other bytes"
