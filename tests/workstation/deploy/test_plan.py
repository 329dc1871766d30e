"""What stands in the way of a deployment, and what the operator is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anemos.border.boot import Seen
from anemos.disks import Device
from anemos.server import network
from anemos.system import imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation.deploy import facts, plan, ways
from anemos.workstation.deploy.facts import Entry, Facts, Network
from anemos.workstation.deploy.sizes import MIB, Sizes
from anemos.workstation.hosts import After, Host
from tests.tree import ROOT

DATA = ROOT / "tests/data"
FACTS = facts.parse((DATA / "facts-virtio").read_text())
HOST = Host("demo", Path("hosts/demo"), start="kexec")
AUTO = replace(HOST, start="auto")
SIZES = Sizes(base=60 * MIB, layer=20 * MIB, payload=MIB, base_is_there=False)
LAYOUT = "disk system serial=demo-system table=msdos\npart root fs=ext4 mount=/\n"
KEEP = "disk data serial=demo-data part=1 mount=/home options=nofail\n"


def spec(**changed: str) -> Imgbuild:
    words = {"target": "debian", "format": "disk", "layout": LAYOUT, "keep": KEEP}
    words |= {"bootloader": "grub", "packages": "linux-image-amd64 grub-pc"} | changed
    return imgbuild.interpret(Path("hosts/demo"), words)


def problems(
    given: Facts = FACTS, sizes: Sizes = SIZES, host: Host = HOST, **texts: str
) -> list[str]:
    return plan.problems(host, spec(**texts), given, sizes)


def test_no_problem() -> None:
    assert problems() == []


ALONE: list[tuple[dict[str, Any], str]] = [
    ({"user": "1000"}, "commands do not run as root there"),
    (
        {"sudo_logs": True},
        "sudo writes down what commands read, secrets too: log_input in the server's sudoers",
    ),
    ({"machine": "aarch64"}, "the machine is aarch64; arch=amd64 is for x86_64"),
    (
        {"container": "/.dockerenv"},
        "this is a container (/.dockerenv): its kernel is not its own",
    ),
    (
        {"kexec": False},
        "the kernel has no kexec, or it is disabled: /proc/sys/kernel/kexec_load_disabled",
    ),
    (
        {"lockdown": "none [integrity] confidentiality"},
        "the kernel is locked down: none [integrity] confidentiality",
    ),
    (
        {"lockdown": "none integrity [confidentiality]"},
        "the kernel is locked down: none integrity [confidentiality]",
    ),
    ({"modules": ("loop",)}, "the kernel has no squashfs"),
    ({"modules": ("squashfs",)}, "the kernel has no loop"),
    (
        {"place": "initramfs", "stamp": Seen("d-1", "demo")},
        "this is the initramfs of deployment d-1, not a running system",
    ),
    (
        {"memory_available": 366 * MIB},
        "memory: 367 MiB needed before the jump, 366 MiB available",
    ),
    (
        {"memory_total": 361 * MIB},
        "memory: 362 MiB needed in the initramfs, 361 MiB in the machine",
    ),
    (
        {"stamp": Seen("d", "mx")},
        "this machine was deployed as 'mx', not as 'demo'; with --adopt it becomes 'demo'",
    ),
    (
        {"boot_next": "0002"},
        "the firmware starts entry 0002 next, not the old system: efibootmgr -N",
    ),
    (
        {"disks": FACTS.disks[:1]},
        "disk 'data': no disks match serial=demo-data; seen: vda (serial=demo-system, 6.4 GB);"
        " vda is written: disk data serial=demo-system",
    ),
    (
        {"disks": (*FACTS.disks, replace(FACTS.disks[0], name="vdc"))},
        "disk 'system': 2 disks match serial=demo-system;"
        " seen: vda (serial=demo-system, 6.4 GB); vdc (serial=demo-system, 6.4 GB);"
        " nothing that could be written tells them apart",
    ),
    (
        {"staged": "d-1 bert@desk 12:00"},
        "deployment d-1 of bert@desk is staged there since 12:00;"
        " ./inv clean --host demo --yes demo removes it",
    ),
    (
        {"disks": (replace(FACTS.disks[0], size=MIB), FACTS.disks[1])},
        f"layout: disk 'system': partitions do not fit in {MIB} bytes",
    ),
]


@pytest.mark.parametrize(("changed", "expected"), ALONE, ids=[text for _, text in ALONE])
def test_each_problem_alone(changed: dict[str, Any], expected: str) -> None:
    assert problems(replace(FACTS, **changed)) == [expected]


def test_memory_that_is_just_enough() -> None:
    exact = replace(FACTS, memory_available=SIZES.before_jump, memory_total=SIZES.after_jump)

    assert problems(exact) == []
    assert len(problems(replace(exact, memory_available=SIZES.before_jump - 1))) == 1
    assert len(problems(replace(exact, memory_total=SIZES.after_jump - 1))) == 1


def test_all_problems_at_once() -> None:
    """One at a time would cost an operator as many attempts."""
    bad = replace(
        FACTS,
        user="1000",
        machine="aarch64",
        container="/.dockerenv",
        kexec=False,
        lockdown="none [integrity] confidentiality",
        modules=(),
        place="initramfs",
        stamp=Seen("d", "mx"),
        memory_available=MIB,
        memory_total=MIB,
        disks=(),
    )

    assert [line.split(":")[0] for line in problems(bad)] == [
        "commands do not run as root there",
        "the machine is aarch64; arch=amd64 is for x86_64",
        "this is a container (/.dockerenv)",
        "the kernel has no loop",
        "the kernel has no squashfs",
        "this is the initramfs of deployment d, not a running system",
        "the kernel has no kexec, or it is disabled",
        "the kernel is locked down",
        "memory",
        "memory",
        "disk 'system'",
        "disk 'data'",
        "this machine was deployed as 'mx', not as 'demo'; with --adopt it becomes 'demo'",
    ]


# Where there is no kexec.

GRUB = Entry("grub", "/boot/grub", "vda2", "ext4", 500 * MIB)
ESP = Entry("firmware", "/boot/efi", "vda1", "vfat", 500 * MIB)
NO_KEXEC = replace(
    FACTS,
    kexec=False,
    entries=(GRUB,),
    parts=tuple(facts.Partition("vda", f"vda{n}", n, n * MIB, MIB) for n in (1, 2)),
)
ONCE = ways.measured(ways.Once(), SIZES)


def test_way_into_the_initramfs() -> None:
    locked = replace(FACTS, lockdown="none [integrity] confidentiality")
    found = {
        (start, given.kexec): ways.chosen(replace(HOST, start=start), given, SIZES).NAME
        for start in ("auto", "kexec", "once")
        for given in (FACTS, NO_KEXEC)
    }

    assert [given for given, way in found.items() if way == "once"] == [
        ("auto", False),
        ("once", True),
        ("once", False),
    ]
    assert ways.chosen(AUTO, locked, SIZES).NAME == "once"
    assert ways.chosen(AUTO, replace(locked, efi=True), SIZES).NAME == "kexec"


@pytest.mark.parametrize(("layer", "way"), [(SIZES.layer, "late"), (0, "kexec")])
def test_package_layer_that_follows(layer: int, way: str) -> None:
    """Where the old system's memory does not hold it, and there is one to send."""
    sizes = replace(SIZES, layer=layer)
    small = replace(FACTS, memory_available=sizes.before_jump - 1)
    assert ways.chosen(AUTO, FACTS, sizes).NAME == "kexec"
    assert way == ways.chosen(AUTO, small, sizes).NAME


