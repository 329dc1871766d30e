"""The git repository that hosts and secrets lie in."""

from pathlib import Path

from anemos import log
from anemos.border.deployment import Revision
from anemos.log import Failure
from anemos.run import run

GIT_S = 60.0


def revision(directory: Path) -> Revision:
    """Where the tree that DIRECTORY lies in is; unknown if no commit has this directory.

    Changes are those anywhere in the repository: files that are new, too, unless git ignores them.
    """
    try:
        found = git(directory, "rev-parse", "HEAD", "HEAD:./").split()[0]
        changes = git(directory, "status", "--porcelain", "--untracked-files=normal", "--", ":/")
        return Revision(found, bool(changes))
    except Failure as failure:
        log.info(f"The commit of {directory} is unknown: {failure.message}")
        return Revision()


def git(directory: Path, *words: str) -> str:
    # Root may work in a user's tree, whose tasks.py runs already (git-config(1), safe.directory).
    there = ["git", "--no-optional-locks", "-c", "safe.directory=*"]
    return run([*there, *words], cwd=directory, timeout=GIT_S)
