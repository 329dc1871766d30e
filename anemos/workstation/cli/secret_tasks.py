"""The tasks `secrets.*`: a developer's daily use of secrets. HOST is optional where all can do."""

from typing import TYPE_CHECKING

from invoke.collection import Collection
from invoke.context import Context

from anemos.workstation import Result
from anemos.workstation.cli.command import command

if TYPE_CHECKING:
    from anemos.workstation.secrets.vault import Vault


def own() -> "Vault":
    from anemos.workstation.secrets import vault

    return vault.own()


@command
def list_(c: Context, host: str = "", json: bool = False) -> Result:
    """List secrets: to whom they are encrypted, whether their signatures hold, who uses them."""
    from anemos.workstation.secrets import audit

    return audit.show(own(), host)


@command
def edit(c: Context, host: str = "", name: str = "", json: bool = False) -> Result:
    """Change a secret of HOST in $EDITOR, or begin a new one."""
    from anemos.workstation.secrets import vault

    return vault.edit(own(), host, name)


@command
def set_(c: Context, host: str = "", name: str = "", json: bool = False) -> Result:
    """Read a secret of HOST from standard input, or ask for it on a terminal."""
    from anemos.workstation.secrets import vault

    return vault.put(own(), host, name)


@command
def generate(
    c: Context,
    kind: str = "",
    host: str = "",
    name: str = "",
    subject: str = "",
    also: str = "",
    csr: bool = False,
    json: bool = False,
) -> Result:
    """Make what the IMGBUILD declares and HOST lacks, or one secret; print public halves."""
    from anemos.workstation.secrets import generate

    if kind or subject or also or csr:
        options = {"subject": subject, "also": also}
        result = generate.generate(own(), host, kind, name, options, csr)
    else:
        result = generate.complete(own(), host, name)
    if result["public"] and not json:
        print(result["public"].rstrip())
    generate.require_all(result)
    return result


@command
def rekey(c: Context, host: str = "", former: str = "", json: bool = False) -> Result:
    """Encrypt secrets anew after a change of secrets/recipients."""
    from anemos.workstation.secrets import vault

    return vault.rekey(own(), host, former)


@command
def check(c: Context, host: str = "", json: bool = False) -> Result:
    """See that all secrets are encrypted to the recipients, and signed by one. A Git hook."""
    from anemos.workstation.secrets import audit

    return audit.check(own(), host)


collection = Collection("secrets", list_, edit, set_, generate, rekey, check)
