"""Completion of ./inv, by a real bash that sources what is documented."""

import json
import subprocess
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT
from anemos.run import CommandFailed
from anemos.workstation.cli import completion
from tests.tree import ROOT, Tree
from tests.workstation.cli.test_inv import calls, inv, put_tree

pytestmark = pytest.mark.real("run")

# As bash calls it at a Tab behind the last word; `=` is a word of its own there (bash(1)).
TAB = """
eval "$(cat)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
set -- ${!#}
_inv ./inv "${1-}"
printf '%s\\n' "${COMPREPLY[@]}"
complete -p inv
"""


def completed(*words: str) -> list[str]:
    argv = ["bash", "--norc", "-c", TAB, "bash", "./inv", *words]
    script = completion.script("bash")
    done = subprocess.run(argv, cwd=ROOT, input=script, capture_output=True, text=True, check=True)
    *found, bound = done.stdout.splitlines()
    assert (bound, done.stderr) == ("complete -o default -F _inv inv", "")
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reve"], ["reveal-secrets"]),
        (["secrets.r"], ["secrets.rekey"]),
        (["plan", "--b"], ["--build-on"]),
        (["history", ""], ["--host", "--json"]),
        (["plan", "--host", "d"], ["demo", "demo-arm64"]),
        (["plan", "--whole", "--host", ""], ["demo", "demo-arm64", "mx", "www"]),
        (["plan", "--host", "=", "w"], ["www"]),
        (["plan", "--host", "="], ["demo", "demo-arm64", "mx", "www"]),
        (["history", "--host", "mx", ""], ["--host", "--json"]),
        (["plan", "--build-on", ""], [""]),
        (["plan", "--host", "'m"], ["mx"]),
        (["plan", "'m"], [""]),
        (["plan", "nope", "--x"], [""]),
    ],
    ids=str,
)
def test_bash(words: list[str], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_script_is_printed(module_tree: Tree) -> None:
    for shell, text in completion.SCRIPTS.items():
        assert module_tree.inv("--print-completion-script", shell).out == f"{text}\n"
    done = module_tree.inv("--print-completion-script", "tcsh", "--json")
    assert (done.status, json.loads(done.out)["status"]) == (BAD_INPUT, BAD_INPUT)
    assert "tcsh: one of bash, zsh" in done.err


def test_nothing_is_written(module_tree: Tree) -> None:
    module_tree.host("web")
    before = module_tree.files()
    assert module_tree.inv("--complete", "--", "plan", "--host", "").out == "web\n"
    assert module_tree.files() == before


def test_nothing_is_installed(tmp_path: Path) -> None:
    tree = put_tree(tmp_path / "fresh")
    with pytest.raises(CommandFailed):
        inv(tree, "--complete", "--", "plan")
    assert not (tree / ".venv").exists()
    with pytest.raises(FileNotFoundError):
        calls(tree, "")
