"""Images that boot loaders start, under SeaBIOS and UEFI firmware, down to a word from their root.

The system in them is a kernel, busybox and the boot loaders of Debian's packages.
"""

import io
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from anemos import cpio, mounts
from anemos.cpio import Entry
from anemos.image import output, reproducible
from anemos.image.manifest import Sources
from anemos.initramfs import firmware
from anemos.run import run
from anemos.server import once
from anemos.system import booting, imgbuild, slots
from anemos.system.bootloader import grub
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import SLOTS, Carrier, Extent, extents
from anemos.system.slots import Record, Slot
from anemos.workstation.vm import vm
from tests.imaging import attached

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run")]

BOOT_S = 240.0
EPOCH = 1_700_000_000
PACKAGES = "base-files busybox-static efibootmgr grub-efi-amd64-bin grub-pc-bin "
PACKAGES += "linux-image-cloud-amd64 systemd-boot-efi tiny-initramfs"
# In the order in which they need each other.
MODULES = "virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk"
MODULES += " efivarfs"
INITRD = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /order); do insmod "/$module"; done
for word in $(cat /proc/cmdline); do
    case $word in root=*) root=${word#root=} ;; esac
done
mount -o ro "$(findfs "$root")" /root
exec switch_root /root /sbin/init
"""
ENTRY = firmware.commands("", [(Path("/dev/vda"), 1)])
INIT = f"""#!/bin/busybox sh
PATH=/bin:/usr/bin; export PATH
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
way=bios; [ ! -d /sys/firmware/efi ] || way=uefi
if [ $way = uefi ]; then
    busybox mount -t efivarfs efivarfs /sys/firmware/efi/efivars
    {"; ".join(map(shlex.join, ENTRY))}
    efibootmgr
    if [ -e /etc/once ] && ! efibootmgr | busybox grep -q '{once.LABEL}'; then
        {shlex.join(once.create("vda", "1", "console=ttyS0 panic=-1 quiet"))} |
            busybox sed -n 's/^Boot\\([^*]*\\).*{once.LABEL}.*/\\1/p' | busybox xargs efibootmgr -n
        busybox reboot -f
    fi
fi
echo "started by $way: $(busybox cat /proc/cmdline)"
if busybox grep -q on-trial /proc/cmdline; then busybox reboot -f; fi
busybox poweroff -f
"""
TAKEN = """#!/bin/busybox sh
/bin/busybox mkdir /dev
/bin/busybox mount -t devtmpfs dev /dev
echo "the entry is taken" >/dev/console
/bin/busybox reboot -f
"""
CMDLINE = "console=ttyS0 panic=-1 quiet anemos.word"
LAYOUTS = {
    "systemd-boot-once": """
disk system serial=S image=512M
part esp  type=esp size=256M fs=vfat mount=/boot/efi
part root fs=ext4 mount=/
""",
    "grub": """
disk system serial=S image=512M
part esp  type=esp size=32M fs=vfat mount=/boot/efi
part bios type=bios size=1M
part boot size=160M fs=btrfs mount=/boot
part root fs=ext4 mount=/
""",
    "grub-once": """
disk system serial=S image=512M
part esp  type=esp size=32M fs=vfat mount=/boot/efi
part bios type=bios size=1M
part root fs=ext4 mount=/
""",
    "systemd-boot": """
disk system serial=S image=512M
part esp  type=esp size=256M fs=vfat mount=/boot/efi
part root fs=ext4 mount=/
""",
}
SLOTTED = """
disk system serial=S image=768M
part esp  type=esp size=32M fs=vfat mount=/efi
part bios type=bios size=1M
part boot size=64M fs=ext4
part root size=300M fs=ext4 mount=/ slots=2
"""

ESP_SLOTTED = """
disk system serial=S image=1200M
part esp  type=esp size=512M fs=vfat mount=/efi
part root size=300M fs=ext4 mount=/ slots=2
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(tmp_path_factory.mktemp("system") / "root")


def extract(root: Path) -> Path:
    """The tree of Debian's packages; nothing in it was configured."""
    include = f"--include={','.join(PACKAGES.split())}"
    run(["mmdebstrap", "--variant=extract", "--mode=root", "--skip=check/qemu", include]
        + ["bookworm", root])  # fmt: skip
    for name in ("proc", "sys", "run", "sbin"):
        (root / name).mkdir(exist_ok=True)
    (root / "etc/resolv.conf").unlink()
    (root / "sbin/init").write_text(INIT)
    (root / "sbin/init").chmod(0o755)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    name = kernel.name.removeprefix("vmlinuz-")
    (root / f"boot/initrd.img-{name}").write_bytes(initrd(root, root / "lib/modules" / name))
    shutil.rmtree(root / "lib/modules")
    return root


def initrd(root: Path, modules: Path) -> bytes:
    files = [next(modules.rglob(f"{name}.ko")) for name in MODULES.split()]
    entries = [Entry(name, None, 0o755) for name in ("bin", "dev", "proc", "root")]
    entries += [
        Entry("init", INITRD.encode(), 0o755),
        Entry("bin/busybox", root / "bin/busybox", 0o755),
    ]
    entries += [Entry(file.name, file) for file in files]
    entries += [Entry("order", "\n".join(file.name for file in files).encode())]
    archive = io.BytesIO()
    cpio.append(archive, entries)
    return archive.getvalue()


@pytest.fixture(scope="module")
def images(system: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a boot loader: an image, made as `build` makes it, when it is wanted first."""

    def image(loader: str) -> Path:
        spec = describe(tmp_path_factory.mktemp(loader), loader, LAYOUTS[loader])
        return build(spec, system, loader)

    return cache(image)


def describe(directory: Path, loader: str, layout: str) -> Imgbuild:
    name = loader.removesuffix("-once")
    text = f"target=debian\nformat=disk\nbootloader={name}\ncmdline='{CMDLINE}'\n"
    (directory / "IMGBUILD").write_text(f"{text}layout='{layout}'\n")
    return imgbuild.load(directory)


def build(spec: Imgbuild, system: Path, loader: str) -> Path:
    root = spec.directory / "root"
    run(["cp", "--archive", system, root])
    arm(root, loader)
    sources = Sources("layer", "0")
    with reproducible.environment(EPOCH):
        (image,) = output.write(spec, root, spec.directory, "seed", epoch=EPOCH, sources=sources)
    return image


@dataclass(frozen=True)
class Slotted:
    """An image with a system in each slot. KNOWN: what the record says of them."""

    image: Path
    spec: Imgbuild
    known: Mapping[str, Slot]

    def extent(self, carrier: Carrier | None) -> Extent:
        assert carrier and carrier.disk
        return extents(carrier.disk, carrier.disk.image)[carrier.number - 1]

    def choose(self, record: Record, tried: str) -> None:
        """What the word does, and the slot TRIED once before: nothing else on the disk changes."""
        place = self.extent(self.spec.layout.shared())
        where = (f"--offset={place.start}", f"--sizelimit={place.size}")
        with (
            TemporaryDirectory() as name,
            attached(self.image, *where) as node,
            mounts.mounted(node, at=Path(name)),
        ):
            slots.write(Path(name) / slots.FILE, record)
            (kernel,) = (self.spec.directory / "root/boot").glob("vmlinuz-*")
            initrd = kernel.name.replace("vmlinuz", "initrd.img")
            root = self.known[tried].root
            words = f"root=UUID={root} ro console=ttyS0 panic=-1 on-trial"
            text = grub.once(root, f"/boot/{kernel.name}", f"/boot/{initrd}", words)
            (Path(name) / slots.ONCE).write_text(text)


@pytest.fixture(scope="module")
def slotted(system: Path, tmp_path_factory: pytest.TempPathFactory) -> Slotted:
    """Built for each slot; the second one's root file system goes to its place beside the first."""
    first, second = (
        built(tmp_path_factory.mktemp(slot), system, "grub", SLOTTED, slot) for slot in SLOTS
    )
    return joined(first, second)


def built(directory: Path, system: Path, loader: str, layout: str, slot: str) -> Slotted:
    spec = describe(directory, loader, layout)
    spec = replace(spec, layout=spec.layout.into(slot))
    known = {slot: slots.first(spec.layout, "seed").slots[slot]}
    return Slotted(build(spec, system, loader), spec, known)


def joined(first: Slotted, second: Slotted) -> Slotted:
    start, size = second.extent(second.spec.layout.root())
    with second.image.open("rb") as reader, first.image.open("r+b") as writer:
        reader.seek(start)
        writer.seek(start)
        writer.write(reader.read(size))
    return replace(first, known={**first.known, **second.known})


@pytest.fixture(scope="module")
def esp_slotted(system: Path, tmp_path_factory: pytest.TempPathFactory) -> Slotted:
    """The same with systemd-boot: the second one's kernel goes onto the ESP as a fill puts it."""
    first, second = (
        built(tmp_path_factory.mktemp(f"esp-{slot}"), system, "systemd-boot", ESP_SLOTTED, slot)
        for slot in SLOTS
    )
    top = second.spec.directory / "shared"
    booting.share(second.spec, second.spec.directory / "root", "seed", top)
    place = f"{first.image}@@{first.extent(first.spec.layout.shared()).start}"
    run(["mcopy", "-i", place, "-s", "-o", *top.iterdir(), "::"])
    return joined(first, second)


def arm(root: Path, loader: str) -> None:
    """Put a one-shot boot entry there, whose system says a word and reboots."""
    directory = "boot/grub" if loader.startswith("grub") else "boot/efi"
    place = root / directory / once.PLACE
    place.mkdir(parents=True)
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), place / "vmlinuz")
    archive = io.BytesIO()
    entries = [Entry("bin", None, 0o755), Entry("bin/busybox", root / "bin/busybox", 0o755)]
    cpio.append(archive, [Entry("init", TAKEN.encode(), 0o755), *entries])
    (place / "initrd").write_bytes(archive.getvalue())
    if loader == "systemd-boot-once":
        (root / "etc/once").touch()  # INIT tells the firmware
    (place / "env").write_bytes(once.environment("anemos_once=1"))
    (place.parent / "custom.cfg").write_text(once.block("console=ttyS0 panic=-1 quiet"))


