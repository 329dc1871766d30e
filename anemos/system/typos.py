"""Finds what is not meant in an IMGBUILD: names that are almost known ones, characters that look
like others or like nothing."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

CLOSE = 0.8  # difflib's measure: one slip in a short name, two in a long one
# What others call it. A variable of that name counts only where the one that is meant is not set.
ALIASES = {
    "debian_suite": ("codename", "debian_release", "debian_version", "release", "suite", "version")
}
QUOTES_AND_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2212"
UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of Unicode: controls, formats, blanks
PATTERNS = {
    "variable": re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z]\w*)=", re.MULTILINE | re.ASCII),
    "function": re.compile(r"^[ \t]*([A-Za-z]\w*)[ \t]*\(\)", re.MULTILINE | re.ASCII),
}


@dataclass(frozen=True)
class Typo:
    kind: str  # a key of PATTERNS
    name: str
    line: int
    meant: str


def suspects(text: str, kind: str, known: Sequence[str]) -> list[Typo]:
    """Where TEXT seems to define something that is close to a KNOWN name and none itself.

    A guess, as only the shell knows what TEXT defines: ask it about these names. A name that
    begins with _ is never suspected.
    """
    found = []
    for match in PATTERNS[kind].finditer(text):
        name = match[1]
        meant = get_close_matches(name.lower(), known, 1, CLOSE)
        meant += [each for each in known if name in ALIASES.get(each, ())]
        if meant and name not in known:
            found.append(Typo(kind, name, text.count("\n", 0, match.start(1)) + 1, meant[0]))
    return found


def odd(text: str) -> str:
    """The first character of TEXT that nobody means: invisible, or another one's double; or ""."""
    for each in text:
        if each in QUOTES_AND_DASHES or (each > "~" and unicodedata.category(each) in UNSEEN):
            return each
    return ""


def described(character: str) -> str:
    return f"{unicodedata.name(character, 'character').lower()} (U+{ord(character):04X})"
