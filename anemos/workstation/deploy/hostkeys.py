"""SSH host keys among the secrets: they replace the old system's, so one must be the pinned one.

Or nobody could prove who answers after the deployment.
"""

import re
from collections.abc import Iterable, Mapping

from anemos import keys
from anemos.log import Failure
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import throwaway


def among(names: Iterable[str]) -> list[str]:
    """Those of the secrets NAMES that are private host keys (sshd(8))."""
    return [name for name in names if re.fullmatch(r"etc/ssh/ssh_host_[^/]*_key", name)]


def problem(host: Host, own: Mapping[str, bytes]) -> str:
    """What is wrong with the private keys OWN, by name; "" when all is well."""
    public = [keys.public(key).split()[:2] for key in own.values()]
    if not own or host.host_key.split()[:2] in public:
        return ""
    return f"the pinned host key is none of those among the secrets: {', '.join(own)}"


def foresee(host: Host) -> str:
    """The same before anything is revealed, or why these secrets cannot be read."""
    try:
        source = throwaway.secrets_of(host)
        of = host.directory.name
        return problem(host, {name: source.reveal(of, name) for name in among(source.names(of))})
    except Failure as failure:
        return failure.message