def test_small_machine() -> None:
    sizes = ways.measured(ways.Late(), SIZES)
    small = replace(FACTS, memory_available=sizes.before_jump)
    assert SIZES.before_jump - sizes.before_jump == 3 * SIZES.layer
    assert problems(small, sizes) == []
    assert len(problems(replace(small, memory_available=sizes.before_jump - 1), sizes)) == 1
    lines = dict(plan.describe(HOST, spec(), small, sizes))
    assert lines["boot"].endswith(
        "; the package layer follows the jump: the old system's memory does not hold it"
    )


def test_once() -> None:
    """What lies on the disk needs no memory there."""
    assert problems(NO_KEXEC, ONCE, AUTO) == []
    assert problems(replace(NO_KEXEC, memory_available=125 * MIB), ONCE, AUTO) == []
    lines = dict(plan.describe(AUTO, spec(), NO_KEXEC, ONCE))
    assert lines["boot"].startswith("once, by grub (/boot/grub): the kernel has no kexec")
    wanted = plan.describe(replace(HOST, start="once"), spec(), NO_KEXEC, ONCE)
    assert dict(wanted)["boot"] == "once, by grub (/boot/grub): as host.toml says"
    assert ("memory", "124 of 841 MiB before the jump: base 60 + 64 to work with") in wanted


def test_another_entry() -> None:
    """The firmware starts what GRUB cannot."""
    both = replace(NO_KEXEC, entries=(GRUB._replace(device="md0"), ESP))

    assert problems(both, ONCE, AUTO) == []
    assert ways.entry(both, ONCE) == ESP
    assert ways.entry(NO_KEXEC, ONCE) == GRUB


def lies(**changed: Any) -> dict[str, Any]:
    return {"entries": (GRUB._replace(**changed),)}


NO_ENTRY: list[tuple[dict[str, Any], str]] = [
    ({"secure_boot": True}, "Secure Boot: the base image's kernel would have to be"),
    ({"boot_current": "0001", "boot_first": "0003"}, "the firmware starts entry 0003 first, but"),
    ({"entries": ()}, "no GRUB has started this system whose grub.cfg reads custom.cfg, and"),
    (lies(device="dm-0"), "/boot/grub lies on dm-0 (ext4), not on a partition with ext2 or"),
    (lies(device="md0"), "/boot/grub lies on md0 (ext4), not on"),
    (lies(device="", fs="btrfs"), "/boot/grub lies on no block device (btrfs), not on"),
    (lies(fs="f2fs"), "/boot/grub lies on vda2 (f2fs), not on"),
    (lies(free=83 * MIB), "/boot/grub: 84 MiB needed, 83 MiB free"),
    ({"entries": (ESP._replace(fs="ext4"),)}, "/boot/efi lies on vda1 (ext4), not on a partition"),
]


@pytest.mark.parametrize(("changed", "why"), NO_ENTRY)
def test_no_way_at_all(changed: dict[str, Any], why: str) -> None:
    """An entry that GRUB could not use up would start for ever."""
    kexec, entry, *rest = problems(replace(NO_KEXEC, **changed), ONCE, AUTO)

    assert len(rest) == ("secure_boot" in changed)  # it would not start the new system, either
    assert kexec.startswith("the kernel has no kexec")
    assert entry.startswith(f"no boot entry for once: {why}")


