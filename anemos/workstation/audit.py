"""What can be told about secrets, and what is wrong with them. Nothing is changed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anemos import log
from anemos.image import template, tree
from anemos.log import Failure, die
from anemos.workstation import places, secrets
from anemos.workstation.vault import Vault

OK, UNKNOWN, BAD = "ok", "unknown", "bad"


@dataclass(frozen=True)
class Entry:
    """A secret. RECIPIENTS: as Keyring.recipients tells them; PROBLEM: why SIGNATURE is BAD.

    SIGNATURE is UNKNOWN when no key is here that decrypts the secret. A file is always used, a
    value when a template names it, neither when there is no such host.
    """

    host: str
    name: str
    kind: str  # "file" or "value"
    used: bool
    recipients: list[str]
    signature: str
    problem: str


def show(vault: Vault, only: str = "") -> dict[str, Any]:
    """List the secrets of all hosts, or of one, on standard error."""
    found = [each for of in vault.hosts(only) for each in entries(vault, of)]
    table = Table("host", "name", "kind", "encrypted to", "signature", "used")
    for each in found:
        used = "yes" if each.used else "no"
        whom = "\n".join(each.recipients)
        table.add_row(each.host, each.name, each.kind, whom, each.signature, used)
    # No markup: names may have brackets.
    Console(stderr=True, highlight=False, markup=False).print(table)
    for each in found:
        if each.problem:
            log.info(each.problem)
    return {"secrets": [asdict(each) for each in found]}


def check(vault: Vault, only: str = "") -> dict[str, Any]:
    """Raises Failure (status 2) with all that is wrong with the secrets of all hosts, or of one."""
    if not vault.root.is_dir():
        return {"checked": 0, "unknown": []}
    recipients = sorted(set(vault.recipients()))
    wrong = [] if only else list(strangers(vault.root))
    found: list[Entry] = []
    for of in vault.hosts(only):
        try:
            found += entries(vault, of)
        except Failure as failure:  # of the tree, not of a secret
            wrong.append(failure.message)
    wrong += [problem for each in found for problem in problems(each, recipients)]
    if wrong:
        die("secrets are not as they should be:\n" + "\n".join(f"  - {each}" for each in wrong))
    return conclude(found)


def conclude(found: list[Entry]) -> dict[str, Any]:
    unknown = [f"{each.host}/{each.name}" for each in found if each.signature == UNKNOWN]
    log.info(f"{len(found)} secrets, {len(found) - len(unknown)} of them decrypted and verified")
    for each in unknown:
        log.info(f"{each}: none of its keys is here; its signature was not verified")
    return {"checked": len(found), "unknown": unknown}


def strangers(root: Path) -> Iterator[str]:
    """What lies beside the hosts' directories, and is neither `recipients` nor Git's."""
    for path in sorted(root.iterdir()):
        directory = path.is_dir() and not path.name.startswith(".")
        if not directory and path.name != "recipients" and not path.name.startswith(".git"):
            yield f"{path} is no secret of any host"


def problems(entry: Entry, recipients: list[str]) -> Iterator[str]:
    if entry.problem:
        yield entry.problem
    if entry.recipients and entry.recipients != recipients:
        missing = sorted(set(recipients) - set(entry.recipients))
        beyond = sorted(set(entry.recipients) - set(recipients))
        where = f"{entry.host}/{entry.name}"
        yield from (f"{where} is not encrypted to {each}" for each in missing)
        yield from (f"{where} is encrypted to {each}, which is not a recipient" for each in beyond)


def entries(vault: Vault, of: str) -> Iterator[Entry]:
    """Yield the secrets of a host. Raises Failure for what secrets.walk refuses."""
    values, exists = named_by_templates(of), (places.HOSTS / of).is_dir()
    for path in secrets.walk(vault.root / of):
        name = path.relative_to(vault.root / of).as_posix().removesuffix(".gpg")
        kind = "file" if "/" in name else "value"
        used = exists if kind == "file" else name in values
        yield Entry(of, name, kind, used, *inspect(vault, path, of))


def inspect(vault: Vault, path: Path, of: str) -> tuple[list[str], str, str]:
    """The recipients, the signature and the problem of an Entry."""
    recipients: list[str] = []
    try:
        name = secrets.name_of(path, vault.root / of)
        data = path.read_bytes()
        recipients = vault.keyring.recipients(data, str(path))
        if not vault.keyring.holds(recipients):
            return recipients, UNKNOWN, ""
        clear = vault.keyring.decrypt(data, str(path), vault.recipients())
        if "/" not in name:
            secrets.require_text(path, clear)
    except Failure as failure:
        return recipients, BAD, failure.message
    return recipients, OK, ""


def named_by_templates(of: str) -> set[str]:
    """The values that the templates of the host OF name."""
    names: set[str] = set()
    for path, file in tree.inputs(places.HOSTS / of / "files"):
        if path.endswith(template.SUFFIX):
            try:
                names.update(template.PLACEHOLDER.findall(file.read_text(errors="replace")))
            except OSError as error:
                die(f"{file}: {error.strerror}")
    return names
