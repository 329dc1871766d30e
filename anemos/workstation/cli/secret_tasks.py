"""The tasks `secrets.*`: a developer's daily use of secrets. HOST is optional where all can do."""

from typing import Any

from invoke.collection import Collection
from invoke.context import Context

from anemos.workstation.cli.command import command, workstation


def own() -> Any:
    return workstation("secrets.vault").own()


@command
def list_(c: Context, host: str = "", json: bool = False) -> Any:
    """List secrets: to whom they are encrypted, whether their signatures hold, who uses them."""
    return workstation("secrets.audit").show(own(), host)


@command
def edit(c: Context, host: str = "", name: str = "", json: bool = False) -> Any:
    """Change a secret of HOST in $EDITOR, or begin a new one."""
    return workstation("secrets.vault").edit(own(), host, name)


@command
def set_(c: Context, host: str = "", name: str = "", json: bool = False) -> Any:
    """Read a secret of HOST from standard input, or ask for it on a terminal."""
    return workstation("secrets.vault").put(own(), host, name)


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
) -> Any:
    """Make what the IMGBUILD declares and HOST lacks, or one secret; print public halves."""
    module = workstation("secrets.generate")
    if kind or subject or also or csr:
        options = {"subject": subject, "also": also}
        result = module.generate(own(), host, kind, name, options, csr)
    else:
        result = module.complete(own(), host, name)
    if result["public"] and not json:
        print(result["public"].rstrip())
    module.require_all(result)
    return result


@command
def rekey(c: Context, host: str = "", former: str = "", json: bool = False) -> Any:
    """Encrypt secrets anew after a change of secrets/recipients."""
    return workstation("secrets.vault").rekey(own(), host, former)


@command
def check(c: Context, host: str = "", json: bool = False) -> Any:
    """See that all secrets are encrypted to the recipients, and signed by one. A Git hook."""
    return workstation("secrets.audit").check(own(), host)


collection = Collection("secrets", list_, edit, set_, generate, rekey, check)
