"""Completion in shells: what they source, and hosts, which invoke does not complete."""

import re

from invoke.exceptions import ParseError

from anemos.workstation import places

BASH = """\
# Completes tasks, options and hosts behind inv, of any repository.
_inv() {
    local IFS=$'\\n' words=("${COMP_WORDS[@]:1:$COMP_CWORD}") found
    found=$("${1/#\\~/$HOME}" --complete -- "${words[@]}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${2#=}"))
}
complete -o default -F _inv inv"""
SCRIPTS = {
    "bash": BASH,
    "zsh": f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{BASH}",
}
# The last words of a command line. To bash, `=` is a word of its own.
HOST = re.compile(r"(?:^| )--host ?[= ] ?\S*$")
# A new word, and none of an option: one more option of the task.
FRESH = re.compile(r"(?:^| )[^-\s]\S* $")


def script(shell: str) -> str:
    """What SHELL sources. invoke's own scripts call a program in PATH. Raises ParseError."""
    if shell not in SCRIPTS:
        raise ParseError(f"--print-completion-script {shell}: one of {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def hosts(words: str) -> list[str]:
    """The hosts, if the command line WORDS ends where one is named."""
    found = places.HOSTS.glob("*/host.toml") if HOST.search(words) else ()
    return sorted(each.parent.name for each in found)
