"""`inv test` without a machine: who may log in, and under which key."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.system import imgbuild
from anemos.workstation import images, places
from anemos.workstation.deploy import phases
from anemos.workstation.deploy.payload import AUTHORIZED
from anemos.workstation.deploy.state import DONE, load_state
from anemos.workstation.hosts import Host, VmSettings
from anemos.workstation.secrets import throwaway
from anemos.workstation.vm import rehearsal, stock, vm

pytestmark = pytest.mark.real("run", "gpg")

IMGBUILD = "target=debian\ntest_secrets() {\n    echo value >NAME\n}\n"
FOREIGN = "ssh-ed25519 AAAAforeign somebody\n"


@pytest.fixture
def state() -> Iterator[Path]:
    """Not below tmp_path: the path of gpg-agent's socket in it must be shorter than 108 bytes.

    The agent removes its sockets while the directory is removed.
    """
    with TemporaryDirectory(prefix="anemos-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def host(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(state))
    (tmp_path / "mx/files/root/.ssh").mkdir(parents=True)
    (tmp_path / "mx/IMGBUILD").write_text(IMGBUILD)
    (tmp_path / "mx/files/root/.ssh/authorized_keys").write_text(FOREIGN)
    return Host("mx", tmp_path / "mx", "192.0.2.1", "ssh-ed25519 AAAA", 2222)


def test_everything_is_made_for_the_test(host: Host) -> None:
    """Keys of its own; the real host's key, address and identity are not in the double."""
    trial = rehearsal.prepare(replace(host, identity="~/.ssh/id", vm=VmSettings(forward=[443])))
    try:
        rehearsal.reveal(trial)

        double = trial.double
        assert (double.name, double.address, double.local) == ("mx@test", "127.0.0.1", False)
        assert double.identity_file == trial.home / "id_ed25519"
        assert double.host_key != host.host_key
        assert sorted(trial.keys) == [
            "authorized_keys",
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
        ]
        assert (trial.revealed / "values/NAME").read_text() == "value"
        assert trial.machine.settings.forward == [2222, 443]
        assert not places.SECRETS.joinpath("mx").exists()
    finally:
        rehearsal.discard(trial)


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        ("hex 8", "hex 9", True),
        ("}\n    : $", "}\n    true $", True),
        ("helper() { :; }", "helper() { true; }", True),
        ("number=1", "number=2", True),
        ("OTHER password", "OTHERS password", True),
        ("packages='\nvim", "packages='\nnano", False),
        ("echo provision", "echo more", False),
        ("number=1\n", "number=1\nvolatile=/var/lib/count\n", False),
    ],
)
def test_changed_imgbuild(host: Host, before: str, after: str, anew: bool) -> None:
    """Throw-away secrets are made anew by whatever of it may decide."""
    text = """target=debian
packages='
vim
'
number=1
secrets='OTHER password'
helper() { :; }
provision() {
    echo provision
}
test_secrets() {
    cat >/dev/null <<END
}
END
    helper
    cat >/dev/null <<END
}
    : $number
END
    openssl rand -hex 8 >NAME
}
"""

    def revealed(text: str) -> bytes:
        (host.directory / "IMGBUILD").write_text(text)
        return throwaway.source("mx", "mx@test").reveal("mx", "NAME")

    first = revealed(text)
    assert revealed(text) == first
    assert before in text
    assert (revealed(text.replace(before, after)) != first) == anew


DECLARES = """target=debian
secrets='
PASSWORD password
TOKEN ask the token of somebody
etc/passwords password-hash users=alice,bob prefix={X}
etc/ssl/private/mx.key tls subject=mx.example.org
etc/dkimkeys/mx._domainkey.example.org.key dkim
etc/ssh/ssh_host_ed25519_key ssh-host-key
'
"""


def test_throw_away_secrets_are_made_of_the_declaration(host: Host) -> None:
    """What test_secrets() makes comes first: a certificate fits the key that it made."""
    own = """test_secrets() {
    echo own >PASSWORD
    mkdir -p etc/ssl/private
    openssl genpkey -algorithm ED25519 -out etc/ssl/private/mx.key
}
"""
    (host.directory / "IMGBUILD").write_text(DECLARES + own)

    source = throwaway.source("mx", "mx@test")

    names = [name for each in host.imgbuild().secrets for name in each.names]
    assert sorted(source.names("mx")) == sorted(names)
    assert source.reveal("mx", "PASSWORD") == b"own\n"
    lines = source.reveal("mx", "etc/passwords").decode().splitlines()
    assert [line.partition("$")[0] for line in lines] == ["alice:{X}", "bob:{X}"]
    certificate = source.reveal("mx", "etc/ssl/mx.crt")
    key = run(["openssl", "pkey", "-pubout"], data=source.reveal("mx", "etc/ssl/private/mx.key"))
    assert run(["openssl", "x509", "-noout", "-pubkey"], data=certificate) == key


