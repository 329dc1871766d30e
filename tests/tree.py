"""A copy of the project with hosts of its own, and its tasks, each in a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anemos.workstation import places
from tests.fork import Imported, imported

DEMO_S = 3000.0
ROOT = Path(__file__).parents[1]
CODE = ["anemos", "tasks.py", "invoke.yaml"]
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"
TOML = f'address = "127.0.0.1"\nport = 1\nhost_key = "{HOST_KEY}"\n'
IMGBUILD = """\
target=debian
format=disk
bootloader=grub
packages='grub-pc linux-image-amd64'
layout='
disk system serial=SYSTEM table=msdos
part root fs=ext4 mount=/
'
keep='
disk data serial=DATA part=1 mount=/home
'
"""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Tree:
    directory: Path
    home: Path
    memory: Path
    program: Imported

    def inv(
        self,
        *words: str,
        stdin: int = subprocess.DEVNULL,
        timeout: float = 120,
        cached: bool = False,
        **variables: str,
    ) -> Done:
        """Run `inv WORDS`. Whatever becomes of it, nobody sees a traceback.

        CACHED: with base images, package layers and the mirror of the developer.
        """
        given = environment(self.home) | (shared() if cached else {}) | variables
        done = self.program.run(words, given, stdin, timeout)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def demo(self, host: str) -> Done:
        """Run `inv demo` for HOST."""
        done = self.inv("demo", "--host", host, "--json", timeout=DEMO_S, cached=True)
        consoles = self.home.glob(f".local/state/anemos/*/{host}/vm/console.log")
        said = "".join(console.read_text(errors="replace")[-3000:] for console in consoles)
        assert done.status == 0, done.err + said
        return done

    def host(self, name: str, toml: str = TOML, imgbuild: str = IMGBUILD) -> Path:
        """Make hosts/NAME, instead of what was there."""
        directory = self.directory / "hosts" / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "host.toml").write_text(toml)
        (directory / "IMGBUILD").write_text(imgbuild)
        keys = directory / "files/root/.ssh/authorized_keys"
        keys.parent.mkdir(parents=True)
        keys.write_text(f"{HOST_KEY} operator\n")
        return directory

    def files(self) -> dict[str, bytes]:
        """Everything that a task could have changed; gpg's, Python's, locks, reports aside."""
        places = (self.directory, self.home, self.memory)
        found = [file for place in places for file in place.rglob("*") if file.is_file()]
        return {
            os.fspath(file): file.read_bytes()
            for file in found
            if not {"__pycache__", ".gnupg", ".locks", "reports"} & set(file.parts)
        }


def environment(home: Path) -> dict[str, str]:
    return {"HOME": os.fspath(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def shared() -> dict[str, str]:
    """Variables for base images, package layers and the mirror of the developer."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return {"XDG_CACHE_HOME": os.fspath(places.cache().parent), "XDG_CONFIG_HOME": config}


@contextmanager
def copied(directory: Path) -> Iterator[Tree]:
    """A Tree in the empty DIRECTORY, without any host."""
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name)  # __pycache__, too: it saves time
        else:
            shutil.copy(ROOT / name, directory)
    (directory / "hosts").mkdir()
    # Not below DIRECTORY: the path of gpg-agent's socket in it must be shorter than 108 bytes.
    home = Path(tempfile.mkdtemp(prefix="anemos-home-", dir="/tmp"))
    memory = where("memory('x').parent", directory, home)
    try:
        with imported(directory, environment(home)) as program:
            yield Tree(directory, home, memory, program)
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment(home), check=True)
        shutil.rmtree(home, ignore_errors=True)  # its gpg-agent removes sockets meanwhile
        shutil.rmtree(memory, ignore_errors=True)  # `inv clean` was there before


def where(place: str, directory: Path, home: Path) -> Path:
    """What the copy's anemos.workstation.places says."""
    program = f"from anemos.workstation import places; print(places.{place})"
    argv = [sys.executable, "-c", program]
    said = subprocess.check_output(argv, cwd=directory, env=environment(home), text=True)
    return Path(said.strip())
