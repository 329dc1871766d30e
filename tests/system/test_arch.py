"""Arch: real packages, a signed repository, pacstrap and pacman; and what comes out boots."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos import cpio
from anemos.cpio import Entry
from anemos.log import Failure
from anemos.run import run
from anemos.system import bootstrap, imgbuild
from anemos.workstation import images
from anemos.workstation.vm import vm
from tests.packages import Package, Signer, pacman_repository, signer
from tests.tree import ROOT

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

HELLO = Package(
    "hello",
    {"/usr/bin/hello": "#!/bin/sh\necho hello\n", "/usr/share/doc/hello/README": "read me"},
    {"/usr/bin/hi": "hello"},
)
OTHER = Package("other", {"/usr/share/other": "other"})


@pytest.fixture(scope="module")
def key() -> Iterator[Signer]:
    with signer("Packager <packager@example.org>") as made:
        yield made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, key: Signer) -> Path:
    made = tmp_path_factory.mktemp("repository")
    pacman_repository([HELLO, OTHER], made, key)
    return made


@pytest.fixture
def host(tmp_path: Path, repository: Path, key: Signer) -> Path:
    """A directory with everything that makeimg(1) takes for Arch, and the key that is trusted."""
    (tmp_path / "keys").mkdir()
    shutil.copy(key.public, tmp_path / "keys/packager.asc")
    configure(tmp_path, repository)
    (tmp_path / "IMGBUILD").write_text("target=arch\npackages='\nhello\n'\n")
    return tmp_path


def configure(host: Path, repository: Path) -> None:
    text = "[options]\nArchitecture = x86_64\nSigLevel = Required TrustedOnly\n"
    (host / "pacman.conf").write_text(f"{text}[test]\nServer = file://{repository}\n")


def bootstrapped(host: Path, more: str = "") -> Path:
    with (host / "IMGBUILD").open("a") as file:
        file.write(more)
    root = host / "root"
    bootstrap.bootstrap(imgbuild.load(host), root)
    return root


def test_bootstrap(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    root = bootstrapped(host, "excludes='/usr/share/doc/*'")
    assert str(host) not in Path("/proc/self/mountinfo").read_text()
    assert run([root / "usr/bin/hi"]) == "hello\n"
    assert stat.S_IMODE((root / "usr/bin/hello").stat().st_mode) == 0o755
    assert (root / "usr/share/doc").is_dir() is False
    # What belongs to the build stays outside: its pacman.conf, keys, caches, log, times.
    assert {file.name for file in (root / "etc").rglob("*")} == {"mkinitcpio.conf.d", "pacman.d"}
    for cache in ("var/cache/pacman/pkg", "var/lib/pacman/sync", "var/log"):
        assert list((root / cache).iterdir()) == []
    (desc,) = (root / "var/lib/pacman/local").glob("hello-*/desc")
    assert "%INSTALLDATE%\n1700000000\n" in desc.read_text()
    assert run(["pacman", "--root", root, "--query"]) == "hello 1.0.0-1\n"


def test_keyring_goes_along(host: Path) -> None:
    """hostconf=keyring: public keys and trust, nothing that could sign."""
    root = bootstrapped(host, "hostconf=keyring\n")
    keyring = root / "etc/pacman.d/gnupg"
    listed = run(["gpg", "--homedir", keyring, "--no-permission-warning", "--list-keys"])
    assert "[ultimate] Packager <packager@example.org>" in listed
    assert not {"private-keys-v1.d", "secring.gpg"} & {file.name for file in keyring.iterdir()}


def test_default_configuration(host: Path) -> None:
    """Without pacman.conf: core and extra of the mirror, signatures required."""
    (host / "pacman.conf").unlink()
    with pytest.raises(Failure, match=r"IMGBUILD: target=arch without a mirror"):
        bootstrapped(host)
    with pytest.raises(Failure, match=r"the mirror does not give core.db: .*nowhere.invalid"):
        bootstrapped(host, "mirror=http://nowhere.invalid/arch/\n")


def test_unknown_package(host: Path) -> None:
    with pytest.raises(Failure) as failure:
        bootstrapped(host, "packages='hello\nnosuch\nother\nmissing'")
    assert str(failure.value) == (
        f"{host}/IMGBUILD: packages: Arch has no package missing\n"
        f"{host}/IMGBUILD: packages: Arch has no package nosuch"
    )
    assert failure.value.status == 2


def test_foreign_key(host: Path) -> None:
    """Neither database nor package of a repository that another key has signed is accepted."""
    with signer("Stranger <stranger@example.org>") as stranger:
        shutil.copy(stranger.public, host / "keys/packager.asc")
    with pytest.raises(Failure, match=r"(?s)key .* is unknown|unknown trust"):
        bootstrapped(host)
    assert not (host / "root/usr").exists()


@pytest.mark.parametrize("part", ["test.db.tar.gz", "hello-1.0.0-1-x86_64.pkg.tar.zst"])
def test_tampered(host: Path, tmp_path: Path, repository: Path, part: str) -> None:
    """A byte that changed after the signature was made."""
    copy = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    data = bytearray((copy / part).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / part).write_bytes(data)
    configure(host, copy)
    with pytest.raises(Failure, match=r"is invalid|invalid or corrupted"):
        bootstrapped(host)
    assert not (host / "root/usr").exists()


def test_not_a_key(host: Path) -> None:
    (host / "keys/README").write_text("no key")
    with pytest.raises(Failure, match="keys: not all are OpenPGP public keys"):
        bootstrapped(host)


INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
echo "token: $(hello), $(id -u), $(cat /etc/motd), $(cat /etc/provisioned)"
poweroff -f
"""
DEFINITION = """
imgname=arch
target=arch
format=dir
packages='
linux
busybox
hello
'
provision() { cp /etc/motd /etc/provisioned; }
"""