def test_layer_of_the_old_system() -> None:
    host = replace(HOST, start="once", build_on="server")

    (entry,) = plan.problems(host, spec(), replace(NO_KEXEC, kexec=True), ONCE)

    assert "the package layer would be gone with the old system" in entry


@pytest.mark.parametrize(
    ("lockdown", "efi"),
    [("[none] integrity confidentiality", False), ("", False), ("none [integrity] c", True)],
)
def test_lockdown_that_does_no_harm(lockdown: str, efi: bool) -> None:
    """With Secure Boot, kexec_file_load takes the base image's kernel: it is signed."""
    found = problems(replace(FACTS, lockdown=lockdown, efi=efi))

    assert not any("locked down" in each for each in found)


UEFI = {
    "bootloader": "systemd-boot",
    "packages": "linux-image-amd64 systemd-boot",
    "layout": "disk system serial=demo-system\npart esp type=esp size=256M fs=vfat mount=/efi\n"
    "part root fs=ext4 mount=/",
}


SIGNED = {
    "bootloader": "grub",
    "packages": "linux-image-amd64 grub-efi-amd64-bin grub-efi-amd64-signed shim-signed",
    "layout": UEFI["layout"],
}


def test_uefi() -> None:
    assert problems(replace(FACTS, efi=True), SIZES, HOST, **UEFI) == []
    assert problems(replace(FACTS, efi=True, secure_boot=True), SIZES, HOST, **SIGNED) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (UEFI, "bootloader=systemd-boot of target=debian is not trusted"),
        (SIGNED | {"packages": "linux-image-amd64 shim-signed"}, "lacks grub-efi-amd64-signed"),
        (
            SIGNED | {"packages": f"{SIGNED['packages']} linux-image-6.12.1-amd64-unsigned"},
            "linux-image-6.12.1-amd64-unsigned is not signed",
        ),
    ],
)
def test_secure_boot(changed: dict[str, str], expected: str) -> None:
    (found,) = problems(replace(FACTS, efi=True, secure_boot=True), SIZES, HOST, **changed)

    assert found.startswith("Secure Boot is on, and would not start the new system: ")
    assert expected in found


@pytest.mark.parametrize(
    ("changed", "efi", "expected"),
    [
        ({"layout": "", "format": "dir"}, False, "the IMGBUILD has no layout"),
        ({"bootloader": ""}, False, "the IMGBUILD has no bootloader"),
        ({"packages": "grub-pc nginx"}, False, "the IMGBUILD has no kernel among its packages"),
        ({}, True, "the machine starts by UEFI; bootloader=grub with this layout is for BIOS"),
        (
            UEFI,
            False,
            "the machine starts by BIOS; bootloader=systemd-boot with this layout is for",
        ),
        (
            {"packages": "linux-image-amd64"},
            False,
            "bootloader=grub needs one of these packages: grub-pc, grub-pc-bin",
        ),
    ],
)
def test_system_that_would_not_start(changed: dict[str, str], efi: bool, expected: str) -> None:
    (found,) = problems(replace(FACTS, efi=efi), SIZES, HOST, **changed)

    assert found.startswith(expected)


def test_kept_disk_is_the_system_disk() -> None:
    found = problems(keep=f"disk data size={FACTS.disks[0].size}\n")

    assert found == ["disks 'system' and 'data' are the same: vda"]


def test_two_names_for_one_system_disk() -> None:
    twice = f"{LAYOUT}disk more size={FACTS.disks[0].size}\npart x fs=ext4 mount=/x\n"

    assert problems(layout=twice) == ["disks 'system' and 'more' are the same: vda"]


def test_same_host_deployed_again() -> None:
    assert problems(replace(FACTS, stamp=Seen("d", "demo"))) == []


# Sizes


def test_sizes() -> None:
    there, lacking = replace(SIZES, base_is_there=True), SIZES

    assert (there.sent, lacking.sent) == (21 * MIB, 81 * MIB)
    assert there.initramfs == lacking.initramfs == 81 * MIB
    assert lacking.before_jump - there.before_jump == 60 * MIB
    assert there.after_jump == (2 * 81 + 200) * MIB
    # Files take half of the memory, and there are up to three payloads.
    large = replace(SIZES, payload=100 * MIB)
    assert large.after_jump == 2 * (60 + 20 + 300) * MIB
    text = dict(plan.describe(HOST, spec(), replace(FACTS, memory_total=2**30), large))["memory"]
    assert text == (
        "760 of 1024 MiB after it: files take half of it:"
        " 2 x (base 60 + layer 20 + 3 x payload 100)"
    )


# The plan


def test_describe() -> None:
    assert plan.describe(HOST, spec(), FACTS, SIZES) == [
        ("server", "demo, kernel 6.1.0-28-cloud-amd64"),
        ("ERASE", "vda (serial=demo-system, 6.4 GB): / (ext4)"),
        ("keep", "vdb (serial=demo-data, 1.1 GB): /home (ext4)"),
        ("network", FACTS.addresses[0]),
        ("network", FACTS.addresses[1]),
        ("network", FACTS.routes[0]),
        ("network", FACTS.routes[1]),
        ("boot", "kexec"),
        ("send", "base image: 60.0 MiB; package layer: 20.0 MiB"),
        (
            "memory",
            "367 of 841 MiB before the jump: 3 x (base 60 + layer 20 + payload 1) + base 60"
            " + 64 to work with",
        ),
        (
            "memory",
            "362 of 977 MiB after it: 2 x (base 60 + layer 20 + payload 1) + 200 to work with",
        ),
    ]


