"""Putting the initramfs together, and what is read from it on the other side of the jump."""

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from anemos import disks, log
from anemos.border import boot, requests
from anemos.border import payload as border
from anemos.border import stage as names
from anemos.border.deployment import Revision
from anemos.border.network import Network
from anemos.border.requests import Build, Built, Fingerprints
from anemos.disks import Device, Fingerprint, Wanted
from anemos.files import sha256
from anemos.initramfs import daemons, events, sshd
from anemos.log import FAILED, Failure
from anemos.run import run
from anemos.server import __main__ as server
from anemos.server import drivers, logins, network, staging
from anemos.system import imgbuild
from anemos.workstation.deploy import payload
from tests.sshd import make_key

NETWORK: Network = {"interfaces": [], "left": [], "dns": ["10.0.2.3"], "operator": "inet"}
DEVICE = Device("vdb", "S", "", 512)
PRINT = Fingerprint("data", "S", 512, "d1g35t", ((0, "U", "ext4"),))
KEPT = json.loads(json.dumps(asdict(PRINT)))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A staged deployment: payload, layer, base image; an old system to take keys from."""
    stage, host = tmp_path / "stage", tmp_path / "host"
    for name in ("PAYLOAD", "LAYER", "FOUNDATION", "INITRAMFS"):
        monkeypatch.setattr(names, name, stage / name.lower())
    monkeypatch.setattr(staging, "HOST", host)
    monkeypatch.setattr(staging, "BASE_INITRD", tmp_path / "initrd")
    monkeypatch.setattr(network, "capture", lambda host, needed, client: NETWORK)
    monkeypatch.setattr(disks, "devices", lambda: [DEVICE])
    monkeypatch.setattr(drivers, "BLOCK", tmp_path)
    monkeypatch.setattr(disks, "fingerprint", lambda name, device, only: PRINT)
    monkeypatch.setattr(logins, "settings", lambda host, user: {})
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(logins, "public_of", lambda key: f"ssh-{key.decode().split()[1]} AAAA")
    stage.mkdir()
    (tmp_path / "initrd").write_bytes(b"first" * 3)  # no multiple of 4
    (stage / "layer").write_bytes(b"layer")
    make_payload(tmp_path)
    log_in(host)
    (host / f"base-{BASE}.squashfs").write_bytes(b"hsqs" + bytes(5))
    monkeypatch.setenv("SSH_CONNECTION", "10.0.2.2 40000 10.0.2.15 2222")
    return stage


BASE = "d2b1" * 16


def make_payload(tmp_path: Path) -> None:
    (tmp_path / "mx").mkdir()
    (tmp_path / "mx/IMGBUILD").write_text("target=debian\n")
    words = {"target": "debian", "keep": "disk data serial=S\n"}
    spec = imgbuild.interpret(tmp_path / "mx", words)
    payload.write(tmp_path / "stage/payload", spec, "d-1", {}, tmp_path / "none")


def log_in(host: Path) -> None:
    (host / "etc/ssh").mkdir(parents=True)
    for kind in ("ed25519", "rsa"):
        (host / f"etc/ssh/ssh_host_{kind}_key").write_text(f"private {kind}")
        (host / f"etc/ssh/ssh_host_{kind}_key.pub").write_text(f"public {kind}")
    (host / "etc/ssh/sshd_config").write_text("PasswordAuthentication yes")
    (host / "root/.ssh").mkdir(parents=True)
    (host / "root/.ssh/authorized_keys").write_text("ssh-ed25519 AAAA operator\n")


def build(stage: Path, late: bool = False, /, **changed: str) -> Built:
    digests = {name: sha256(stage / name) for name in {"payload", "layer"} - changed.keys()}
    digests |= changed
    return staging.build(Build(f"/base-{BASE}.squashfs", **digests, now=1.5, late=late))


def unpack(initramfs: Path) -> dict[str, tuple[int, bytes]]:
    """The entries of the cpio archives behind the first initrd: path -> (mode, data)."""
    data, at = initramfs.read_bytes(), 16
    found: dict[str, tuple[int, bytes]] = {}
    while at < len(data):
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        assert data[at : at + 6] == b"070701"
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 109 + name_size].decode()
        start = -(-(at + 110 + name_size) // 4) * 4
        if name != "TRAILER!!!":
            assert name not in found
            found[name] = (mode, data[start : start + size])
        at = -(-(start + size) // 4) * 4
    return found


def test_layer_that_follows(stage: Path) -> None:
    """The initramfs knows it, and it need not be on the server."""
    digest = sha256(stage / "layer")
    (stage / "layer").unlink()
    given = build(stage, True, layer=digest)
    assert (given.boot.late, given.boot.layer) == (True, digest)
    assert "anemos/layer" not in unpack(stage / "initramfs")


def test_boot_json_is_read_back(stage: Path, tmp_path: Path) -> None:
    given = build(stage)

    mode, data = unpack(stage / "initramfs")["anemos/boot.json"]

    assert given.logins.host_keys == ["ssh-ed25519 AAAA", "ssh-rsa AAAA"]
    assert given.logins.authorized == ["ssh-ed25519 AAAA"]
    assert stat.S_IMODE(mode) == 0o600
    (tmp_path / "boot.json").write_bytes(data)
    found = boot.load(tmp_path / "boot.json")
    assert found == given.boot
    assert (found.deployment, found.host, found.base) == ("d-1", "mx", BASE)
    assert (found.ssh_port, found.network, found.kept) == (2222, NETWORK, [PRINT])
    stamp = {"deployment": "d-1", "host": "mx", "base": BASE, "kept": [KEPT]}
    commit = Revision("c" * 40, changed=True)
    says = {**stamp, "layout": {"keep": "d"}, "commit": vars(commit)}
    assert json.loads(found.stamp({"keep": "d"}, commit)) == says


def test_initramfs(stage: Path) -> None:
    build(stage)

    data = (stage / "initramfs").read_bytes()
    assert data[:16] == b"first" * 3 + b"\0"  # padded: another archive begins
    entries = unpack(stage / "initramfs")
    assert list(entries) == [
        "anemos/base.squashfs",
        "anemos/layer",
        "anemos/boot.json",
        "anemos/payload",
        "anemos/ssh",
        "anemos/ssh/ssh_host_ed25519_key",
        "anemos/ssh/ssh_host_ed25519_key.pub",
        "anemos/ssh/ssh_host_rsa_key",
        "anemos/ssh/ssh_host_rsa_key.pub",
        "anemos/ssh/authorized_keys",
    ]
    assert entries["anemos/payload"][1] == (stage / "payload").read_bytes()
    assert entries["anemos/base.squashfs"][1] == b"hsqs" + bytes(5)
    assert entries["anemos/ssh/ssh_host_rsa_key"][1] == b"private rsa"
    assert {stat.S_IMODE(mode) for name, (mode, _) in entries.items() if name != "anemos/ssh"} == {
        0o600
    }
    assert entries["anemos/ssh"][0] == stat.S_IFDIR | 0o700


def test_only_root_can_read_it(stage: Path) -> None:
    (stage / "initramfs").write_text("an older one")
    (stage / "initramfs").chmod(0o644)

    build(stage)

    assert stat.S_IMODE((stage / "initramfs").stat().st_mode) == 0o600


def test_again(stage: Path) -> None:
    """The large part is put in once; what was staged for it takes no memory any more."""
    layer = sha256(stage / "layer")
    build(stage)
    first = (stage / "initramfs").read_bytes()
    assert not (stage / "layer").exists()

    build(stage, layer=layer)
    assert (stage / "initramfs").read_bytes() == first

    (stage.parent / "host/root/.ssh/authorized_keys").write_text("ssh-ed25519 B\n")
    build(stage, layer=layer)
    entries = unpack(stage / "initramfs")
    assert entries["anemos/ssh/authorized_keys"][1] == b"ssh-ed25519 B\n"
    assert entries["anemos/layer"][1] == b"layer"


def test_another_layer_than_before(stage: Path) -> None:
    build(stage)
    (stage / "layer").write_bytes(b"a newer layer")
    build(stage)
    assert unpack(stage / "initramfs")["anemos/layer"][1] == b"a newer layer"

    build(stage, layer="")
    assert "anemos/layer" not in unpack(stage / "initramfs")


def test_without_layer(stage: Path) -> None:
    assert build(stage, layer="").boot.layer == ""
    assert "anemos/layer" not in unpack(stage / "initramfs")


def test_bootstrap_without_name_server(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the point of no return it would be too late to find out."""
    monkeypatch.setattr(network, "capture", lambda host, needed, client: NETWORK | {"dns": []})

    with pytest.raises(Failure, match="no name server"):
        build(stage, layer="")

    assert not (stage / "initramfs").exists()
    assert build(stage).boot.network["dns"] == []


