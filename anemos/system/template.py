"""Templates: `{{ NAME }}` stands for the value called NAME. Nothing else is special."""

import re
from collections.abc import Mapping

SUFFIX = ".makeimg.template"
PLACEHOLDER = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")


# Values that are no secret. All others are, as far as we know.
PUBLIC = ("deployment", "host", "operator_key")


def mode(text: str, mode: int) -> int:
    """The mode of what the template TEXT with MODE becomes: everybody reads no secret in it."""
    return mode if set(PLACEHOLDER.findall(text)) <= set(PUBLIC) else mode & ~0o007


def render(text: str, values: Mapping[str, str]) -> str:
    """TEXT with its placeholders replaced. Raises ValueError: "line 3: undefined name 'x'"."""
    lines = enumerate(text.split("\n"), 1)  # splitlines() has more line ends than editors have
    return "\n".join(_render_line(number, line, values) for number, line in lines)


def _render_line(number: int, line: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"line {number}: undefined name {match[1]!r}")
        return values[match[1]]

    return PLACEHOLDER.sub(value, line)
