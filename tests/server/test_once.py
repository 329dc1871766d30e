"""The one-shot boot entry: its files, what custom.cfg gets, and how all of it goes away again."""

import json
import stat
from pathlib import Path

import pytest

from anemos.border import boot, requests
from anemos.border import stage as names
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed, Deployment
from anemos.border.requests import Arm, BuildEntry
from anemos.files import sha256
from anemos.initramfs import delivery, sshd
from anemos.log import Failure
from anemos.run import run
from anemos.server import __main__ as server
from anemos.server import kexec, once, staging
from anemos.workstation.deploy import reach
from tests.server.test_staging import BASE, stage, unpack  # noqa: F401 (a fixture)
from tests.whole.test_network import NETWORK

BOOT = Boot("d", "mx", BASE, "p", "", 22, NETWORK, [])
OLD = "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda2 console=ttyS1,115200n8 quiet"
MINE = "menuentry mine {\n}\n"


@pytest.fixture
def grub(stage: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    directory = staging.HOST / "boot/grub"
    directory.mkdir(parents=True)
    (stage.parent / "kernel").write_text("kernel")
    (stage.parent / "tmp").mkdir()
    monkeypatch.setattr(kexec, "KERNEL", stage.parent / "kernel")
    monkeypatch.setattr(once, "ROOM", stage.parent / "tmp")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.2.2 40000 10.0.2.15 2222")
    return directory


@pytest.mark.real("run")
def test_nothing_secret_on_the_disk(
    stage: Path,  # noqa: F811
    grub: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Neither the payload, which need not be on the server at all, nor the old host keys."""
    base = f"/base-{BASE}.squashfs"
    (stage.parent / "host" / base[1:]).write_bytes(b"hsqs")
    given = Deployment("d-1", "mx", [], Agreed("x"))
    digest = sha256(stage / "payload")
    (stage / "payload").unlink()

    server.main(requests.text(BuildEntry(base, digest, "l", 1.5, True, "/boot/grub", given)))

    said = json.loads(capsys.readouterr().out)
    told = said["boot"]
    assert (told["payload"], told["layer"], told["late"]) == (digest, "l", True)
    assert told["agreed"] == {"layout": "x", "erase": {}, "slot": "", "by_server": False}
    entries = unpack(grub / "anemos/initrd")
    assert list(entries) == [
        "anemos/base.squashfs",
        "anemos/boot.json",
        "anemos/ssh",
        "anemos/ssh/authorized_keys",
        "anemos/ssh/ssh_host_once_key",
    ]
    (tmp_path / "boot.json").write_bytes(entries["anemos/boot.json"][1])
    assert boot.load(tmp_path / "boot.json").late
    (tmp_path / "key").write_bytes(entries["anemos/ssh/ssh_host_once_key"][1])
    (tmp_path / "key").chmod(0o600)
    public = run(["ssh-keygen", "-y", "-f", tmp_path / "key"])
    assert public.split()[:2] == said["once_key"].split()[:2]
    assert (grub / "anemos/vmlinuz").read_text() == "kernel"
    assert stat.S_IMODE((grub / "anemos").stat().st_mode) == 0o700


@pytest.mark.real("run")
def test_file_system_without_modes(
    stage: Path,  # noqa: F811
    grub: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vfat, mounted as most distributions do: the key of the next boot would be everybody's."""
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, mode: mkdir(path, mode=0o755))
    base = stage.parent / f"base-{BASE}.squashfs"

    with pytest.raises(Failure, match="/boot/grub: all users can read there") as caught:
        once.write(base, BOOT, grub / once.PLACE, b"")

    assert "umask=0077 in its line of fstab" in caught.value.hint
    assert not list((grub / "anemos").iterdir())


@pytest.mark.parametrize("there", ["", MINE])
@pytest.mark.real("run")
def test_armed_and_disarmed(stage: Path, grub: Path, there: str) -> None:  # noqa: F811
    """Twice is once; what was in custom.cfg stays."""
    custom = grub / "custom.cfg"
    if there:
        custom.write_text(there)
    (grub / "anemos").mkdir()
    (grub / "anemos/initrd").touch()
    asked = Arm("grub", "/boot/grub", "vda2", 0)
    once.arm(asked, OLD)
    first = custom.read_text()
    keys = once.arm(asked, OLD)

    assert custom.read_text() == first
    assert first.startswith(there + once.BEGIN)
    line = f"'console=ttyS1,115200n8' 'panic=10' 'oops=panic' 'anemos.deadline={900 + 1800}'"
    line = f"'console=tty0' {line}"
    assert f'linux "$anemos/vmlinuz" {line}; then' in first
    env = (grub / "anemos/env").read_bytes()
    assert len(env) == 1024
    assert env.startswith(b"# GRUB Environment Block\nanemos_once=1\n###")
    assert sorted(keys) == [
        f"ssh_host_{kind}_key{end}" for kind in ("ed25519", "rsa") for end in ("", ".pub")
    ]
    script = (reach.SERVER / "disarm.sh").read_text().replace("/boot/grub2", str(grub))
    for _ in range(2):
        run(["sh", "-c", script])
        assert not (grub / "anemos").exists()
        assert (custom.read_text() if there else custom.exists()) == (there or False)


@pytest.mark.real("run")
def test_firmware_forgets(tmp_path: Path) -> None:
    """Our entry, under any number, and BootNext with it; nobody else's (UEFI 2.10, 3.1.3)."""
    vendor = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variables = {
        "Boot0000": "debian",
        "Boot000A": once.LABEL,
        "Boot000B": "anemos",
        "BootNext": "\n",
        "BootOrder": "",
    }
    for name, label in variables.items():
        text = (label + "\0").encode("utf-16-le")
        (tmp_path / f"{name}-{vendor}").write_bytes(b"\7\0\0\0\1\0\0\0b\0" + text + b"\4\1")
    script = (reach.SERVER / "disarm.sh").read_text().replace("chattr -i", "test -e")
    script = script.replace("/sys/firmware/efi/efivars", str(tmp_path))

    for _ in range(2):
        run(["sh", "-c", script])
        left = sorted(file.name.split("-")[0] for file in tmp_path.iterdir())
        assert left == ["Boot0000", "Boot000B", "BootOrder"]


def test_deadlines() -> None:
    """init's leaves the operator as long as the brain's."""
    assert delivery.DELIVERED_S == kexec.DELIVERY


def test_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd starts again without the key of this boot, when the workstation has said so."""
    done: list[str] = []
    key = tmp_path / "ssh_host_once_key"
    key.touch()
    monkeypatch.setattr(sshd, "KEYS", tmp_path)
    monkeypatch.setattr(sshd, "restart", lambda port: done.append(f"{port} {key.exists()}"))
    monkeypatch.setattr(names, "ABORT", tmp_path / "abort")
    for name in ("COMING", "DELIVERED"):
        monkeypatch.setattr(names, name, tmp_path / name)
        monkeypatch.setattr(delivery, f"{name}_S", 0)

    with pytest.raises(Failure, match="no word from the operator"):
        delivery.receive(2222)
    (tmp_path / "COMING").touch()
    with pytest.raises(Failure, match="no word from the operator"):
        delivery.receive(2222)
    assert done == []
    (tmp_path / "DELIVERED").touch()
    delivery.receive(2222)
    (tmp_path / "DELIVERED").touch()
    delivery.receive(2222)  # under the old system's key from the beginning

    assert done == ["2222 False"]
    assert not (tmp_path / "DELIVERED").exists()
