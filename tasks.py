"""The workflow, one task a step: `./inv TASK --host NAME`.

Every task may be run alone; `deploy` runs them all. With --json one JSON document goes to standard
output. Exit statuses: 0 done; 1 failed, the server runs the old system; 2 bad input or unmet
precondition; 3 failed after the point of no return; 4 deployed, but verification failed.
"""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from anemos import log
from anemos.log import Failure

HELP = {
    "host": "directory below hosts/",
    "json": "print the result as one JSON document",
    "yes": "the host's name, as confirmation",
    "deployment": "deployment id, instead of a new one",
    "stop": "end the VM",
    "expression": "only the tests that match (pytest -k)",
}
Body = Callable[..., Any]


def command(body: Body) -> Any:
    """A task. Its result is printed when --json asks for it, its Failure as one message.

    Every parameter has a default and no short flag: invoke takes `--help` for the value of a
    parameter without default, and would run the task.
    """

    @functools.wraps(body)
    def run(c: Context, **options: Any) -> None:
        try:
            show(body(c, **options), options["json"])
        except Failure as failure:
            log.to_stderr(f"error: {failure}")
            show({"error": failure.message, "status": failure.status}, options["json"])
            raise

    names = set(inspect.signature(body).parameters)
    return task(run, auto_shortflags=False, help={k: v for k, v in HELP.items() if k in names})


def show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))


def workstation(module: str) -> Any:
    """A module of anemos.workstation, imported when it is needed: `inv --list` stays quick."""
    return import_module(f"anemos.workstation.{module}")


def load(host: str) -> Any:
    return workstation("host").load(host)


@command
def plan(c: Context, host: str = "", json: bool = False) -> Any:
    """Tell what deploying HOST would do, and everything that stands in its way."""
    return workstation("phases").make_plan(load(host))


@command
def reveal_secrets(c: Context, host: str = "", json: bool = False) -> Any:
    """Decrypt the secrets of HOST, into memory only."""
    return workstation("phases").reveal(load(host))


@command
def pack(c: Context, host: str = "", deployment: str = "", json: bool = False) -> Any:
    """Make the payload of HOST; base image and package layer, unless they are cached."""
    return workstation("phases").pack(load(host), deployment)


@command
def upload(c: Context, host: str = "", json: bool = False) -> Any:
    """Send the payload, and what else the server lacks, into its memory."""
    return workstation("phases").upload(load(host))


@command
def build_initramfs(c: Context, host: str = "", json: bool = False) -> Any:
    """Put the initramfs together on the server."""
    return workstation("phases").build_initramfs(load(host))


@command
def kexec(c: Context, host: str = "", yes: str = "", json: bool = False) -> Any:
    """Jump into the initramfs, which ERASES the system disks and installs HOST."""
    return workstation("deployment").kexec(load(host), yes)


@command
def watch(c: Context, host: str = "", json: bool = False) -> Any:
    """Follow the installation of HOST to its end."""
    return workstation("watch").watch(load(host))


@command
def verify(c: Context, host: str = "", json: bool = False) -> Any:
    """Prove that HOST runs what was deployed."""
    return workstation("verify").verify(load(host))


@command
def deploy(c: Context, host: str = "", yes: str = "", json: bool = False) -> Any:
    """Replace the running system of HOST by what hosts/HOST describes: all phases."""
    return workstation("deployment").deploy(load(host), yes)


@command
def demo(c: Context, host: str = "demo", stop: bool = False, json: bool = False) -> Any:
    """Deploy HOST to a stock server in a local VM, and prove it."""
    return (
        workstation("deployment").stop(load(host))
        if stop
        else workstation("deployment").demo(load(host))
    )


@task(auto_shortflags=False, help={"expression": HELP["expression"]})
def check(c: Context, expression: str = "") -> None:
    """Run the project's own tests."""
    only = ["-k", expression] if expression else []
    # One worker for the VM, which takes its time, one for all the rest.
    parallel = ["-n", "2", "--dist", "loadfile"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *parallel, *only])
