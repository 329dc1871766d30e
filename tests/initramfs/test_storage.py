"""The plan of a storage stack, and what an earlier one left, in trees like sysfs."""

from pathlib import Path

import pytest

from anemos import disks, volumes
from anemos.disks import Device
from anemos.initramfs import leftovers, storage
from anemos.initramfs.leftovers import InUse
from anemos.log import FAILED, Failure
from anemos.run import run
from anemos.system import filesystems, grammar, layout
from anemos.system.layout import MIB, Disk, Entry, Part, Table

GIB = 1024 * MIB
SEED = "seed"
DEVICES = {
    "first": Device("vda", "F", "", 4 * GIB),
    "second": Device("nvme0n1", "S", "", 4 * GIB),
}
STACK = """
    disk first serial=F image=4G
    part esp type=esp size=64M fs=vfat mount=/boot/efi
    part r1  type=raid size=2G
    part pv  type=lvm
    disk second serial=S table=msdos image=4G
    part r2  type=raid size=2G
    part swap type=swap fs=swap
    raid md0   level=1 on=first/r1,second/r2
    luks crypt on=md0 key=etc/luks/crypt.key
    vg   vg0   on=crypt,first/pv
    lv   home  on=vg0 fs=xfs mount=/home
    lv   root  on=vg0 size=1G fs=btrfs mount=/
    luks more  on=root2 key=etc/luks/more.key fs=ext4 mount=/srv
"""


def plan() -> layout.Layout:
    return grammar.parse(STACK.replace("luks more", "lv root2 on=vg0 size=512M\n    luks more"))


def test_order_and_members() -> None:
    """What something lies on is there first; what gets the rest of a group comes last in it."""
    whole = plan()
    keys = {"crypt": b"top secret", "more": b"file\n"}
    steps = [
        step
        for each in storage.making_order(whole)
        for step in storage.make(each, whole, DEVICES, SEED, keys)
    ]
    words = [[str(word) for word in step.argv] for step in steps]
    made = [(argv[0], argv[-1]) for argv in words if argv[0] != "wipefs"]
    assert made == [
        ("mkfs.vfat", "/dev/vda1"),
        ("mkswap", "/dev/nvme0n1p2"),
        ("mdadm", "/dev/nvme0n1p1"),
        ("mdadm", "/dev/md/md0"),
        ("cryptsetup", "/dev/md/md0"),
        ("cryptsetup", "crypt"),
        ("pvcreate", "/dev/vda3"),
        ("vgcreate", "/dev/vda3"),
        ("lvcreate", "vg0"),
        ("mkfs.btrfs", "/dev/vg0/root"),
        ("lvcreate", "vg0"),
        ("lvcreate", "vg0"),
        ("mkfs.xfs", "/dev/vg0/home"),
        ("cryptsetup", "/dev/vg0/root2"),
        ("cryptsetup", "more"),
        ("mkfs.ext4", "/dev/mapper/more"),
    ]
    wiped = {argv[-1] for argv in words if argv[0] == "wipefs"}
    nodes = {str(c.node(DEVICES)) for c in whole.carriers().values()}
    assert wiped == nodes - {"/nonexistent"}
    assert [step.data for step in steps if step.data] == 2 * [b"top secret"] + 2 * [b"file\n"]
    everything = " ".join(word for argv in words for word in argv)
    assert "secret" not in everything  # never an argument


@pytest.mark.parametrize(("slot", "node", "other"), [("a", 3, 4), ("b", 4, 3)])
def test_slots(slot: str, node: int, other: int) -> None:
    """One gets a file system; of what lay in the other one's place nothing comes back to life."""
    text = "disk first serial=F\npart bios type=bios size=1M\npart boot fs=ext4 size=64M\n"
    whole = grammar.parse(f"{text}part root fs=xfs size=1G mount=/ slots=2").into(slot)
    steps = [
        step
        for each in storage.making_order(whole)
        for step in storage.make(each, whole, DEVICES, SEED, {})
    ]
    made = [step.argv for step in steps if step.argv[0] != "wipefs"]
    assert [(argv[0], str(argv[-1])) for argv in made] == [
        ("mkfs.ext4", "/dev/vda2"),
        ("mkfs.xfs", f"/dev/vda{node}"),
    ]
    assert ["wipefs", "--all", "--force", "--quiet", Path(f"/dev/vda{other}")] in [
        step.argv for step in steps
    ]


