"""Makes secrets: only what is missing. In memory and through pipes, never in an argument list."""

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from secrets import token_urlsafe
from typing import Any

from anemos.log import die
from anemos.run import run
from anemos.workstation import scratch
from anemos.workstation.vault import Vault

PASSWORD_BYTES = 32
CERTIFICATE_DAYS = 3650  # self-signed: nobody but its owner would notice that it has expired
SSH_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
DKIM_MARK = "._domainkey."


@dataclass
class Order:
    """What is to be made, for whom. MADE: the secrets that were missing, as they are made."""

    vault: Vault
    host: str
    name: str = ""
    subject: str = ""
    csr: bool = False
    made: list[str] = field(default_factory=list)

    def ensure(self, name: str, make: Callable[[], str]) -> bytes:
        """The secret NAME, made if it is missing."""
        found = self.vault.read(self.host, name)
        if found is not None:
            return found
        data = make().encode()
        self.vault.write(self.host, name, data)
        self.made.append(name)
        return data


def generate(kind: str, order: Order) -> dict[str, Any]:
    """Make what ORDER lacks. `public` in the result is the half that others are to see.

    That is, as text: for an SSH host key the line for host.toml, for TLS the certificate or the
    certificate signing request (PEM), for DKIM the TXT record (a line of a zone file).
    """
    if kind not in KINDS:
        die(f"--kind {kind!r} cannot be generated", hint=f"one of: {', '.join(KINDS)}")
    if order.csr and kind != "tls":
        die(f"--csr does not go with --kind {kind}")
    if order.subject and kind not in SUBJECTS:
        die(f"--subject does not go with --kind {kind}")
    if kind in SUBJECTS and not re.fullmatch(r"[A-Za-z0-9._:*-]{1,64}", order.subject):
        die(f"--subject {order.subject!r} is no name", hint=SUBJECTS[kind])
    public = KINDS[kind](order)
    return {"host": order.host, "kind": kind, "made": order.made, "public": public}


def password(order: Order) -> str:
    order.ensure(order.name, lambda: token_urlsafe(PASSWORD_BYTES))
    return ""


def ssh_host_key(order: Order) -> str:
    key = order.ensure(order.name or SSH_HOST_KEY, lambda: new_ssh_key(order.host))
    public = run(["ssh-keygen", "-y", "-P", "", "-f", "/dev/stdin"], data=key).strip()
    return f'host_key = "{public}"'


def new_ssh_key(comment: str) -> str:
    with scratch.directory() as directory:  # ssh-keygen(1) writes to files only
        file = directory / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file])
        return file.read_text()


def tls(order: Order) -> str:
    name = order.name or f"etc/ssl/private/{order.host}.key"
    if "/" not in name:
        die(f"--name {name!r} is no path on the target", hint="etc/ssl/private/mx.key")
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    key = order.ensure(name, lambda: run(["openssl", "genpkey", *curve]))
    if order.csr:
        return request(key, order.subject)
    days = ["-x509", "-days", str(CERTIFICATE_DAYS)]
    return order.ensure(certificate(name), lambda: request(key, order.subject, *days)).decode()


def certificate(key: str) -> str:
    """Where the certificate of KEY lies: etc/ssl/private/mx.key has etc/ssl/mx.crt."""
    path = PurePosixPath(key)
    directory = path.parent.parent if path.parent.name == "private" else path.parent
    return (directory / f"{path.stem}.crt").as_posix()


def request(key: bytes, subject: str, *options: str) -> str:
    """openssl-req(1): a certificate signing request for SUBJECT, a DNS name or an IP address."""
    kind = "DNS"
    with suppress(ValueError):
        ipaddress.ip_address(subject)
        kind = "IP"
    names = ["-subj", f"/CN={subject}", "-addext", f"subjectAltName={kind}:{subject}"]
    return run(["openssl", "req", "-new", "-key", "/dev/stdin", *names, *options], data=key)


def dkim(order: Order) -> str:
    """RFC 6376. SUBJECT: the domain, the host's name is the selector; or the record's full name."""
    record = order.subject
    if DKIM_MARK not in record:
        record = f"{order.host}{DKIM_MARK}{record}"
    # RFC 8301: RSA with 2048 bits. Ed25519 (RFC 8463) is not verified everywhere.
    size = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    name = order.name or f"etc/dkimkeys/{record}.key"
    key = order.ensure(name, lambda: run(["openssl", "genpkey", *size]))
    pem = run(["openssl", "rsa", "-pubout"], data=key)
    text = "v=DKIM1; k=rsa; p=" + "".join(pem.splitlines()[1:-1])
    # A string of a TXT record has 255 bytes at most (RFC 1035, 3.3).
    strings = [text[at : at + 255] for at in range(0, len(text), 255)]
    return f"{record}. IN TXT " + " ".join(f'"{string}"' for string in strings)


KINDS: dict[str, Callable[[Order], str]] = {
    "password": password,
    "ssh-host-key": ssh_host_key,
    "tls": tls,
    "dkim": dkim,
}
SUBJECTS = {
    "tls": "--subject mx.example.org, or an IP address",
    "dkim": "--subject example.org, or SELECTOR._domainkey.example.org",
}
