"""Where the secrets of a host are: `[secrets] source` in its host.toml chooses one of these."""

from anemos.workstation import host, places
from anemos.workstation.gpg import Keyring
from anemos.workstation.secrets import Source
from anemos.workstation.sources.age import Age
from anemos.workstation.sources.gpg import Gpg
from anemos.workstation.sources.password_store import PasswordStore
from anemos.workstation.sources.sops import Sops


def of(name: str) -> Source:
    """The source of the secrets of the host NAME. Raises Failure for its host.toml."""
    settings = host.secret_settings(name)
    match settings.source:
        case "age":
            return Age(places.SECRETS, settings.identity_file)
        case "sops":
            return Sops(places.SECRETS)
        case "pass":
            return PasswordStore(settings.prefix)
        case _:
            return Gpg(Keyring(None), places.SECRETS)
