"""Writes the pages that say what the code says: `.venv/bin/python -m docs.reference`.

tests/test_docs.py holds them equal.
"""

from collections.abc import Iterator
from pathlib import Path

from anemos.workstation.cli.command import HELP, PURPOSES
from tasks import ns

HERE = Path(__file__).parent
MADE = "<!-- made by `.venv/bin/python -m docs.reference` -->\n"
# Their status says how far the machine is (3, 4).
FOLLOWING = "demo test deploy verify kexec watch rescue resume abort go"
COMMON = ("host", "json")
TASKS = """\
# Tasks

`./inv TASK --host NAME` runs a task for the host in `hosts/NAME`. `./inv` lists all tasks, and
`./inv --help TASK` shows the flags of one. All except `check` have `--json`.

An exit status says what is known of the machine, and
[recovery.md](recovery.md#by-exit-status) what to do next. A signal ends every task with 129, 130
or 143.
"""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def columns(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def flags(name: str) -> list[str]:
    return [each.name for each in ns[name].get_arguments() if each.name not in COMMON]


def status(name: str) -> str:
    return "pytest's" if name == "check" else "0 to 4" if name in FOLLOWING.split() else "0 to 2"


def chapter(purpose: str) -> Iterator[str]:
    yield f"\n## {purpose}\n\n"
    yield columns("task", "what it does", "flags", "status")
    yield columns("---", "---", "---", "---")
    for name in PURPOSES[purpose].split():
        own = " ".join(f"`{flag(each)}`" for each in flags(name))
        yield columns(f"`{name}`", ns[name].__doc__, own, status(name))


def tasks() -> str:
    """docs/tasks.md."""
    names = " ".join(PURPOSES.values()).split()
    used = sorted({each for name in names for each in flags(name)})
    words = [columns(f"`{flag(each)}`", HELP[each]) for each in used]
    chapters = [line for purpose in PURPOSES for line in chapter(purpose)]
    table = ["\n## Flags\n\n", columns("flag", "meaning"), columns("---", "---"), *words]
    return "".join([TASKS, "\n", MADE, *chapters, *table])


PAGES = {"tasks.md": tasks}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
