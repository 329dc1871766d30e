"""Boot loaders: which bytes go where, what is written, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from anemos.architecture import AMD64, ARM64, Architecture
from anemos.log import Failure
from anemos.run import run
from anemos.system import booting, bootloader, grammar, imgbuild, layout, slots
from anemos.system.bootloader import bios, grub, kernels, places, systemd_boot
from anemos.system.bootloader.kernels import Kernel
from anemos.system.bootloader.places import Place, Target
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import MIB, Disk, Entry, Layout, Part, Table

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
    bios.embed(*images(tmp_path), disk, file)
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
    flag = b"\x80" if disk.table == "gpt" else before[0x1BE:0x1BF]  # the protective entry's
    assert after[0x1B8:start] == before[0x1B8:0x1BE] + flag + before[0x1BF:start]
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
        bios.embed(*images(tmp_path, core), disk, file)
    assert file.read_bytes() == b"\xaa" * disk.image
    bios.embed(*images(tmp_path, core[1:]), disk, file)


def test_kept_partition_in_the_first_mib(tmp_path: Path) -> None:
    """As old tools made them: at sector 63. Refused in time; and what is kept is not written to."""
    old = Table((), {1: Entry(63 * SECTOR, 2 * MIB, "1 : start=63")})
    parts = (Part("root", fs="ext4", mount="/"),)
    disk = Disk("d", {"serial": "s"}, "msdos", 16 * MIB, parts, old)
    (tmp_path / "disk").write_bytes(bytes(disk.image))
    with pytest.raises(ValueError, match="the first MiB of disk 'd', where a kept partition lies"):
        grub.check(Layout((disk,)), "")
    with pytest.raises(Failure, match=f"disk 'd' has {62 * SECTOR} for it"):
        bios.embed(*images(tmp_path, bytes(62 * SECTOR + 1)), disk, tmp_path / "disk")
    assert not any((tmp_path / "disk").read_bytes())


def test_no_place_for_the_core(tmp_path: Path) -> None:
    disk = Disk("system", {}, "gpt", 16 * MIB, (Part("root"),))
    (tmp_path / "disk").write_bytes(bytes(disk.image))
    with pytest.raises(Failure, match="disk 'system' boots by BIOS and has no partition of type"):
        bios.embed(*images(tmp_path), disk, tmp_path / "disk")
    assert not any((tmp_path / "disk").read_bytes())


# Kernels


def bootable(root: Path, *names: str, initrd: str = "initrd.img-{}") -> Path:
    (root / "boot").mkdir()
    for name in names:
        (root / f"boot/vmlinuz-{name}").write_text(f"kernel {name}")
        (root / "boot" / initrd.format(name)).write_text(f"initrd {name}")
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
    newest = Kernel(versions[-1], f"initrd.img-{versions[-1]}")
    assert kernels.newest(bootable(tmp_path, *reversed(versions))) == newest


@pytest.mark.parametrize(
    ("name", "form", "stays"),
    [
        ("6.1.0-18-amd64", "initrd.img-{}", False),
        ("linux", "initramfs-{}.img", True),
        ("linux-lts", "initramfs-{}.img", True),
        ("lts", "initramfs-{}", True),
        ("virt", "initramfs-{}", True),
    ],
)
def test_names_of_distributions(tmp_path: Path, name: str, form: str, stays: bool) -> None:
    found = kernels.newest(bootable(tmp_path, name, initrd=form))
    assert (found, found.stays) == (Kernel(name, form.format(name)), stays)


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="the image has no kernel in /boot"):
        kernels.newest(bootable(tmp_path))
    (tmp_path / "boot/vmlinuz-6.1").touch()
    with pytest.raises(Failure, match=r"no initramfs in /boot: initrd\.img-6\.1 or initramfs-6\.1"):
        kernels.newest(tmp_path)


# Where things are


BIOS_BOOT = "part bios type=bios size=1M\n"
ESP = "part esp type=esp size=300M fs=vfat mount=/boot/efi\n"
ROOT = "part root fs=ext4 mount=/\n"
DISK = "disk system serial=S\n"
MIRROR = """
disk one serial=A
part bios type=bios size=1M
part esp type=esp size=300M fs=vfat
part md type=raid
disk two serial=B
part bios type=bios size=1M
part esp type=esp size=300M fs=vfat mount=/boot/efi
part md type=raid
raid md0 level=1 on=one/md,two/md
vg srv on=md0
lv root on=srv fs=xfs mount=/
"""
LOCKED = """
disk system serial=S
part bios type=bios size=1M
part boot size=1G fs=btrfs mount=/boot
part crypt
luks locked on=system/crypt key=etc/luks/locked.key
vg vg on=locked
lv root on=vg fs=ext4 mount=/
"""
SLOTS = DISK + BIOS_BOOT + "part boot fs=ext4 size=64M\npart root size=1G fs=xfs mount=/ slots=2\n"
SLOTS_ON_A_MIRROR = "".join(
    f"disk {name} serial={name}\n{BIOS_BOOT}part b type=raid size=64M\npart m type=raid\n"
    for name in ("one", "two")
)
SLOTS_ON_A_MIRROR += """
raid boot level=1 on=one/b,two/b fs=ext4
raid md0 level=1 on=one/m,two/m
vg vg on=md0
lv root on=vg size=1G fs=ext4 mount=/ slots=2
"""
LOCKED_SLOTS = LOCKED.replace("size=1G fs=btrfs mount=/boot", "size=64M fs=ext4")
LOCKED_SLOTS = LOCKED_SLOTS.replace("on=vg fs", "on=vg size=1G slots=2 fs")
EFI = ESP.replace("/boot/efi", "/efi")
LARGE = EFI.replace("300M", "600M")
SLOTTED = DISK + LARGE + "part root size=1G fs=xfs mount=/ slots=2\n"
SPARE = "disk second serial=T\npart esp type=esp size=600M fs=vfat\n"


def target(tmp_path: Path, text: str, cmdline: str = "quiet") -> Target:
    disks = grammar.parse(text)
    files = {disk.name: tmp_path / disk.name for disk in disks.disks}
    return Target(disks, cmdline, tmp_path, files, "seed", AMD64)


def uuid(disks: Layout, path: str) -> str:
    return layout.fs_uuid(disks.carriers()[path], "seed")


def test_places_with_everything_in_one(tmp_path: Path) -> None:
    given = target(tmp_path, DISK + BIOS_BOOT + ROOT)
    root = uuid(given.layout, "system/root")
    assert given.place("/boot/grub") == Place(root, "/boot/grub")
    assert given.words == f"root=UUID={root} ro quiet"
    assert grub.modules(given, "bios")[-1] == "ext2"


def test_places_with_boot_apart(tmp_path: Path) -> None:
    given = target(tmp_path, LOCKED)
    assert given.place("/boot/grub") == Place(uuid(given.layout, "system/boot"), "/grub")
    assert given.place("/boot") == Place(uuid(given.layout, "system/boot"), "")
    assert given.words == "root=/dev/mapper/vg-root ro quiet"
    assert grub.modules(given, "bios")[-1] == "btrfs"


def test_places_on_a_mirror(tmp_path: Path) -> None:
    """Both disks start the system, whichever is left."""
    given = target(tmp_path, MIRROR)
    assert given.words == "root=/dev/mapper/srv-root ro quiet"
    assert [disk.name for disk in grub.bios_disks(given.layout)] == ["one", "two"]
    first, copy = places.esps(given.layout)
    assert (first.path, copy.path) == ("two/esp", "one/esp")
    assert places.original(given.layout, copy) == first
    assert places.original(given.layout, given.layout.root()) == given.layout.root()
    modules = ["part_gpt", "part_msdos", "search_fs_uuid", "xfs", "lvm", "mdraid1x"]
    assert grub.modules(given, "uefi") == modules
    assert grub.modules(given, "bios") == ["biosdisk", *modules]


def test_places_with_slots(tmp_path: Path) -> None:
    """The core image reads what both share, and can read either slot: its own /boot is in its /."""
    given = target(tmp_path, SLOTS)
    for slot in layout.SLOTS:
        disks = given.layout.into(slot)
        each = replace(given, layout=disks)
        root = uuid(disks, f"system/root_{slot}")
        assert each.place(grub.home(disks)) == Place(uuid(disks, "system/boot"), "/grub")
        assert each.place("/boot") == Place(root, "/boot")
        assert each.words == f"root=UUID={root} ro quiet"
        assert grub.modules(each, "bios")[-2:] == ["ext2", "xfs"]
        assert [disk.name for disk in grub.bios_disks(disks)] == ["system"]


def test_places_with_slots_on_a_mirror(tmp_path: Path) -> None:
    given = target(tmp_path, SLOTS_ON_A_MIRROR)
    assert [disk.name for disk in grub.bios_disks(given.layout)] == ["one", "two"]
    assert given.place(grub.home(given.layout)) == Place(uuid(given.layout, "boot"), "/grub")
    assert given.words == "root=/dev/mapper/vg-root_a ro quiet"
    assert grub.modules(given, "bios")[-3:] == ["ext2", "lvm", "mdraid1x"]


# What is refused


@pytest.mark.parametrize(
    ("loader", "text", "ways"),
    [
        ("grub", DISK + BIOS_BOOT + ROOT, {"bios"}),
        ("grub", DISK + ESP + ROOT, {"uefi"}),
        ("grub", DISK + BIOS_BOOT + ESP + ROOT, {"bios", "uefi"}),
        ("grub", "disk d serial=S table=msdos\n" + ROOT, {"bios"}),
        ("grub", "disk d serial=S table=msdos\n" + ESP + ROOT, {"uefi"}),
        ("grub", MIRROR, {"bios", "uefi"}),
        ("grub", LOCKED, {"bios"}),
        ("grub", SLOTS, {"bios"}),
        ("grub", SLOTS + EFI, {"bios", "uefi"}),
        ("grub", SLOTS_ON_A_MIRROR, {"bios"}),
        ("grub", DISK + EFI + "part root size=1G fs=ext4 mount=/ slots=2", {"uefi"}),
        ("systemd-boot", DISK + ESP + ROOT, {"uefi"}),
    ],
)
def test_ways(loader: str, text: str, ways: set[str]) -> None:
    disks = grammar.parse(text)
    bootloader.LOADERS[loader].check(disks, "console=ttyS0,115200n8 quiet")
    assert bootloader.LOADERS[loader].ways(disks) == ways


@pytest.mark.parametrize(
    ("loader", "text", "cmdline", "message"),
    [
        ("grub", DISK + ROOT, "", "needs a partition of type=bios or esp on disk 'system'"),
        (
            "grub",
            "disk data serial=D table=msdos\npart x fs=ext4 mount=/srv\n" + DISK + ROOT,
            "",
            "needs a partition of type=bios or esp on disk 'system'",
        ),
        ("grub", LOCKED.replace("mount=/boot", ""), "", "needs /boot outside of LUKS"),
        ("grub", DISK + ESP.replace("mount=/boot/efi", "") + ROOT, "", "esp with a mount"),
        ("grub", DISK + ESP.replace("300M", "4M") + ROOT, "", "needs 16M there"),
        ("grub", DISK + BIOS_BOOT + ROOT, "a=$b", r"cmdline has a \$, which GRUB"),
        (
            "grub",
            SLOTS + ESP,
            "",
            "needs its ESP at /efi: upgrades of Debian's GRUB",
        ),
        ("grub", SLOTS.replace("64M", "8M"), "", "system/boot: bootloader=grub needs 16M there"),
        ("systemd-boot", SLOTS + EFI, "", "system/esp: bootloader=systemd-boot needs 512M there"),
        ("systemd-boot", SLOTS + LARGE, "", "system/boot: bootloader=systemd-boot starts slots"),
        ("systemd-boot", SLOTTED + SPARE, "", "second/esp: a copy of an ESP goes on starting one"),
        ("grub", LOCKED_SLOTS, "", "needs /boot outside of LUKS: with slots, it is in /"),
        ("systemd-boot", DISK + BIOS_BOOT + ROOT, "", "esp with a mount"),
        ("systemd-boot", DISK + ESP.replace("300M", "100M") + ROOT, "", "needs 256M there"),
        ("systemd-boot", DISK + ESP.replace("/boot/efi", "/mnt") + ROOT, "", "not /mnt"),
        ("systemd-boot", DISK + ESP + ROOT, r"a=\n", r"cmdline has a \\, which systemd-boot"),
    ],
)
def test_refused(loader: str, text: str, cmdline: str, message: str) -> None:
    disks = grammar.parse(text)
    with pytest.raises(ValueError, match=message):
        bootloader.LOADERS[loader].check(disks, cmdline)


def spec(directory: Path, loader: str, text: str, more: str = "") -> Imgbuild:
    words = f"target=debian\nbootloader={loader}\nlayout='{text}'\n{more}"
    (directory / "IMGBUILD").write_text(words)
    return imgbuild.load(directory)


@pytest.mark.real("run")
def test_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"/IMGBUILD: bootloader=grub needs a partition of type=bios"):
        spec(tmp_path, "grub", DISK + ROOT)


@pytest.mark.real("run")
def test_missing_packages(tmp_path: Path) -> None:
    both = spec(tmp_path, "grub", DISK + BIOS_BOOT + ESP + ROOT, "packages='nginx grub-pc'")
    assert [each[0] for each in booting.missing(both)] == ["grub-efi-amd64-bin"]
    full = spec(tmp_path, "grub", DISK + ESP + ROOT, "packages='grub-efi-amd64'")
    assert booting.missing(full) == []
    for target, names in {"arch": ["grub"], "alpine": ["grub-bios", "grub-efi"]}.items():
        lacking = spec(tmp_path, "grub", DISK + BIOS_BOOT + ESP + ROOT, f"target={target}")
        assert sorted({each[0] for each in booting.missing(lacking)}) == names
    pinned = "packages='grub-efi-amd64=2.06-13+deb12u1 grub-pc/bookworm grub-pc-bin:amd64'"
    assert booting.missing(spec(tmp_path, "grub", DISK + BIOS_BOOT + ESP + ROOT, pinned)) == []


# GRUB


def test_menu() -> None:
    kernel = Kernel("6.1", "initrd.img-6.1")
    assert grub.menu("root=R ro", Place("UUID", "/boot"), kernel) == (
        "set timeout=1\n"
        "menuentry Linux {\n"
        "    search --no-floppy --fs-uuid --set=root UUID\n"
        "    linux /boot/vmlinuz-6.1 root=R ro\n"
        "    initrd /boot/initrd.img-6.1\n"
        "}\n"
        "if [ -f ${config_directory}/custom.cfg ]; then\n"
        "    source ${config_directory}/custom.cfg\n"
        "fi\n"
    )
    serial = grub.menu("root=R ro console=ttyS0 quiet", Place("U", ""), kernel)
    assert "    linux /vmlinuz-6.1 root=R ro console=ttyS0 quiet\n" in serial
    assert serial.splitlines()[1:4] == [
        "serial",
        "terminal_input serial console",
        "terminal_output serial console",
    ]


@pytest.mark.real("run")
def test_configure(tmp_path: Path) -> None:
    given = target(bootable(tmp_path, "6.1"), DISK + BIOS_BOOT + ROOT, "quiet net.ifnames=0")
    grub.configure(given)
    assert given.words in (tmp_path / "boot/grub/grub.cfg").read_text()
    script = '. etc/default/grub.d/anemos.cfg; echo "$GRUB_TIMEOUT $GRUB_CMDLINE_LINUX"'
    assert run(["sh", "-c", script], cwd=tmp_path) == "1 quiet net.ifnames=0\n"


@pytest.mark.real("run")
def test_configure_where_grub_reads_one_file_only(tmp_path: Path) -> None:
    root = bootable(tmp_path, "linux", initrd="initramfs-{}.img")
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/grub").write_text("GRUB_CMDLINE_LINUX=\nGRUB_GFXMODE=auto")
    grub.configure(target(root, DISK + BIOS_BOOT + ROOT, "quiet"))
    with_root = (root / "etc/default/grub").read_text().replace(". /", f". {root}/")
    script = f'{with_root}\necho "$GRUB_GFXMODE $GRUB_CMDLINE_LINUX"'
    assert run(["sh", "-c", script]) == "auto quiet\n"


def test_choice_of_a_slot() -> None:
    """What both slots share depends on no deployment: no one writes it again but with the disks."""
    assert grub.CHOICE.startswith("load_env --file ($root)/anemos-slots slot root_a root_b once\n")
    assert "configfile ($root)/boot/grub/grub.cfg\n" in grub.CHOICE


def test_no_grub(tmp_path: Path) -> None:
    given = target(bootable(tmp_path, "6.1"), DISK + ESP + ROOT)
    with pytest.raises(Failure, match=r"the image has no GRUB for UEFI\n.*grub-efi-amd64-bin"):
        grub.install(given)


@pytest.mark.parametrize("arch", [AMD64, ARM64])
def test_signed_grub(tmp_path: Path, arch: Architecture) -> None:
    """Shim starts the distribution's GRUB, which has a place of its own for its settings."""
    efi = arch.efi
    for file in map(arch.named, grub.SIGNED):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(file)
    (tmp_path / "usr/lib/os-release").write_text('NAME="Debian GNU/Linux"\nID=debian\n')
    given = replace(target(tmp_path, DISK + ESP + ROOT), arch=arch)
    grub.fill_esp(given, "/boot/efi", tmp_path / "unused", "early\n")
    esp = tmp_path / "boot/efi/EFI"
    first = {AMD64: "BOOTX64.EFI", ARM64: "BOOTAA64.EFI"}[arch]
    assert (esp / "BOOT" / first).read_text() == f"usr/lib/shim/shim{efi}.efi.signed"
    assert (esp / f"BOOT/grub{efi}.efi").read_text().endswith(f"grub{efi}.efi.signed")
    assert (esp / "debian/grub.cfg").read_text() == "early\nconfigfile $prefix/grub.cfg\n"


