"""What your ssh_config(5) says of a server. ssh(1) reads it itself, with Include and Match.

What ssh(1) would do without a file does not count: host.toml has defaults of its own.
"""

from anemos.log import die
from anemos.run import run

YOURS: tuple[str, ...] = ()  # ssh(1)'s options
NONE = ("-F", "none")
# By their names in host.toml.
FIELDS = {"port": "port", "user": "user", "identity": "identityfile", "proxy_jump": "proxyjump"}


def entry(alias: str) -> dict[str, str | int]:
    """What host.toml would have for ALIAS. Raises Failure for what cannot be followed."""
    told, default = asked(alias, YOURS), asked(alias, NONE)
    found: dict[str, str | int] = {"address": told["hostname"]}
    found |= {k: told[v] for k, v in FIELDS.items() if v in told and told[v] != default.get(v)}
    if told.get("proxycommand", "none") != "none":
        die(f"ssh_config: {alias} has a ProxyCommand", hint="ProxyJump can be followed")
    if "%" in f"{found.get('identity')}":
        die(f"ssh_config: {alias}: IdentityFile {found['identity']}", hint="write identity, too")
    return found | ({"port": int(found["port"])} if "port" in found else {})


def asked(alias: str, options: tuple[str, ...]) -> dict[str, str]:
    """ssh(1)'s answer, by ssh_config's words in small letters; the first of several counts."""
    lines = run(["ssh", *options, "-G", alias]).splitlines()
    return dict(line.partition(" ")[::2] for line in reversed(lines))
