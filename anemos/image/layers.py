"""Package layers in a directory: found again by all that they depend on.

    layer-KEY.tar.zst   the layer; KEY stands for its inputs
    layer-KEY.json      {"images": [names], "inputs": {...}, "mirror": {URL: state} or null,
                         "sha256": of the layer}

The mirror's state is what the HTTP headers Last-Modified and Content-Length say of its index
files: some of them have many megabytes, so they are not fetched. Of a mirror that cannot be
asked, the layer's age stands for it.
"""

import json
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from anemos import files, log
from anemos.files import sha256
from anemos.image import reproducible
from anemos.run import run
from anemos.system import bootstrap
from anemos.system.bootstrap import TARGETS, fetching
from anemos.system.imgbuild import Imgbuild

ASK_S = 5.0
KEPT = 3  # newest layers of each image
DAY_S = 86400.0
Mirror = dict[str, str] | None


def layer_file(imgbuild: Imgbuild, cache: Path) -> Path:
    return cache / f"layer-{bootstrap.key(imgbuild)}.tar.zst"


def mirror_state(imgbuild: Imgbuild) -> Mirror:
    """The state of the mirror's index files by URL; None when it cannot be told."""
    try:
        return {url: state(url) for url in TARGETS[imgbuild.target].indexes(imgbuild)} or None
    except (OSError, ValueError) as error:
        log.info(f"The mirror does not tell its state: {error}")
        return None


def state(url: str) -> str:
    """When the file at URL was changed, and its size. Raises OSError, ValueError."""
    with fetching.opened(url, timeout=ASK_S, method="HEAD") as answer:
        changed, size = (answer.headers.get(name) for name in ("Last-Modified", "Content-Length"))
    if not changed:
        raise ValueError(f"{url}: without a time")
    return f"{changed} {size}"


def cached(imgbuild: Imgbuild, cache: Path, scratch: Path, max_age_s: float) -> Path:
    """The package layer as a .tar.zst in the directory CACHE.

    Made when there is none, it is damaged, or the mirror has changed since; when that cannot be
    told, when it is older than MAX_AGE_S. SCRATCH is a directory with room for the layer.
    """
    layer = layer_file(imgbuild, cache)
    now = mirror_state(imgbuild)
    if layer.exists():
        reason = damaged(layer) or stale(layer, now, max_age_s)
    else:
        reason = missing(imgbuild, cache)
    if not reason:
        log.info(f"Package layer: {layer.name} from the cache")
        known = recorded(layer)
        remember(layer, imgbuild, known.get("mirror"), known.get("sha256", ""))
        return layer
    log.info(f"Package layer: to be made ({reason})")
    with reproducible.environment(reproducible.given(date(now) or int(time.time()))):
        bootstrap.bootstrap(imgbuild, scratch / "layer.tar")
    with log.step("Compressing the package layer"), files.scratch(cache, ".layer-") as room:
        # Level 12 makes it 5 % smaller, and takes a quarter of the time of the bootstrap.
        run(["zstd", "-q", "-6", "-T0", "--rm", scratch / "layer.tar", "-o", room / "layer"])
        digest = sha256(room / "layer")
        files.settle(room / "layer", layer)
    remember(layer, imgbuild, now, digest)
    prune(cache)
    return layer


def date(mirror: Mirror) -> int | None:
    """The mirror's last change, in seconds since 1970: no file of a layer is to be newer.

    With it, a layer is made the same again from the same state of the mirror. Of a mirror that does
    not tell it, the clock's time stands for it, and has to be given to make the layer again.
    """
    times = [text.rpartition(" ")[0] for text in (mirror or {}).values()]
    try:
        return max(int(parsedate_to_datetime(text).timestamp()) for text in times)
    except (TypeError, ValueError):  # none, or none that is one
        return None


def note(layer: Path) -> Path:
    return layer.with_name(layer.name.replace(".tar.zst", ".json"))


def recorded(layer: Path) -> dict[str, Any]:
    """What is known of LAYER: nothing, perhaps."""
    try:
        return dict(json.loads(note(layer).read_text()))
    except (OSError, ValueError):
        return {}


def remember(layer: Path, imgbuild: Imgbuild, mirror: Mirror, digest: str) -> None:
    images = sorted({*recorded(layer).get("images", []), imgbuild.name})
    known = {
        "images": images,
        "inputs": bootstrap.inputs(imgbuild),
        "mirror": mirror,
        "sha256": digest,
    }
    if known != recorded(layer):
        files.replace(note(layer), json.dumps(known, indent=1))


def damaged(layer: Path) -> str:
    """Why LAYER is not what was written, or "": a power cut, a bad disk."""
    written = recorded(layer).get("sha256", "")
    return "the cached one is damaged" if written not in ("", sha256(layer)) else ""


def stale(layer: Path, now: Mirror, max_age_s: float) -> str:
    """Why LAYER is of no use any more, or ""."""
    then = recorded(layer).get("mirror")
    if now and then:
        changed = sorted(url for url in now if now[url] != then.get(url))
        return f"mirror: changed: {', '.join(changed)}" if changed else ""
    age = time.time() - layer.stat().st_mtime
    return "" if age < max_age_s else f"it is {age / 3600:.0f} hours old"


def missing(imgbuild: Imgbuild, cache: Path) -> str:
    """How the inputs differ from those of the image's last layer."""
    for layer in layers(cache):
        known = recorded(layer)
        if imgbuild.name in known.get("images", []):
            return difference(known["inputs"], bootstrap.inputs(imgbuild))
    return f"the first one of {imgbuild.name}"


def difference(old: dict[str, object], new: dict[str, object]) -> str:
    """What differs: "packages: + nginx, - apache2; mirror: a -> b"."""
    return "; ".join(
        f"{name}: {changed(old.get(name, ''), new.get(name, ''))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def changed(old: object, new: object) -> str:
    match old, new:
        case list(), list():
            gone, come = ([e for e in a if e not in b] for a, b in ((old, new), (new, old)))
            if all(isinstance(each, str) for each in (*gone, *come)) and (gone or come):
                return ", ".join([*(f"+ {each}" for each in come), *(f"- {each}" for each in gone)])
            return "changed"
        case dict(), dict():
            return ", ".join(sorted(n for n in {*old, *new} if old.get(n) != new.get(n)))
        case _:
            return f"{old or 'none'} -> {new or 'none'}"


def layers(cache: Path) -> list[Path]:
    """The layers in CACHE, newest first."""
    found = {layer: layer.stat().st_mtime for layer in cache.glob("layer-*.tar.zst")}
    return sorted(found, key=lambda layer: found[layer], reverse=True)


def prune(cache: Path) -> None:
    """Remove layers of more than a day that are not among the newest of any image."""
    count: dict[str, int] = {}
    for layer in layers(cache):
        wanted = False
        for image in recorded(layer).get("images", []):
            count[image] = count.get(image, 0) + 1
            wanted = wanted or count[image] <= KEPT
        if not wanted and time.time() - layer.stat().st_mtime > DAY_S:
            log.info(f"Package layer: {layer.name} is removed")
            layer.unlink(missing_ok=True)
            note(layer).unlink(missing_ok=True)
