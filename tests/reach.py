"""Where Anemos is proven: .venv/bin/python -m tests.reach >docs/reach.md

A test says it by `@pytest.mark.proves("VM", source="Debian 12", ...)`: the name of what many have
in common, and its own. What it leaves out, it does not prove. All is read from the syntax trees.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.tree import ROOT

# What users have. A value that no test names is not proven.
AXES = {
    "source": (
        "Debian 13",
        "Debian 12",
        "Ubuntu 24.04",
        "Arch",
        "Alpine",
        "no systemd",
        "started by hand",
    ),
    "target": ("Debian 13", "Debian 12", "Arch", "Alpine"),
    "firmware": ("BIOS", "UEFI", "UEFI with Secure Boot"),
    "disk": ("virtio", "SATA", "SCSI", "NVMe", "4Kn", "RAID", "LVM", "LUKS"),
    "network": (
        "DHCP",
        "static IPv4",
        "static IPv6",
        "IPv6 only",
        "on-link gateway",
        "bond",
        "VLAN",
    ),
    "arch": ("amd64", "arm64"),
    "login": ("root", "sudo", "through a jump host"),
    "workstation": ("Debian 13", "Debian 12", "Ubuntu 24.04"),
}
# The usual machine of tests.
VM = {
    "firmware": "BIOS",
    "disk": "virtio",
    "network": "static IPv4",
    "arch": "amd64",
    "login": "root",
}
COMMON = {"VM": VM}
HEAD = """# Where Anemos is proven

Each line names the tests that prove it. `--all`: only `./inv check --all` runs this one.
`test_network`, `test_jump` and `test_sudo` prove it without a deployment: in network namespaces,
and with a real sshd.
The tests' own markers make this page: `.venv/bin/python -m tests.reach >docs/reach.md`.
"""


@dataclass(frozen=True)
class Proof:
    """TEST: file and function. COVERS: axis -> values."""

    test: str
    long: bool
    covers: dict[str, tuple[str, ...]]

    def has(self, **wanted: str) -> bool:
        return all(value in self.covers.get(axis, ()) for axis, value in wanted.items())

    def __str__(self) -> str:
        return f"`{self.test}`{', --all' if self.long else ''}"


def proofs() -> list[Proof]:
    return [each for file in sorted(Path(ROOT, "tests").rglob("test_*.py")) for each in read(file)]


def read(file: Path) -> Iterator[Proof]:
    """What the tests in FILE prove: a mark each. Raises ValueError for what AXES lacks."""
    tree = ast.parse(file.read_text())
    whole = any(
        "mark.all" in ast.unparse(each)
        for each in tree.body
        if isinstance(each, ast.Assign | ast.AugAssign)
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        marks = [(ast.unparse(each), each) for each in node.decorator_list]
        long = whole or ("pytest.mark.all" in dict(marks))
        name = f"{file.stem}::{node.name}"
        for text, mark in marks:
            if isinstance(mark, ast.Call) and text.startswith("pytest.mark.proves("):
                yield Proof(name, long, dict(covered(name, mark)))


def covered(name: str, mark: ast.Call) -> Iterator[tuple[str, tuple[str, ...]]]:
    common = [COMMON[ast.literal_eval(each)] for each in mark.args]
    own = {word.arg or "": ast.literal_eval(word.value) for word in mark.keywords}
    for axis, value in {k: v for each in (*common, own) for k, v in each.items()}.items():
        values = (value,) if isinstance(value, str) else tuple(value)
        if unknown := set(values) - set(AXES.get(axis, ())):
            raise ValueError(f"{name}: {axis}: {unknown}")
        yield axis, values


def page(known: list[Proof]) -> str:
    lines = [HEAD, "## From one system to the other\n", "| from | to | |", "|---|---|---|"]
    for source, target in product(AXES["source"], AXES["target"]):
        lines.append(f"| {source} | {target} | {told(known, source=source, target=target)} |")
    lines += ["\n## All else\n", "| | | |", "|---|---|---|"]
    for axis in list(AXES)[2:]:
        lines += [f"| {axis} | {each} | {told(known, **{axis: each})} |" for each in AXES[axis]]
    lines += [
        "\n## What each test has\n",
        f"| test | {' | '.join(AXES)} |",
        "|---" * (len(AXES) + 1) + "|",
    ]
    for each in known:
        cells = [", ".join(each.covers.get(axis, ())) for axis in AXES]
        lines.append(f"| {each} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def told(known: list[Proof], **wanted: str) -> str:
    found = dict.fromkeys(str(each) for each in known if each.has(**wanted))
    return "; ".join(found) or "not proven"


if __name__ == "__main__":
    print(page(proofs()), end="")