def test_imgbuild_that_is_not_utf_8(host: Host) -> None:
    (host.directory / "IMGBUILD").write_bytes(b"# gr\xfcn\n" + IMGBUILD.encode())

    assert throwaway.source("mx", "mx@test").reveal("mx", "NAME") == b"value\n"


def test_host_key_among_the_secrets(host: Host) -> None:
    """Then it is the one that answers."""
    make = "mkdir -p etc/ssh; ssh-keygen -q -t ed25519 -N '' -f etc/ssh/ssh_host_ed25519_key"
    (host.directory / "IMGBUILD").write_text(IMGBUILD.replace("echo value >NAME", make))
    trial = rehearsal.prepare(host)
    try:
        rehearsal.reveal(trial)

        private = trial.revealed / "files/etc/ssh/ssh_host_ed25519_key"
        assert trial.keys["ssh_host_ed25519_key"] == private
        public = private.with_name("ssh_host_ed25519_key.pub").read_text()
        assert trial.double.host_key.split()[:2] == public.split()[:2]
    finally:
        rehearsal.discard(trial)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "\npublic\n"),
        ("authorized_keys", f"{FOREIGN}\npublic\n"),
        ("authorized_keys.makeimg.template", None),
    ],
)
def test_operator_logs_in_to_the_new_system(host: Host, name: str, expected: str | None) -> None:
    (host.directory / "files" / AUTHORIZED).unlink()
    if name:
        (host.directory / "files/root/.ssh" / name).write_text(FOREIGN)
    trial = rehearsal.prepare(host)
    trial.revealed.mkdir()
    try:
        rehearsal.let_in(trial, "public\n")

        file = trial.revealed / "files/root/.ssh/authorized_keys"
        assert (file.read_text() if file.exists() else None) == expected
    finally:
        rehearsal.discard(trial)


