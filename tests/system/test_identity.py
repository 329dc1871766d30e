"""What hosts must not share does not stay in a package layer."""

import sys
from pathlib import Path

import pytest

from anemos import log
from anemos.run import run
from anemos.system import tree
from anemos.system.bootstrap import debian, identity
from tests import tiny

PEM = "-----BEGIN {}PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIKZ0x9E6Ww==\n-----END PRIVATE KEY-----\n"
# Path -> content, mode, whether it goes.
FILES = {
    "boot/loader/random-seed": ("r", 0o600, True),
    "etc/app/bundle": ("-----BEGIN CERTIFICATE-----\nxx\n" + PEM.format("RSA "), 0o644, True),
    "etc/app/readme": ("openssl makes -----BEGIN PRIVATE KEY----- and more\n", 0o644, False),
    "etc/app/key": (PEM.format(""), 0o640, True),
    "etc/app/shipped.pem": (PEM.format(""), 0o644, False),
    "etc/app/public.key": ("everybody may read it", 0o644, False),
    "etc/app/settings": ("secret", 0o600, False),
    "etc/dropbear/dropbear_ed25519_host_key": ("\0\0\0\x0bssh-ed25519", 0o600, True),
    "etc/munge/munge.key": ("x" * 128, 0o600, True),
    "etc/nvme/hostid": ("uuid", 0o644, True),
    "etc/ssh/ssh_host_rsa_key.pub": ("ssh-rsa", 0o644, True),
    "etc/ssl/private/ssl-cert-snakeoil.key": (PEM.format(""), 0o640, True),
    "usr/share/doc/example.pem": (PEM.format(""), 0o644, False),
    "var/lib/rabbitmq/.erlang.cookie": ("ABC", 0o400, True),
    "var/lib/systemd/random-seed": ("r", 0o600, True),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, (text, mode, _) in FILES.items():
        tree.write(tmp_path, path, text, mode)
    tree.write(tmp_path, "etc/machine-id", "0123456789abcdef\n")
    tree.write(tmp_path, "var/lib/dpkg/info/app.list", "/etc/app\n/etc/app/shipped.pem\n")
    (tmp_path / "etc/app/link.key").symlink_to("/etc/hostname")
    return tmp_path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "sink", lines.append)
    return lines


def test_taken_out(root: Path, said: list[str]) -> None:
    identity.strip(root)
    gone = {path for path in FILES if not (root / path).exists()}
    assert gone == {path for path, (_, _, goes) in FILES.items() if goes}
    assert (root / "etc/machine-id").read_text() == ""
    assert (root / "etc/app/link.key").is_symlink()
    listed = (root / identity.REMOVED).read_text().splitlines()
    # The first boot makes seeds; a deployment brings SSH host keys.
    assert listed == sorted(each for each in gone if "seed" not in each and "ssh_host" not in each)
    assert said == [f"Taken out of the package layer, which hosts share: {', '.join(listed)}"]


def test_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/own.key").write_text(PEM.format(""))
    (tmp_path / "root").mkdir()
    for name in ("etc", "var"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "outside")
    identity.strip(tmp_path / "root")
    assert (tmp_path / "outside/own.key").exists()


def test_told_when_it_is_missing(root: Path, said: list[str]) -> None:
    identity.strip(root)
    for path in (root / identity.REMOVED).read_text().splitlines():
        if path != "etc/munge/munge.key":
            tree.write(root, path, "made for this machine")
    said.clear()
    identity.report(root)
    assert len(said) == 1
    assert said[0].startswith("/etc/munge/munge.key is missing: ")
    assert not (root / identity.REMOVED).exists()


@pytest.mark.root
@pytest.mark.real("run")
def test_packages_make_it_again(tmp_path: Path, said: list[str]) -> None:
    """One that cannot is no reason to stop: others go on."""
    root = tiny.make(tmp_path / "root")
    tree.write(root, identity.REMOVED, "etc/nvme/hostid\netc/munge/munge.key\netc/app/key\n")
    script = "#!/bin/sh\n[ $2 = nvme-cli ] && mkdir /etc/nvme && echo $1 >/etc/nvme/hostid\n"
    tree.write(root, "usr/sbin/dpkg-reconfigure", script, 0o755)
    identity.renew(root)
    assert (root / "etc/nvme/hostid").read_text() == "--frontend=noninteractive\n"
    assert any("dpkg-reconfigure" in line and "munge" in line for line in said)


@pytest.mark.real("run")
def test_as_a_program(root: Path) -> None:
    argv = [sys.executable, "-W", "error", "-c", debian.STRIP, str(root)]
    run(argv, env={"PYTHONPATH": debian.PYTHON})
    assert not (root / "etc/munge/munge.key").exists()
