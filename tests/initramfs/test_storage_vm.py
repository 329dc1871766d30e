"""The storage code in the booted base image: a rich stack on two disks, over its own remains; and
kept volumes below a new system.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anemos import cpio
from anemos.cpio import Entry
from anemos.run import run
from anemos.system import grammar, layout
from anemos.workstation import images, places
from anemos.workstation.vm import vm
from tests.imaging import attached

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run")]

MIB = layout.MIB
DEADLINE_S = 800.0
START = "python3 -B -m anemos.initramfs"
LAYOUT = """
    disk first serial=F image=2G
    part bios type=bios size=1M
    part esp  type=esp size=64M fs=vfat mount=/boot/efi
    part boot size=128M fs=ext4 mount=/boot
    part r1   type=raid size=400M
    part pv   type=lvm
    disk second serial=S table=msdos image=1G
    part r2   type=raid size=400M
    part swap type=swap fs=swap size=16M
    part srv  fs=xfs mount=/srv
    raid md0   level=1 on=first/r1,second/r2
    luks crypt on=md0 key=etc/luks/crypt.key
    vg   vg0   on=crypt,first/pv
    lv   home  on=vg0 fs=xfs mount=/home
    lv   root  on=vg0 size=300M fs=btrfs mount=/
    lv   swap  on=vg0 size=16M fs=swap
"""
KEEP = "part old disk=first number=7 mount=/old"
OLD = (300, 64)  # start and size in MiB
ENTRY = '7 : start=300MiB, size=64MiB, name="my \\x22old\\x22 data"'
SECRET = b"correct horse battery staple\n"

# Run in the base image, in the place of anemos.initramfs. The last line is what the test reads.
BEGIN = """
import json, sys, traceback
from pathlib import Path
from anemos import disks, log, mounts
from anemos.system import grammar, layout
from anemos.initramfs import hardware, kept, leftovers, storage
from anemos.run import run

HERE, TARGET = Path("/run/anemos"), Path("/target")
log.sink = lambda line: print("log:", line, flush=True)
hardware.coldplug()
hardware.wait_for("disks", lambda: len(disks.devices()) == 2)
given = json.loads((HERE / "given").read_text())
seen = {"kept": [], "mounted": [], "left": [], "read_only": [], "content": []}


def devices(plan):
    found = disks.devices()
    return {disk.name: disks.resolve(disk.name, disk.match, found) for disk in plan.disks}
"""
STACK = """

def ready():
    plan = grammar.parse(given["layout"])
    keep = grammar.parse_keep(given["keep"], plan)
    found = devices(plan)
    before = disks.fingerprint("old", found["first"], 7)
    seen["kept"].append(before.digest)
    plan = storage.check(plan, keep, found, HERE / "secrets")
    kept.secure(keep, [before])
    return plan, found


def look(found):
    points = [[str(point), str(node)] for node, point, _ in mounts.listed()]
    seen["mounted"].append([each for each in points if each[0].startswith("/target")])
    seen["read_only"].append(run(["blockdev", "--getro", found["first"].part(7)]).strip())


def main():
    # A run that fails half-way leaves all of it behind, in use.
    plan, found = ready()
    storage.write(plan, found, "one", HERE / "secrets")
    for carrier in plan.mounts():
        storage.mount(carrier, carrier.node(found), TARGET)
    run(["swapon", "/dev/vg0/swap"])
    look(found)
    # The second one succeeds.
    plan, found = ready()
    storage.write(plan, found, "two", HERE / "secrets")
    with storage.mounted(plan, found, TARGET):
        look(found)
        nodes = {each.path: each.node(found) for each in plan.filesystems()}
        seen["uuids"] = {path: disks.probe(node).get("UUID", "") for path, node in nodes.items()}
        seen["array"] = disks.probe(found["second"].part(1)).get("UUID", "")
        seen["luks"] = disks.probe(Path("/dev/md/md0")).get("UUID", "")
        (TARGET / "home/file").write_text("there")
    seen["left"].append([*leftovers.in_use(list(found.values())).stack])
    seen["left"].append([str(each) for each in Path("/dev/vg0").glob("*")])
    # What was written comes back, as a run that is taken up again needs it.
    storage.activate(plan, found, "two", HERE / "secrets")
    run(["mount", "/dev/vg0/home", TARGET])
    seen["content"].append(Path("/target/file").read_text())
    leftovers.release(list(found.values()))
    seen["kept"].append(disks.fingerprint("old", found["first"], 7).digest)
"""
END = """

try:
    main()
except BaseException:
    seen["failed"] = traceback.format_exc()
