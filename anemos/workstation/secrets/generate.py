"""Makes secrets: only what is missing. In memory and through pipes, never in an argument list."""

import ipaddress
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Protocol

from anemos import keys, log
from anemos.log import die
from anemos.run import run
from anemos.system import declared, imgbuild
from anemos.system.declared import DKIM_MARK, Declared
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import Result, hosts, scratch
from anemos.workstation.secrets import vault
from anemos.workstation.secrets.vault import Vault

PASSWORD_BYTES = 32
CERTIFICATE_DAYS = 3650  # self-signed: nobody but its owner would notice that it has expired
SSH_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
ASKED = ("ask", "password-hash")  # kinds that a person knows

Answer = Callable[[str], bytes]


class Unanswered(Exception):
    """Nobody said it now."""


class Store(Protocol):
    """Where secrets are put: a Vault, or Clear."""

    def read(self, of: str, name: str) -> bytes | None:
        """The secret NAME of the host OF in clear; None when there is none."""

    def write(self, of: str, name: str, data: bytes) -> None: ...


@dataclass(frozen=True)
class Clear:
    """Throw-away secrets of one host in a DIRECTORY in memory, until they are encrypted."""

    directory: Path

    def read(self, _of: str, name: str) -> bytes | None:
        file = self.directory / name
        return file.read_bytes() if file.is_file() else None

    def write(self, _of: str, name: str, data: bytes) -> None:
        scratch.write_private(self.directory, name, data)


def chance(_question: str = "") -> bytes:
    return token_urlsafe(PASSWORD_BYTES).encode()


@dataclass
class Order:
    """The secret WANTED of HOST, and how a person is asked. MADE: what was missing, by name."""

    store: Store
    host: str
    wanted: Declared
    answer: Answer = chance
    csr: bool = False  # a certificate signing request instead of a certificate
    made: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.wanted.name

    def option(self, name: str) -> str:
        return self.wanted.options.get(name, "")

    def ensure(self, name: str, make: Callable[[], str]) -> bytes:
        """The secret NAME, made if it is missing."""
        found = self.store.read(self.host, name)
        if found is not None:
            return found
        data = make().encode()
        self.store.write(self.host, name, data)
        self.made.append(name)
        return data


def generate(
    store: Store, of: str, kind: str, name: str, options: Mapping[str, str], csr: bool = False
) -> Result:
    """Make a secret that nothing declares, if OF lacks it: as if the IMGBUILD had a line for it.

    `public` in the result is the half that others are to see, as text: for an SSH host key the line
    for host.toml, for TLS the certificate or the certificate signing request (PEM), for DKIM the
    TXT record (a line of a zone file).
    """
    kinds = [each for each in KINDS if each not in ASKED]
    if kind not in kinds:
        die(f"--kind {kind!r} cannot be generated", hint=f"one of: {', '.join(kinds)}")
    if csr and kind != "tls":
        die(f"--csr does not go with --kind {kind}")
    words = [f"{option}={value}" for option, value in options.items() if value]
    if not (name := name or usual_name(of, kind, options.get("subject", ""))):
        die("which secret? --name NAME; or --subject, which names it")
    try:
        order = Order(store, of, declared.one([name, kind, *words], 0), csr=csr)
    except ValueError as error:
        die(f"--kind {kind}: {error}")
    public = KINDS[kind](order)
    return {"host": of, "kind": kind, "made": order.made, "public": public}


def usual_name(of: str, kind: str, subject: str) -> str:
    """What a secret of the host OF is called when nobody says it, "" when nothing tells that."""
    names = {"ssh-host-key": SSH_HOST_KEY, "tls": f"etc/ssl/private/{of}.key"}
    if kind == "dkim" and subject:
        return f"etc/dkimkeys/{record(of, subject)}.key"
    return names.get(kind, "")


def complete(store: Vault, of: str, name: str = "") -> Result:
    """Make what the IMGBUILD of the host OF declares and its secrets lack; or NAME alone.

    `missing` in the result is what only a person knows, and did not say: a command for each.
    """
    spec = imgbuild.load(hosts.find(of))
    if hosts.is_local(of):
        die(f"{of} is a local VM: it makes its throw-away secrets for itself")
    wanted = [each for each in spec.secrets if not name or name in each.names]
    if name and not wanted:
        die(f"{spec.file} declares no secret {name}", hint="what is it? --kind, or secrets.set")
    if wanted:
        store.require_writable(of)
    asking = sys.stdin.isatty()
    made, public, missing = fill(store, of, wanted, vault.typed if asking else nobody)
    log.info(f"{of}: {len(wanted)} secrets are declared, {len(made)} of them new")
    return {"host": of, "made": made, "public": "\n".join(public), "missing": missing}