@pytest.mark.parametrize(
    ("user", "after", "login"),
    [
        (
            "debian",
            "",
            "debian with sudo; root in the initramfs, by the same key; debian with sudo",
        ),
        ("debian", "root", "debian with sudo; root in the initramfs, by the same key; root"),
        ("root", "alice", "root; root in the initramfs, by the same key; alice with sudo"),
    ],
)
def test_describe_logins(user: str, after: str, login: str) -> None:
    host = replace(HOST, user=user, after=After(user=after))
    lines = dict(plan.describe(host, spec(), FACTS, SIZES))
    assert lines["login"] == f"{login} in the new system"


def test_describe_the_way() -> None:
    host = replace(HOST, proxy_jump="me@a,b", after=After("192.0.2.9", 2222))
    lines = [text for what, text in plan.describe(host, spec(), FACTS, SIZES) if what == "way"]
    assert lines == [
        "by the jump hosts me@a,b, to the initramfs as well",
        "to the new system: 192.0.2.9, port 2222",
    ]


def test_describe_a_server_that_was_deployed_before() -> None:
    metal = facts.parse((DATA / "facts-scsi-nvme").read_text())
    wwn = "eui.36344730527001230025384e00000001"
    layout = f"disk system wwn={wwn} table=msdos\npart root fs=ext4 mount=/\n"
    keep = "disk archive serial=ZL2AXYZ1\ndisk spare serial=S64GNE0R700124\n"
    sizes = Sizes(base=60 * MIB, layer=0, payload=MIB // 2, base_is_there=True)

    lines = plan.describe(HOST, spec(layout=layout, keep=keep), metal, sizes)

    assert lines[:4] == [
        ("server", "mx, kernel 6.1.0-28-amd64, deployment 20250101T120000Z-a1b2c3"),
        (
            "ERASE",
            "nvme0n1 (serial=S64GNE0R700123 wwn=eui.36344730527001230025384e00000001, 1920.4 GB),"
            " SAMSUNG MZQL21T9HCJR-00A07:"
            " / (ext4), /boot/efi (vfat)",
        ),
        (
            "keep",
            "sda (serial=ZL2AXYZ1 wwn=naa.5000c500c3d4e5f6, 12000.1 GB), ST12000NM0008-2H:"
            r" /srv/a\040b=c (xfs)",
        ),
        (
            "keep",
            "nvme1n1 (serial=S64GNE0R700124 wwn=eui.36344730527001240025384e00000001, 1920.4 GB),"
            " SAMSUNG MZQL21T9HCJR-00A07:"
            " nvme1n1p1 (linux_raid_member old:0)",
        ),
    ]
    way = dict(lines)["boot"]
    assert way.startswith("kexec; this system was started by the firmware's entry 0001, but 0003")
    assert ("send", "base image: is there; package layer: to be made") in lines
    unknown = "it will be more: the package layer is not made yet, and counts as 0"
    assert ("memory", unknown) in lines
    at_last = replace(HOST, build_on="initramfs")
    assert ("memory", unknown) not in plan.describe(
        at_last, spec(layout=layout, keep=keep), metal, sizes
    )


@pytest.mark.parametrize(
    ("disk", "node", "mounted"),
    [
        ("vda", "/dev/vda", True),
        ("vda", "/dev/vda12", True),
        ("vda", "/dev/vdaa1", False),
        ("nvme0n1", "/dev/nvme0n1p2", True),
        ("nvme0n1", "/dev/nvme0n10p2", False),
    ],
)
def test_what_is_mounted_from_a_disk(disk: str, node: str, mounted: bool) -> None:
    there = replace(FACTS.disks[0], name=disk)
    seen = replace(FACTS, disks=(there, FACTS.disks[1]), mounts=(f"{node} /here ext4",))

    text = dict(plan.describe(HOST, spec(), seen, SIZES))["ERASE"]

    assert text.endswith("/here (ext4)") is mounted
    assert text.endswith(": nothing that is known") is not mounted


def test_machine_of_another_host() -> None:
    other = replace(FACTS, stamp=Seen("d", "mx"))

    assert problems(other) != []
    assert plan.problems(replace(HOST, adopt=True), spec(), other, SIZES) == []


PARTS = tuple(
    facts.Partition("vda", f"vda{number}", number, start * MIB, size * MIB)
    for number, start, size in [(1, 1, 100), (2, 101, 5000), (3, 5101, 500)]
)
HOME = "part home disk=system number=3 mount=/home\n" + KEEP.replace("/home", "/data")


def test_kept_partition() -> None:
    there = replace(FACTS, parts=PARTS)
    assert problems(there, keep=HOME) == []
    (line,) = problems(replace(FACTS, parts=PARTS[:2]), keep=HOME)
    assert line == "keep: vda (serial=demo-system, 6.4 GB) has no partition 3"
    (line,) = problems(there, keep=HOME, layout=LAYOUT + "part x size=5200M\n")
    assert line == f"layout: disk 'system': partitions do not fit in {FACTS.disks[0].size} bytes"
    (line,) = problems(
        there, keep=HOME, layout=LAYOUT + "part a size=1M\npart b size=1M\npart c size=1M"
    )
    assert line == "layout: disk 'system': at most 4 partitions, with those that are kept"
    told = [
        text for what, text in plan.describe(HOST, spec(keep=HOME), there, SIZES) if what == "keep"
    ]
    assert told[0] == "partition 3 of vda (serial=demo-system, 6.4 GB)"


@pytest.mark.parametrize(
    ("slaves", "expected"),
    [
        ([("dm-0", "vda2")], ""),
        ([("dm-0", "vdb")], ""),
        ([("dm-0", "vda3"), ("dm-0", "vdb1")], ""),  # both are kept
        (
            [("dm-0", "md0"), ("md0", "vda2"), ("dm-0", "vdc")],
            "dm-0: on vda, partition 2, which is to be erased, and on vdc, which is not: keep",
        ),
        (
            [("md0", "vda2"), ("md0", "vda3")],
            "md0: on vda, partition 2, which is to be erased, and on vda, partition 3, which is",
        ),
        ([("dm-0", "md0"), ("md0", "vdb"), ("dm-0", "vda2")], "dm-0: on vda, partition 2, which"),
    ],
)
def test_entangled(slaves: list[tuple[str, str]], expected: str) -> None:
    given = replace(
        FACTS,
        parts=(*PARTS, facts.Partition("vdb", "vdb1", 1, MIB, MIB)),
        slaves=tuple(slaves),
    )
    found = problems(given, keep=HOME)
    assert [line[: len(expected)] for line in found] == ([expected] if expected else [])


# The usual rented server: its data are a volume on a mirror, beside what is erased.
RENTED = replace(
    FACTS,
    parts=(*PARTS, facts.Partition("vda", "vda4", 4, 5601 * MIB, 400 * MIB)),
    slaves=(("md127", "vda3"), ("md127", "vda4"), ("dm-0", "md127"), ("dm-1", "md127")),
    mapped={"dm-0": "old--vg-data", "dm-1": "old--vg-tmp"},
    groups=(("/dev/md127", "old-vg"),),
    contents=(
        "vda3 linux_raid_member old:1",
        "vda4 linux_raid_member old:1",
        "md127 LVM2_member",
        "old--vg-data ext4 mail",
        "old--vg-tmp swap",
    ),
    mounts=("/dev/dm-0 /srv ext4",),
)
PARTS_OF_IT = "part d1 disk=system number=3\npart d2 disk=system number=4\n"
VOLUME = "raid md1 on=d1,d2\nvg old-vg on=md1\nlv data on=old-vg mount=/srv options=nofail\n"
TOOLED = "linux-image-amd64 grub-pc mdadm lvm2"


def test_kept_volume() -> None:
    keep = PARTS_OF_IT + VOLUME
    assert problems(RENTED, keep=keep, packages=TOOLED) == []
    told = plan.describe(HOST, spec(keep=keep, packages=TOOLED), RENTED, SIZES)
    assert [text for what, text in told if what == "keep"] == [
        "partition 3 of vda (serial=demo-system, 6.4 GB)",
        "partition 4 of vda (serial=demo-system, 6.4 GB)",
        "raid md1 on d1, d2: md127 (LVM2_member)",
        "lv data on old-vg: old--vg-data (ext4 mail)",
    ]
    assert [line.split(":")[0] for line in problems(RENTED, keep=keep)] == [
        "`keep` has raid 'md1'",
        "`keep` has vg 'old-vg'",
    ]
    again = replace(RENTED, stamp=Seen("d", "demo"), mounts=("/dev/vdb1 /srv ext4",))
    (line,) = problems(again, keep=keep, packages=TOOLED)
    assert line.startswith("keep: 'data': /srv is on vdb1 now, not on dm-0; if that is meant")


@pytest.mark.parametrize(
    ("changed", "keep", "expected"),
    [
        (
            {"slaves": ()},
            VOLUME,
            "kept raid 'md1': no array runs on vda3, vda4: mdadm --assemble --scan",
        ),
        (
            {"slaves": (*RENTED.slaves, ("md127", "vdb1"))},
            VOLUME,
            "kept raid 'md1': it lies on vda3, vda4, vdb1, `keep` says vda3, vda4",
        ),
        ({}, "raid md1 on=d1", "kept raid 'md1': it lies on vda3, vda4, `keep` says vda3"),
        (
            {"groups": ()},
            VOLUME,
            "kept vg 'old-vg': LVM does not show it: pvs",
        ),
        (
            {"groups": (*RENTED.groups, ("/dev/vdb1", "old-vg"))},
            VOLUME,
            "kept vg 'old-vg': it lies on md127, vdb1, `keep` says md127",
        ),
        (
            {"mapped": {}},
            VOLUME,
            "kept lv 'data': it is not active: vgchange --activate y old-vg",
        ),
        (
            {"slaves": (*RENTED.slaves, ("dm-0", "dm-3"))},
            VOLUME,
            "kept lv 'data': it lies on dm-3, md127, `keep` says md127, and only plain logical",
        ),
        (
            {"degraded": ("md127",)},
            VOLUME,
            "md127 is degraded or does not run: mdadm --detail tells which member",
        ),
        (
            {},
            VOLUME.replace("lv data", "lv tmp"),
            "keep: 'tmp': dm-1 holds swap, which cannot be mounted at /srv: keep it without mount=",
        ),
    ],
)
def test_kept_volume_that_is_not_there(changed: dict[str, Any], keep: str, expected: str) -> None:
    given = replace(RENTED, **changed)
    found = problems(given, keep=PARTS_OF_IT + keep, packages=TOOLED)
    assert [line[: len(expected)] for line in found] == [expected]


def test_kept_volume_with_a_member_that_is_erased() -> None:
    found = problems(RENTED, keep="part d1 disk=system number=3", packages=TOOLED)
    assert [line.partition(": ")[0] for line in found] == [
        "dm-0 (old--vg-data), dm-1 (old--vg-tmp), md127, volume group old-vg"
    ]


def test_programs_for_a_stack() -> None:
    parts = "part root fs=ext4 mount=/ size=1G\npart x size=1G\npart y size=1G\n"
    stack = f"{parts}raid m level=1 on=system/x,system/y\nluks l on=m key=a/b\nvg v on=l"
    whole = LAYOUT.replace("part root fs=ext4 mount=/\n", stack)
    assert [line.split(":")[0] for line in problems(layout=whole)] == [
        "the layout has raid 'm'",
        "the layout has luks 'l'",
        "the layout has vg 'v'",
    ]
    packages = "linux-image-amd64 grub-pc mdadm cryptsetup-initramfs lvm2"
    assert problems(layout=whole, packages=packages) == []


ENCRYPTED = LAYOUT.replace(
    "part root fs=ext4 mount=/",
    "part boot fs=ext4 mount=/boot size=1G\npart r\nluks root on=system/r key=a/b fs=ext4 mount=/",
)


def test_root_that_is_to_be_unlocked() -> None:
    """Debian's cryptsetup alone has no hook for its initramfs."""
    packages = "linux-image-amd64 grub-pc cryptsetup"

    (line,) = problems(layout=ENCRYPTED, packages=packages)

    assert line == "the layout has / on luks: cryptsetup-initramfs has to be among `packages`"
    assert problems(layout=ENCRYPTED, packages=f"{packages} cryptsetup-initramfs") == []


@pytest.mark.parametrize("target", ["arch", "alpine"])
def test_initramfs_that_is_made_for_nothing_special(target: str) -> None:
    given = {"target": target, "packages": "linux-lts grub grub-bios cryptsetup lvm2"}
    given["cmdline"] = "rootfstype=ext4"
    (line,) = plan.bootable(spec(layout=ENCRYPTED, **given))
    assert line.startswith("the layout has / on luks 'root': with target=")
    apart = LAYOUT + "part u size=1G fs=ext4 mount=/usr\n"
    (line,) = plan.bootable(spec(layout=apart, **given))
    assert line.startswith("the layout has /usr on system/u: with target=")
    data = LAYOUT + "part p type=lvm size=1G\nvg v on=system/p\nlv d on=v fs=ext4 mount=/srv\n"
    assert list(plan.bootable(spec(layout=data, **given))) == []


@pytest.mark.parametrize("cmdline", ["", "rootfstype=ext4"])
def test_initramfs_that_is_told_the_type_of_the_root(cmdline: str) -> None:
    given = {"target": "alpine", "packages": "linux-lts grub-bios", "cmdline": cmdline}
    wrong = "Alpine's initramfs needs rootfstype=ext4 in `cmdline`, to find /"
    assert list(plan.bootable(spec(**given))) == ([] if cmdline else [wrong])


@pytest.mark.parametrize(
    ("target", "packages", "kernel"),
    [
        ("debian", "linux-image-amd64=6.1.123-1", True),
        ("debian", "linux-image-amd64/bookworm-backports", True),
        ("debian", "proxmox-default-kernel", True),
        ("debian", "proxmox-kernel-6.8", True),
        ("debian", "pve-kernel-6.2", True),
        ("debian", "linux-headers-amd64", False),
        ("debian", "linux-image-amd64-dbg", False),
        ("arch", "core/linux", True),
        ("arch", "linux-lts", True),
        ("arch", "linux-firmware linux-api-headers linux-headers", False),
        ("alpine", "linux-virt=6.6.1-r0", True),
        ("alpine", "linux-lts@edge", True),
        ("alpine", "linux-pam linux-firmware linux-lts-dev-headers", False),
    ],
)
def test_kernel_among_the_packages(target: str, packages: str, kernel: bool) -> None:
    loaders = "grub-pc=2.06-13+deb12u1 grub grub-bios"
    given = spec(target=target, packages=f"{loaders} {packages}", cmdline="rootfstype=ext4")

    assert [line[:27] for line in plan.bootable(given)] == (
        [] if kernel else ["the IMGBUILD has no kernel "]
    )


THREE = replace(
    FACTS,
    disks=(*FACTS.disks, Device("vdc", "C", "", 2**31)),
    parts=(*PARTS, facts.Partition("vdb", "vdb1", 1, MIB, MIB)),
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"groups": (("/dev/vda2", "vg0"), ("/dev/vdc", "vg0"))}, "volume group vg0: on vda, part"),
        ({"groups": (("/dev/vda2", "vg0"), ("[unknown]", "vg0"))}, ""),  # it has lost a disk
        ({"groups": (("/dev/vda2", "vg0"), ("/dev/vda1", "vg0"))}, ""),
        (
            {
                "groups": (("/dev/mapper/crypt", "vg0"), ("/dev/vdc", "vg0")),
                "mapped": {"dm-3": "crypt"},
                "slaves": (("dm-3", "vda2"),),
            },
            "volume group vg0: on vda, partition 2, which is to be erased, and on vdc, which is",
        ),
        ({"identities": (("vda2", "btrfs 1-2"), ("vdc", "btrfs 1-2"))}, "btrfs 1-2: on vda, part"),
        ({"identities": (("vda2", "zfs_member 7"), ("vdb1", "zfs_member 7"))}, "zfs_member 7: on"),
        (
            {"identities": (("vda2", "linux_raid_member 7"), ("vdc", "linux_raid_member 7"))},
            "linux",
        ),
        ({"identities": (("vda2", "btrfs 1"), ("vdc", "btrfs 2"))}, ""),
        ({"identities": (("vda2", "ext4 1"), ("vdc", "ext4 1"))}, ""),  # a copy of it
        ({"identities": (("vda", ""), ("vdc", ""))}, ""),
    ],
)
def test_pool_across_a_disk_that_nobody_names(changed: dict[str, Any], expected: str) -> None:
    found = problems(replace(THREE, **changed))

    assert [line[: len(expected)] for line in found] == ([expected] if expected else [])