def test_volume_on_what_gets_the_rest() -> None:
    """The rest is known, and the volume there, before anything is made on it."""
    text = STACK.replace("luks more  on=root2", "luks more on=home").replace(
        "fs=xfs mount=/home", ""
    )
    whole = grammar.parse(f"{text}\nlv late on=vg0 size=1G fs=swap")
    order = [each.path for each in storage.making_order(whole)]
    assert order[-5:] == ["vg0", "root", "late", "home", "more"]
    assert sorted(order) == sorted(whole.carriers())


def test_keys(tmp_path: Path) -> None:
    """What is typed at a console has no newline; what is a file is read as it is."""
    (tmp_path / "etc/luks").mkdir(parents=True)
    for name in ("crypt", "more"):
        (tmp_path / f"etc/luks/{name}.key").write_text("key\n")
    whole = plan()
    crypt, more = layout.volumes(whole, "luks")
    assert storage.key(tmp_path, crypt, whole) == b"key"
    assert storage.key(tmp_path, more, whole) == b"key\n"
    uuids = [layout.identity(SEED, name) for name in ("crypt", "more")]
    assert layout.crypttab(whole, SEED) == (
        f"crypt UUID={uuids[0]} none luks,initramfs\nmore UUID={uuids[1]} /etc/luks/more.key luks\n"
    )
    (line,) = layout.mdadm_conf(whole, SEED).splitlines()
    (array,) = layout.volumes(whole, "raid")
    assert line == f"ARRAY /dev/md/md0 metadata=1.2 UUID={layout.array_uuid(array, SEED)}"
    plain = grammar.parse("disk d serial=s\npart r fs=ext4 mount=/")
    assert layout.crypttab(plain, SEED) == layout.mdadm_conf(plain, SEED) == ""


def test_table_without_touching_what_is_kept() -> None:
    entry = Entry(100 * MIB, 50 * MIB, "/dev/vda3 : start=204800, size=102400, type=L")
    old = Table(("label: gpt",), {3: entry})
    disk = Disk("first", {}, parts=(Part("a", size=MIB), Part("b")), old=old)
    present = {number: Path(f"/dev/vda{number}") for number in (1, 3, 5)}
    steps = list(storage.table_steps(disk, DEVICES["first"], present, SEED))
    touched = [str(step.argv[-1]) for step in steps]
    assert touched == ["/dev/vda1", "/dev/vda", "/dev/vda5", *["/dev/vda"] * 4]
    assert [step.argv[0] for step in steps if "/dev/vda" in touched[:1]] == []
    assert [step.argv[0] for step in steps] == [
        *("wipefs", "partx", "wipefs", "partx"),
        *("sfdisk", "partx", "partx"),
    ]
    numbers = [step.argv[3] for step in steps if step.argv[0] == "partx"]
    assert numbers == ["1", "5", "1", "2"]
    script = next(step.data for step in steps if step.argv[0] == "sfdisk").decode()
    assert entry.line in script.splitlines()
    bare = list(storage.table_steps(Disk("first", {}), DEVICES["first"], {}, SEED))
    assert [step.argv[0] for step in bare] == ["wipefs", "sfdisk"]


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """vda3 and vdb1 carry md0, that carries LUKS, that and vda4 two logical volumes."""
    block = tmp_path / "block"
    for place, holder in [
        ("vda/vda3", "md0"),
        ("vdb/vdb1", "md0"),
        ("md0", "dm-5"),
        ("dm-5", "dm-1"),
        ("dm-5", "dm-2"),
        ("vda/vda4", "dm-2"),
        ("vdc", "dm-9"),
    ]:
        (block / place / "holders").mkdir(parents=True, exist_ok=True)
        (block / place / "holders" / holder).touch()
    for name, mapped in {"dm-1": "vg0-a", "dm-2": "vg0-b", "dm-5": "crypt", "dm-9": "x"}.items():
        (block / name / "dm").mkdir(parents=True, exist_ok=True)
        (block / name / "dm/name").write_text(f"{mapped}\n")
    monkeypatch.setattr(disks, "SYS_BLOCK", block)
    return block


def test_above(sysfs: Path) -> None:
    assert list(leftovers.above(["vda"])) == ["dm-1", "dm-2", "dm-5", "md0"]
    assert list(leftovers.above(["vdb"])) == ["dm-1", "dm-2", "dm-5", "md0"]
    assert list(leftovers.above(["vda", "vdb"])) == ["dm-1", "dm-2", "dm-5", "md0"]
    assert list(leftovers.above(["vda4", "vdb1"])) == ["dm-2", "dm-1", "dm-5", "md0"]
    assert list(leftovers.above(["vd"])) == []


