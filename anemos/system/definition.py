"""The definition layer: files, patches, templates, secrets, provision().

Applied on top of a package layer, in this order.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.log import die
from anemos.run import Argv, CommandFailed, run
from anemos.system import booting, chroot, fstab, functions, initrd, template, tree
from anemos.system.bootstrap import identity
from anemos.system.imgbuild import Imgbuild

PATCH = ".makeimg.patch"
# What dpkg, pacman and apk leave in a layer.
DATABASES = {
    "var/lib/dpkg/status",
    "var/lib/pacman/local/ALPM_DB_VERSION",
    "lib/apk/db/installed",
    "usr/lib/apk/db/installed",
}
OUTGROWN = (
    "the package's file has changed, or is another one in this release: make the patch anew;"
    " a file in /{path}.d needs none, where the program reads that"
)


@dataclass(frozen=True)
class Definition:
    """INPUTS: directories with input files, later ones win. VALUES: for templates. SECRETS: a tree
    of revealed files, if there is one."""

    inputs: Sequence[Path] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    secrets: Path | None = None


def apply(imgbuild: Imgbuild, root: Path, given: Definition) -> bool:
    """Apply what is GIVEN, and provision(), to the root file system at ROOT.

    True: the initramfs has to be made again. Raises Failure that names the file.
    """
    before = initrd.state(root)
    copy(root, given.inputs)
    patch(root, given.inputs)
    fill(root, given)
    if given.secrets is not None:
        conceal(root, given.secrets)
    if "provision" in imgbuild.functions:
        provision(imgbuild, root)
    return initrd.outdated(root, before)


def complete(imgbuild: Imgbuild, root: Path, given: Definition) -> None:
    """Apply the definition to an image, and do what follows from it."""
    if apply(imgbuild, root, given):
        initrd.renew(root)
    identity.report(root)


def check(given: Definition, taken: Collection[str] = ()) -> None:
    """All that input files alone tell. TAKEN: the layout's mount points. Raises Failure."""
    for path, file in tree.inputs(*given.inputs):
        text = rendered(file, given.values) if path.endswith(template.SUFFIX) else ""
        if path.removesuffix(template.SUFFIX) == fstab.FILE and file.is_file():
            text = text or file.read_text(errors="replace")
            fstab.check(file, text, taken)


def rehearse(layer: Path, inputs: Sequence[Path]) -> None:
    """Try the patches on what a package layer has at their places: long before it counts.

    A file that is not there under that very name is left to `apply`: a link may lead to it.
    Raises Failure that names the patch.
    """
    patches = {
        path.removesuffix(PATCH): file
        for path, file in tree.inputs(*inputs)
        if path.endswith(PATCH)
    }
    if not patches:
        return
    with TemporaryDirectory() as name:
        wanted = b"".join(os.fsencode(f"./{path}\0") for path in patches)
        argv: Argv = ["tar", "--extract", "--file", layer, "-C", name, "--null", "--files-from=-"]
        with suppress(CommandFailed):  # status 2: one of them is not there
            run(argv, data=wanted)
        copy(Path(name), inputs)
        for path, file in patches.items():
            if (Path(name) / path).is_file():
                patch_file(Path(name), path, file)


def rehearse_loader(imgbuild: Imgbuild, layer: Path, inputs: Sequence[Path]) -> None:
    """See that a layer, or an input file, has what the boot loader is made of."""
    listed = run(["tar", "--list", "--file", layer]).splitlines()
    names = {name.removeprefix("./") for name in listed}
    if names & DATABASES:
        own = {path for path, _ in tree.inputs(*inputs)}
        booting.rehearse(imgbuild, own | names)


def copy(root: Path, inputs: Sequence[Path]) -> None:
    for path, file in tree.inputs(*inputs):
        if not path.endswith((PATCH, template.SUFFIX)):
            tree.copy(file, root, path)


def patch(root: Path, inputs: Sequence[Path]) -> None:
    for path, file in tree.inputs(*inputs):
        if path.endswith(PATCH):
            patch_file(root, path.removesuffix(PATCH), file)


def patch_file(root: Path, path: str, file: Path) -> None:
    """patch(1) the file at PATH; a patch that does not fit whole changes nothing."""
    target = tree.inside(root, path)
    if target.is_symlink() or not target.is_file():
        die(f"{file}: the image has no file /{path} to patch")
    with TemporaryDirectory() as name:
        # Under a plain name: theirs may be anything that a file may be called.
        copy, rejects = Path(name) / "file", Path(name) / "rejects"
        options = ["--batch", "--forward", "--no-backup-if-mismatch", f"--reject-file={rejects}"]
        options += ["--fuzz=0"]  # it would put a hunk where other lines look a little like its own
        copy.write_bytes(target.read_bytes())
        try:
            said = run(["patch", *options, copy], data=file.read_bytes())
        except CommandFailed as failed:
            said = failed.output.partition(" -- saving rejects")[0].replace(str(copy), f"/{path}")
            hunks = rejects.read_text(errors="replace") if rejects.exists() else ""
            said = f"{file}: does not apply to /{path}\n{said.strip()}\n{hunks}".rstrip()
            die(said, hint=OUTGROWN.format(path=path))
        for moved in re.findall(r"(?m)^Hunk .*\(offset .*\)", said):
            log.info(f"{file}: {moved}: is it the right place?")
        before = target.stat()
        tree.write(root, path, copy.read_bytes())
    os.chown(target, before.st_uid, before.st_gid)
    target.chmod(before.st_mode & 0o7777)


def fill(root: Path, given: Definition) -> None:
    for path, file in tree.inputs(*given.inputs):
        if path.endswith(template.SUFFIX):
            text = rendered(file, given.values)
            mode = template.mode(file.read_text(), file.stat().st_mode & 0o7777)
            tree.write(root, path.removesuffix(template.SUFFIX), text, mode)


def rendered(file: Path, values: Mapping[str, str]) -> str:
    """The text of the template FILE with its values. Raises Failure with file, line and name."""
    try:
        return template.render(file.read_bytes().decode(), values)
    except (OSError, UnicodeError) as error:
        die(f"{file}: {error}")
    except ValueError as error:
        die(f"{file}: {error}", hint=f"known: {', '.join(sorted(values)) or 'none'}")


def conceal(root: Path, secrets: Path) -> None:
    """Put the revealed files below SECRETS to their places: mode 0600, owned by root."""
    for path, file in tree.inputs(secrets):
        tree.copy(file, root, path, 0o600)


def provision(imgbuild: Imgbuild, root: Path) -> None:
    """Run provision() as root inside the image."""
    with log.step("Running provision()"), TemporaryDirectory() as shared:
        tree.copy(imgbuild.file, Path(shared), "IMGBUILD", 0o644)
        shell = functions.BASH if tree.inside(root, "bin/bash").is_file() else functions.SH
        argv = functions.argv(shell, imgbuild, "provision", "/run/anemos/IMGBUILD")
        try:
            chroot.call(root, argv, shared=Path(shared))
        except CommandFailed as failed:
            raise functions.explained(imgbuild, "provision", failed) from None