def active(node: str, name: str, kind: str = "LVM2_member") -> dict[str, Any]:
    """NODE, which holds KIND, carries what device-mapper calls NAME."""
    contents = (f"{node} {kind}", f"{name} ext4")
    return {"slaves": (("dm-0", node),), "mapped": {"dm-0": name}, "contents": contents}


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({"groups": (("/dev/vdc", "vg0"),)}, True),
        ({"groups": (("/dev/vdb1", "vg0"),)}, True),
        ({"groups": (("/dev/vda2", "vg0"),)}, False),  # the one that is replaced
        ({"groups": (("/dev/vdc", "vg1"),)}, False),
        ({"groups": (("/dev/vda2", "vg0"), ("[unknown]", "vg0"))}, False),  # it has lost a disk
        (active("vdc", "vg0-root"), True),
        (active("vda2", "vg0-root"), False),
        (active("vdc", "vg0--x-root"), False),
        (active("vdc", "vg0"), False),
        (active("vdc", "vg0-crypt", "crypto_LUKS"), False),  # not LVM's
        ({"contents": ("vdc linux_raid_member old:md0",)}, True),
        ({"contents": ("vdc linux_raid_member old:0",)}, False),
        ({"contents": ("vda2 linux_raid_member old:md0",)}, False),
    ],
)
def test_name_that_is_taken(changed: dict[str, Any], taken: bool) -> None:
    text = "part x size=1G type=raid\npart y size=1G type=raid\npart pv type=lvm\n"
    text += "raid md0 level=1 on=system/x,system/y\nvg vg0 on=system/pv,md0\n"
    text = LAYOUT.replace("part root", f"{text}lv root on=vg0")
    packages = "linux-image-amd64 grub-pc mdadm lvm2"

    found = problems(replace(THREE, **changed), layout=text, packages=packages)

    what = "raid 'md0'" if "linux_raid_member" in str(changed) else "vg 'vg0'"
    expected = f"layout: {what}: there is one of this name on vd"
    assert [line[: len(expected)] for line in found] == ([expected] if taken else [])


