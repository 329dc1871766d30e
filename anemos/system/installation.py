"""What a deployment puts on file systems that are mounted: package layer, definition, and what only
the deployment knows. One code for whole disks, in the initramfs, and for a slot.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anemos import files, log
from anemos.log import Failure
from anemos.run import run
from anemos.system import bootstrap, defined, definition, fstab, initrd, layout, manifest, tree
from anemos.system.bootstrap import identity
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Layout, Mounted

LOG = "var/log/anemos.log"  # of the system's birth, for root
TRIAL = "usr/lib/anemos/trial"  # see trial.sh
BASE = "var/lib/anemos/base-{}.squashfs"  # the base image, by its SHA-256
CONFIRM = "usr/lib/anemos/confirm"  # see server/trial.py
VISIT = """
mount --rbind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/run"
mount -t proc proc "$0/proc"
mount -t sysfs -o ro sysfs "$0/sys" 2>/dev/null || mount --rbind /sys "$0/sys" # as in chroot.py
exec chroot "$0" "$@"
"""


@dataclass(frozen=True)
class Installation:
    """A new system of SPEC below ROOT. What is not in SPEC:

    DEPLOYMENT: the id. STAMP: text of /etc/anemos/deployment.json. LAYER: the package layer, or
    None, to bootstrap it in place. BASE: the base image, and its SHA-256. KEYS: a directory with
    the old system's SSH host keys. MOUNTS: file systems that are not the layout's, for fstab.
    ARRAYS: lines for mdadm.conf, of arrays that are not the layout's. FETCHED: packages that the
    running system was made of, see bootstrap.bootstrap.
    """

    spec: Imgbuild
    root: Path
    deployment: str
    stamp: str
    layer: Path | None
    base: tuple[Path, str]
    keys: Path
    mounts: Sequence[Mounted] = ()
    arrays: str = ""
    fetched: Path | None = None


def package_layer(given: Installation) -> None:
    """Raises Failure."""
    if given.layer:  # its file stays: it is needed again after a failure
        bootstrap.unpack(given.layer, given.root)
    else:
        bootstrap.bootstrap(given.spec, given.root, given.fetched)


def definition_layer(given: Installation) -> None:
    """The definition, and what only a deployment knows. Raises Failure."""
    spec, root = given.spec, given.root
    payload = spec.directory.parent
    identity.renew(root)
    own = Definition([payload / "files"], secrets=payload / "secrets")
    outdated = definition.apply(spec, root, own)
    identity.report(root)
    fstab.write(root, layout.fstab(spec.layout, given.deployment, given.mounts))
    append(root, "etc/crypttab", layout.crypttab(spec.layout, given.deployment))
    arrays = layout.mdadm_conf(spec.layout, given.deployment) + given.arrays
    append(root, "etc/mdadm/mdadm.conf", arrays)
    for each in given.mounts:
        tree.inside(root, each.mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
    tree.write(root, "etc/anemos/deployment.json", given.stamp)
    carry_host_keys(given.keys, root)
    rebuild_initramfs(root, spec.layout, outdated or bool(given.arrays))


def leave_tools(given: Installation) -> None:
    """The next deployment need not send the base image. A slot's system may be on trial."""
    base, digest = given.base
    tree.copy(base, given.root, BASE.format(digest), 0o600)
    if given.spec.layout.slots():
        tree.copy(Path(__file__).with_name("trial.sh"), given.root, TRIAL, 0o755)


def leave_manifest(given: Installation) -> None:
    """What all of it has made, and from what, for `diff`. That it cannot be left is no failure."""
    root, payload = given.root, given.spec.directory.parent
    mounted = [each.mount.strip("/") for each in given.spec.layout.mounts() if each.fs != "vfat"]
    with log.step("Manifest"):
        filesystems = [each for each in mounted if each and os.path.ismount(root / each)]
        try:
            made = manifest.take(root, filesystems, secrets(root, payload))
            manifest.write(made, root)
            hidden = [path for path, _ in tree.inputs(payload / "secrets")]
            public = partial(defined.readable, root)
            defined.write(defined.take(payload, hidden, public, made.packages), root)
        except (OSError, ValueError, Failure) as error:
            for each in (manifest.FILE, defined.FILE):
                tree.inside(root, each).unlink(missing_ok=True)
            log.info(f"No manifest, and so no `diff`: {error}")


def secrets(root: Path, payload: Path) -> set[str]:
    """Where below ROOT the secrets of PAYLOAD are, and its files that are not for everybody; also
    where provision() has given them another mode."""
    inputs = tree.inputs(payload / "files")
    private = [path for path, file in inputs if not file.lstat().st_mode & stat.S_IROTH]
    found = [*private, *(path for path, _ in tree.inputs(payload / "secrets"))]
    return {os.fspath(tree.inside(root, path).relative_to(root)) for path in found}


def append(root: Path, path: str, text: str) -> None:
    """Add TEXT to what the definition, or a package, has put at PATH; once, if done again."""
    if text:
        file = tree.inside(root, path)
        there = "" if file.is_symlink() else files.text(file)
        tree.write(root, path, there.replace(text, "") + text)


def rebuild_initramfs(root: Path, whole: Layout, outdated: bool = False) -> None:
    """The package layer's own one knows nothing of what / lies on, nor of the definition.

    Its hooks want to see the devices (cryptsetup-initramfs's resolves UUIDs): /dev as it is here.
    """
    known = whole.root().fs == "ext4" and not layout.early(whole) and not outdated
    if known or not (root / initrd.PROGRAM).exists():
        return
    namespace = ["unshare", "--mount", "--propagation=private", "sh", "-e", "-c", VISIT]
    run([*namespace, root, *initrd.ARGV], log=log.info)


def carry_host_keys(keys: Path, root: Path) -> None:
    """The old system's SSH host keys, unless the definition brings keys of its own."""
    place = root / "etc/ssh"
    if place.is_dir() and not list(place.glob("ssh_host_*_key")):
        for key in sorted(keys.glob("ssh_host_*_key*")):
            mode = 0o644 if key.suffix == ".pub" else 0o600
            tree.copy(key, root, f"etc/ssh/{key.name}", mode)