def test_taken_apart(sysfs: Path) -> None:
    use = InUse(("/target/home", "/target"), ("/dev/dm-1",), ("dm-1", "dm-5", "md0"))
    assert list(leftovers.steps(use, volumes.mapped())) == [
        ["umount", "/target/home"],
        ["umount", "/target"],
        ["swapoff", "/dev/dm-1"],
        ["dmsetup", "remove", "--noudevsync", "--retry", "vg0-a"],
        ["dmsetup", "remove", "--noudevsync", "--retry", "crypt"],
        ["mdadm", "--quiet", "--stop", "/dev/md0"],
    ]


def test_entangled() -> None:
    erased = [
        (Path("/dev/vda1"), {"btrfs 1"}),
        (Path("/dev/vda2"), set()),
        (Path("/dev/vda3"), {"btrfs 3"}),
    ]
    staying = [
        (Path("/dev/vdb1"), {"btrfs 3", "journal 1"}),
        (Path("/dev/vdb2"), set()),
        (Path("/dev/vdb3"), {"btrfs 2"}),
    ]
    assert leftovers.common(erased, staying) == [
        "btrfs 3: /dev/vda3 is to be erased, /dev/vdb1 is not"
    ]


def test_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an LVM that cannot be read, nothing is known: that counts as one group."""
    seen = {
        "a": {"TYPE": "LVM2_member", "UUID": "1"},
        "b": {"TYPE": "LVM2_member", "UUID": "2"},
        "c": {"TYPE": "LVM2_member", "UUID": "3"},
        "d": {"TYPE": "linux_raid_member", "UUID": "4"},
        "e": {"TYPE": "ext4", "UUID": "5"},
        "f": {},
        "g": {"TYPE": "isw_raid_member"},
        "h": {"TYPE": "stratis", "UUID": "6", "POOL_UUID": "7"},
    }
    monkeypatch.setattr(disks, "probe", lambda node: seen[node.name])
    groups = {Path("a"): "vg0 x", Path("b"): ""}
    assert {name: leftovers.ties(Path(name), groups) for name in seen} == {
        "a": {"volume group vg0 x"},
        "b": set(),
        "c": {"volume group that LVM cannot read"},
        "d": {"linux_raid_member 4"},
        "e": set(),
        "f": set(),
        "g": {"isw_raid_member "},
        "h": {"stratis 7"},
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two")]
    for file in found:
        with file.open("wb") as image:
            image.truncate(400 * MIB)
    return found


def shared(files: list[Path]) -> set[str]:
    one, two = (leftovers.ties(file, {}) for file in files)
    return one & two


@pytest.mark.real("run")
def test_pool_of_two(files: list[Path]) -> None:
    run(["mkfs.btrfs", "-q", files[0]])
    assert shared(files) == set()
    run(["mkfs.btrfs", "-q", "-f", *files])
    assert shared(files) == {f"btrfs {disks.probe(files[0])['UUID']}"}


@pytest.mark.real("run")
def test_journal_elsewhere(files: list[Path]) -> None:
    """Whether the file system is erased or its journal: the other is of no use any more."""
    run(["mkfs.xfs", "-q", "-l", f"logdev={files[1]},size=100m", files[0]])
    assert shared(files) == {f"journal {disks.probe(files[0])['UUID']}"}
    for file in files:  # one of them a copy of the other
        run(["mkfs.xfs", "-q", "-f", "-m", f"uuid={layout.identity(SEED)}", file])
    assert shared(files) == set()


@pytest.mark.root
@pytest.mark.real("run")
def test_journal_of_ext4_elsewhere(files: list[Path]) -> None:
    run(["mkfs.ext4", "-q", "-O", "journal_dev", files[1]])
    loop = run(["losetup", "--show", "--find", files[1]]).strip()
    try:
        run(["mkfs.ext4", "-q", "-J", f"device={loop}", files[0]])
    finally:
        run(["losetup", "--detach", loop])
    assert shared(files) == {f"journal {disks.probe(files[1])['UUID']}"}
    run(["mkfs.ext4", "-q", "-F", files[0]])
    assert shared(files) == set()


@pytest.mark.parametrize(
    ("its", "tied"), [(b"1" * 16, True), (b"2" * 16, False), (bytes(16), False)]
)
def test_cache(files: list[Path], monkeypatch: pytest.MonkeyPatch, its: bytes, tied: bool) -> None:
    """Zeros: a disk that has no cache now."""
    monkeypatch.setattr(disks, "probe", lambda node: {"TYPE": "bcache", "UUID": node.name})
    for file, uuid in zip(files, (its if not any(its) else b"1" * 16, its), strict=True):
        with file.open("r+b") as image:
            image.seek(4096)
            # csum, offset, version, magic, uuid, set_uuid
            image.write(bytes(24) + b"magic".ljust(16) + file.name.encode().ljust(16) + uuid)
    assert bool(shared(files)) is tied


SYSTEM, UNNAMED = Device("vda", "F", "", 4 * GIB), Device("vdb", "U", "", 4 * GIB)
ONE = """
    disk first serial=F image=4G
    part root fs=ext4 mount=/ size=1G
    part x type=raid size=500M
    part y type=raid size=500M
    part pv type=lvm
    raid md0 level=1 on=first/x,first/y
    vg vg0 on=first/pv