print("seen:" + json.dumps(seen), flush=True)
sys.exit(0)  # init reboots: QEMU ends
"""
# An old system of arrays and groups is made, as the usual rented server has them, and kept.
SERVER = """
    disk first serial=F image=2G
    part bios type=bios size=1M
    part r1   type=raid size=200M
    disk second serial=S image=1G
    part bios type=bios size=1M
    part r2   type=raid size=200M
    raid md0  level=1 on=first/r1,second/r2 fs=ext4 mount=/
"""
VOLUMES = """
    part d1 disk=first number=3
    part d2 disk=second number=3
    raid md1 on=d1,d2
    vg vg-0 on=md1
    lv data on=vg-0 mount=/srv options=nofail
    lv secret on=vg-0
    part p disk=second number=4
    vg single on=p
    lv solo on=single mount=/solo
    part a1 disk=first number=5
    part a2 disk=second number=5
    raid array on=a1,a2 mount=/array
"""
TABLES = (
    "label: gpt\n3 : start=600MiB, size=80MiB\n5 : start=1000MiB, size=24MiB\n",
    "label: gpt\n3 : start=600MiB, size=80MiB\n4 : start=300MiB, size=32MiB\n"
    "5 : start=400MiB, size=24MiB\n",
)
KEEPING = """
import hashlib, os
from dataclasses import replace
from anemos import volumes
from anemos.log import Failure

plan = grammar.parse(given["layout"])
keep = grammar.parse_keep(given["keep"], plan)
kept_ones = grammar.parse_kept_volumes(given["keep"], keep, plan)
wanted = [each.wanted for each in (*keep, *kept_ones)]
found = devices(plan)
at = {each.name: disks.resolve("", each.match, disks.devices()).part(each.part) for each in keep}
LUKS = ["cryptsetup", "luksFormat", "--batch-mode", "--key-file=-", "--pbkdf=pbkdf2"]
LUKS += ["--pbkdf-force-iterations=1000"]  # only its place on the disk matters


def digests():
    os.sync()
    run(["blockdev", "--flushbufs", *at.values()])
    return {n: hashlib.sha256(node.read_bytes()).hexdigest() for n, node in at.items()}


def refusal(action, *arguments):
    try:
        action(*arguments)
    except Failure as failure:
        return str(failure)
    return "nothing"


def old_system():
    for name, pair in [("127", ("d1", "d2")), ("9", ("a1", "a2"))]:
        node, members = f"/dev/md/{name}", [at[each] for each in pair]
        options = ["--level=1", "--raid-devices=2", "--metadata=1.2", f"--name={name}"]
        options += ["--bitmap=internal"] if name == "127" else []  # as mdadm(8) makes large ones
        run(["mdadm", "--create", node, "--run", "--homehost=old", *options, *members])
    run(["vgcreate", "--yes", "vg-0", "/dev/md/127"])
    run(["vgcreate", "--yes", "single", at["p"]])
    for group, name, size in [("vg-0", "data", 32), ("vg-0", "secret", 24), ("single", "solo", 16)]:
        run(["lvcreate", "--yes", f"--name={name}", f"--size={size}m", group])
    run([*LUKS, "/dev/vg-0/secret"], data=b"key")
    for node in ("/dev/vg-0/data", "/dev/single/solo", "/dev/md/9"):
        run(["mkfs.ext4", "-q", node])
        run(["mount", node, "/mnt"])
        Path("/mnt/file").write_text(node)
        run(["umount", "/mnt"])


def stop():
    leftovers.release(list(found.values()))


def start(before):
    # As udev does in the new system, by what was written for it.
    run(["blockdev", "--setrw", *at.values()])
    members = " ".join(map(str, at.values()))
    lines = [f"DEVICE {members}", layout.kept_arrays(kept_ones, before)]
    Path("/run/mdadm.conf").write_text(os.linesep.join(lines))
    run(["mdadm", "--assemble", "--scan", "--config=/run/mdadm.conf"])
    run(["vgchange", "--activate", "y", "vg-0", "single"])


def hostile(before):
    with kept.watched(keep):
        start(before)
        run(["mount", "/dev/vg-0/data", "/mnt"])
        Path("/mnt/evil").write_text("evil")
        run(["umount", "/mnt"])


