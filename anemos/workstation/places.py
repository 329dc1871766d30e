"""Directories on the workstation. Plaintext secrets are in `memory` alone."""

import hashlib
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

from anemos.log import FAILED, die

HERE = Path.cwd()
PACKAGE = Path(__file__).resolve().parents[1]
# The repository whose hosts and secrets are meant: where invoke, too, finds the tasks.
ROOT = next((each for each in (HERE, *HERE.parents) if (each / "tasks.py").is_file()), HERE)
HOSTS = ROOT / "hosts"
SECRETS = ROOT / "secrets"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (shm_overview(7): a tmpfs; checked before use)
# Two repositories on one machine do not share VMs, throw-away keys and memory.
REPOSITORY = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:8]


def given(path: str) -> Path:
    """PATH as the user means it: seen from where she typed it, before `inv` went to ROOT."""
    return Path(os.environ.get("ANEMOS_CALLER", HERE), path)


def cache() -> Path:
    """What can be made again: base images, package layers (XDG Base Directory Specification)."""
    return _private(_base("XDG_CACHE_HOME", ".cache") / "anemos")


def state(name: str) -> Path:
    """Throw-away keys and VM disks of the host or VM NAME."""
    return _private(_states() / name)


def memory(name: str) -> Path:
    """A directory of ours on a tmpfs, for the host NAME. Raises Failure when it is not ours."""
    top = _memories()
    with suppress(FileExistsError):
        top.mkdir(mode=0o700)
    seen = top.lstat()
    if not S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        die(f"{top}: belongs to somebody else, or others may read it", status=FAILED)
    return _private(top / name)


def who() -> str:
    """Whose deployments are made here, for others to see: a word for user, machine, repository."""
    user = os.environ.get("LOGNAME") or os.environ.get("USER") or "root"
    return re.sub(r"\s", "_", f"{user}@{os.uname().nodename}:{_memories().name}")


def _memories() -> Path:
    owner = hashlib.sha256(os.fsencode(_states())).hexdigest()[:8]
    return SHARED_MEMORY / f"anemos-{os.geteuid()}-{owner}"


def mirror() -> str:
    """The mirror for bootstraps that this workstation prefers: config.toml, `mirror = "URL"`."""
    file = _base("XDG_CONFIG_HOME", ".config") / "anemos/config.toml"
    if not file.is_file():
        return ""
    try:
        return str(tomllib.loads(file.read_text()).get("mirror", ""))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        die(f"{file}: {error}")


def _states() -> Path:
    return _base("XDG_STATE_HOME", ".local/state") / "anemos" / REPOSITORY


def _base(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)


def _private(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        die(f"{directory}: {error.strerror}", hint="HOME and XDG_*_HOME say where it lies")
    return directory
