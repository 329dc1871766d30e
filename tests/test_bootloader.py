"""GRUB on image files: which bytes go where, and what stays as it was."""

import json
from pathlib import Path

import pytest

from anemos.image import bootloader, imgbuild, layout
from anemos.image.imgbuild import Imgbuild
from anemos.image.layout import MIB, Disk, Part
from anemos.log import Failure
from anemos.run import run

SECTOR = 512
# Every byte tells where it is from: boot.img's are even, the core's are odd.
BOOT = bytes((2 * n) % 256 for n in range(SECTOR))
CORE = bytes((2 * n + 1) % 256 for n in range(3 * SECTOR - 100))
BIOS = (Part("first", size=3 * MIB), Part("grub", "bios", MIB), Part("root", fs="ext4", mount="/"))


def images(tmp_path: Path, core: bytes = CORE) -> tuple[Path, Path]:
    (tmp_path / "boot.img").write_bytes(BOOT)
    (tmp_path / "core.img").write_bytes(core)
    return tmp_path / "boot.img", tmp_path / "core.img"


def partitioned(file: Path, disk: Disk) -> bytes:
    """Make an image file of DISK, with something in every byte that nobody owns: its content."""
    file.write_bytes(b"\xaa" * disk.image)
    script = layout.sfdisk_script(disk, disk.image, "seed").encode()
    run(["sfdisk", "--quiet", "--wipe=never", file], data=script)
    return file.read_bytes()


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("disk", "start"),
    [
        (Disk("d", {}, "gpt", 16 * MIB, BIOS), 4 * MIB),
        (Disk("d", {}, "msdos", 16 * MIB, (Part("root", fs="ext4", mount="/"),)), SECTOR),
    ],
)
def test_embed(tmp_path: Path, disk: Disk, start: int) -> None:
    file = tmp_path / "disk"
    before = partitioned(file, disk)
    table = json.loads(run(["sfdisk", "--json", file]))
    bootloader.embed(*images(tmp_path), disk, file)
    after = file.read_bytes()
    assert len(after) == len(before)
    # The boot sector: GRUB's code around the two fields; signature and table are the disk's.
    assert after[:0x5C] == BOOT[:0x5C]
    assert after[0x5C:0x64] == (start // SECTOR).to_bytes(8, "little")
    assert after[0x64:0x66] == BOOT[0x64:0x66]
    assert after[0x66:0x68] == b"\x90\x90"
    assert after[0x68:0x1B8] == BOOT[0x68:0x1B8]
    assert after[0x1FE:0x200] == b"\x55\xaa"
    # The core: its first sector ends with where the second is.
    assert after[start : start + 500] == CORE[:500]
    assert after[start + 500 : start + 508] == (start // SECTOR + 1).to_bytes(8, "little")
    assert after[start + 508 : start + len(CORE)] == CORE[508:]
    # Nothing else.
    assert after[0x1B8:start] == before[0x1B8:start]
    assert after[start + len(CORE) :] == before[start + len(CORE) :]
    assert json.loads(run(["sfdisk", "--json", file])) == table
    run(["sfdisk", "--verify", file])


@pytest.mark.parametrize(
    ("table", "parts", "room"), [("gpt", BIOS, MIB), ("msdos", (Part("root"),), MIB - SECTOR)]
)
def test_core_that_does_not_fit(
    tmp_path: Path, table: str, parts: tuple[Part, ...], room: int
) -> None:
    disk = Disk("d", {}, table, 16 * MIB, parts)
    file = tmp_path / "disk"
    file.write_bytes(b"\xaa" * disk.image)
    core = bytes(room + 1)
    message = f"^GRUB needs {room + 1} bytes, disk 'd' has {room} for it$"
    with pytest.raises(Failure, match=message):
        bootloader.embed(*images(tmp_path, core), disk, file)
    assert file.read_bytes() == b"\xaa" * disk.image
    bootloader.embed(*images(tmp_path, core[1:]), disk, file)


def test_no_place_for_the_core(tmp_path: Path) -> None:
    disk = Disk("system", {}, "gpt", 16 * MIB, (Part("root"),))
    (tmp_path / "disk").write_bytes(bytes(disk.image))
    with pytest.raises(Failure, match="disk 'system' boots by BIOS and has no partition of type"):
        bootloader.embed(*images(tmp_path), disk, tmp_path / "disk")
    assert not any((tmp_path / "disk").read_bytes())


def kernels(root: Path, *versions: str) -> Path:
    (root / "boot").mkdir()
    for version in versions:
        (root / f"boot/vmlinuz-{version}").touch()
        (root / f"boot/initrd.img-{version}").touch()
    return root


@pytest.mark.parametrize(
    "versions",
    [
        ["6.1.0-9-amd64", "6.1.0-18-amd64"],
        ["5.10.0-30-amd64", "6.1.0-1-amd64"],
        ["6.9.7-amd64", "6.10.3-amd64"],
        ["6.1.0-9-cloud-amd64", "6.1.0-18-amd64", "6.1.0-21-cloud-amd64"],
        ["6.1", "6.1.1"],
        ["6.1.0-rc5-amd64", "6.1.0-1-amd64"],
        ["6.1.0-18-amd64"],
    ],
)
def test_newest_kernel(tmp_path: Path, versions: list[str]) -> None:
    """The last of VERSIONS, in whatever order the directory has them."""
    newest = (f"vmlinuz-{versions[-1]}", f"initrd.img-{versions[-1]}")
    assert bootloader.newest_kernel(kernels(tmp_path, *reversed(versions))) == newest


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="the image has no kernel in /boot"):
        bootloader.newest_kernel(kernels(tmp_path))
    (tmp_path / "boot/vmlinuz-6.1").touch()
    with pytest.raises(Failure, match=r"the image has no /boot/initrd\.img-6\.1"):
        bootloader.newest_kernel(tmp_path)


def test_menu() -> None:
    assert bootloader.menu("", "UUID", "vmlinuz-6.1", "initrd.img-6.1") == (
        "set timeout=1\n"
        "menuentry Linux {\n"
        "    search --no-floppy --fs-uuid --set=root UUID\n"
        "    linux /boot/vmlinuz-6.1 root=UUID=UUID ro\n"
        "    initrd /boot/initrd.img-6.1\n"
        "}\n"
    )
    serial = bootloader.menu("console=ttyS0 quiet", "U", "k", "i")
    assert "    linux /boot/k root=UUID=U ro console=ttyS0 quiet\n" in serial
    assert serial.splitlines()[1:4] == [
        "serial",
        "terminal_input serial console",
        "terminal_output serial console",
    ]


@pytest.fixture
def spec(tmp_path: Path) -> Imgbuild:
    text = """
target=debian
bootloader=grub
cmdline='quiet net.ifnames=0'
layout='
disk data serial=D
part srv fs=ext4 mount=/srv
disk system serial=S
part bios type=bios size=1M
part root fs=ext4 mount=/
'
"""
    (tmp_path / "IMGBUILD").write_text(text)
    return imgbuild.load(tmp_path)


@pytest.mark.real("run")
def test_configure(tmp_path: Path, spec: Imgbuild) -> None:
    root = kernels(tmp_path, "6.1")
    bootloader.configure(spec, root, "UUID")
    menu = bootloader.menu("quiet net.ifnames=0", "UUID", "vmlinuz-6.1", "initrd.img-6.1")
    assert (root / "boot/grub/grub.cfg").read_text() == menu
    script = '. etc/default/grub.d/anemos.cfg; echo "$GRUB_TIMEOUT $GRUB_CMDLINE_LINUX"'
    assert run(["sh", "-c", script], cwd=root) == "1 quiet net.ifnames=0\n"


@pytest.mark.real("run")
def test_boot_disk_is_that_of_the_root(spec: Imgbuild) -> None:
    assert bootloader.boot_disk(spec.layout).name == "system"


@pytest.mark.real("run")
def test_no_grub(tmp_path: Path, spec: Imgbuild) -> None:
    root = kernels(tmp_path, "6.1")
    with pytest.raises(Failure, match=r"bootloader=grub: the image has no GRUB\n.*grub-pc"):
        bootloader.install(spec, root, {"system": tmp_path / "disk"}, "seed")
