"""Who may log in to the new system: told before the jump, not found out after it.

As far as the definition tells. It has to be root, or a user with sudo: Anemos verifies the new
system as root, and deploys it again as root.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from anemos.server import logins
from anemos.system import template, tree
from anemos.system.definition import PATCH
from anemos.system.imgbuild import Imgbuild
from anemos.workstation.hosts import ROOT

CONFIG = "etc/ssh/sshd_config"
# With one of these, keys come from elsewhere.
ELSEWHERE = ("authorizedkeyscommand", "trustedusercakeys")

# What is put into the image, by path; None: what it holds is not known here.
Files = Mapping[str, Path | None]


def problem(spec: Imgbuild, secrets: Iterable[str], user: str = ROOT) -> str:
    """Why USER could not log in to the new system over SSH, or not be root there; "" when nothing
    tells that.

    SECRETS: the names of the host's. Nothing of them is read.
    """
    # sshd reads the list as the user, and secrets are root's alone.
    files = defined(spec, secrets if user == ROOT else ())
    said = settings(files, user)
    if spec.login:
        return ""
    if user != ROOT and "sudo" not in spec.packages:
        return f"{user} could not be root in the new system: sudo is not among `packages`"
    if any(said.get(each, ["none"]) != ["none"] for each in ELSEWHERE):
        return ""
    places = lists(said, user)
    if any(opens(each, files, spec) for each in places):
        return ""
    inputs = "neither files/ nor the secrets have" if user == ROOT else "files/ does not have"
    return (
        f"nobody could log in to the new system as {user}: {inputs} a key"
        f" in /{places[0] if places else 'any file'}; if provision() puts one there, say so in the"
        " IMGBUILD: login='provision() writes it'"
    )


def where(spec: Imgbuild, secrets: Iterable[str]) -> str:
    """The file that one more key of root belongs to, without leading slash."""
    files = defined(spec, secrets)
    places = lists(settings(files, ROOT)) or lists({})
    return next((each for each in places if opens(each, files, spec)), places[0])


def lists(said: Mapping[str, list[str]], user: str = ROOT) -> list[str]:
    """Where USER's keys are listed, by what `settings` SAID; without leading slash."""
    words = said.get("authorizedkeysfile", logins.ALLOWED.split())
    home = "/root" if user == ROOT else f"/home/{user}"
    return [path.lstrip("/") for path in logins.expanded(words, home, user)]


def defined(spec: Imgbuild, secrets: Iterable[str]) -> Files:
    found: dict[str, Path | None] = {}
    for path, file in tree.inputs(spec.directory / "files"):
        found[path.removesuffix(template.SUFFIX)] = None if file.is_symlink() else file
    return found | dict.fromkeys([*secrets, *spec.server_secrets])


def opens(path: str, files: Files, spec: Imgbuild) -> bool:
    """Whether PATH lists a key, or nothing here tells what it will be."""
    pure = PurePosixPath(path)
    if any(pure.is_relative_to(kept.mount.lstrip("/")) for kept in spec.kept if kept.mount):
        return True
    if any(files.get(each, ...) is None for each in map(str, (pure, *pure.parents))):
        return True  # a secret, or behind a symbolic link
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines(files, path))


def lines(files: Files, path: str) -> list[str]:
    file = files.get(path)
    return file.read_text(errors="replace").splitlines() if file else []


def settings(files: Files, user: str) -> dict[str, list[str]]:
    """What the definition's sshd_config(5) says of USER: keyword in lower case -> words.

    The first one counts; one below a Match for USER before all others.
    """
    parts = sorted(path for path in files if re.fullmatch(rf"{CONFIG}\.d/[^/]*\.conf", path))
    general: dict[str, list[str]] = {}
    special: dict[str, list[str]] = {}
    for path in [*parts, CONFIG, CONFIG + PATCH]:
        into: dict[str, list[str]] = general
        for keyword, words in statements(lines(files, path), patched=path.endswith(PATCH)):
            if keyword == "match":
                into = special if meant(words, user) else {}
            else:
                into.setdefault(keyword, words)
    return general | special


def statements(text: Iterable[str], *, patched: bool) -> Iterator[tuple[str, list[str]]]:
    for line in text:
        if patched and (line[:1] not in (" ", "+") or line.startswith("+++")):
            continue
        words = re.split(r"[\s=]+", (line[1:] if patched else line).strip(), maxsplit=1)
        if words[0] and not words[0].startswith("#"):
            yield words[0].lower(), words[-1].replace('"', "").split()


def meant(criteria: list[str], user: str) -> bool:
    """Whether a Match may be for USER: `all`, or a User or Group that fits. A group of that name is
    the usual one."""
    pairs = dict(zip(map(str.lower, criteria[::2]), criteria[1::2], strict=False))
    patterns = [pairs[each] for each in ("user", "group") if each in pairs]
    fits = all(any(fnmatchcase(user, p) for p in each.split(",")) for each in patterns)
    return criteria == ["all"] or (bool(patterns) and fits)