STACKED = replace(
    THREE,
    slaves=(("md2", "vda2"), ("dm-0", "md2"), ("dm-1", "md2"), ("dm-7", "vdc")),
    mapped={"dm-0": "vg0-root", "dm-1": "vg0-mysql", "dm-7": "spare"},
    contents=(
        "vda2 linux_raid_member rescue:2",
        "md2 LVM2_member",
        "vg0-root ext4",
        "vg0-mysql ext4 mysql",
        "vg0-mysql ext4 mysql",
        "vdc crypto_LUKS",
        "spare xfs",
    ),
    mounts=(
        "/dev/dm-0 / ext4",
        "/dev/mapper/vg0-mysql /var/lib/mysql ext4",
        "/dev/vdb1 /home ext4",
    ),
)


def test_what_is_lost_a_layer_higher() -> None:
    lines = plan.describe(HOST, spec(), STACKED, SIZES)

    assert lines[1:5] == [
        (
            "ERASE",
            "vda (serial=demo-system, 6.4 GB): / (ext4), /var/lib/mysql (ext4),"
            " vda2 (linux_raid_member rescue:2), md2 (LVM2_member)",
        ),
        ("keep", "vdb (serial=demo-data, 1.1 GB): /home (ext4)"),
        ("untouched", "vdc (serial=C, 2.1 GB): vdc (crypto_LUKS), spare (xfs)"),
        (
            "warning",
            "vdc is encrypted and stays: copy its key file and its LUKS header from here first, if"
            " they lie on what is erased",
        ),
    ]


