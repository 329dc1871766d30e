"""What the distributions share: calls with readable errors, trees that become a tar, digests."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.files import sha256
from anemos.log import BAD_INPUT, die
from anemos.run import Argv, CommandFailed, run

# What a program says -> what we say (a replacement as of re.sub), hint, exit status.
Explanation = tuple[str, str, str, int]

FETCHED = "var/lib/anemos/packages"  # in a root file system
NO_PACKAGE = "packages: {} has no package {}"
MIRROR = "is the mirror right, and the network up?"


def call(
    argv: Argv,
    where: Path,
    explanations: Sequence[Explanation],
    output: Path,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Run ARGV, its lines in the log; temporary files go beside OUTPUT.

    WHERE: the IMGBUILD, for messages. EXTRA: more of its environment.

    Raises Failure: what the first of EXPLANATIONS that fits says; else CommandFailed.
    """
    try:
        run(argv, env={**environment(output), **(extra or {})}, cwd=where.parent, log=log.info)
    except CommandFailed as failed:
        for pattern, message, hint, status in explanations:
            found = sorted({match.expand(message) for match in re.finditer(pattern, failed.output)})
            file = f"{where}: " if status == BAD_INPUT else ""
            if found:
                die("\n".join(f"{file}{each}" for each in found), hint=hint, status=status)
        raise


def environment(output: Path) -> dict[str, str]:
    """TMPDIR with as much room as OUTPUT has, and the time that a reproducible build goes by."""
    names = ("SOURCE_DATE_EPOCH", "ZSTD_CLEVEL")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"TMPDIR": os.fspath(output.parent.resolve()), **passed}


@contextmanager
def tree(output: Path) -> Iterator[Path]:
    """A directory to fill: OUTPUT itself, or one that becomes the tar file OUTPUT."""
    output = output.resolve()  # programs run elsewhere
    if ".tar" not in output.suffixes:
        output.mkdir(exist_ok=True)
        yield output
        return
    with TemporaryDirectory(prefix="anemos-", dir=output.parent) as name:
        root = Path(name) / "root"
        root.mkdir(mode=0o755)
        yield root
        options = ["--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        options += [f"--mtime=@{epoch}", "--clamp-mtime"] if epoch else []
        argv = ["tar", "--create", "--auto-compress", "--force-local", *options]
        run([*argv, "--file", output, "--directory", root, "."], env=environment(output))


def empty(directory: Path) -> None:
    """Remove what is in DIRECTORY, which need not exist."""
    for entry in directory.iterdir() if directory.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def digests(*files: Path) -> dict[str, str]:
    """SHA-256 by name of those FILES that exist; of a directory, of all files in it."""
    found: dict[str, str] = {}
    for file in files:
        if file.is_dir():
            inside = sorted(each for each in file.rglob("*") if each.is_file())
            found |= {f"{file.name}/{each.relative_to(file)}": sha256(each) for each in inside}
        elif file.is_file():
            found[file.name] = sha256(file)
    return found
