"""Pins the key of a machine that is new to us: the one place where an unpinned server is met."""

from pathlib import Path

from anemos import files, log
from anemos.log import die
from anemos.workstation import Result, hosts, report, ssh

COMPARE = (
    "It has to be the same at the server's console:"
    " ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
)


def adopt(name: str, fingerprint: str) -> Result:
    """Write the key that the host NAME presents into its host.toml, once a person agrees.

    FINGERPRINT ("SHA256:...") agrees in a script, if it is the one presented. Raises Failure.
    """
    given = hosts.load(name, server=False)
    file = f"hosts/{name}/host.toml"
    if not given.address:
        die(f"{file}: which machine? it has no address")
    where = ssh.Endpoint(given.address, given.port, "", None, jumps=hosts.jumps(given.proxy_jump))
    presented, shown = meet(name, where, fingerprint)
    if given.host_key:
        compare(file, given.host_key, shown)
    else:
        agree(name, shown, fingerprint)
        pin(hosts.find(name) / "host.toml", presented)
        log.info(f"{file}: pinned")
    return {"host": name, "host_key": presented, "fingerprint": shown}


def meet(name: str, where: ssh.Endpoint, fingerprint: str) -> tuple[str, str]:
    """The key that WHERE presents, and its fingerprint. Raises Failure unless that is FINGERPRINT,
    if there is one."""
    presented = ssh.presented_key(where)
    shown = ssh.fingerprint(presented)
    log.info(f"{where.address} presents {presented.split()[0]} {shown}")
    if fingerprint not in ("", shown):
        die(f"{name} presents {shown}, not {fingerprint}")
    return presented, shown


def agree(name: str, shown: str, fingerprint: str) -> None:
    """Have a person compare what is SHOWN, unless FINGERPRINT did. Raises Failure."""
    if not fingerprint:
        report.typed(name, COMPARE, f"--fingerprint {shown}")


def compare(where: str, pinned: str, shown: str) -> None:
    if ssh.fingerprint(pinned) != shown:
        hint = "another machine, or one installed anew: remove host_key there to adopt it"
        die(f"{where} pins another key: {ssh.fingerprint(pinned)}", hint=hint)
    log.info(f"{where} pins this key already")


def pin(file: Path, key: str) -> None:
    """Put host_key first in FILE: before any table (TOML 1.0)."""
    files.replace(file, f'host_key = "{key}"\n{file.read_text()}')