@pytest.mark.all
@pytest.mark.parametrize(
    ("loader", "way"), [("grub", "bios"), ("grub", "uefi"), ("systemd-boot", "uefi")]
)
def test_once(images: Callable[[str], Path], tmp_path: Path, loader: str, way: str) -> None:
    """The entry is taken, and then the system's own, for good. On btrfs, to which GRUB does not
    write, it is never taken: test_boot. With systemd-boot, it is the firmware's."""
    said = start(images(f"{loader}-once"), tmp_path, way)

    assert said.count("the entry is taken") == 1
    assert said.index("the entry is taken") < said.index(f"started by {way}: ")


@pytest.mark.all
@pytest.mark.parametrize(
    ("loader", "way"), [("grub", "bios"), ("grub", "uefi"), ("systemd-boot", "uefi")]
)
def test_boot(images: Callable[[str], Path], tmp_path: Path, loader: str, way: str) -> None:
    said = start(images(loader), tmp_path, way, "-no-reboot")
    assert "the entry is taken" not in said
    assert re.search(rf"^started by {way}: .* ro {CMDLINE}\s*$", said, re.MULTILINE), said
    if way == "uefi":  # the boot entry is the first, and the next deployment knows it again
        (first,) = re.findall(r"^BootOrder: (\w{4}),", said, re.MULTILINE)
        assert re.search(rf"^Boot{first}\* {firmware.LABEL}\s*$", said, re.MULTILINE), said
        listing = said.replace("\r", "")
        assert [first] == [argv[-1] for argv in firmware.commands(listing, [])]