def main():
    old_system()
    before = volumes.fingerprints(wanted)
    seen["before"] = [[each.name, each.serial] for each in before]
    stop()
    seen["stopped"] = refusal(volumes.fingerprints, wanted)
    bytes_before = digests()
    # Preflight
    whole = storage.check(plan, keep, found, HERE / "secrets")
    kept.secure(keep, before)
    points, _ = kept.secure_volumes(keep, kept_ones, before)
    other = [replace(each, digest="other") for each in before]
    seen["other"] = refusal(kept.secure_volumes, keep, kept_ones, other)
    seen["loops"] = run(["losetup", "--noheadings", "--list", "--output", "BACK-FILE"]).split()
    seen["mounts"] = [[each.mount, each.fs, each.options] for each in points]
    seen["uuids"] = [each.uuid for each in points]
    seen["left"] = list(leftovers.in_use(list(found.values())).stack)
    seen["read_only"] = [run(["blockdev", "--getro", node]).strip() for node in at.values()]
    seen["same"] = [digests() == bytes_before]
    # Installation
    storage.write(whole, found, "one", HERE / "secrets")
    with storage.mounted(whole, found, TARGET):
        seen["mounted"] = [str(node) for node, at, _ in mounts.listed() if str(at) == "/target"]
    seen["same"].append(digests() == bytes_before)
    # New system
    seen["conf"] = layout.kept_arrays(kept_ones, before)
    start(before)
    seen["nodes"] = sorted(str(each) for each in Path("/dev/md").iterdir())
    after = volumes.fingerprints(wanted)
    seen["unchanged"] = [old == new for old, new in zip(before, after, strict=True)]
    for uuid in seen["uuids"]:
        run(["mount", "-o", "ro,noload", f"UUID={uuid}", "/mnt"])
        seen["content"].append(Path("/mnt/file").read_text())
        run(["umount", "/mnt"])
    stop()
    seen["hostile"] = refusal(hostile, before)
    run(["mdadm", "/dev/md/array", "--fail", at["a2"]])
    seen["degraded"] = refusal(volumes.fingerprints, wanted)
    run(["mdadm", "/dev/md/array", "--remove", at["a2"]])
    run(["mdadm", "--zero-superblock", at["a2"]])
    stop()
    run(["blockdev", "--setro", *at.values()])
    seen["half"] = refusal(kept.secure_volumes, keep, kept_ones, before)
    seen["left"] += leftovers.in_use(list(found.values())).stack
"""


def entries(base: Path, guest: str, given: Mapping[str, object]) -> list[Entry]:
    """The initramfs after the base image's first initrd: as a deployment's, but for what runs."""
    init = (places.ROOT / "anemos/initramfs/init").read_text()
    assert START in init
    return [
        Entry("init", init.replace(START, "python3 -B /run/anemos/guest.py").encode(), 0o755),
        Entry("anemos/base.squashfs", base),
        Entry("anemos/guest.py", guest.encode()),
        Entry("anemos/given", json.dumps(given).encode()),
        *(Entry(f"anemos/secrets{path}", None, 0o700) for path in ("", "/etc", "/etc/luks")),
        Entry("anemos/secrets/etc/luks/crypt.key", SECRET),
    ]


Seen = dict[str, Any]


def boot(
    directory: Path, files: list[Path], guest: str, given: Mapping[str, object], sector: int = 512
) -> Seen:
    """Run the GUEST to its end; what it has seen, and what its console says."""
    kinds = ("ide-hd,bus=sata.0", "nvme") if sector == 512 else ("virtio-blk-pci", "nvme")
    blocks = f"logical_block_size={sector},physical_block_size={sector}"
    words = [*vm.machine(vm.accelerator()), "-m", "768", "-smp", "2", "-no-reboot"]
    words += ["-device", "ahci,id=sata"]
    for file, serial, kind in zip(files, "FS", kinds, strict=True):
        words += ["-drive", f"file={file},format=raw,if=none,id={serial},cache=unsafe"]
        words += ["-device", f"{kind},drive={serial},serial={serial},{blocks}"]
    base = images.base()
    with (
        images.boot_files(base) as (kernel, initrd),
        (directory / "initramfs").open("wb") as archive,
    ):
        archive.write(initrd.read_bytes())
        archive.write(bytes(-archive.tell() % cpio.PADDING))
        cpio.append(archive, entries(base, guest, given))
        archive.flush()
        words += ["-kernel", str(kernel), "-initrd", archive.name, "-serial", "stdio"]
        console = run([*words, "-append", "console=ttyS0 panic=1 quiet"], timeout=DEADLINE_S)
    lines = [line for line in console.splitlines() if line.startswith("seen:")]
    assert lines, console[-3000:]
    seen: Seen = json.loads(lines[-1].removeprefix("seen:"))
    assert "failed" not in seen, seen["failed"] + console[-3000:]
    return seen


def entry(file: Path, sector: int) -> str:
    """The kept partition's line in the table."""
    with attached(file, f"--sector-size={sector}") as node:
        lines = run(["sfdisk", "--dump", node]).splitlines()
    return next(line for line in lines if "old" in line).partition(":")[2]