def fill(
    store: Store, of: str, wanted: Iterable[Declared], answer: Answer
) -> tuple[list[str], list[str], list[str]]:
    """Make those of WANTED that STORE lacks; first what needs nobody. (made, public, missing)"""
    made: list[str] = []
    public: list[str] = []
    missing: list[str] = []
    for each in sorted(wanted, key=lambda each: each.kind in ASKED):
        order = Order(store, of, each, answer)
        try:
            said = KINDS[each.kind](order)
        except Unanswered:
            missing.append(by_hand(of, each))
            continue
        made += order.made
        public += [said] if said and each.kind != "tls" else []
    return made, public, missing


def throwaway(spec: Imgbuild, directory: Path) -> None:
    """Make all declared secrets that DIRECTORY lacks, in clear; by chance what a person knows."""
    fill(Clear(directory), spec.directory.name, spec.secrets, chance)


def require_all(result: Result) -> None:
    """Die with what `complete` could not make, and what to type for it."""
    if result.get("missing"):
        lines = "".join(f"\n  {command}" for command in result["missing"])
        hint = "or run it on a terminal: it asks"
        die(f"{result['host']}: only you know these secrets:{lines}", hint=hint)


def by_hand(of: str, each: Declared) -> str:
    """How to say the secret EACH of the host OF without being asked."""
    what = each.what
    if each.kind == "password-hash":
        hashed = f"{each.options.get('prefix', '')}HASH; openssl passwd -6 makes a hash"
        users = ", ".join(each.listed("users"))
        what = f"a line USER:{hashed}; for {users}" if users else hashed
    return f"./inv secrets.set --host {of} --name {each.name} <FILE" + (
        f"  # {what}" if what else ""
    )


def nobody(_question: str) -> bytes:
    raise Unanswered


def answered(order: Order, question: str) -> str:
    """What a person says; nothing means: not now."""
    said = order.answer(question).decode()
    if not said:
        raise Unanswered
    return said


def ask(order: Order) -> str:
    what = order.wanted.what
    what = f"{order.name} ({what})" if what else order.name
    order.ensure(order.name, lambda: answered(order, what))
    return ""


def password(order: Order) -> str:
    order.ensure(order.name, lambda: token_urlsafe(PASSWORD_BYTES))
    return ""


def password_hash(order: Order) -> str:
    """crypt(5), SHA-512: of one password, or a line USER:HASH for each user."""

    def hashed(question: str) -> str:
        said = answered(order, question).encode()
        words = ["openssl", "passwd", "-6", "-stdin"]
        return order.option("prefix") + run(words, data=said).strip()

    def make() -> str:
        users = order.wanted.listed("users")
        if not users:
            return hashed(f"password for {order.name}")
        return "".join(f"{user}:{hashed(f'password of {user}')}\n" for user in users)

    order.ensure(order.name, make)
    return ""


def ssh_host_key(order: Order) -> str:
    key = order.ensure(order.name, lambda: new_ssh_key(order.host))
    return f'host_key = "{keys.public(key)}"'


def new_ssh_key(comment: str) -> str:
    with scratch.directory() as directory:  # ssh-keygen(1) writes to files only
        keys.make(directory / "key", comment)
        return (directory / "key").read_text()


def tls(order: Order) -> str:
    names = [order.option("subject"), *order.wanted.listed("also")]
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    key = order.ensure(order.name, lambda: run(["openssl", "genpkey", *curve]))
    if order.csr:
        return request(key, names)
    days = ["-x509", "-days", str(CERTIFICATE_DAYS)]
    certificate = declared.certificate(order.name)
    return order.ensure(certificate, lambda: request(key, names, *days)).decode()


def request(key: bytes, names: Sequence[str], *options: str) -> str:
    """openssl-req(1): a certificate signing request for NAMES, DNS names or IP addresses."""
    alternatives = ",".join(f"{kind_of(name)}:{name}" for name in names)
    words = ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"]
    return run(["openssl", "req", "-new", "-key", "/dev/stdin", *words, *options], data=key)


def kind_of(name: str) -> str:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return "IP"
    return "DNS"


def record(of: str, domain: str) -> str:
    """The name of a DKIM record (RFC 6376): the host OF is the selector, if DOMAIN has none."""
    return domain if DKIM_MARK in domain else f"{of}{DKIM_MARK}{domain}"


def dkim(order: Order) -> str:
    """Without a subject, the key's file is called after the record."""
    of = record(order.host, order.option("subject") or declared.record(order.name))
    # RFC 8301: RSA with 2048 bits. Ed25519 (RFC 8463) is not verified everywhere.
    size = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    key = order.ensure(order.name, lambda: run(["openssl", "genpkey", *size]))
    pem = run(["openssl", "rsa", "-pubout"], data=key)
    text = "v=DKIM1; k=rsa; p=" + "".join(pem.splitlines()[1:-1])
    # A string of a TXT record has 255 bytes at most (RFC 1035, 3.3).
    strings = [text[at : at + 255] for at in range(0, len(text), 255)]
    return f"{of}. IN TXT " + " ".join(f'"{string}"' for string in strings)


KINDS: dict[str, Callable[[Order], str]] = {
    "ask": ask,
    "password": password,
    "password-hash": password_hash,
    "ssh-host-key": ssh_host_key,
    "tls": tls,
    "dkim": dkim,
}
