"""The command line: invoke's. Words that it does not understand end with status 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from anemos.log import BAD_INPUT

CLOSED = 128 + 13  # SIGPIPE
HINT = "./inv --list tells the tasks, ./inv --help TASK its options"


class Inv(Program):
    """invoke ends with 1, which means here that something was started and failed."""

    def print_help(self) -> None:
        """invoke leaves the tasks out, as it has not loaded them yet."""
        super().print_help()
        self.load_collection()
        self.scoped_collection = self.collection
        self.list_root, self.list_depth, self.list_format = None, None, "flat"
        self.list_tasks()

    def parse_core(self, argv: list[str] | None) -> None:
        with bad_input():
            super().parse_core(argv)

    def parse_tasks(self) -> None:
        with bad_input():
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        with bad_input():
            super().parse_cleanup()


@contextmanager
def bad_input() -> Iterator[None]:
    try:
        yield
    except ParseError as error:
        raise Exit(f"error: {error}\n  ({HINT})", code=BAD_INPUT) from None


def main() -> None:
    """Whoever reads our output may end early, as head(1) does: no traceback, a shell's status.

    A task that failed keeps its own status: that tells where the server is.
    """
    status: int | str | None = 0
    try:
        Inv(name="inv", binary="inv", version=version("invoke")).run()
    except BrokenPipeError:
        status = CLOSED
    except SystemExit as end:
        status = end.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or CLOSED
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
    sys.exit(status)


if __name__ == "__main__":
    main()