@pytest.mark.parametrize("name", ["payload", "layer"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_staged_file_is_not_what_was_sent(stage: Path, name: str, damage: str) -> None:
    digest = {name: sha256(stage / name)}
    data = (stage / name).read_bytes()
    match damage:
        case "cut":
            (stage / name).write_bytes(data[:-1])
        case "gone":
            (stage / name).unlink()
            (stage / name).symlink_to("nowhere")
        case _:
            (stage / name).write_bytes(data.swapcase() + b"x")
    others = {"payload", "layer"} - {name}
    digests = digest | {other: sha256(stage / other) for other in others}

    with pytest.raises(Failure, match=f"{name}: not there as it was sent") as caught:
        build(stage, **digests)

    assert caught.value.status == FAILED
    assert not (stage / "initramfs").exists()


def test_manifest(stage: Path) -> None:
    manifest = border.manifest(stage / "payload")

    assert (manifest.deployment, manifest.host) == ("d-1", "mx")
    assert manifest.keep == [Wanted("data", {"serial": "S"})]


def test_kept_disk_that_is_not_there(stage: Path) -> None:
    with pytest.raises(Failure, match="disk 'home': no disks match serial=X"):
        disks.fingerprints([Wanted("home", {"serial": "X"})])


# Who may log in


def test_nobody_could_log_in(stage: Path) -> None:
    allowed = staging.HOST / "root/.ssh/authorized_keys"

    for content in ("", "\n", None):
        allowed.unlink()
        if content is not None:
            allowed.write_text(content)
        with pytest.raises(Failure, match="nobody is listed for root: nobody could"):
            logins.ssh_keys(staging.HOST)
        allowed.touch()


def test_no_host_keys(stage: Path) -> None:
    """A lone public half is none."""
    for key in (staging.HOST / "etc/ssh").glob("*_key"):
        key.unlink()

    with pytest.raises(Failure, match="no host key in /etc/ssh"):
        logins.ssh_keys(staging.HOST)


def test_keys_behind_links(stage: Path) -> None:
    """Of the old system, whose root lies elsewhere: Proxmox's authorized_keys, keys on a volume."""
    host = staging.HOST
    for path, real in (
        ("root/.ssh/authorized_keys", "etc/pve/priv/authorized_keys"),
        ("etc/ssh/ssh_host_rsa_key", "data/rsa"),
    ):
        (host / real).parent.mkdir(parents=True)
        (host / path).rename(host / real)
        (host / path).symlink_to(f"/{real}")
    (host / "etc/ssh/ssh_host_ed25519_key").unlink()
    (host / "etc/ssh/ssh_host_ed25519_key").symlink_to("/gone")
    (host / "root/.ssh/authorized_keys2").write_text("ssh-ed25519 BBBB second\n")

    found = logins.ssh_keys(host)

    assert found == {
        "ssh_host_rsa_key": b"private rsa",
        "ssh_host_rsa_key.pub": b"ssh-rsa AAAA\n",
        "authorized_keys": b"ssh-ed25519 AAAA operator\n\nssh-ed25519 BBBB second\n",
    }


@pytest.mark.root
@pytest.mark.real("run")
def test_what_sshd_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files, not the usual ones; tokens; options of a key; certificates are no keys. It is
    asked once."""
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 40000 192.0.2.7 22")
    monkeypatch.delenv("SUDO_USER", raising=False)
    own, mine = make_key(tmp_path / "own"), make_key(tmp_path / "mine")
    other = make_key(tmp_path / "other")
    (tmp_path / "keys").mkdir()
    lines = [f'from="a b",command="echo \\"x y\\"" {mine}', f"cert-authority {other}", "# none"]
    (tmp_path / "keys/root").write_text("\n".join(lines))
    words = f"Port 22\nHostKey {tmp_path}/own\nMatch User root Address 192.0.2.0/24\n"
    words += f"AuthorizedKeysFile {tmp_path}/keys/%u none\n"
    (tmp_path / "sshd_config").write_text(words)
    ask = logins.ASK.replace("sshd -T", f"sshd -T -f {tmp_path}/sshd_config")
    monkeypatch.setattr(logins, "ASK", f"echo >>{tmp_path}/asked; {ask}")
    logins.settings.cache_clear()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    names = ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
    keys = logins.ssh_keys(Path("/"))
    assert list(keys) == [*names, "authorized_keys"]
    assert (tmp_path / "asked").read_text() == "\n"
    found = logins.public(keys)
    assert found.host_keys == [" ".join(own.split()[:2])]
    assert found.authorized == [" ".join(mine.split()[:2])]


def test_user_whom_sudo_makes_root(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's keys come first: clouds have a forced command before the same key of root's."""
    monkeypatch.setenv("SUDO_USER", "debian")
    host = staging.HOST
    (host / "etc/passwd").write_text("root:x:0:0::/root:\ndebian:x:1000:1000::/srv/debian:\n")
    (host / "root/.ssh/authorized_keys").write_text('command="no" ssh-ed25519 AAAA x\n')
    (host / "srv/debian/.ssh").mkdir(parents=True)
    (host / "srv/debian/.ssh/authorized_keys").write_text("ssh-ed25519 AAAA x\n")

    both = b'ssh-ed25519 AAAA x\n\ncommand="no" ssh-ed25519 AAAA x\n'
    assert logins.authorized(host) == both
    (host / "root/.ssh/authorized_keys").unlink()
    assert logins.authorized(host) == b"ssh-ed25519 AAAA x\n"
    (host / "srv/debian/.ssh/authorized_keys").unlink()
    with pytest.raises(Failure, match="nobody is listed for debian or root"):
        logins.authorized(host)


@pytest.mark.real("run")
def test_no_sshd_to_ask(tmp_path: Path) -> None:
    """As where another server than OpenSSH's answers."""
    assert logins.settings(tmp_path, "root") == {}


# The program


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.2.2 40000 10.0.2.15 2222")


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("10.0.2.2 40000 10.0.2.15 2222", ("10.0.2.15", 2222, "10.0.2.2")),
        ("2001:db8::9 40000 2001:db8::7 22", ("2001:db8::7", 22, "2001:db8::9")),
    ],
)
def test_came_in_by(
    monkeypatch: pytest.MonkeyPatch, connection: str, expected: tuple[str, int, str]
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", connection)

    assert staging.came_in_by() == expected


def test_build_command(
    stage: Path, came: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are those of the old system, which is not the root here."""
    base = staging.HOST / "var/lib/anemos" / f"base-{BASE}.squashfs"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"hsqs")
    digest = sha256(stage / "payload")

    asked = Build(f"/var/lib/anemos/base-{BASE}.squashfs", digest, "", 1.5, late=False)

    server.main(requests.text(asked))

    said = json.loads(capsys.readouterr().out)["boot"]
    assert (said["base"], said["ssh_port"], said["payload"]) == (BASE, 2222, digest)


def test_fingerprint_command(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.main(requests.text(Fingerprints([Wanted("data", {"serial": "S"})])))

    assert json.loads(capsys.readouterr().out) == [KEPT]


# In the initramfs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(events, "PANICS", [tmp_path / "panic"])
    for name in ("EVENTS", "LOG", "PASSED", "ABORT", "GO"):
        monkeypatch.setattr(names, name, tmp_path / name)
    monkeypatch.setattr(log, "sink", log.sink)
    monkeypatch.setattr(log, "observers", [])
    return tmp_path


def recorded(here: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (here / "EVENTS").read_text().splitlines()]


def test_events(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events.start()
    log.info('a "line"\nof two, ä')
    with suppress(ValueError), log.step("Disks"):
        raise ValueError
    events.point_of_no_return()
    events.failed("why\nexactly")
    events.done()

    story = [(each["event"], each.get("line") or each.get("message")) for each in recorded(here)]
    assert story == [
        ("log", 'a "line"\nof two, ä'),
        ("log", "Disks ..."),
        ("began", "Disks"),
        ("log", "(Disks failed after 0.0 s)"),
        ("ended", "Disks"),
        ("log", "=== POINT OF NO RETURN: the system disks are being erased ==="),
        ("point-of-no-return", None),
        ("log", "FAILED: why\nexactly"),
        ("failed", "why\nexactly"),
        ("done", None),
    ]
    assert all(isinstance(each["time"], float) for each in recorded(here))
    assert (here / "LOG").read_text() == capfd.readouterr().out
    assert "POINT OF NO RETURN" in (here / "LOG").read_text()


def test_order_at_the_point_of_no_return(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """init asks the file whether it may go back: it must be there before anybody hears of it."""
    passed: list[bool] = []
    monkeypatch.setattr(log, "sink", lambda line: passed.append((here / "PASSED").exists()))
    events.point_of_no_return()

    assert passed == [True]
    assert [each["event"] for each in recorded(here)] == ["point-of-no-return"]


@pytest.mark.root
@pytest.mark.real("run")
def test_sshd_takes_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Sequence[Any]] = []
    monkeypatch.setattr(sshd, "KEYS", tmp_path)
    monkeypatch.setattr(daemons, "start", started.append)
    make_key(tmp_path / "ssh_host_ed25519_key")
    make_key(tmp_path / "ssh_host_rsa_key", "rsa")

    sshd.start(2222)

    assert started == [["/usr/sbin/sshd", "-f", tmp_path / "sshd_config"]]
    said = run(["/usr/sbin/sshd", "-T", "-f", tmp_path / "sshd_config"]).splitlines()
    for line in (
        "port 2222",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin without-password",
        "usepam no",
        f"authorizedkeysfile {tmp_path}/authorized_keys",
        f"hostkey {tmp_path}/ssh_host_ed25519_key",
        f"hostkey {tmp_path}/ssh_host_rsa_key",
    ):
        assert line in said
    assert sum(line.startswith("hostkey ") for line in said) == 2
    assert (
        os.fspath(tmp_path / "ssh_host_ed25519_key.pub")
        not in (tmp_path / "sshd_config").read_text()
    )