# systemd-boot


def files(root: Path) -> dict[str, str]:
    found = sorted(file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): file.read_text() for file in found}


def with_systemd_boot(root: Path) -> Path:
    loader = root / AMD64.named(systemd_boot.LOADER)
    loader.parent.mkdir(parents=True)
    loader.write_text("loader")
    (root / "usr/lib/os-release").write_text('# x\nPRETTY_NAME="Debian 12"\nID=debian\n')
    return root


def test_own_menu_of_systemd_boot(tmp_path: Path) -> None:
    given = target(with_systemd_boot(bootable(tmp_path, "6.1.0-18-amd64")), DISK + ESP + ROOT)
    own = tmp_path / places.esps(given.layout)[0].mount.lstrip("/") / "loader/loader.conf"
    own.parent.mkdir(parents=True)
    own.write_text("timeout 10\n")
    systemd_boot.install(given)
    assert own.read_text() == "timeout 10\n"


def test_signed_systemd_boot(tmp_path: Path) -> None:
    """As Debian 13 has it: the signed one alone, or both."""
    given = target(with_systemd_boot(bootable(tmp_path, "6.1.0-18-amd64")), DISK + ESP + ROOT)
    unsigned = tmp_path / AMD64.named(systemd_boot.LOADER)
    unsigned.with_name(f"{unsigned.name}.signed").write_text("signed")
    unsigned.unlink()
    systemd_boot.install(given)
    found = [file for file in tmp_path.rglob("*") if file.suffix.lower() == ".efi"]
    assert {file.read_text() for file in found} == {"signed"}
    assert len(found) == len(systemd_boot.PLACES)