@pytest.mark.parametrize(
    ("way", "default", "lost", "started"),
    [
        pytest.param("bios", "a", "", "a", marks=pytest.mark.all),
        pytest.param("bios", "b", "", "b", marks=pytest.mark.all),
        ("uefi", "b", "", "b"),
        pytest.param("bios", "b", "b", "a", marks=pytest.mark.all),
    ],
)
def test_slots(
    slotted: Slotted, tmp_path: Path, way: str, default: str, lost: str, started: str
) -> None:
    """The slot on trial starts once. Then the default one does, with its own kernel, grub.cfg and
    one-shot entry; the other one where GRUB does not find it."""
    known = {**slotted.known, **({lost: Slot("good", "00000000")} if lost else {})}
    (tried,) = {*SLOTS} - {default}
    slotted.choose(Record(default, known, once=True), tried)

    said = start(slotted.image, tmp_path, way)

    assert said.count("the entry is taken") == 1
    trial = rf"^started by {way}: .* root=UUID={slotted.known[tried].root} .* on-trial\s*$"
    assert len(re.findall(trial, said, re.MULTILINE)) == 1, said
    assert said.index("on-trial") < said.index("the entry is taken")
    words = rf"^started by {way}: .* root=UUID={slotted.known[started].root} ro {CMDLINE}\s*$"
    assert re.search(words, said, re.MULTILINE), said


@pytest.mark.parametrize(
    ("default", "started"), [pytest.param("a", "a", marks=pytest.mark.all), ("b", "b")]
)
def test_slots_of_systemd_boot(
    esp_slotted: Slotted, tmp_path: Path, default: str, started: str
) -> None:
    """loader.conf, written as a commit writes it, says which one starts."""
    place = f"{esp_slotted.image}@@{esp_slotted.extent(esp_slotted.spec.layout.shared()).start}"
    file = tmp_path / slots.LOADER_CONF
    file.parent.mkdir()
    run(["mcopy", "-i", place, f"::{slots.LOADER_CONF}", file])
    slots.write(file, Record(default, esp_slotted.known))
    run(["mcopy", "-i", place, "-o", file, f"::{slots.LOADER_CONF}"])

    said = start(esp_slotted.image, tmp_path, "uefi")

    words = rf"^started by uefi: .* root=UUID={esp_slotted.known[started].root} ro {CMDLINE}\s*$"
    assert re.search(words, said, re.MULTILINE), said


def start(image: Path, directory: Path, way: str, *words: str) -> str:
    """Start a machine from IMAGE, which stays as it is; what its console shows until it is off."""
    firmware = []
    if way == "uefi":
        shutil.copy(vm.FIRMWARE / vm.FLASH["amd64", way][1], directory / "variables")
        firmware = vm.flash(directory / "variables", way)
    drive = f"file={image},format=raw,if=none,id=disk,snapshot=on"
    return run(
        [*vm.machine(vm.accelerator()), *firmware, "-m", "512", "-serial", "stdio"]
        + ["-drive", drive, "-device", "virtio-blk-pci,drive=disk", *words],
        timeout=BOOT_S,
    )
