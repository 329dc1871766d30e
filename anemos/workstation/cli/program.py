"""The command line: invoke's. Words that it does not understand end with status 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

import anemos
from anemos.log import BAD_INPUT
from anemos.workstation.cli import command, completion

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

    def list_flat(self) -> None:
        """By purpose; what --list NAME and --list-depth ask for, as invoke does."""
        if self.list_root or self.list_depth:
            return super().list_flat()
        told = dict(self._make_pairs(self.scoped_collection))
        for purpose, names in command.purposes(told).items():
            print(f"{purpose}:\n")
            self.print_columns([(name, told[name]) for name in names])

    def print_version(self) -> None:
        print("anemos", anemos.__version__)

    def parse_core(self, argv: list[str] | None) -> None:
        with bad_input():
            super().parse_core(argv)

    def parse_core_args(self) -> None:
        super().parse_core_args()
        if shell := self.args["print-completion-script"].value:
            print(completion.script(shell))
            raise Exit

    def parse_tasks(self) -> None:
        with bad_input():
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        if self.args.complete.value:
            if found := completion.hosts(self.core.remainder):
                print(*found, sep="\n")
                raise Exit
            if completion.FRESH.search(self.core.remainder):
                self.core.remainder += "--"
        with bad_input():
            super().parse_cleanup()


@contextmanager
def bad_input() -> Iterator[None]:
    try:
        yield
    except ParseError as error:
        with suppress(OSError):
            command.show({"error": str(error), "status": BAD_INPUT}, "--json" in sys.argv)
        raise Exit(f"error: {error}\n  ({HINT})", code=BAD_INPUT) from None


def main() -> None:
    """Whoever reads our output may end early, as head(1) does: no traceback, a shell's status.

    A task that failed keeps its own status: that tells where the server is.
    """
    open_streams()
    status: int | str | None = 0
    try:
        Inv(name="inv", binary="inv").run()
    except OSError:  # the tasks' own are failures
        status = CLOSED
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # before a task has begun
        status = 130
    if not flushed(sys.stdout):
        status = status or CLOSED
    flushed(sys.stderr)
    sys.exit(status)


def flushed(stream: TextIO) -> bool:
    """Python flushes once more at its end, and would end with a status of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def open_streams() -> None:
    """A standard stream that is closed becomes /dev/null: the next file that is opened, a secret
    perhaps, would get its number, and what is written there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115, PTH123


if __name__ == "__main__":
    main()
