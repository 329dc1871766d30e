"""The command line: invoke's, but that words which it does not understand end with status 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from anemos.log import BAD_INPUT

HINT = "./inv --list tells the tasks, ./inv --help TASK its options"


class Inv(Program):
    """invoke ends with 1, which means here that something was started and failed."""

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


if __name__ == "__main__":
    Inv(name="inv", binary="inv", version=version("invoke")).run()