def test_systemd_boot(tmp_path: Path) -> None:
    given = target(with_systemd_boot(bootable(tmp_path, "6.1.0-18-amd64")), DISK + ESP + ROOT)
    systemd_boot.install(given)
    assert files(tmp_path / "boot/efi") == {
        "EFI/BOOT/BOOTX64.EFI": "loader",
        "EFI/systemd/systemd-bootx64.efi": "loader",
        "debian/6.1.0-18-amd64/initrd.img-6.1.0-18-amd64": "initrd 6.1.0-18-amd64",
        "debian/6.1.0-18-amd64/linux": "kernel 6.1.0-18-amd64",
        "loader/entries.srel": "type1\n",
        "loader/entries/debian-6.1.0-18-amd64.conf": (
            "title      Debian 12\n"
            "version    6.1.0-18-amd64\n"
            "sort-key   debian\n"
            f"options    {given.words}\n"
            "linux      /debian/6.1.0-18-amd64/linux\n"
            "initrd     /debian/6.1.0-18-amd64/initrd.img-6.1.0-18-amd64\n"
        ),
        "loader/loader.conf": "timeout 1\n",
    }
    assert files(tmp_path / "etc") == {
        "kernel/cmdline": f"{given.words}\n",
        "kernel/entry-token": "debian\n",
    }


