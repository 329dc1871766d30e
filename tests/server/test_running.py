"""A slot is filled as a server is asked to: on disks, with the running system in the other one."""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import anemos.run
from anemos import disks, files, mounts, namespaces
from anemos.border import records, stage
from anemos.border.boot import STAMP, Stamp
from anemos.border.deployment import Agreed
from anemos.border.requests import Fill
from anemos.disks import Device
from anemos.files import sha256
from anemos.log import Failure
from anemos.run import CommandFailed, run
from anemos.server import carry, confined, fill, layer, logins, staging
from anemos.system import filesystems, imgbuild, layout, slots
from anemos.system.layout import MIB
from anemos.system.slots import Slot
from anemos.workstation.deploy import payload
from tests import brain, tiny
from tests.imaging import attached

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

IMGBUILD = """
target=debian
bootloader=grub
layout='
disk system serial=SYSTEM image=256M
part bios type=bios size=1M
part boot fs=ext4 size=24M
part root fs=ext4 size=64M mount=/ slots=2
part srv  fs=ext4 size=16M mount=/srv
part swap type=swap fs=swap size=4M
'
keep='disk data serial=DATA mount=/home'
carry='
var/lib/state
/etc/gone
'
server_secrets='etc/token'
fetch_secrets() { mkdir etc; echo fetched >etc/token; }
provision() {
    echo new >/etc/proof
    mkdir -p /var/lib/state/new
    ! mknod /tmp/disk b 7 0 || return 1
    ! mount -t devtmpfs none /mnt || return 1
    ! echo 1 >/proc/sys/kernel/panic || return 1
}
"""


@dataclass
class Server:
    """DISKS: of the system and the kept one. HOST: where the running slot is mounted."""

    top: Path
    host: Path
    disks: list[Device]
    spec: imgbuild.Imgbuild

    def part(self, name: str) -> Path:
        return self.spec.layout.carriers()[f"system/{name}"].node({"system": self.disks[0]})

    def ask(self, agreed: Agreed | None = None, text: str = "") -> Fill:
        """Stage a payload, as the workstation does."""
        if text:
            (self.top / "mx/IMGBUILD").write_text(text)
        spec = imgbuild.load(self.top / "mx")
        shown = Agreed(layout.digest(spec.layout, spec.keep), {}, "b")
        payload.write(stage.PAYLOAD, spec, "new", {}, self.top / "secrets", agreed=agreed or shown)
        base = f"base-{'0' * 64}.squashfs"
        return Fill(base, sha256(stage.PAYLOAD), sha256(self.layer))

    @property
    def layer(self) -> Path:
        return self.top / "layer.tar.zst"

    @property
    def buffer(self) -> BinaryIO:
        """What follows each request on standard input."""
        return self.layer.open("rb")

    def record(self) -> slots.Record:
        with mounts.mounted(self.part("boot"), at=self.top / "point"):
            return slots.read(self.top / "point" / slots.FILE)

    def digests(self) -> Mapping[str, str]:
        """What all that must stay holds, on the disk."""
        run(["sync"])
        parts = [self.part("root_a"), self.part("srv"), self.disks[1].path]
        return {str(node): hashlib.sha256(read(node)).hexdigest() for node in parts}


def read(node: Path) -> bytes:
    files.forget(node)
    return node.read_bytes()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("mx", "secrets", "host", "point", "staged", "slot", "resolver"):
        (tmp_path / name).mkdir()
    system = tiny.make(tmp_path / "layer", "mount")
    for path in ("boot/vmlinuz-6.1", "boot/initrd.img-6.1", "etc/ssh/sshd_config"):
        (system / path).parent.mkdir(parents=True, exist_ok=True)
        (system / path).write_text("")
    layer = tmp_path / "layer.tar.zst"
    run(["tar", "--create", "--zstd", "--file", layer, "--directory", system, "."])
    with ExitStack() as stack:
        made = written(tmp_path, stack)
        stamp = Stamp(layout=layout.elements(made.spec.layout, made.spec.keep))
        with mounts.mounted(made.part("root_a"), at=made.host):
            (made.host / "etc/anemos").mkdir(parents=True)
            (made.host / STAMP[1:]).write_text(stamp.text)
            (made.host / f"base-{'0' * 64}.squashfs").write_text("base")
            (made.host / "var/lib/state").mkdir(parents=True)
            (made.host / "var/lib/state/old").write_text("carried")
            os.chown(made.host / "var/lib/state", 7, 8)
        # Read-only: the kernel itself would write to it.
        stack.enter_context(mounts.mounted("-r", made.part("root_a"), at=made.host))
        stand_in(made, monkeypatch)
        yield made


