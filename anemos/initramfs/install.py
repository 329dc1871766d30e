"""After the point of no return: disks are erased and the new system is written."""

import shutil
import time
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
from anemos.system import booting, installation, layout, tree
from anemos.system.bootloader import kernels, places
from anemos.system.imgbuild import Imgbuild
from anemos.system.installation import Installation

TARGET = Path("/target")


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
        # Now code of packages and IMGBUILD runs.
        with kept.watched(spec.keep, "look with ./inv rescue; ./inv resume goes on"):
            given = installed(boot, spec, reached)
            fill(given, todo)
            if DEFINITION in todo:
                reached.applied = boot.payload
                reached.save()
        with log.step("Boot loader"):
            if spec.bootloader:
                boot_loader(spec, devices, seed)
        if unpacked(spec.directory.parent).finish == "kexec":
            load_new_kernel(spec, seed)
        installation.leave_manifest(given)
        keep_log()


def installed(boot: Boot, spec: Imgbuild, reached: Progress) -> Installation:
    layer = stage.LAYER if boot.layer else None
    base = stage.BASE, boot.base
    commit = unpacked(spec.directory.parent).commit
    stamp = boot.stamp(layout.elements(spec.layout, spec.kept), commit)
    arrays = layout.kept_arrays(spec.kept_volumes, boot.kept or [])
    words = (boot.deployment, stamp, layer, base, stage.SSH, reached.mounts, arrays)
    return Installation(spec, TARGET, *words)


def fill(given: Installation, todo: Sequence[str]) -> None:
    if PACKAGES in todo:
        with log.step("Package layer"):
            installation.package_layer(given)
    if DEFINITION in todo:
        with log.step("Definition layer"):
            installation.definition_layer(given)
            installation.leave_tools(given)


def load_new_kernel(spec: Imgbuild, seed: str) -> None:
    """Have init start the new system's kernel itself. A kernel that does not load is no failure:
    the firmware is going to start it."""
    words = places.Target(spec.layout, spec.cmdline, TARGET, {}, seed, spec.arch).words
    try:
        kernel, boot = kernels.newest(TARGET), TARGET / "boot"
        kexec.load(boot / kernel.file, boot / kernel.initrd, words)
    except Failure as failure:
        log.info(f"{failure.message}; rebooting instead")


def boot_loader(spec: Imgbuild, devices: Mapping[str, Device], seed: str) -> None:
    nodes = {name: device.path for name, device in devices.items()}
    booting.install(spec, TARGET, nodes, seed, deployment=seed, now=int(time.time()))
    esps = places.esps(spec.layout)
    for copy in esps[1:]:
        node = copy.node(devices)
        with TemporaryDirectory() as point, mounts.mounted("-t", copy.fs, node, at=Path(point)):
            run(["cp", "--recursive", f"{TARGET}{esps[0].mount}/.", point])
    firmware.register([(nodes[esp.disk.name], esp.number) for esp in esps if esp.disk])


def keep_log() -> None:
    tree.write(TARGET, installation.LOG, stage.LOG.read_bytes(), 0o400)
    log.info(f"{shutil.disk_usage(TARGET).used // 2**20} MiB are used on the new file system")
