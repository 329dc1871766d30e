"""What every task has in common: its help, its result, the end that it takes."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from anemos import log
from anemos.run import no_core_dumps
from anemos.workstation import Result, scratch

DUMB = ("dumb", "unknown")  # terminals that cannot move their cursor
HELP = {
    "host": "directory below hosts/",
    "json": "print the result as one JSON document",
    "yes": "the host's name: confirms without asking",
    "plan": "the id of a plan that was looked at: go on only if nothing has changed since",
    "deployment": "use this deployment id instead of a new one",
    "stop": "end the VM",
    "arch": "architecture of the demo: amd64, or arm64",
    "fresh": "make the VM anew: the stock server again",
    "start": "only start the VM",
    "keep": "leave the VM running",
    "reuse": "install on the disks of the VM that --keep left, and leave it running",
    "redeploy": "deploy a second time, as to a server",
    "tests": "run the host's own tests, too, those that are marked safe",
    "open": "show it in a browser, too",
    "output": "directory for the files (build: images/; export needs a new one)",
    "plaintext_on_disk": "allow secrets in clear on a disk",
    "mac": "MAC address of the machine's network interface",
    "repo": "directory of the new repository",
    "address": "IP address of the machine, with the prefix: 192.0.2.5/24",
    "from_": "a Debian that runs, [USER@]ADDRESS[:PORT]: describe it; nothing there is changed",
    "identity": "file of your private SSH key for it",
    "gateway": "default gateway of the machine",
    "dns": "name server of the machine",
    "build_on": "where the package layer is made: auto, workstation, server or initramfs",
    "adopt": "go on even if the machine was deployed as another host",
    "whole": "erase the system disks even where a slot could be filled",
    "hold": "jump into the initramfs and touch nothing, until ./inv resume or ./inv abort",
    "repack": "send a new payload, made of hosts/ and secrets/ as they are now",
    "step": "begin with this step: partitions, package-layer, definition, boot-loader",
    "fingerprint": "the key's fingerprint that you expect (SHA256:...): agrees without asking",
    "name": "the secret's path on the target, or its NAME in templates",
    "format": "format of the image instead of the IMGBUILD's: 'raw 8G gpt'",
    "check": "build the image a second time, and compare",
    "kind": "password, ssh-host-key, tls or dkim",
    "subject": "name in the certificate, or DKIM's domain",
    "also": "more names in the certificate, with commas between them",
    "csr": "make a certificate signing request instead of a certificate",
    "exit_status": "end with the worst of the servers' statuses, for monitoring",
    "drift": "look for what somebody has changed on the servers, too",
    "list": "all servers and groups",
    "former": "fingerprint of a former recipient, whose signatures still count",
}
# Which task is for what: the order of `./inv --list` and docs/tasks.md.
PURPOSES = {
    "Begin, and try a host in a local VM": "new demo test build",
    "Deploy to a server": "adopt plan deploy status diff verify report history",
    "One phase at a time": "reveal-secrets pack upload build-initramfs fill kexec watch commit",
    "Many servers": "inventory",
    "When it goes wrong": "rescue resume abort rollback export go clean support",
    "A host's secrets": "secrets.generate secrets.edit secrets.set secrets.list secrets.check "
    "secrets.rekey",
}
OWN = "This repository's own"
Body = Callable[..., Any]


def purposes(names: Iterable[str]) -> dict[str, list[str]]:
    """The tasks called NAMES by purpose; a repository's tasks.py may add some."""
    found = {purpose: told.split() for purpose, told in PURPOSES.items()}
    own = set(names).difference(*found.values())
    return found | ({OWN: sorted(own)} if own else {})


def command(body: Body) -> Any:
    """A task. Its result is printed when --json asks for it. Every other end, a signal too, is one
    message.

    It is called like BODY, without the underscore that keeps `list_` apart from Python's own.
    Every parameter has a default and no short flag: invoke takes `--help` for the value of a
    parameter without default, and would run the task.
    """

    @functools.wraps(body)
    def run(c: Context, **options: Any) -> None:
        no_core_dumps()
        try:
            with scratch.ending(), watched(options["json"]), answering(options["json"]):
                result = body(c, **options)
        except BaseException as end:
            from anemos.workstation.deploy import outcome  # noqa: PLC0415 (it takes its time)

            failure = outcome.explained(end)
            log.to_stderr(f"error: {failure}")
            with suppress(OSError):  # nobody reads it: no reason for another status
                show({"error": failure.message, "status": failure.status}, options["json"])
            raise failure from None
        show(result, options["json"])
        if ended := result.get("exit_status"):
            raise SystemExit(ended)

    names = set(inspect.signature(body).parameters)
    words = {k: v for k, v in HELP.items() if k in names}
    return task(run, name=body.__name__.rstrip("_"), auto_shortflags=False, help=words)


def watched(as_json: bool) -> AbstractContextManager[None]:
    """Who sits at a terminal sees more than the log."""
    if as_json or not sys.stderr.isatty() or (os.environ.get("TERM") or "dumb") in DUMB:
        return nullcontext()
    from anemos.workstation import display  # noqa: PLC0415 (rich takes its time)

    return display.shown()


@contextmanager
def answering(as_json: bool) -> Iterator[None]:
    """Answers in words go to standard output, unless a JSON document does."""
    before = log.answers
    log.answers = before if as_json else log.to_stdout
    try:
        yield
    finally:
        log.answers = before


def show(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