def old_bytes(file: Path) -> str:
    with file.open("rb") as disk:
        disk.seek(OLD[0] * MIB)
        return hashlib.sha256(disk.read(OLD[1] * MIB)).hexdigest()


@pytest.mark.all
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.proves(disk=("SATA", "NVMe", "4Kn", "RAID", "LVM", "LUKS"), arch="amd64")
def test_stack(tmp_path: Path, sector: int) -> None:
    first, _ = files = [tmp_path / "first", tmp_path / "second"]
    for file, size in zip(files, (2048, 1024), strict=True):
        with file.open("wb") as disk:
            disk.truncate(size * MIB)
    table = f"label: gpt\n2 : start=500MiB, size=100MiB\n{ENTRY}\n"
    with attached(first, f"--sector-size={sector}") as node:
        run(["sfdisk", "--quiet", node], data=table.encode())
    with (tmp_path / "old").open("wb") as content:
        content.truncate(OLD[1] * MIB)
    run(["mkfs.ext4", "-q", tmp_path / "old"])
    with first.open("r+b") as disk:
        disk.seek(OLD[0] * MIB)
        disk.write((tmp_path / "old").read_bytes())
    before = old_bytes(first), entry(first, sector)

    seen = boot(tmp_path, files, BEGIN + STACK + END, {"layout": LAYOUT, "keep": KEEP}, sector)

    assert (old_bytes(first), entry(first, sector)) == before
    assert len(set(seen["kept"])) == 1
    assert seen["read_only"] == ["1", "1"]
    assert seen["left"] == [[], []]
    assert seen["content"] == ["there"]
    # Which of a logical volume's two names is shown depends on who made its nodes last.
    name = {512: "sda", 4096: "vda"}[sector]
    mounted = [[at, node.replace("mapper/vg0-", "vg0/")] for at, node in seen["mounted"][1]]
    assert mounted == [
        ["/target", "/dev/vg0/root"],
        ["/target/boot", f"/dev/{name}3"],
        ["/target/boot/efi", f"/dev/{name}2"],
        ["/target/home", "/dev/vg0/home"],
        ["/target/srv", "/dev/nvme0n1p3"],
    ]
    plan = grammar.parse(LAYOUT)
    assert seen["uuids"] == {e.path: layout.fs_uuid(e, "two") for e in plan.filesystems()}
    assert layout.crypttab(plan, "two") == f"crypt UUID={seen['luks']} none luks,initramfs\n"
    array = layout.array_uuid(plan.volumes[0], "two")
    assert seen["array"].replace("-", "") == array.replace(":", "")


@pytest.mark.all
def test_kept_volumes(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    for file, size, table in zip(files, (2048, 1024), TABLES, strict=True):
        with file.open("wb") as disk:
            disk.truncate(size * MIB)
        run(["sfdisk", "--quiet", file], data=table.encode())

    seen = boot(tmp_path, files, BEGIN + KEEPING + END, {"layout": SERVER, "keep": VOLUMES})

    assert seen["before"] == [
        *(["d1", "F"], ["d2", "S"], ["p", "S"], ["a1", "F"], ["a2", "S"]),
        *(["md1", "md1"], ["data", "vg-0/data"], ["secret", "vg-0/secret"]),
        *(["solo", "single/solo"], ["array", "array"]),
    ]
    assert "no array runs on" in seen["stopped"]
    assert "kept 'md1' is not what it was in the old system" in seen["other"]
    assert seen["mounts"] == [
        ["/srv", "ext4", "nofail"],
        ["/solo", "ext4", "defaults"],
        ["/array", "ext4", "defaults"],
    ]
    assert seen["read_only"] == ["1"] * 5
    assert seen["same"] == [True, True]
    assert len(seen["loops"]) == 1  # the base image
    assert len(seen["mounted"]) == 1
    # What the new system finds
    assert [line.split()[1] for line in seen["conf"].splitlines()] == [
        "/dev/md/md1",
        "/dev/md/array",
    ]
    assert {"/dev/md/md1", "/dev/md/array"} <= {*seen["nodes"]}
    assert seen["unchanged"] == [True] * 10
    assert seen["content"] == ["/dev/vg-0/data", "/dev/single/solo", "/dev/md/9"]
    # What is written is found out, and what lacks a member is not put together
    assert "written to, although kept" in seen["hostile"] and "partition 'd1'" in seen["hostile"]
    assert "is degraded" in seen["degraded"]
    assert seen["half"] != "nothing"
    assert seen["left"] == []
