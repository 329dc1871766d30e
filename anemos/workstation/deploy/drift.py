"""What a deployment would change, and what somebody has changed on a server since the last one; the
latter the server finds out itself (server/drift.py)."""

from collections.abc import Sequence
from dataclasses import asdict

from anemos import log
from anemos.border import requests
from anemos.log import die
from anemos.server.drift import Drift
from anemos.system import changes, manifest
from anemos.workstation import Result
from anemos.workstation.deploy import preview, reach, status
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Remote, connect


def diff(host: Host) -> Result:
    """Raises Failure for a server that Anemos has not deployed, or before there were manifests."""
    spec = host.imgbuild()
    with connect(reach.endpoint(host)) as remote, log.step("Comparing"):
        seen = status.ask(remote)
        found = find(host, spec.changing, seen, remote)
        ahead = preview.make(host, spec, seen.deployment, remote)
    preview.tell(ahead, seen.deployment)
    log.tell("")
    log.tell(f"Changed on the server since {seen.deployment}: {changes.summary(found.changes)}")
    for each in found.changes:
        log.tell(f"{each.kind:10} {each.name}: {each.what}")
    if found.apart:
        log.tell(f"Not looked at, as other file systems: {', '.join(found.apart)}")
    told = {"ahead": asdict(ahead) if ahead else None, "drift": asdict(found)}
    return {"host": host.name, "deployment": seen.deployment, **told}


def find(host: Host, volatile: Sequence[str], seen: status.Status, remote: Remote) -> Drift:
    """VOLATILE: places that the IMGBUILD adds. Raises Failure, as `diff` does."""
    base = comparable(host, seen, remote)
    return reach.answer(remote, base, requests.Drift(volatile), Drift, host.timeouts.install)


def comparable(host: Host, seen: status.Status, remote: Remote) -> str:
    """The base image on the server that compares: the one that came with the manifest."""
    if seen.in_initramfs:
        die(f"{host.name} is in the initramfs", hint="./inv status")
    if not seen.deployment:
        die(f"{host.name}: Anemos has not deployed this system: nobody knows what it was")
    wanted = [f"/{manifest.FILE}", seen.base]
    there = reach.present(remote, *wanted)
    if missing := [each for each in wanted if each not in there]:
        why = "an older Anemos has deployed it, or somebody removed that"
        die(f"{host.name} lacks {' and '.join(missing)}: {why}", hint="a new deployment leaves it")
    return seen.base