def test_operator_logs_in_where_sshd_looks(host: Host) -> None:
    for path, text in {
        "etc/ssh/sshd_config.d/keys.conf": "AuthorizedKeysFile none.d/%u /etc/ssh/keys/%u\n",
        "etc/ssh/keys/root": FOREIGN,
    }.items():
        (host.directory / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (host.directory / "files" / path).write_text(text)
    trial = rehearsal.prepare(host)
    trial.revealed.mkdir()
    try:
        rehearsal.let_in(trial, "public\n")

        made = [path for path in trial.revealed.rglob("*") if path.is_file()]
        assert made == [trial.revealed / "files/etc/ssh/keys/root"]
        assert made[0].read_text() == f"{FOREIGN}\npublic\n"
    finally:
        rehearsal.discard(trial)


@pytest.mark.parametrize("real", [False, True])
def test_forgotten_key_is_not_hidden(
    host: Host, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    """The test's own key lets it in, but nobody into the server. A real secret's name counts."""
    (host.directory / "files" / AUTHORIZED).unlink()
    monkeypatch.setattr(places, "SECRETS", host.directory.parent / "secrets")
    if real:
        file = places.SECRETS / f"mx/{AUTHORIZED}.gpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"for somebody else")
    trial = rehearsal.prepare(host)
    try:
        if real:
            rehearsal.reveal(trial)
        else:
            with pytest.raises(Failure, match="nobody could log in") as caught:
                rehearsal.reveal(trial)
            assert caught.value.status == BAD_INPUT
    finally:
        rehearsal.discard(trial)


def test_secrets_of_a_test_are_throw_away_ones_in_every_phase(host: Host) -> None:
    """`plan` of a second deployment in a VM asks for them, too."""
    trial = rehearsal.prepare(host)
    try:
        rehearsal.reveal(trial)

        assert throwaway.secrets_of(trial.double).names("mx") == ["NAME"]
        assert list(filter(None, phases.foresee(trial.double, host.imgbuild()))) == []
    finally:
        rehearsal.discard(trial)


def test_every_template_has_the_same_values(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the stock system of a VM, too."""
    seen: dict[str, str] = {}

    def image(_directory: Path, options: list[str]) -> list[Path]:
        (values,) = (each for each in options if each.startswith("--values="))
        seen.update(json.loads(Path(values.partition("=")[2]).read_text()))
        return []

    monkeypatch.setattr(images, "image", image)
    monkeypatch.setattr(vm, "install", lambda *_: None)
    (host.directory / "IMGBUILD").write_text(IMGBUILD.replace("NAME", "host_key"))

    stock.create(replace(host, name="vm", address="", vm=VmSettings(stock="mx")))

    assert (seen["host"], seen["host_key"]) == ("mx", "value")
    assert seen["operator_key"].startswith("ssh-ed25519 ")


def test_disk_that_starts_the_new_system_comes_first(tmp_path: Path) -> None:
    text = "disk a serial=A\npart x fs=ext4\ndisk b serial=B\npart root fs=ext4 mount=/\n"
    spec = imgbuild.interpret(tmp_path, {"target": "debian", "layout": text})

    assert [each.name for each in rehearsal.boot_first(spec.layout)] == ["b", "a"]


LAYOUT = """target=debian
layout='
disk system serial=S image=64M
part bios type=bios size=1M
part root fs=ext4 mount=/
'
keep='
disk data serial=D size=40M
'
"""


def test_disks_of_an_earlier_test_stay(host: Host) -> None:
    """With what is on them, and what is known of them: while layout and keep are the same."""
    (host.directory / "IMGBUILD").write_text(LAYOUT)
    trial = rehearsal.prepare(host)
    try:
        prints = rehearsal.make_disks(trial)
        (system, data) = trial.drives
        system.file.write_text("installed")
        (host.directory / "IMGBUILD").write_text(f"{LAYOUT}packages=vim\n")

        again = rehearsal.prepare(host)
        assert rehearsal.make_disks(again) == prints
        assert again.drives == [system, data]
        assert system.file.read_text() == "installed"

        (host.directory / "IMGBUILD").write_text(LAYOUT.replace("64M", "65M"))
        rehearsal.make_disks(again)
        assert system.file.stat().st_size == 65 << 20
    finally:
        rehearsal.discard(trial)


def test_nothing_to_reuse(host: Host) -> None:
    bootable = f"{LAYOUT}bootloader=grub\npackages='grub-pc linux-image-amd64'\n"
    (host.directory / "IMGBUILD").write_text(bootable)

    with pytest.raises(Failure, match="no VM of mx is left from a test") as caught:
        rehearsal.test(host, rehearsal.Options(reuse=True))

    assert caught.value.status == BAD_INPUT


def test_kept_volumes_are_not_made(host: Host) -> None:
    """Rather none than a VM without the data that the server has."""
    keep = "keep='\npart p disk=system number=3\nvg v on=p\nlv data on=v mount=/srv\n'\n"
    packages = "bootloader=grub\npackages='grub-pc linux-image-amd64 lvm2'\n"
    (host.directory / "IMGBUILD").write_text(f"{LAYOUT}{keep}{packages}")

    with pytest.raises(Failure, match="keep: lv 'data': a VM cannot be made with") as caught:
        rehearsal.test(host, rehearsal.Options())

    assert caught.value.status == BAD_INPUT


@pytest.mark.parametrize(
    ("changed", "expected"),
    [("test_mx.py", True), ("files/motd", False), ("IMGBUILD", False)],
)
def test_only_the_tests_have_changed(
    host: Host, monkeypatch: pytest.MonkeyPatch, changed: str, expected: bool
) -> None:
    """Then the VM, which runs, is tested as it is. Its package layer is no matter of this test."""
    monkeypatch.setattr(phases, "make_layer", lambda *_: None)
    monkeypatch.setattr(images, "base", lambda _: Path("base"))
    trial = rehearsal.prepare(host)
    try:
        rehearsal.reveal(trial)
        phases.pack(trial.double)
        load_state(trial.double).reach(DONE)
        assert not rehearsal.unchanged(trial)  # it does not run

        with (host.directory / changed).open("a") as file:
            file.write("# more\n")

        with monkeypatch.context() as patch:
            patch.setattr(vm.Vm, "pid", -1)
            assert rehearsal.unchanged(trial) is expected
    finally:
        rehearsal.discard(trial)


def test_each_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails does not keep the next from its test; a signal ends them all."""
    ends: dict[str, Failure | None] = {"a": Failure("why a", status=4), "b": None, "c": None}
    for name in ends:
        (host.directory.parent / name).mkdir()
        (host.directory.parent / name / "host.toml").touch()
    seen = []

    def test(each: Host, options: rehearsal.Options) -> dict[str, str]:
        seen.append((each.name, options.keep))
        if failure := ends[each.name]:
            raise failure
        return {"host": each.name}

    monkeypatch.setattr(rehearsal, "test", test)
    with pytest.raises(Failure, match="tests failed: a") as caught:
        rehearsal.test_all(rehearsal.Options(keep=True))
    assert (caught.value.status, seen) == (4, [("a", True), ("b", True), ("c", True)])

    ends["a"] = None
    assert rehearsal.test_all(rehearsal.Options()) == {"hosts": [{"host": each} for each in "abc"]}

    ends["a"] = Failure("ended", status=143)
    with pytest.raises(Failure, match="ended"):
        rehearsal.test_all(rehearsal.Options())
    assert len(seen) == 7