"""


@pytest.mark.parametrize(
    ("seen", "groups", "expected"),
    [
        ({}, {}, ""),
        (
            {"vda2": ("btrfs", "1", ""), "vdb1": ("btrfs", "1", "")},
            {},
            "btrfs 1: /dev/vda2 is to be erased, /dev/vdb1 is not",
        ),
        (
            {"vda2": ("LVM2_member", "1", ""), "vdb": ("LVM2_member", "2", "")},
            {"vda2": "old u", "vdb": "old u"},
            "volume group old u: /dev/vda2 is to be erased, /dev/vdb is not",
        ),
        (
            {"vdb1": ("LVM2_member", "2", "")},
            {"vdb1": "vg0 u"},
            "layout: vg 'vg0': there is one of this name on /dev/vdb1, which is not erased",
        ),
        ({"vda2": ("LVM2_member", "2", "")}, {"vda2": "vg0 u"}, ""),
        ({"vdb": ("LVM2_member", "2", "")}, {"vdb": ""}, ""),
        (
            {"vdb": ("LVM2_member", "2", "")},
            {},
            "LVM cannot read /dev/vdb: its group may have a name of the layout",
        ),
        (
            {"vdb1": ("linux_raid_member", "2", "any:md0")},
            {},
            "layout: raid 'md0': there is one of this name on /dev/vdb1, which is not erased",
        ),
        ({"vda1": ("linux_raid_member", "2", "any:md0")}, {}, ""),
    ],
)
def test_preflight_looks_at_every_disk(
    seen: dict[str, tuple[str, str, str]],
    groups: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probe(node: Path) -> dict[str, str]:
        return dict(zip(("TYPE", "UUID", "LABEL"), seen.get(node.name, ()), strict=False))

    def nodes(device: Device) -> list[Path]:
        return [device.part(number) for number in range(3)]

    monkeypatch.setattr(disks, "devices", lambda: [SYSTEM, UNNAMED])
    monkeypatch.setattr(disks, "nodes", nodes)
    monkeypatch.setattr(disks, "probe", probe)
    by_node = {Path("/dev", name): group for name, group in groups.items()}
    monkeypatch.setattr(volumes, "groups", lambda: by_node)
    whole = grammar.parse(ONE)
    if not expected:
        storage.check_apart(whole, [], {"first": SYSTEM})
        return
    with pytest.raises(Failure) as caught:
        storage.check_apart(whole, [], {"first": SYSTEM})
    assert (caught.value.message, caught.value.status) == (expected, FAILED)


@pytest.mark.real("run")
@pytest.mark.parametrize("fs", list(layout.FILE_SYSTEMS))
def test_file_systems(tmp_path: Path, fs: str) -> None:
    """The least size that a layout accepts is enough, and the UUID is the one of fstab."""
    text = f"disk d serial=s\npart r fs=ext4 mount=/ size=1G\npart x fs={fs} size=400M"
    carrier = grammar.parse(text).carriers()["d/x"]
    file = tmp_path / "fs"
    with file.open("wb") as image:
        image.truncate(layout.FILE_SYSTEMS[fs])
    uuid = layout.fs_uuid(carrier, SEED)
    for _ in range(2):  # over what is there, too
        run(filesystems.make(fs, uuid, file))
    assert disks.probe(file) == {"TYPE": fs, "UUID": uuid}
