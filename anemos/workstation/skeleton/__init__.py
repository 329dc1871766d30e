"""Beginnings: a repository of one's own, and a host in it. What they have at first lies here."""

import ipaddress
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from anemos import log
from anemos.log import die
from anemos.run import run
from anemos.workstation import Result, places

HERE = Path(__file__).parent
PIN = "anemos.pin"
NAME = r"[a-z0-9]([a-z0-9-]{,61}[a-z0-9])?"  # hostname(7), in small letters


@dataclass(frozen=True)
class Network:
    """Of a new host. Unless it is said: addresses for documentation, which lead nowhere."""

    address: str
    gateway: str
    dns: str

    def words(self) -> dict[str, str]:
        """What stands for each word in the files. Raises Failure."""
        try:
            address = ipaddress.IPv4Interface(self.address or "192.0.2.10/24")
            gateway = ipaddress.IPv4Address(self.gateway or "192.0.2.1")
            dns = ipaddress.ip_address(self.dns or "192.0.2.3")
        except ValueError as error:
            die(
                f"network: {error}",
                hint="--address 192.0.2.10/24 --gateway 192.0.2.1 --dns 192.0.2.3",
            )
        words = {"ip": address.ip, "address": address, "gateway": gateway, "dns": dns}
        return {name: str(word) for name, word in words.items()}


def repository(directory: str) -> Result:
    """Make a git repository in DIRECTORY that uses the Anemos that runs here. Raises Failure."""
    top, pinned = places.given(directory).resolve(), pin()
    if top.exists():
        die(f"{top} is there already")
    shutil.copytree(HERE / "repository", top, ignore=shutil.ignore_patterns("__pycache__"))
    (top / "gitignore").rename(top / ".gitignore")
    (top / PIN).write_text(f"{pinned}\n")
    run(["git", "init", "--quiet", top])
    log.info(f"{top} is a repository of your own; there: ./inv new --host NAME")
    return {"repository": os.fspath(top), "anemos": pinned}


def pin() -> str:
    """The commit of Anemos that runs here, and where git finds it."""
    if (places.ROOT / PIN).is_file():
        return (places.ROOT / PIN).read_text().strip()
    clone = places.PACKAGE.parent
    git: list[str | Path] = ["git", "-C", clone]
    commit = run([*git, "rev-parse", "HEAD"]).strip()
    # What nobody has pushed is in the clone alone.
    pushed = run([*git, "branch", "--remotes", "--list", "origin/*", "--contains", commit])
    url = run([*git, "remote", "get-url", "origin"]).strip() if pushed else clone
    return f"{commit} {url}"


def host(name: str, network: Network) -> Result:
    """Begin hosts/NAME: a small Debian, which one may log in to. Raises Failure."""
    directory, words = place(name), {"name": name, **network.words()}
    shutil.copytree(HERE / "host", directory)
    for file in (each for each in directory.rglob("*") if each.is_file()):
        file.write_text(re.sub("@([a-z]+)@", lambda found: words[found[1]], file.read_text()))
    log.info(
        f"hosts/{name}: change packages, layout and the network, then ./inv test --host {name}"
    )
    return {"host": name, "directory": os.fspath(directory)}


def place(name: str) -> Path:
    """Where the host NAME is to begin. Raises Failure when one is there."""
    if not re.fullmatch(NAME, name):
        die(f"{name!r} is no name for a host: small letters, digits and -")
    if (places.HOSTS / name).exists():
        die(f"hosts/{name} is there already")
    return places.HOSTS / name
