"""The stock system that a local VM starts with."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.workstation import images, places, scratch
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway, trove
from anemos.workstation.values import values
from anemos.workstation.vm import vm


def create(host: Host) -> None:
    """Build HOST's stock system and make the disks of its VM from it, when it has none."""
    machine = vm.of(host)
    if machine.directory.is_dir():
        return
    stock = machine.settings.stock
    step = log.step(f"Building the stock server hosts/{stock}")
    # Before the memory of it: a source may use scratch memory of its own.
    secret = throwaway.source(stock, host.name)
    with step, TemporaryDirectory() as out, scratch.directory() as memory:
        clear = memory / "stock"
        revealed = trove.reveal(secret, stock, clear)
        file = memory / "values.json"
        given = values(stock, "stock", throwaway.operator_key(host.name), revealed.values)
        file.write_text(json.dumps(given))
        options: list[str | Path] = ["--output", out, "--cache", places.cache()]
        options += ["--values", file, "--secrets", clear / "files"]
        files = images.image(places.HOSTS / stock, options)
        vm.install(machine, files, revealed.values["host_key"])
