"""The tasks, and one for Anemos itself. A repository of your own has such a file, too."""

import os
import sys

from invoke.context import Context
from invoke.tasks import task

from anemos.workstation.cli.tasks import ns

__all__ = ["HELP", "ns"]
HELP = {
    "all": "run the long tests, too",
    "expression": "run only the tests that match (pytest -k)",
}


@task(auto_shortflags=False, help=HELP)
def check(c: Context, expression: str = "", all: bool = False) -> None:
    """Run the project's own tests."""
    only = [*(["-k", expression] if expression else []), *(["--all"] if all else [])]
    # In the order of conftest.py: what takes its time comes first.
    order = ["--dist", "loadfile", "--no-loadscope-reorder"]
    options = ["-n", "2", *order, "--durations", "10"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *only])


ns.add_task(check)