def test_names_that_the_server_has_not_explained() -> None:
    """Rather a mount point too many than one too few."""
    lines = plan.describe(HOST, spec(), replace(STACKED, mapped={}), SIZES)

    assert "/ (ext4), /var/lib/mysql (ext4)" in dict(lines)["ERASE"]


@pytest.mark.parametrize(
    "kind", ["crypto_LUKS", "LVM2_member", "linux_raid_member", "zfs_member", "swap", "bcache"]
)
def test_kept_and_not_to_be_mounted(kind: str) -> None:
    given = replace(THREE, contents=(f"vdb1 {kind} data",))

    (line,) = problems(given)

    assert line.startswith(f"keep: 'data': vdb1 holds {kind}, which cannot be mounted at /home")
    assert problems(given, keep=KEEP.replace("mount=/home options=nofail", "")) == []
    assert problems(replace(THREE, contents=("vdb1 btrfs data",))) == []
    whole = replace(THREE, contents=(f"vdb {kind} data",))
    assert len(problems(whole, keep=KEEP.replace("part=1", ""))) == 1
    kept = replace(THREE, contents=(f"vda3 {kind}",))
    assert len(problems(kept, keep="part home disk=system number=3 mount=/home")) == 1


def test_kept_disk_that_takes_anothers_place() -> None:
    """Once deployed, users' files would be away as soon as the wrong disk is mounted there."""
    given = replace(THREE, stamp=Seen("d", "demo"))
    other = KEEP.replace("serial=demo-data", "serial=C")
    assert problems(given) == []
    (line,) = problems(given, keep=other)
    assert line.startswith("keep: 'data': /home is on vdb1 now, not on vdc1; if that is meant, ")
    assert problems(THREE, keep=other) == []
    assert problems(replace(given, mounts=()), keep=other) == []


