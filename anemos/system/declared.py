"""Reads an IMGBUILD's `secrets`: which ones a host needs, one a line. docs/imgbuild.md explains it.

    PASSWORD                 password
    etc/ssl/private/mx.key   tls subject=mx.example.org also=mail.example.org,192.0.2.25
    API_TOKEN                ask the token of the DNS provider

What they are is never said here: only what they are called, and how the workstation makes them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from anemos.system import template

# The options of each kind. `ask` has words for a person in their place.
KINDS: dict[str, tuple[str, ...]] = {
    "password": (),
    "password-hash": ("users", "prefix"),
    "ssh-host-key": (),
    "tls": ("subject", "also"),
    "dkim": ("subject",),
    "ask": (),
}
DKIM_MARK = "._domainkey."
SUBJECT = re.compile(r"[A-Za-z0-9._:*-]{1,64}")


@dataclass(frozen=True)
class Declared:
    """A line of `secrets`. NAME: a path on the target, without leading slash; or a value's."""

    name: str
    kind: str
    options: Mapping[str, str] = field(default_factory=dict)
    what: str = ""  # the words for the person who is asked
    line: int = 0  # in the IMGBUILD; 0 when only the shell knows it

    @property
    def names(self) -> tuple[str, ...]:
        """All secrets that come of it."""
        return (self.name, certificate(self.name)) if self.kind == "tls" else (self.name,)

    def listed(self, option: str) -> list[str]:
        """The parts of an option that has several, with commas between them."""
        return list(filter(None, self.options.get(option, "").split(",")))


def parse(value: str, text: str = "") -> tuple[Declared, ...]:
    """What the variable's VALUE declares; TEXT: the IMGBUILD, for the numbers of lines.

    Raises ValueError with the line that cannot be used.
    """
    found: list[Declared] = []
    for number, statement in statements(value, text):
        try:
            found.append(one(statement.split(), number))
            refuse_conflict(found)
        except ValueError as error:
            where = f"line {number}: " if number else ""
            raise ValueError(f"{where}secrets: {statement!r}: {error}") from None
    return tuple(found)


def statements(value: str, text: str) -> Iterator[tuple[int, str]]:
    """The lines of VALUE that are not empty, each with its number in TEXT; 0: not found there."""
    lines = [line.strip() for line in text.split("\n")]
    at = next((n for n, line in enumerate(lines) if line.startswith("secrets=")), len(lines))
    bare = [line.removeprefix("secrets=").strip("'\" ") for line in lines]
    for statement in filter(None, map(str.strip, value.splitlines())):
        here = bare.index(statement, at) if statement in bare[at:] else -1
        at = max(at, here + 1)
        yield here + 1, statement


def one(words: list[str], line: int) -> Declared:
    name, kind, *rest = [*words, ""] if len(words) == 1 else words
    check_name(name)
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of secret\n  (one of: {', '.join(KINDS)})")
    if kind == "ask":
        return Declared(name, kind, {}, " ".join(rest), line)
    declared = Declared(name, kind, options(kind, rest), "", line)
    check(declared)
    return declared


def options(kind: str, words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for key, sign, value in pairs:
        if key not in KINDS[kind]:
            known = ", ".join(KINDS[kind]) or "none"
            raise ValueError(f"{kind} has no option {key!r}\n  (known: {known})")
        if not (sign and value):
            raise ValueError(f"{key} has no value")
    if len({key for key, _, _ in pairs}) != len(pairs):
        raise ValueError("an option stands there twice")
    return {key: value for key, _, value in pairs}


def check(declared: Declared) -> None:
    kind, subject = declared.kind, declared.options.get("subject", "")
    if kind in ("tls", "ssh-host-key", "dkim") and "/" not in declared.name:
        raise ValueError(f"{kind} is a file: its name is a path on the target")
    if kind == "tls" or (kind == "dkim" and (subject or not record(declared.name))):
        for each in [subject, *declared.listed("also")]:
            check_subject(each)


def check_subject(name: str) -> None:
    if not SUBJECT.fullmatch(name):
        raise ValueError(f"subject {name!r} is no name\n  (a DNS name or an IP address)")


def record(name: str) -> str:
    """The DKIM record that the file NAME of a key is called after; "" when it is not."""
    leaf = PurePosixPath(name).name.removesuffix(".key")
    return leaf if DKIM_MARK in leaf and SUBJECT.fullmatch(leaf) else ""


def certificate(key: str) -> str:
    """Where the certificate of KEY lies: etc/ssl/private/mx.key has etc/ssl/mx.crt."""
    path = PurePosixPath(key)
    directory = path.parent.parent if path.parent.name == "private" else path.parent
    return (directory / f"{path.stem}.crt").as_posix()


def check_name(name: str) -> None:
    """Raises ValueError unless NAME is one for a secret: a path on the target, or a value's."""
    if "/" in name:
        check_path(name)
    elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name for a value")
    elif name in template.PUBLIC:
        raise ValueError(f"{name!r} is a value that every template has already")


def check_path(name: str) -> None:
    pure = PurePosixPath(name)
    if "/" not in name or pure.as_posix() != name or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{name!r} is no path on the target")


def refuse_conflict(found: list[Declared]) -> None:
    """The last of FOUND has no name of another one, and no path above or below another's."""
    before = [name for each in found[:-1] for name in each.names]
    for name in map(PurePosixPath, found[-1].names):
        for other in map(PurePosixPath, before):
            if name.is_relative_to(other) or other.is_relative_to(name):
                raise ValueError(f"{name} and {other} cannot both be there")
