"""Finds what is not meant in an IMGBUILD: names that are almost known ones, characters that look
like others or like nothing."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

LONG = 8  # letters of a name in which two slips are forgiven, not one
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


def suspects(text: str, kind: str, known: Iterable[str]) -> list[Typo]:
    """Where TEXT seems to define something that is close to a KNOWN name and none itself.

    A guess, as only the shell knows what TEXT defines: ask it about these names. A name that
    begins with _ is never suspected.
    """
    found = []
    for match in PATTERNS[kind].finditer(text):
        name = match[1]
        meant = [each for each in known if close(name, each) or name in ALIASES.get(each, ())]
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


def close(name: str, known: str) -> bool:
    return distance(name.lower(), known) <= (2 if len(known) >= LONG else 1)


def distance(a: str, b: str) -> int:
    """Letters to insert, remove, replace or swap with the next (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            best = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y))
            if i > 1 and j > 1 and (x, a[i - 2]) == (b[j - 2], y):
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i].append(best)
    return rows[-1][-1]
