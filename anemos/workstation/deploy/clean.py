"""Removes what interrupted runs left in memory."""

from pathlib import Path

from anemos import log
from anemos.log import die
from anemos.workstation import Result, lock, places, scratch
from anemos.workstation.deploy import consent, plan, staged
from anemos.workstation.hosts import Host


def clean(host: Host | None = None, yes: str = "") -> Result:
    """Remove it here, for all hosts that no task works for; with HOST also from that server.

    YES: the host's name, when what another workstation has staged there is to go, too.
    Raises Failure.
    """
    removed = here()
    if host:
        there(host, yes)
    return {"removed": removed}


def here() -> list[str]:
    """The names of those that had something to remove."""
    removed = []
    for entry in sorted(places.memory(lock.NAME).parent.iterdir()):
        if entry.name == lock.NAME:
            continue
        if other := lock.tried(entry.name):
            log.info(f"{entry.name}: left alone, as a task works on it: {other}")
            continue
        gone = [each for each in entry.iterdir() if not wanted(each)]
        for each in gone:
            scratch.remove(each)
        removed += [entry.name] if gone else []
    log.info(f"Removed from memory: {', '.join(removed) or 'nothing was there'}")
    return removed


def wanted(path: Path) -> bool:
    """An editor that still runs has its directory."""
    return path.parent.name == scratch.NAME and scratch.in_use(path)


def there(host: Host, yes: str) -> None:
    other = staged.remove(host, "" if consent.named(host, yes) else places.who())
    if other == staged.INITRAMFS:
        log.info(f"{host.name} runs the initramfs: nothing is left of what was staged before")
    elif other:
        hint = f"./inv clean --host {host.name} --yes {host.name} removes it all the same"
        die(f"{host.name}: {plan.foreign(other)}", hint=hint)
    else:
        log.info(f"{host.name}: nothing of a deployment is left in its memory")
