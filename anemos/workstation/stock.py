"""Throw-away material of a host with a [vm]: keys, secrets, and the stock system it starts with."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.run import run
from anemos.system import functions, imgbuild
from anemos.workstation import generate, images, places, scratch, secrets, sources, vm
from anemos.workstation.host import Host
from anemos.workstation.secrets import Source
from anemos.workstation.sources.gpg import Gpg
from anemos.workstation.values import values

OPERATOR_KEY = "id_ed25519"
# Parts of an IMGBUILD that change often.
ASIDE = re.compile(
    r"^(?:provision|verify|setup|cleanup)\(\) \{\n(?:.*\n)*?\}\n"
    r"|^(?:packages|excludes|layout|keep|cmdline)='[^']*'\n",
    re.MULTILINE,
)


def secrets_of(host: Host) -> Source:
    """What opens the secrets of HOST: throw-away ones, if it is no more than a VM, or a test."""
    name = host.directory.name
    return source(name, host.name) if host.local or host.rehearsed else sources.of(name)


def source(name: str, of: str) -> Source:
    """The throw-away secrets of the IMGBUILD NAME, for the machine OF.

    Made outside of the repository, on first use and when what decides has changed: by the
    IMGBUILD's test_secrets(), and for what that leaves out by what `secrets` declares.
    """
    spec = imgbuild.load(places.HOSTS / name)

    def make(directory: Path) -> None:
        if "test_secrets" in spec.functions:
            functions.on_host(spec, "test_secrets", directory)
        generate.throwaway(spec, directory)

    home = places.state(of)
    root = home / "secrets"
    origin = home / f"secrets-{name}.origin"
    now = sha256(deciding(spec.file.read_text(errors="replace")).encode()).hexdigest()
    if not origin.exists() or origin.read_text() != now:
        shutil.rmtree(root / name, ignore_errors=True)
    keyring = secrets.ensure_throwaway(home / "gnupg", root, name, make)
    origin.write_text(now)
    return Gpg(keyring, root)


def deciding(text: str) -> str:
    """The IMGBUILD TEXT without what is surely not for test_secrets(). Pure.

    Whatever else there is may decide: its helpers, and their variables.
    """
    return ASIDE.sub(lambda found: found[0] if "secrets" in found[0] else "", text)


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
    step = log.step(f"Building the stock server hosts/{stock}")
    # Before the memory of it: a source may use scratch memory of its own.
    throwaway = source(stock, host.name)
    with step, TemporaryDirectory() as out, scratch.directory() as memory:
        clear = memory / "stock"
        revealed = secrets.reveal(throwaway, stock, clear)
        file = memory / "values.json"
        given = values(stock, "stock", operator_key(host.name), revealed.values)
        file.write_text(json.dumps(given))
        options: list[str | Path] = ["--output", out, "--cache", places.cache()]
        options += ["--values", file, "--secrets", clear / "files"]
        files = images.image(places.HOSTS / stock, options)
        vm.install(machine, files, revealed.values["host_key"])
