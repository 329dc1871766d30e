"""A bare Debian becomes a workstation: `./inv` installs what is missing, all tests without VMs run
in it as a whole, and `./inv demo` deploys from it."""

import json
import sys
from pathlib import Path

import pytest

from anemos.run import Argv, run
from anemos.workstation import places
from tests import imaging
from tests.tree import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run"), pytest.mark.all]

SUITES = {"bookworm": "3.11", "trixie": "3.13"}  # and their Python
BARE = """
target=debian
format=dir
packages='ca-certificates'
debian_suite={}
"""
# pip(1) has the packages from this machine's own, which knows where they are to be had.
VARIABLES = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin",
    "PIP_FIND_LINKS": "/wheels",
    "PIP_NO_INDEX": "1",
}
# In namespaces of its own, with / on a mount of its own. $1: the root, then what to run in it.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cd "$root"
pivot_root . mnt
umount --lazy /mnt
cd /root/anemos
exec "$@"
"""


@pytest.fixture(scope="module", params=SUITES)
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a Debian with a clone in it."""
    suite: str = request.param
    root = imaging.root(tmp_path_factory.mktemp("bare") / suite, BARE.format(suite))
    run(["git", "clone", "--quiet", ROOT, root / "root/anemos"])
    config = root / "root/.config/anemos/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'mirror = "{places.mirror()}"\n' if places.mirror() else "")
    fetch(SUITES[suite], root / "wheels")
    return root


def fetch(python: str, directory: Path) -> None:
    only: Argv = ["--only-binary=:all:", f"--python-version={python}", "--dest", directory]
    lock: Argv = ["--require-hashes", "--requirement", ROOT / "requirements.lock"]
    run([sys.executable, "-m", "pip", "download", "--quiet", *only, *lock], timeout=600)


def inside(root: Path, *argv: str) -> str:
    """Standard output of ARGV, run in the clone."""
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    given = [f"{name}={value}" for name, value in VARIABLES.items()]
    enter: Argv = [*own, "sh", "-c", ENTER, "sh", root, "env", "--ignore-environment"]
    return run([*enter, *given, *argv], timeout=7200)


def test_all_without_vms(bare: Path) -> None:
    assert "deploy" in inside(bare, "./inv", "--list")
    pytest_ = [".venv/bin/python", "-m", "pytest", "-m", "not vm", "-q", "-n", "2"]
    assert "passed" in inside(bare, *pytest_, "--dist", "loadfile", "tests")


@pytest.mark.proves(workstation=("Debian 13", "Debian 12"))
def test_demo(bare: Path) -> None:
    """The first deployment of a new user."""
    assert json.loads(inside(bare, "./inv", "demo", "--json"))["verified"]
