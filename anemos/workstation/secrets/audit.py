"""What can be told about secrets, and what is wrong with them. Nothing is changed."""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from anemos import log
from anemos.log import Failure, die
from anemos.system import imgbuild, template, tree
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import Result, hosts, places, report
from anemos.workstation.secrets import sources, trove
from anemos.workstation.secrets.trove import Source
from anemos.workstation.secrets.vault import Vault, is_gpg

Seen = tuple[str, list[str], str, str]  # name, recipients, signature, problem of an Entry
BESIDE = ("README.md", "recipients", ".sops.yaml")  # the hosts' directories
OK, UNKNOWN, BAD, NONE = "ok", "unknown", "bad", "none"


@dataclass(frozen=True)
class Entry:
    """A secret. RECIPIENTS: as Keyring.recipients tells them; PROBLEM: why SIGNATURE is BAD.

    SIGNATURE is UNKNOWN when no key is here that decrypts the secret, NONE where SOURCE has none. A
    file is always used, a value when a template names it, neither when there is no such host.
    DECLARED: by the IMGBUILD.
    """

    host: str
    name: str
    kind: str  # "file" or "value"
    used: bool
    declared: bool
    source: str
    recipients: list[str]
    signature: str
    problem: str


def show(vault: Vault, only: str = "") -> Result:
    """List the secrets of all hosts, or of one."""
    found = [each for of in holders(vault, only) for each in entries(vault, of)]
    columns = ("host", "name", "kind", "encrypted to", "signature", "used", "declared")
    report.table({each: each == "name" for each in columns}, map(row, found))
    for line in [each.problem for each in found if each.problem]:
        log.tell(line)
    for of in holders(vault, only):
        for line in lacking(of, [each.name for each in found if each.host == of]):
            log.tell(line)
    return {"secrets": [asdict(each) for each in found]}


def row(entry: Entry) -> tuple[str, ...]:
    used, declared = ("yes" if is_so else "no" for is_so in (entry.used, entry.declared))
    whom = "\n".join(entry.recipients) or f"({entry.source})"
    return entry.host, entry.name, entry.kind, whom, entry.signature, used, declared


def check(vault: Vault, only: str = "") -> Result:
    """Raises Failure (status 2) with all that is wrong with the secrets of all hosts, or of one."""
    wrong = [] if only else list(strangers(vault.root))
    found: list[Entry] = []
    for of in holders(vault, only):
        try:
            found += entries(vault, of)
            wrong += lacking(of, [each.name for each in found if each.host == of])
        except Failure as failure:  # of the tree, not of a secret
            wrong.append(failure.message)
    signed = any(each.source == "gpg" for each in found)
    recipients = sorted(set(vault.recipients())) if signed else []
    wrong += [problem for each in found for problem in problems(each, recipients)]
    wrong += stale(vault, [each for each in found if each.recipients == recipients != []])
    if wrong:
        die("secrets are not as they should be:\n" + "\n".join(f"  - {each}" for each in wrong))
    return conclude(found)


def stale(vault: Vault, found: list[Entry]) -> Iterator[str]:
    """Which of FOUND, all of them to the recipients, are to other subkeys than gpg takes today."""
    try:
        wanted = vault.keyring.chosen(vault.recipients()) if found else []
    except Failure as failure:  # expired: nothing new can be encrypted, what is there is still good
        log.info(failure.message)
        return
    for each in found:
        path = vault.root / each.host / f"{each.name}.gpg"
        if vault.keyring.key_ids(path.read_bytes(), str(path)) != wanted:
            yield f"{each.host}/{each.name} is encrypted to an old subkey: ./inv secrets.rekey"


def conclude(found: list[Entry]) -> Result:
    unknown = [f"{each.host}/{each.name}" for each in found if each.signature == UNKNOWN]
    unused = [f"{each.host}/{each.name}" for each in found if not each.used]
    log.info(f"{len(found)} secrets, {len(found) - len(unknown)} of them decrypted and verified")
    for each in unknown:
        log.info(f"{each}: none of its keys is here; its signature was not verified")
    for each in unused:
        log.info(f"{each}: not used: no template names it, or there is no such host")
    return {"checked": len(found), "unknown": unknown, "unused": unused}


