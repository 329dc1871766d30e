"""After the point of no return: disks are erased and the new system is written."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from anemos import kexec, log
from anemos.disks import Device
from anemos.image import bootloader, bootstrap, definition, layout, tree
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import Disk, Part
from anemos.initramfs.boot import HERE, Boot
from anemos.initramfs.events import LOG
from anemos.initramfs.hardware import wait_for
from anemos.initramfs.progress import DEFINITION, PACKAGES, PARTITIONS, STEPS, Progress
from anemos.log import Failure
from anemos.run import run

TARGET = Path("/target")
Mounts = Mapping[str, tuple[str, str]]


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
    if os.path.ismount(TARGET):  # an earlier run's
        run(["umount", "--recursive", TARGET])
    if PARTITIONS in todo:
        with log.step("Partitioning"):
            for disk in spec.layout.disks:
                partition(disk, devices[disk.name], seed)
    with mounted(spec, devices, seed):
        if PACKAGES in todo:
            with log.step("Package layer"):
                package_layer(boot, spec)
        if DEFINITION in todo:
            with log.step("Definition layer"):
                define(boot, spec, reached.mounts)
            reached.applied = boot.payload
            reached.save()
        with log.step("Boot loader"):
            nodes = {name: device.path for name, device in devices.items()}
            if spec.bootloader:
                bootloader.install(spec, TARGET, nodes, seed)
        if finish(spec) == "kexec":
            load_new_kernel(spec, seed)
        keep_log()
    run(["sync"])


def partition(disk: Disk, device: Device, seed: str) -> None:
    """Wipe what is there, write the table, make the file systems."""
    run(["wipefs", "--all", "--force", "--quiet", *reversed(nodes_of(device)), device.path])
    script = layout.sfdisk_script(disk, device.size, seed)
    run(["sfdisk", "--quiet", "--wipe=always", device.path], data=script.encode(), log=log.info)
    for number, part in enumerate(disk.parts, 1):
        node = device.part(number)
        wait_for(str(node), node.is_block_device)
        if part.fs:
            uuid = layout.fs_uuid(disk, part, seed)
            run([f"mkfs.{part.fs}", "-q", "-F", "-U", uuid, node], log=log.info)


def nodes_of(device: Device) -> list[Path]:
    return sorted(device.path.parent.glob(f"{device.name}*[0-9]"))


@contextmanager
def mounted(spec: Imgbuild, devices: Mapping[str, Device], seed: str) -> Iterator[None]:
    """The new file systems, mounted below TARGET."""
    for disk, number, part in spec.layout.mounts():
        mount(devices[disk.name], number, part)
    yield
    run(["umount", "--recursive", TARGET])


def mount(device: Device, number: int, part: Part) -> None:
    point = TARGET if part.mount == "/" else tree.inside(TARGET, part.mount.lstrip("/"))
    point.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", part.fs, device.part(number), point])


def package_layer(boot: Boot, spec: Imgbuild) -> None:
    if boot.layer:  # its file stays: it is needed again after a failure
        bootstrap.unpack(HERE / "layer", TARGET)
    else:
        bootstrap.bootstrap(spec, TARGET)


def define(boot: Boot, spec: Imgbuild, kept: Mounts) -> None:
    """The definition, and what only a deployment knows."""
    payload = spec.directory.parent
    definition.apply(spec, TARGET, [payload / "files"], secrets=payload / "secrets")
    tree.write(TARGET, "etc/fstab", layout.fstab(spec.layout, boot.deployment, kept))
    for point in kept:
        tree.inside(TARGET, point.lstrip("/")).mkdir(parents=True, exist_ok=True)
    tree.write(TARGET, "etc/anemos/deployment.json", boot.stamp)
    carry_host_keys()
    # The next deployment need not send the base image.
    tree.copy(HERE / "base.squashfs", TARGET, f"var/lib/anemos/base-{boot.base}.squashfs", 0o600)


def finish(spec: Imgbuild) -> str:
    """How the new system is to be started, as host.toml says."""
    return str(json.loads((spec.directory.parent / "manifest.json").read_text())["finish"])


def load_new_kernel(spec: Imgbuild, seed: str) -> None:
    """Have init start the new system's kernel itself. A kernel that does not load is no failure:
    the firmware is going to start it."""
    kernel, initrd = (TARGET / "boot" / name for name in bootloader.newest_kernel(TARGET))
    words = ["root=UUID=" + layout.root_uuid(spec.layout, seed), "ro", spec.cmdline]
    try:
        kexec.load(kernel, initrd, " ".join(words).strip())
    except Failure as failure:
        log.info(f"{failure.message}; rebooting instead")


def carry_host_keys() -> None:
    """The old system's SSH host keys, unless the definition brings keys of its own."""
    place = TARGET / "etc/ssh"
    if place.is_dir() and not list(place.glob("ssh_host_*_key")):
        for key in sorted((HERE / "ssh").glob("ssh_host_*_key*")):
            mode = 0o644 if key.suffix == ".pub" else 0o600
            tree.copy(key, TARGET, f"etc/ssh/{key.name}", mode)


def keep_log() -> None:
    tree.write(TARGET, "var/log/anemos.log", LOG.read_bytes(), 0o400)
    log.info(f"{shutil.disk_usage(TARGET).used // 2**20} MiB are used on the new file system")