def test_slots_of_systemd_boot(tmp_path: Path) -> None:
    """Each has files and entries of its own on the ESP, and is taken away without the other's."""
    root, name = with_systemd_boot(bootable(tmp_path, "6.1.0-18-amd64")), "6.1.0-18-amd64"
    whole, esp = target(root, SLOTTED), tmp_path / "efi"
    systemd_boot.install(replace(whole, layout=whole.layout.into("a")))
    first = files(esp)
    given = replace(whole, layout=whole.layout.only("b"), seed="other")
    systemd_boot.configure(given)
    systemd_boot.share(given, esp)
    assert files(root / "etc")["kernel/entry-token"] == "anemos-b\n"
    entry = systemd_boot.first_entry(root)
    assert entry == (root / f"boot/vmlinuz-{name}", root / f"boot/initrd.img-{name}", given.words)
    own = {path: text for path, text in files(esp).items() if path not in first}
    assert own.keys() == {
        f"anemos-b/{name}/initrd.img-{name}",
        f"anemos-b/{name}/linux",
        f"loader/entries/anemos-b-{name}.conf",
    }
    assert f"options    {given.words}\n" in own[f"loader/entries/anemos-b-{name}.conf"]
    assert uuid(whole.layout.into("b"), "system/root_b") not in given.words
    systemd_boot.clear("b", esp)
    assert files(esp) == first
    systemd_boot.clear("b", esp)


