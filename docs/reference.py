"""Writes the pages that say what the code says: `.venv/bin/python -m docs.reference`.

tests/test_docs.py holds them equal.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from anemos.workstation.cli import command
from anemos.workstation.hosts import Settings
from tasks import HELP, ns

HERE = Path(__file__).parent
MADE = "<!-- made by `.venv/bin/python -m docs.reference` -->\n"
# Their status says how far the machine is (3, 4).
FOLLOWING = "demo test deploy verify kexec watch commit status rescue resume abort rollback go"
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
    return "--" + name.rstrip("_").replace("_", "-")


def columns(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def flags(name: str) -> list[str]:
    return [each.name for each in ns[name].get_arguments() if each.name not in COMMON]


def status(name: str) -> str:
    return "pytest's" if name == "check" else "0 to 4" if name in FOLLOWING.split() else "0 to 2"


def chapter(purpose: str, names: Sequence[str]) -> Iterator[str]:
    yield f"\n## {purpose}\n\n"
    yield columns("task", "what it does", "flags", "status")
    yield columns("---", "---", "---", "---")
    for name in names:
        own = " ".join(f"`{flag(each)}`" for each in flags(name))
        yield columns(f"`{name}`", ns[name].__doc__, own, status(name))


def tasks() -> str:
    """docs/tasks.md."""
    purposes = command.purposes(ns.task_names)
    used = sorted({each for names in purposes.values() for name in names for each in flags(name)})
    words = [columns(f"`{flag(each)}`", {**command.HELP, **HELP}[each]) for each in used]
    chapters = [line for purpose, names in purposes.items() for line in chapter(purpose, names)]
    table = ["\n## Flags\n\n", columns("flag", "meaning"), columns("---", "---"), *words]
    return "".join([TASKS, "\n", MADE, *chapters, *table])


HOST_TOML = """\
# host.toml

`hosts/NAME/host.toml` says what is no part of the image: how the server is reached, and how it is
deployed. All fields are optional, except `address` and `host_key` for a deployment.

```toml
address = "192.0.2.10"
host_key = "ssh-ed25519 AAAA..." # written by ./inv adopt
identity = "~/.ssh/id_ed25519"

[timeouts]
up = 1200
```

Editors complete and check the file with [host.schema.json](host.schema.json): a line
`#:schema ../../docs/host.schema.json` at its top is enough for those that use Taplo.

## A user with sudo

Images for clouds let no root in, but a user like `debian`, who has sudo:

```toml
user = "debian"

[after]
user = "root" # the new system's; without it: debian
```

- sudo has to let that user run all commands, without a terminal. doas does not do.
- If sudo asks for a password, the task asks you, once, on its terminal. The password stays in the
  task's memory, and goes to sudo's standard input. A script without a terminal needs `NOPASSWD`
  in the server's sudoers.
- What is sent goes to root's commands only. The user can read none of it. `plan` refuses a sudo
  that writes down what commands read (`log_input`).
- Into the initramfs root logs in, by the keys that the old system lists for the user and for
  root.
- In the new system, the user needs the package `sudo`, a line in sudoers, and a key that it can
  read. `plan` looks for key and package.
- `./inv rescue` runs `sudo -i` there. `./inv test` logs in to its VM as root.

## Jump hosts, and another place

```toml
proxy_jump = "alice@bastion.example.org:2222"

[after]
address = "198.51.100.7"
port = 22
```

- ssh(1) leads over the jump hosts. It goes by your `~/.ssh/config` and your keys there. Their keys
  have to be in your `known_hosts` already: `ssh alice@bastion.example.org` once.
- The server is checked by its pinned key, with jump hosts as well.
- `ssh_config = "mx"` takes address, port, user, identity and jump hosts from that entry of your
  `~/.ssh/config`. What host.toml has counts more. Nothing else there is used for the server.
- All tasks look for the server at both places, as one key is pinned for both. The initramfs has the
  old system's address and port.
- What a host's own tests connect to themselves has to be reachable without jump hosts.
"""
Schema = Mapping[str, Any]


def value(field: Schema) -> str:
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if field["type"] == "boolean":
        return "`true`, `false`"
    if field["type"] == "array":
        return f"list: {value(field['items'])}"
    if field["type"] == "integer":
        return f"1 to {field['maximum']}" if "maximum" in field else "1 or more"
    return "text"


def table(title: str, schema: Schema) -> Iterator[str]:
    """A chapter of host-toml.md: the fields that are no tables themselves."""
    yield f"\n{title}\n\n"
    yield columns("name", "value", "default", "meaning")
    yield columns("---", "---", "---", "---")
    for name, field in schema["properties"].items():
        if "$ref" not in field:
            default = f"`{field['default']}`".lower() if field.get("default") else ""
            meaning = field["description"].replace("\n", " ")
            yield columns(f"`{name}`", value(field), default, meaning)


def schema() -> dict[str, Any]:
    return TypeAdapter(Settings).json_schema()


def host_toml() -> str:
    """docs/host-toml.md."""
    whole = schema()
    chapters = [*table("## The host", whole)]
    for name, field in whole["properties"].items():
        if "$ref" in field:
            part = whole["$defs"][field["$ref"].rpartition("/")[2]]
            chapters += table(f"## [{name}]\n\n{field['description']}", part)
    return "".join([HOST_TOML, "\n", MADE, *chapters])


PAGES: dict[str, Callable[[], str]] = {
    "tasks.md": tasks,
    "host-toml.md": host_toml,
    "host.schema.json": lambda: json.dumps(schema(), indent=2) + "\n",
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
