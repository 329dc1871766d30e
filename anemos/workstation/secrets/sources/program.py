"""Programs of others that open secrets."""

import os

from anemos.log import Failure, die
from anemos.run import Argv, read

DEADLINE_S = 120.0  # a pinentry may ask a person


def ask(argv: Argv, what: str) -> bytes:
    """The standard output of ARGV, which opens WHAT. Raises Failure (status 2) that names WHAT.

    The program finds its keys as it does when the user calls it: it gets the user's environment.
    """
    try:
        return read(argv, f"{what}: {argv[0]}", env=os.environ, timeout=DEADLINE_S)
    except Failure as failure:
        die(failure.message)