def test_slot_that_leads_out_of_it(tmp_path: Path) -> None:
    """Absolute links are the slot's own: nothing of the running system is read."""
    name, root = "6.1.0-18-amd64", tmp_path / "root"
    root.mkdir()
    given = target(with_systemd_boot(bootable(root, name)), SLOTTED)
    systemd_boot.configure(given)
    (root / "boot").rename(root / "kernels")
    (root / "boot").symlink_to("/kernels")
    (root / f"kernels/vmlinuz-{name}").rename(root / "kernel")
    (root / f"kernels/vmlinuz-{name}").symlink_to("/kernel")
    (root / "etc/kernel/cmdline").rename(root / "words")
    (root / "etc/kernel/cmdline").symlink_to("/words")
    entry = systemd_boot.first_entry(root)
    assert entry == (root / "kernel", root / f"kernels/initrd.img-{name}", given.words)
    systemd_boot.share(given, tmp_path / "esp")
    assert (tmp_path / f"esp/anemos-a/{name}/linux").read_text() == f"kernel {name}"


def test_slot_without_its_command_line(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="etc/kernel/cmdline of the slot is not there"):
        systemd_boot.first_entry(bootable(tmp_path, "6.1.0-18-amd64"))


@pytest.mark.real("run")
@pytest.mark.parametrize("own", ["", "timeout 10\ndefault x-*\n\tdefault  y\nconsole-mode max\n"])
def test_record_in_the_menu_of_systemd_boot(tmp_path: Path, own: str) -> None:
    """The definition's own settings follow it, but it says itself which slot starts."""
    root = with_systemd_boot(bootable(tmp_path, "6.1.0-18-amd64"))
    given = spec(tmp_path, "systemd-boot", SLOTTED, "packages=systemd-boot\n")
    file = root / "efi" / slots.LOADER_CONF
    file.parent.mkdir(parents=True)
    if own:
        file.write_text(own)
    booting.install(given, root, {}, "seed", "d-1", 7)
    data = file.read_bytes()
    record = slots.first(given.layout, "seed", "d-1", 7)
    assert slots.read(file) == record
    assert data.startswith(slots.encoded(record, slots.LOADER_CONF))
    rest = "timeout 10\nconsole-mode max\n" if own else "timeout 1\n"
    assert data[slots.SECTOR :].decode() == rest
    words = [line.split() for line in data.decode().splitlines()]
    assert [line for line in words if line[0] == "default"] == [["default", "anemos-a-*"]]
    slots.write(file, record.committed("b"))
    assert slots.read(file) == record.committed("b")
    assert b"\ndefault anemos-b-*\n" in file.read_bytes()
    assert file.read_bytes()[slots.SECTOR :].decode() == rest


