"""Where the secrets of a host are: `[secrets] source` in its host.toml chooses one of these."""

from anemos.workstation import hosts, places
from anemos.workstation.secrets.gpg import Keyring
from anemos.workstation.secrets.sources.age import Age
from anemos.workstation.secrets.sources.gpg import Gpg
from anemos.workstation.secrets.sources.password_store import PasswordStore
from anemos.workstation.secrets.sources.sops import Sops
from anemos.workstation.secrets.trove import Source


def of(name: str) -> Source:
    """The source of the secrets of the host NAME. Raises Failure for its host.toml."""
    settings = hosts.secret_settings(name)
    match settings.source:
        case "age":
            return Age(places.SECRETS, settings.identity_file)
        case "sops":
            return Sops(places.SECRETS)
        case "pass":
            return PasswordStore(settings.prefix)
        case _:
            return Gpg(Keyring(None), places.SECRETS)