def stand_in(made: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of a server, in a directory; its disks alone; other tests are not idle, too."""
    for name in ("PAYLOAD", "LAYER", "UNPACKED"):
        monkeypatch.setattr(stage, name, made.top / "staged" / name.lower())
    for module, name, value in (
        (fill, "ROOM", made.top / "resolver"),
        (fill, "ROOT", made.top / "slot"),
        (fill, "KEYS", made.top / "staged/unpacked/keys"),
        (fill, "give_way", lambda: None),
        (carry, "VIEW", made.top / "view"),
        (layer, "resolve_names", lambda _: None),
        (staging, "HOST", made.host),
        (sys, "stdin", made),
        (disks, "devices", lambda *_: made.disks),
        (logins, "host_keys", lambda _: {"ssh_host_ed25519_key": b"key"}),
    ):
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


def written(top: Path, stack: ExitStack) -> Server:
    """The disks as a deployment of whole disks leaves them."""
    nodes = []
    for name, size in (("system", 256 * MIB), ("data", 16 * MIB)):
        with (top / name).open("wb") as file:
            file.truncate(size)
    (top / "mx/IMGBUILD").write_text(IMGBUILD)
    spec = imgbuild.load(top / "mx")
    (disk,) = spec.layout.disks
    script = layout.sfdisk_script(disk, 256 * MIB, "old").encode()
    run(["sfdisk", "--quiet", top / "system"], data=script)
    run(["mkfs.ext4", "-q", top / "data"])
    for name in ("system", "data"):
        nodes.append(stack.enter_context(attached(top / name, "--partscan")))
    with suppress(CommandFailed):  # most kernels have read the table by themselves
        run(["partx", "--add", nodes[0]])
    found = [
        brain.device(str(node), serial)
        for node, serial in zip(nodes, ("SYSTEM", "DATA"), strict=True)
    ]
    made = Server(top, top / "host", found, spec)
    for each in spec.layout.filesystems():
        run(filesystems.make(each.fs, layout.fs_uuid(each, "old"), each.node({"system": found[0]})))
    with mounts.mounted(made.part("boot"), at=top / "point"):
        record = slots.encoded(slots.first(spec.layout, "old"))
        (top / "point" / slots.FILE).write_bytes(record)
    return made


def test_filled(server: Server) -> None:
    before = server.digests()
    done = fill.answer(server.ask())

    assert (done.slot, done.kernel) == ("b", "6.1")
    known = server.record()
    assert (known.default, known.slots["b"][:3]) == ("a", ("filled", done.root, "new"))
    assert server.digests() == before
    assert not stage.UNPACKED.exists()
    with mounts.mounted(server.part("root_b"), at=server.top / "point"):
        root = server.top / "point"
        assert (root / "etc/proof").read_text() == "new\n"
        assert (root / "etc/token").read_text() == "fetched\n"
        assert (root / "etc/ssh/ssh_host_ed25519_key").read_text() == "key"
        state = root / "var/lib/state"
        assert [each.name for each in state.iterdir()] == ["old"]
        assert ((state / "old").read_text(), state.stat().st_uid) == ("carried", 7)
        assert not (root / "etc/gone").exists()
        stamp = records.parse(Stamp, (root / STAMP[1:]).read_bytes())
        fstab = {line.split()[1]: line.split()[0] for line in (root / "etc/fstab").open()}
    assert stamp.layout == layout.elements(server.spec.layout, server.spec.keep)
    assert (stamp.deployment, [each.name for each in stamp.kept or []]) == ("new", ["data"])
    (data,) = stamp.kept or []
    of_old = {each.mount or "none": each for each in server.spec.layout.filesystems()}
    assert fstab == {
        "/": f"UUID={done.root}",
        "/home": f"UUID={data.filesystems[0][1]}",
        **{
            mount: f"UUID={layout.fs_uuid(of_old[mount], 'old')}"
            for mount in ("/srv", layout.SHARED, "none")
        },
    }


@pytest.mark.parametrize("end", [b"", b"changed"])
def test_layer_that_comes_damaged(server: Server, end: bytes) -> None:
    """Cut off, or with another end: what was unpacked of it starts nothing."""
    before, asked = server.digests(), server.ask()
    data = server.layer.read_bytes()
    server.layer.write_bytes(data[: -len(end) or -1] + end)
    with pytest.raises(Failure, match=r"tar .*exit status 2"):
        fill.answer(asked)
    assert (server.record().slots["b"], server.digests()) == (Slot(), before)
    assert not stage.LAYER.exists()
    server.layer.write_bytes(data)
    assert fill.answer(asked).slot == "b"


def test_it_gives_way() -> None:
    def asked() -> None:
        fill.give_way()
        assert os.nice(0) == fill.IDLE
        assert run(["ionice", f"--pid={os.getpid()}"]) == "idle\n"

    confined.forked(asked)


def test_again(server: Server) -> None:
    """A slot that was filled, or that a failure has left, is filled anew."""
    first = fill.answer(server.ask())
    broken = server.ask(text=IMGBUILD.replace("echo new", "false; echo new"))
    with pytest.raises(Failure, match=r"in provision\(\): `false; echo new"):
        fill.answer(broken)
    assert server.record().slots["b"] == Slot()
    assert not stage.UNPACKED.exists()
    assert fill.answer(server.ask(text=IMGBUILD)).root == first.root  # the same deployment


@pytest.mark.parametrize("nth", [2, 6, 9, 12, 14])
def test_killed(server: Server, nth: int) -> None:
    """Before its n-th command. What runs and what is kept is as it was; the slot starts nothing,
    and is filled the next time."""
    before, asked = server.digests(), server.ask()
    with pytest.raises(Failure, match="was killed"):
        confined.forked(partial(killed, asked, nth))
    assert server.record().slots["b"] in (Slot(), Slot("filling"))
    fill.require_free(server.part("root_b"), patience=60)
    assert fill.answer(asked).slot == "b"
    assert server.digests() == before


def killed(asked: Fill, nth: int) -> None:
    """As on a server: what is mounted goes with the process."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", "", namespaces.MS_REC | namespaces.MS_PRIVATE)
    ours, left, execute = os.getpid(), [nth], anemos.run._execute

    def one(*words: Any) -> int:
        left[0] -= os.getpid() == ours
        if not left[0]:
            os.kill(ours, signal.SIGKILL)
        return execute(*words)

    vars(anemos.run)["_execute"] = one
    fill.answer(asked)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "size=16M mount=/srv",
            "size=12M mount=/srv",
            "differs from the running one in system/srv",
        ),
        ("serial=DATA", "serial=DATA part=1", "differs from the running one in keep 'data'"),
        ("part swap", "part swop", "system/swop, its order, system/swap"),
        ("echo fetched", "false", r"fetch_secrets\(\)"),
    ],
)
def test_refused(server: Server, old: str, new: str, message: str) -> None:
    """What another layout would need, and a secret that does not come: nothing is changed."""
    before, known = server.digests(), server.record()
    asked = server.ask(text=IMGBUILD.replace(old, new))
    with pytest.raises(Failure, match=message):
        fill.answer(asked)
    assert (server.digests(), server.record()) == (before, known)
    assert not stage.UNPACKED.exists()


def test_what_is_not_as_it_should_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = Agreed(layout.digest(server.spec.layout, server.spec.keep))
    with pytest.raises(Failure, match="slot b is not what the plan has shown"):
        fill.answer(server.ask(agreed))
    with pytest.raises(Failure, match="layout or keep is not what the plan has shown"):
        fill.answer(server.ask(Agreed(slot="b")))
    asked = server.ask()
    with mounts.mounted(server.part("boot"), at=server.top / "point"):
        file = server.top / "point" / slots.FILE
        slots.write(file, replace(slots.read(file), default="b"))
    with pytest.raises(Failure, match=r"it is not known which slot runs: .* not slot b"):
        fill.answer(asked)
    monkeypatch.setattr(staging, "HOST", server.top)
    with pytest.raises(Failure, match="does not tell its layout"):
        fill.answer(asked)


def test_another_table(server: Server) -> None:
    """The disks count, not what the running system says of them."""
    run(["sfdisk", "--quiet", "--no-reread", "--force", "--delete", server.disks[0].path, "6"])
    with pytest.raises(Failure, match="system/swap is not partition 6 of loop"):
        fill.answer(server.ask())