@pytest.mark.vm
@pytest.mark.all
def test_boots(host: Path, key: Signer) -> None:
    """The whole builder, with Debian's kernel and a static busybox as packages of Arch."""
    made = host / "repository"
    made.mkdir()
    with images.boot_files(images.base()) as (kernel, initrd):
        run(["bsdtar", "-xf", initrd, "-C", initrd.parent, "bin/busybox"])
        programs = ("sh", "mount", "cat", "cp", "id", "poweroff")
        busybox = Package(
            "busybox",
            {"/usr/bin/busybox": initrd.parent / "bin/busybox", "/usr/bin/init": INIT},
            {"/bin": "usr/bin", **{f"/usr/bin/{name}": "busybox" for name in programs}},
        )
        linux = Package("linux", {"/boot/vmlinuz-linux": kernel.resolve()})
        pacman_repository([HELLO, linux, busybox], made, key)
    configure(host, made)
    (host / "IMGBUILD").write_text(DEFINITION)
    (host / "files/etc").mkdir(parents=True)
    (host / "files/etc/motd").write_text("a file")
    argv = [sys.executable, "-m", "anemos.image"]
    env = {"PYTHONPATH": os.fspath(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, cwd=host, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arch\n"), done.stderr
    assert "token: hello, 0, a file, a file" in boot(host / "arch")


def boot(root: Path) -> str:
    """Boot the kernel of the tree ROOT with the tree as its initramfs: what the console says."""
    initramfs = root.parent / "initramfs"
    with initramfs.open("wb") as archive:
        cpio.append(archive, list(entries(root)))
    argv = [*vm.machine(vm.accelerator()), "-m", "512", "-no-reboot", "-serial", "stdio"]
    argv += ["-kernel", os.fspath(root / "boot/vmlinuz-linux"), "-initrd", os.fspath(initramfs)]
    argv += ["-append", "console=ttyS0 panic=-1 rdinit=/usr/bin/init"]
    return run(argv, timeout=300)


def entries(root: Path) -> Iterator[Entry]:
    """The archive has no symbolic links: files take their places."""
    yield from (
        Entry(name, None, 0o755) for name in ("proc", "dev", "etc", "usr", "usr/bin", "bin")
    )
    for file in (*(root / "usr/bin").iterdir(), *(root / "etc").glob("*")):
        if file.is_file():
            yield Entry(os.fspath(file.relative_to(root)), file.resolve(), 0o755)
    yield Entry("bin/sh", root / "usr/bin/busybox", 0o755)
