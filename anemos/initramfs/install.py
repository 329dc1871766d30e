"""After the point of no return: disks are erased and the new system is written."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import kexec, log, mounts
from anemos.border import stage
from anemos.border.boot import Boot
from anemos.border.payload import unpacked
from anemos.border.resuming import DEFINITION, PACKAGES, PARTITIONS, STEPS
from anemos.disks import Device
from anemos.initramfs import firmware, kept, leftovers, storage
from anemos.initramfs.progress import Progress
from anemos.log import Failure
from anemos.run import run
from anemos.system import booting, bootstrap, definition, fstab, initrd, layout, tree
from anemos.system.bootloader import kernels, places
from anemos.system.bootstrap import identity
from anemos.system.definition import Definition
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Layout, Mounted

TARGET = Path("/target")
Mounts = Sequence[Mounted]
VISIT = """
mount --rbind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/run"
mount -t proc proc "$0/proc"; mount -t sysfs -o ro sysfs "$0/sys"
exec chroot "$0" "$@"
"""


def install(
    boot: Boot,
    spec: Imgbuild,
    devices: Mapping[str, Device],
    reached: Progress,
    first: str = PARTITIONS,
) -> None:
    """Install SPEC from the step FIRST on. DEVICES: by name of the layout's disks."""
    seed = boot.deployment
    todo = STEPS[STEPS.index(first) :]
    secrets = spec.directory.parent / "secrets"
    if PARTITIONS in todo:
        with log.step("Disks"):
            storage.write(spec.layout, devices, seed, secrets)
    else:
        leftovers.release(list(devices.values()))  # an earlier run may have been killed
        storage.activate(spec.layout, devices, seed, secrets)
    with storage.mounted(spec.layout, devices, TARGET):
        with kept.watched(spec.keep):  # now code of packages and IMGBUILD runs
            fill(boot, spec, todo, reached)
        with log.step("Boot loader"):
            if spec.bootloader:
                boot_loader(spec, devices, seed)
        if unpacked(spec.directory.parent).finish == "kexec":
            load_new_kernel(spec, seed)
        keep_log()


def fill(boot: Boot, spec: Imgbuild, todo: Sequence[str], reached: Progress) -> None:
    if PACKAGES in todo:
        with log.step("Package layer"):
            package_layer(boot, spec)
    if DEFINITION in todo:
        with log.step("Definition layer"):
            outdated = define(boot, spec, reached.mounts)
        rebuild_initramfs(spec.layout, outdated)
        reached.applied = boot.payload
        reached.save()


def package_layer(boot: Boot, spec: Imgbuild) -> None:
    if boot.layer:  # its file stays: it is needed again after a failure
        bootstrap.unpack(stage.LAYER, TARGET)
    else:
        bootstrap.bootstrap(spec, TARGET)


def define(boot: Boot, spec: Imgbuild, kept_mounts: Mounts) -> bool:
    """The definition, and what only a deployment knows. True: the initramfs is older than that."""
    payload = spec.directory.parent
    identity.renew(TARGET)
    given = Definition([payload / "files"], secrets=payload / "secrets")
    outdated = definition.apply(spec, TARGET, given)
    identity.report(TARGET)
    fstab.write(TARGET, layout.fstab(spec.layout, boot.deployment, kept_mounts))
    append("etc/crypttab", layout.crypttab(spec.layout, boot.deployment))
    append("etc/mdadm/mdadm.conf", layout.mdadm_conf(spec.layout, boot.deployment))
    for each in kept_mounts:
        tree.inside(TARGET, each.mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
    tree.write(TARGET, "etc/anemos/deployment.json", boot.stamp)
    carry_host_keys()
    # The next deployment need not send the base image.
    tree.copy(stage.BASE, TARGET, f"var/lib/anemos/base-{boot.base}.squashfs", 0o600)
    return outdated


def append(path: str, text: str) -> None:
    """Add TEXT to what the definition, or a package, has put at PATH; once, if done again."""
    if text:
        file = tree.inside(TARGET, path)
        there = file.read_text() if file.is_file() and not file.is_symlink() else ""
        tree.write(TARGET, path, there.replace(text, "") + text)


def rebuild_initramfs(whole: Layout, outdated: bool = False) -> None:
    """The package layer's own one knows nothing of what / lies on, nor of the definition.

    Its hooks want to see the devices (cryptsetup-initramfs's resolves UUIDs): /dev as it is here.
    """
    root = whole.root()
    known = root.fs == "ext4" and not layout.early(whole) and not outdated
    if known or not (TARGET / initrd.PROGRAM).exists():
        return
    namespace = ["unshare", "--mount", "--propagation=private", "sh", "-e", "-c", VISIT]
    run([*namespace, TARGET, *initrd.ARGV], log=log.info)


def load_new_kernel(spec: Imgbuild, seed: str) -> None:
    """Have init start the new system's kernel itself. A kernel that does not load is no failure:
    the firmware is going to start it."""
    words = places.Target(spec.layout, spec.cmdline, TARGET, {}, seed).words
    try:
        kernel, boot = kernels.newest(TARGET), TARGET / "boot"
        kexec.load(boot / kernel.file, boot / kernel.initrd, words)
    except Failure as failure:
        log.info(f"{failure.message}; rebooting instead")


def carry_host_keys() -> None:
    """The old system's SSH host keys, unless the definition brings keys of its own."""
    place = TARGET / "etc/ssh"
    if place.is_dir() and not list(place.glob("ssh_host_*_key")):
        for key in sorted(stage.SSH.glob("ssh_host_*_key*")):
            mode = 0o644 if key.suffix == ".pub" else 0o600
            tree.copy(key, TARGET, f"etc/ssh/{key.name}", mode)


def boot_loader(spec: Imgbuild, devices: Mapping[str, Device], seed: str) -> None:
    nodes = {name: device.path for name, device in devices.items()}
    booting.install(spec, TARGET, nodes, seed)
    esps = places.esps(spec.layout)
    for copy in esps[1:]:
        node = storage.node_of(copy, devices)
        with TemporaryDirectory() as point, mounts.mounted("-t", copy.fs, node, at=Path(point)):
            run(["cp", "--recursive", f"{TARGET}{esps[0].mount}/.", point])
    firmware.register([(nodes[esp.disk.name], esp.number) for esp in esps if esp.disk])


def keep_log() -> None:
    tree.write(TARGET, "var/log/anemos.log", stage.LOG.read_bytes(), 0o400)
    log.info(f"{shutil.disk_usage(TARGET).used // 2**20} MiB are used on the new file system")