def lacking(of: str, there: Collection[str]) -> list[str]:
    """What the host OF declares and lacks, unless it is a VM, which makes it for itself."""
    spec = description(of)
    if spec is None or hosts.is_local(of):
        return []
    return list(filter(None, [trove.lacking(spec, there)]))


def description(of: str) -> Imgbuild | None:
    """The IMGBUILD of the host OF, where there is one."""
    directory = places.HOSTS / of
    return imgbuild.load(directory) if (directory / "IMGBUILD").is_file() else None


def holders(vault: Vault, only: str) -> list[str]:
    """The hosts that may have secrets, in any source; or the one."""
    if only:
        hosts.find(only)
        return [only]
    others = [each.name for each in places.HOSTS.glob("*/") if not is_gpg(each.name)]
    return sorted({*vault.hosts(), *others})


def strangers(root: Path) -> Iterator[str]:
    """What lies beside the hosts' directories, and is neither `recipients`, Git's nor sops's."""
    for path in sorted(root.iterdir() if root.is_dir() else ()):
        directory = path.is_dir() and not path.name.startswith(".")
        known = path.name in BESIDE or path.name.endswith(".sops.json")
        if not directory and not known and not path.name.startswith(".git"):
            yield f"{path} is no secret of any host"


def problems(entry: Entry, recipients: list[str]) -> Iterator[str]:
    if entry.problem:
        yield entry.problem
    if entry.source == "gpg" and entry.recipients and entry.recipients != recipients:
        missing = sorted(set(recipients) - set(entry.recipients))
        beyond = sorted(set(entry.recipients) - set(recipients))
        where = f"{entry.host}/{entry.name}"
        yield from (f"{where} is not encrypted to {each}" for each in missing)
        yield from (f"{where} is encrypted to {each}, which is not a recipient" for each in beyond)


def entries(vault: Vault, of: str) -> Iterator[Entry]:
    """Yield the secrets of a host. Raises Failure for what trove.walk refuses."""
    values, exists = named_by_templates(of), (places.HOSTS / of).is_dir()
    source = hosts.secret_settings(of).source if exists else "gpg"
    spec = description(of)
    declared = {name for each in (spec.secrets if spec else ()) for name in each.names}
    seen = signed(vault, of) if source == "gpg" else opened(sources.of(of), of)
    for name, recipients, signature, problem in seen:
        kind = "file" if "/" in name else "value"
        used = exists if kind == "file" else name in values
        known = name in declared
        yield Entry(of, name, kind, used, known, source, recipients, signature, problem)


def signed(vault: Vault, of: str) -> Iterator[Seen]:
    """All that lies where GPG's files are, the wrong ones, too."""
    for path in trove.walk(vault.root / of):
        name = path.relative_to(vault.root / of).as_posix().removesuffix(".gpg")
        yield name, *inspect(vault, path, of)


def inspect(vault: Vault, path: Path, of: str) -> tuple[list[str], str, str]:
    """The recipients, the signature and the problem of an Entry."""
    recipients: list[str] = []
    try:
        name = trove.name_of(path, vault.root / of)
        recipients = vault.keyring.recipients(path.read_bytes(), str(path))
        if not vault.keyring.holds(recipients):
            return recipients, UNKNOWN, ""
        trove.clear(vault, of, name)
    except Failure as failure:
        return recipients, BAD, failure.message
    return recipients, OK, ""


def opened(source: Source, of: str) -> Iterator[Seen]:
    """The secrets of a source that tells neither recipients nor signatures."""
    for name in source.names(of):
        problem = ""
        try:
            trove.clear(source, of, name)
        except Failure as failure:
            problem = failure.message
        yield name, [], NONE, problem


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
