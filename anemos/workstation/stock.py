"""Throw-away material of a host with a [vm]: keys, secrets, and the stock system it starts with."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.image import functions, imgbuild
from anemos.run import run
from anemos.workstation import images, places, secrets, vm
from anemos.workstation.gpg import Keyring
from anemos.workstation.host import Host

OPERATOR_KEY = "id_ed25519"


def keyring(name: str, of: str) -> Keyring:
    """The keyring of the throw-away secrets of the IMGBUILD NAME, for the machine OF.

    Made on first use by the IMGBUILD's test_secrets(), outside of the repository.
    """
    spec = imgbuild.load(places.HOSTS / name)

    def make(directory: Path) -> None:
        if "test_secrets" in spec.functions:
            functions.on_host(spec, "test_secrets", directory)

    home = places.state(of)
    return secrets.ensure_throwaway(home / "gnupg", home / "secrets", name, make)


def operator_key(name: str) -> Path:
    """The SSH key that logs in to the VM NAME; its public half lies beside it."""
    key = places.state(name) / OPERATOR_KEY
    if not key.with_suffix(".pub").exists():
        make_key(key, "operator")
    return key


def make_key(file: Path, comment: str) -> None:
    """Make an SSH key pair, instead of what an interrupted call left."""
    file.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file])


def create(host: Host) -> None:
    """Build HOST's stock system and make the disks of its VM from it, when it has none."""
    machine = vm.of(host)
    if machine.directory.is_dir():
        return
    stock = machine.settings.stock
    memory = places.memory(host.name)
    with log.step(f"Building the stock server hosts/{stock}"), TemporaryDirectory() as out:
        root = places.state(host.name) / "secrets"
        clear = memory / "stock"
        revealed = secrets.reveal(keyring(stock, host.name), root, stock, clear)
        values = memory / "values.json"
        public = operator_key(host.name).with_suffix(".pub").read_text().strip()
        values.write_text(json.dumps({"operator_key": public}))
        options: list[str | Path] = ["--output", out, "--cache", places.cache()]
        options += ["--values", values, "--secrets", clear / "files"]
        files = images.image(places.HOSTS / stock, options)
        vm.install(machine, files, revealed.values["host_key"])
        shutil.rmtree(memory)