def warnings(given: Facts) -> list[str]:
    return [line for what, line in plan.describe(HOST, spec(), given, SIZES) if what == "warning"]


def test_kept_disk_that_could_hold_up_the_server() -> None:
    def warned(keep: str) -> list[str]:
        facts = plan.describe(HOST, spec(keep=keep), THREE, SIZES)
        return [line for what, line in facts if what == "warning"]

    (line,) = warned(KEEP.replace("nofail", "noatime"))
    assert line.startswith("/home is mounted without options=nofail: if data is broken one day")
    assert warned(KEEP.replace("nofail", "noatime,nofail")) == []
    assert warned(KEEP.replace("mount=/home options=nofail", "")) == []


def test_way_back_that_needs_somebody() -> None:
    locked = replace(
        THREE,
        slaves=(("dm-0", "vda2"), ("dm-1", "dm-0")),
        mapped={"dm-0": "crypt", "dm-1": "vg0-root"},
        contents=("vda2 crypto_LUKS", "crypt LVM2_member", "vg0-root ext4"),
        mounts=("/dev/mapper/vg0-root / ext4",),
    )

    (line,) = warnings(locked)
    assert line.startswith("/ is encrypted: a failure before the point of no return ends")
    (line,) = warnings(replace(THREE, mounts=("/dev/loop0 /run/live ext4",)))
    assert line.startswith("/ is on no disk that is known (a rescue system, a network, ZFS?)")
    assert warnings(THREE) == []


# The network

CAPTURED = json.loads((DATA / "network.json").read_text())
NETWORK = Network(
    CAPTURED["address show"],
    network.routes_of(CAPTURED["-4 route show"], CAPTURED["-6 route show"]),
    [{"priority": 0, "src": "all", "table": "local"}],
)


def came_by(address: str, **changed: Any) -> Facts:
    there = NETWORK._replace(**changed)
    return replace(FACTS, network=there, connection=("192.0.2.9", "40000", address, "22"))


def test_network_that_can_be_carried_over() -> None:
    given = came_by("203.0.113.7")

    assert problems(given) == []
    assert ("network", "left behind: docker0 (bridge)") in plan.describe(HOST, spec(), given, SIZES)


def test_network_that_cannot() -> None:
    """The same words as when the initramfs is put together, before anything is sent."""
    (line,) = problems(came_by("172.17.0.1"))
    assert line.startswith("you came in by 172.17.0.1, which the initramfs could not bring up; doc")

    rule = {"priority": 9, "src": "203.0.113.7", "table": "7"}
    (line,) = problems(came_by("203.0.113.7", rules=[rule]))
    assert line.startswith("a rule (from 203.0.113.7, table 7)")


def test_network_that_facts_do_not_tell() -> None:
    assert problems(replace(came_by("172.17.0.1"), connection=())) == []
    assert problems(replace(came_by("172.17.0.1"), network=None)) == []
    assert problems(came_by("172.17.0.1", links=[{"ifname": "of another time"}])) == []


def test_watchdogs() -> None:
    """Those that tick, and those that nothing stops."""
    text = (DATA / "facts-virtio").read_text()
    dogs = "watchdog=watchdog0|iTCO_wdt|active|N\nwatchdog=watchdog1|i6300ESB timer|inactive|N\n"
    dogs += "watchdog=watchdog2|wdat_wdt|inactive|Y\nwatchdog=watchdog|IPMI||{}\n"
    stops, stays = (
        facts.parse(text.replace("end=end", dogs.format(way) + "end=end")) for way in "NY"
    )

    assert [
        line for what, line in plan.describe(HOST, spec(), stops, SIZES) if what == "watchdog"
    ] == [
        "watchdog0 (iTCO_wdt) ticks: the jump stops it, or the initramfs takes it over",
        "watchdog2 (wdat_wdt) cannot be stopped: the initramfs has to drive it",
    ]
    assert problems(stops) == []
    (line,) = problems(stays)
    assert line.startswith("IPMI's watchdog cannot be stopped")
