"""What a deployment now would change: the definition here, against the one that was deployed."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.border import payload as border
from anemos.border.deployment import Agreed, Deployment
from anemos.run import CommandFailed, run
from anemos.system import changes, defined, manifest
from anemos.system.changes import ADDED, REMOVED, Change
from anemos.system.defined import Defined
from anemos.system.imgbuild import Imgbuild
from anemos.system.manifest import Entry, Table
from anemos.workstation import images, scratch
from anemos.workstation.deploy import facts, payload
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway
from anemos.workstation.ssh import Remote
from anemos.workstation.values import values

# Where each target's package layer has the records of its packages, for tar(1).
RECORDS = {
    "debian": "./var/lib/dpkg/status",
    "arch": "./var/lib/pacman/local/*/desc",
    "alpine": "./*lib/apk/db/installed",
}
DEPLOYED, HERE = "deployed", "here"
OLDER = "nobody knows: an older Anemos has deployed it"


@dataclass(frozen=True)
class Preview:
    changes: list[Change]
    texts: Table  # unified differences, by the names of changes
    unknown: list[str]  # what cannot be known before


def make(host: Host, spec: Imgbuild, deployment: str, remote: Remote) -> Preview | None:
    """Against DEPLOYMENT, which runs on the server; None where it has not left its definition.

    Raises Failure, also for a definition that `pack` would refuse.
    """
    argv = ["sh", "-c", facts.READ, "cat", f"/{defined.FILE}"]
    said = remote.sh(argv, shown=["read", defined.FILE])
    if not said:
        return None
    layer = images.cached_layer(spec)
    packages = installed(spec, layer) if layer else {}
    return between(defined.read(said), ours(host, spec, deployment, packages), spec)


def ours(host: Host, spec: Imgbuild, deployment: str, packages: Table) -> Defined:
    """What `pack` would send now, as if for DEPLOYMENT: its id is no change. Nothing is revealed:
    a file with a value of secrets is by its mode not for everybody."""
    names = throwaway.secrets_of(host).names(host.directory.name)
    hidden = {name: "" for name in names if "/" not in name}
    given = values(host.directory.name, deployment, host.identity_file, hidden)
    secrets = [*(name for name in names if "/" in name), *spec.server_secrets]
    with scratch.directory() as memory:
        members = list(payload.collect(spec, given, memory / "none"))
        of = Deployment(deployment, host.name, [], Agreed())
        border.write(memory / "payload", of, "", members)
        border.unpack(memory / "payload", memory / "unpacked")
        return defined.take(memory / "unpacked", secrets, lambda _: True, packages)


def installed(spec: Imgbuild, layer: str) -> Table:
    """The packages of a LAYER, which may be damaged: then none."""
    with TemporaryDirectory() as name:
        pattern = ["--wildcards", "--wildcards-match-slash", RECORDS[spec.target]]
        try:
            run(["tar", "--extract", "--file", layer, "-C", name, *pattern])
        except CommandFailed:
            return {}
        return manifest.of(Path(name), [], []).packages


def between(old: Defined, new: Defined, spec: Imgbuild) -> Preview:
    """Pure."""
    hidden = {each.path for made in (old, new) for each in made.files.entries if each.secret}
    before, after = (
        replace(made.files, entries=[blind(each, hidden) for each in made.files.entries])
        for made in (old, new)
    )
    if not new.files.packages:
        after = replace(after, packages=before.packages)
    found = changes.between(before, after, lambda _: False, ())
    provision = "provision" in spec.functions
    told = [*beside(old.beside, new.beside), *(cautious(each, provision) for each in found)]
    texts = {each.name: text for each in told if (text := difference(old, new, each))}
    return Preview(told, texts, list(unknown(old, new, hidden, provision)))


def blind(entry: Entry, hidden: set[str]) -> Entry:
    """One of the two knows no content of what is hidden from the other one."""
    return entry._replace(content="", secret=True) if entry.path in hidden else entry


def beside(old: Table, new: Table) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            what = ADDED if name not in old else REMOVED if name not in new else "content"
            yield Change("definition", name, what)


def cautious(change: Change, provision: bool) -> Change:
    """The layer lacks what only provision() has installed."""
    if provision and change.kind == "package" and change.what.startswith(REMOVED):
        return replace(change, what=f"{change.what}, unless provision() installs it")
    return change


def difference(old: Defined, new: Defined, change: Change) -> str:
    """Of two texts that are for everybody."""
    path = f"host/{change.name}" if change.kind == "definition" else f"files{change.name}"
    pair = [made.texts.get(path) for made in (old, new)]
    if None in pair or change.kind not in ("definition", "file"):
        return ""
    before, after = (str(each).splitlines() for each in pair)
    return "\n".join(difflib.unified_diff(before, after, DEPLOYED, HERE, lineterm=""))


def unknown(old: Defined, new: Defined, hidden: set[str], provision: bool) -> Iterator[str]:
    if not new.files.packages:
        yield "packages: `./inv pack` makes the package layer first"
    both = {each.path for each in old.files.entries} & {each.path for each in new.files.entries}
    if same := sorted(f"/{path}" for path in hidden & both):
        yield f"contents that may be secret: {', '.join(same)}"
    if provision:
        yield "what provision() does"


def tell(found: Preview | None, deployment: str) -> None:
    log.tell(f"A deployment would change, against {deployment}: {summary(found)}")
    if found:
        for each in found.changes:
            log.tell(f"{each.kind:10} {each.name}: {each.what}")
            for line in found.texts.get(each.name, "").splitlines():
                log.tell(f"    {line}")
        for line in found.unknown:
            log.tell(f"not known: {line}")


def summary(found: Preview | None) -> str:
    """In one line."""
    return changes.summary(found.changes) if found else OLDER
