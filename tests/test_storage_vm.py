"""The storage code in the booted base image: a rich stack on two disks, over its own remains."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from anemos import cpio
from anemos.cpio import Entry
from anemos.run import run
from anemos.system import grammar, layout
from anemos.workstation import images, places
from anemos.workstation.vm import vm

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run")]

MIB = layout.MIB
DEADLINE_S = 400.0
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

# Runs in the base image, in the place of anemos.initramfs. Its last line is what the test reads.
GUEST = """
import json, sys, traceback
from pathlib import Path
from anemos import disks, log, mounts
from anemos.system import grammar
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


try:
    main()
except BaseException:
    seen["failed"] = traceback.format_exc()
print("seen:" + json.dumps(seen), flush=True)
sys.exit(0)  # init reboots: QEMU ends
"""


def entries(base: Path, given: Mapping[str, object]) -> list[Entry]:
    """The initramfs after the base image's first initrd: as a deployment's, but for what runs."""
    init = (places.ROOT / "anemos/initramfs/init").read_text()
    assert START in init
    return [
        Entry("init", init.replace(START, "python3 -B /run/anemos/guest.py").encode(), 0o755),
        Entry("anemos/base.squashfs", base),
        Entry("anemos/guest.py", GUEST.encode()),
        Entry("anemos/given", json.dumps(given).encode()),
        *(Entry(f"anemos/secrets{path}", None, 0o700) for path in ("", "/etc", "/etc/luks")),
        Entry("anemos/secrets/etc/luks/crypt.key", SECRET),
    ]


def boot(directory: Path, files: list[Path]) -> str:
    """Run the guest to its end; what its console says."""
    words = [*vm.machine(vm.accelerator()), "-m", "768", "-smp", "2", "-no-reboot"]
    words += ["-device", "ahci,id=sata"]
    for file, serial, kind in zip(files, "FS", ("ide-hd,bus=sata.0", "nvme"), strict=True):
        words += ["-drive", f"file={file},format=raw,if=none,id={serial},cache=unsafe"]
        words += ["-device", f"{kind},drive={serial},serial={serial}"]
    base = images.base()
    with (
        images.boot_files(base) as (kernel, initrd),
        (directory / "initramfs").open("wb") as archive,
    ):
        archive.write(initrd.read_bytes())
        archive.write(bytes(-archive.tell() % cpio.PADDING))
        given = {"layout": LAYOUT, "keep": KEEP}
        cpio.append(archive, entries(base, given))
        archive.flush()
        words += ["-kernel", str(kernel), "-initrd", archive.name, "-serial", "stdio"]
        return run([*words, "-append", "console=ttyS0 panic=1 quiet"], timeout=DEADLINE_S)


def entry(file: Path) -> str:
    """The kept partition's line in the table."""
    return next(line for line in run(["sfdisk", "--dump", file]).splitlines() if "old" in line)


def old_bytes(file: Path) -> str:
    with file.open("rb") as disk:
        disk.seek(OLD[0] * MIB)
        return hashlib.sha256(disk.read(OLD[1] * MIB)).hexdigest()


@pytest.mark.all
@pytest.mark.proves(disk=("SATA", "NVMe", "RAID", "LVM", "LUKS"), arch="amd64")
def test_stack(tmp_path: Path) -> None:
    first, _ = files = [tmp_path / "first", tmp_path / "second"]
    for file, size in zip(files, (2048, 1024), strict=True):
        with file.open("wb") as disk:
            disk.truncate(size * MIB)
    table = f"label: gpt\n2 : start=500MiB, size=100MiB\n{ENTRY}\n"
    run(["sfdisk", "--quiet", first], data=table.encode())
    with (tmp_path / "old").open("wb") as content:
        content.truncate(OLD[1] * MIB)
    run(["mkfs.ext4", "-q", tmp_path / "old"])
    with first.open("r+b") as disk:
        disk.seek(OLD[0] * MIB)
        disk.write((tmp_path / "old").read_bytes())
    before = old_bytes(first), entry(first)

    console = boot(tmp_path, files)

    lines = [line for line in console.splitlines() if line.startswith("seen:")]
    assert lines, console[-3000:]
    seen = json.loads(lines[-1].removeprefix("seen:"))
    assert "failed" not in seen, seen["failed"] + console[-3000:]
    assert (old_bytes(first), entry(first)) == before
    assert len(set(seen["kept"])) == 1
    assert seen["read_only"] == ["1", "1"]
    assert seen["left"] == [[], []]
    assert seen["content"] == ["there"]
    # Which of a logical volume's two names is shown depends on who made its nodes last.
    mounted = [[at, node.replace("mapper/vg0-", "vg0/")] for at, node in seen["mounted"][1]]
    assert mounted == [
        ["/target", "/dev/vg0/root"],
        ["/target/boot", "/dev/sda3"],
        ["/target/boot/efi", "/dev/sda2"],
        ["/target/home", "/dev/vg0/home"],
        ["/target/srv", "/dev/nvme0n1p3"],
    ]
    plan = grammar.parse(LAYOUT)
    assert seen["uuids"] == {e.path: layout.fs_uuid(e, "two") for e in plan.filesystems()}
    assert layout.crypttab(plan, "two") == f"crypt UUID={seen['luks']} none luks,initramfs\n"
    array = layout.array_uuid(plan.volumes[0], "two")
    assert seen["array"].replace("-", "") == array.replace(":", "")
