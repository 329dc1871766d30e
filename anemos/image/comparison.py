"""An image built twice and compared: by the manifests of both, and then byte by byte."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anemos import log
from anemos.image import build, reproducible
from anemos.log import FAILED, die
from anemos.system import tree
from anemos.system.imgbuild import Imgbuild

CHUNK = 2**20
SHOWN = 10


def check(
    imgbuild: Imgbuild,
    inputs: Sequence[Path],
    out: Path,
    *,
    values: Mapping[str, str] | None = None,
    secrets: Path | None = None,
) -> None:
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
        build.build(imgbuild, inputs, again, cache=cache, values=values, secrets=secrets)
        require_same(imgbuild.name, out, again)


def require_same(name: str, one: Path, two: Path) -> None:
    """Raises Failure that names the first differences of what two builds made.

    ONE, TWO: directories with the manifest of the image NAME, and the files that belong to it.
    """
    found = list(differences(name, one, two))
    if found:
        lines = "\n".join(f"  | {line}" for line in found[:SHOWN])
        more = f"\n  | and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        die(f"{name}: two builds differ:\n{lines}{more}", status=FAILED)


def differences(name: str, one: Path, two: Path) -> Iterator[str]:
    manifest = f"{name}.manifest.json"
    yield from described(*(json.loads((each / manifest).read_text()) for each in (one, two)))
    names = {path.name for path in two.iterdir()} - {manifest}
    for image in sorted(names):
        for path, _ in tree.walk(two / image) if (two / image).is_dir() else [(".", None)]:
            file = two / image / path
            if file.is_file() and not file.is_symlink():
                at = offset(one / image / path, file)
                if at is not None:
                    yield f"{file.relative_to(two)}: from byte {at} on"


def described(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    """How two manifests differ."""
    for part in ("inputs", "tools"):
        for key in sorted({*one[part], *two[part]}):
            if one[part].get(key) != two[part].get(key):
                yield f"{part}: {key}"
    yield from (
        f"package {' '.join(each)}"
        for each in one["packages"] + two["packages"]
        if (each in one["packages"]) != (each in two["packages"])
    )
    files = [{entry["path"]: entry for entry in each["files"]} for each in (one, two)]
    for path in sorted({*files[0], *files[1]}):
        old, new = (each.get(path, {}) for each in files)
        if not (old and new):
            yield f"/{path}: only in one of them"
        elif changed := [field for field in {**old, **new} if old.get(field) != new.get(field)]:
            yield f"/{path}: {', '.join(changed)}"


def offset(one: Path, two: Path) -> int | None:
    """The first byte in which two files differ; None if there is none."""
    if not one.is_file():
        return 0
    with one.open("rb") as a, two.open("rb") as b:
        start, old, new = 0, a.read(CHUNK), b.read(CHUNK)
        while old and old == new:
            start, old, new = start + CHUNK, a.read(CHUNK), b.read(CHUNK)
    pairs = enumerate(zip(old, new, strict=False))
    least = min(len(old), len(new))
    return None if old == new else start + next((i for i, (x, y) in pairs if x != y), least)
