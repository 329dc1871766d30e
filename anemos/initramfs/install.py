"""After the point of no return: disks are erased and the new system is written."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from anemos import log
from anemos.disks import Device
from anemos.image import bootloader, bootstrap, definition, filesystems, layout, tree
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import Carrier, Disk, Mounted, Volume
from anemos.initramfs.boot import HERE, Boot
from anemos.initramfs.events import LOG
from anemos.initramfs.hardware import wait_for
from anemos.run import run

TARGET = Path("/target")
Mounts = Sequence[Mounted]


def install(boot: Boot, spec: Imgbuild, devices: Mapping[str, Device], kept: Mounts) -> None:
    """Install SPEC. DEVICES: by name of the layout's disks; KEPT: see layout.fstab."""
    seed = boot.deployment
    with log.step("Partitioning"):
        for disk in spec.layout.disks:
            partition(disk, devices[disk.name], seed)
        for carrier in spec.layout.filesystems():
            make_fs(carrier, devices, seed)
    with mounted(spec, devices, seed):
        with log.step("Package layer"):
            package_layer(boot, spec)
        with log.step("Definition layer"):
            define(boot, spec, kept)
        with log.step("Boot loader"):
            nodes = {name: device.path for name, device in devices.items()}
            if spec.bootloader:
                bootloader.install(spec, TARGET, nodes, seed)
        keep_log()
    run(["sync"])


def partition(disk: Disk, device: Device, seed: str) -> None:
    """Wipe what is there, write the table."""
    run(["wipefs", "--all", "--force", "--quiet", *reversed(nodes_of(device)), device.path])
    script = layout.sfdisk_script(disk, device.size, seed)
    run(["sfdisk", "--quiet", "--wipe=always", device.path], data=script.encode(), log=log.info)


def make_fs(carrier: Carrier, devices: Mapping[str, Device], seed: str) -> None:
    node = node_of(carrier, devices)
    wait_for(str(node), node.is_block_device)
    argv = filesystems.make(carrier.fs, layout.fs_uuid(carrier, seed), node)
    run(argv, log=log.info)


def node_of(carrier: Carrier, devices: Mapping[str, Device]) -> Path:
    if isinstance(carrier.what, Volume):
        return carrier.what.node
    assert carrier.disk is not None
    return devices[carrier.disk.name].part(carrier.number)


def nodes_of(device: Device) -> list[Path]:
    return sorted(device.path.parent.glob(f"{device.name}*[0-9]"))


@contextmanager
def mounted(spec: Imgbuild, devices: Mapping[str, Device], seed: str) -> Iterator[None]:
    """The new file systems, mounted below TARGET."""
    for carrier in spec.layout.mounts():
        mount(carrier, node_of(carrier, devices))
    yield
    run(["umount", "--recursive", TARGET])


def mount(carrier: Carrier, node: Path) -> None:
    point = TARGET if carrier.mount == "/" else tree.inside(TARGET, carrier.mount.lstrip("/"))
    point.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", carrier.fs, node, point])


def package_layer(boot: Boot, spec: Imgbuild) -> None:
    if not boot.layer:
        bootstrap.bootstrap(spec, TARGET)
        return
    bootstrap.unpack(HERE / "layer", TARGET)
    (HERE / "layer").unlink()


def define(boot: Boot, spec: Imgbuild, kept: Mounts) -> None:
    """The definition, and what only a deployment knows."""
    payload = spec.directory.parent
    definition.apply(spec, TARGET, [payload / "files"], secrets=payload / "secrets")
    tree.write(TARGET, "etc/fstab", layout.fstab(spec.layout, boot.deployment, kept))
    for each in kept:
        tree.inside(TARGET, each.mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
    tree.write(TARGET, "etc/anemos/deployment.json", boot.stamp)
    carry_host_keys()
    # The next deployment need not send the base image.
    tree.copy(HERE / "base.squashfs", TARGET, f"var/lib/anemos/base-{boot.base}.squashfs", 0o600)


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