@pytest.mark.parametrize("target", ["arch", "alpine"])
@pytest.mark.real("run")
def test_kernels_that_are_upgraded_elsewhere(tmp_path: Path, target: str) -> None:
    text = f"target={target}\nbootloader=systemd-boot\nlayout='{DISK + ESP + ROOT}'\n"
    (tmp_path / "IMGBUILD").write_text(text)
    with pytest.raises(Failure, match=f"target={target} upgrades kernels in place.*/boot/efi"):
        imgbuild.load(tmp_path)


def test_systemd_boot_with_kernels_that_are_upgraded_in_place(tmp_path: Path) -> None:
    root = with_systemd_boot(bootable(tmp_path, "linux", initrd="initramfs-{}.img"))
    with pytest.raises(
        Failure, match=r"vmlinuz-linux is upgraded in place\n.*mount the ESP at /boot"
    ):
        systemd_boot.install(target(root, DISK + ESP + ROOT))
    systemd_boot.install(target(root, DISK + ESP.replace("/boot/efi", "/boot") + ROOT))
    (entry,) = (root / "boot/loader/entries").iterdir()
    assert entry.read_text().splitlines()[-2:] == [
        "linux      /vmlinuz-linux",
        "initrd     /initramfs-linux.img",
    ]


def test_no_systemd_boot(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"systemd-bootx64\.efi\n.*add systemd-boot to"):
        systemd_boot.install(target(bootable(tmp_path, "6.1"), DISK + ESP + ROOT))
