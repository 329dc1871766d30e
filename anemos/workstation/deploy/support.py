"""Writes one file for a bug report: what is known of a host, without its secrets.

The secrets are opened, to find them in what programs have printed; they do not leave this process.
"""

import json
import platform
import re
import sys
import time
from base64 import b64encode, encodebytes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import anemos
from anemos import files, log
from anemos.border import records
from anemos.log import FAILED, Failure
from anemos.workstation import Result, hosts, places, repository
from anemos.workstation.deploy import facts, history, reach, reports
from anemos.workstation.deploy.account import Account
from anemos.workstation.deploy.state import state_file
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import sources, throwaway, trove
from anemos.workstation.ssh import connect

Load = Callable[[str], Host]
PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY.*?(-----END [A-Z ]*-----|\Z)", re.DOTALL)


def support(load: Load, name: str) -> Result:
    """Write the file about the host NAME, even if files of it are broken; where it is."""
    directory = hosts.find(name)
    parts: dict[str, Callable[[], str]] = {
        "versions": lambda: versions(directory),
        "host.toml": lambda: files.text(directory / "host.toml"),
        "IMGBUILD": lambda: files.text(directory / "IMGBUILD"),
        "state.json": lambda: files.text(state_file(name)),
    }
    try:
        with log.step(f"Opening the secrets of {name}, to leave them out"):
            hidden = forms(secrets(name))
    except (Failure, OSError) as error:
        hidden = []
        log.info(f"Without logs and server, as the secrets cannot be opened: {error}")
        parts["left out"] = lambda: "logs, reports, history, server: secrets may be in them"
    else:
        parts |= {
            "history": lambda: files.text(history.file(name)),
            "report.json": lambda: files.text(places.state(name) / "report.json"),
            "the last report": lambda: last(name),
            "the server": lambda: server(load(name)),
        }
    file = places.state(name) / "support.txt"
    text = "".join(f"## {title}\n\n{told(make)}\n\n" for title, make in parts.items())
    files.replace(file, without(text, hidden), 0o600)
    log.info("Read it before you send it: addresses, users and serial numbers are in it")
    return {"host": name, "support": f"{file}"}


def told(make: Callable[[], str]) -> str:
    """What MAKE tells, or why it does not."""
    try:
        return make().strip() or "nothing"
    except (Failure, OSError, ValueError) as error:
        return f"not known: {error}"


def versions(directory: Path) -> str:
    """Of what runs here, and of the definition in DIRECTORY."""
    pin = files.text(places.ROOT / "anemos.pin").partition(" ")[0]  # its URL may hold a password
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    found = {
        "Anemos": f"{anemos.__version__}, commit {pin or repository.revision(places.PACKAGE)}",
        "definition": f"commit {repository.revision(directory)}",
        "Python": sys.version,
        "system": f"{release}, {files.text(Path('/etc/debian_version')).strip()}",
        "kernel": " ".join(platform.uname()[2:5]),
    }
    return "\n".join(f"{what}: {which}" for what, which in found.items())


def last(name: str) -> str:
    """The newest report of the host NAME, with its log."""
    found = sorted((places.state(name) / "reports").glob("*.json"))
    if not found:
        return ""
    account = records.parse(Account, found[-1].read_bytes())
    rest = {key: value for key, value in asdict(account).items() if key != "lines"}
    lines = [f"{time.strftime('%T', time.gmtime(at))} {text}" for at, text in account.lines]
    return "\n".join([json.dumps(rest, indent=1), "", *lines])


def server(host: Host) -> str:
    """What probe and facts say, word by word: what they mean may be the fault."""
    with connect(reach.endpoint(host), status=FAILED) as remote:

        def said(name: str) -> str:
            argv = ["sh", "-c", facts.probe(name), name, ""]
            return remote.sh(argv, timeout=facts.GATHER_S, shown=[name])

        return "\n".join(map(said, ("status.sh", "facts.sh")))


def secrets(name: str) -> list[bytes]:
    """All secrets of the host NAME, in clear. Raises Failure."""
    local = hosts.is_local(name)
    source = throwaway.source(name, name) if local else sources.of(name)
    return [trove.clear(source, name, each) for each in source.names(name)]


def forms(secrets: Iterable[bytes]) -> list[str]:
    """How SECRETS and their lines may stand in a text, the longest first."""
    parts = {part for each in secrets for part in (each, each.strip(), *each.splitlines())}
    found = {form.strip() for part in parts for form in encoded(part)}
    return sorted((each for each in found if len(each) >= reports.SECRET), key=len, reverse=True)


def encoded(secret: bytes) -> Iterator[str]:
    """SECRET as text, in JSON, hexadecimal and base64: lines as of base64(1), and groups of three
    bytes, which begin with any of the first three, as other bytes may stand before it."""
    text = log.printable(secret.decode(errors="ignore"))
    yield from (text, json.dumps(text)[1:-1], secret.hex(), secret.hex().upper())
    yield from encodebytes(secret).decode().split()
    for begun in (secret[skipped:] for skipped in range(3)):
        yield b64encode(begun[: len(begun) // 3 * 3]).decode()


def without(text: str, hidden: Iterable[str]) -> str:
    return PRIVATE.sub(reports.SAVED, reports.without(log.printable(text), hidden))
