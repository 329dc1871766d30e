"""Throw-away keys and secrets: of a VM, and of images that lie on a disk."""

import re
import shutil
from hashlib import sha256
from pathlib import Path

from anemos import keys
from anemos.system import functions, imgbuild
from anemos.workstation import places
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import generate, sources, trove
from anemos.workstation.secrets.sources import Gpg
from anemos.workstation.secrets.trove import Source

OPERATOR_KEY = "id_ed25519"
# Parts of an IMGBUILD that change often.
ASIDE = re.compile(
    r"^(?:provision|verify|setup|cleanup)\(\) \{\n(?:.*\n)*?\}\n"
    r"|^(?:packages|excludes|layout|keep|carry|cmdline|volatile)=(?:'[^']*'|[\w./-]*)\n",
    re.MULTILINE,
)


def secrets_of(host: Host) -> Source:
    """What opens the secrets of HOST."""
    name = host.directory.name
    return source(name, host.name) if host.throwaway else sources.of(name)


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
    keyring = trove.ensure_throwaway(home / "gnupg", root, name, make)
    origin.write_text(now)
    return Gpg(keyring, root)


def deciding(text: str) -> str:
    """The IMGBUILD TEXT without what is surely not for test_secrets(). Pure.

    All else that is there may decide: its helpers, and their variables.
    """
    return ASIDE.sub(lambda found: found[0] if "secrets" in found[0] else "", text)


def operator_key(name: str) -> Path:
    """The SSH key that logs in to the VM NAME; its public half lies beside it."""
    key = places.state(name) / OPERATOR_KEY
    if not key.with_suffix(".pub").exists():
        keys.make(key, "operator")
    return key
