"""docs/examples: servers with Arch and Alpine, as far as packages of our own prove them; and a
pipeline, whose scripts run with other programs in the place of ./inv and gpg."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from invoke.parser import Parser
from invoke.vendor import yaml

from anemos.disks import Device
from anemos.log import Failure
from anemos.run import run
from anemos.system import definition, imgbuild
from anemos.system.bootloader import kernels
from anemos.workstation import access
from anemos.workstation.deploy import facts, plan
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.sizes import MIB, Sizes
from anemos.workstation.hosts import Host
from tasks import ns
from tests import sshd, tiny, tree
from tests.packages import Package, apk_key, apk_repository, pacman_repository, signer
from tests.tree import ROOT, Tree

EXAMPLES = ROOT / "docs/examples"
GIB = 1024 * MIB


def machine(efi: bool) -> Facts:
    """One that fits the examples."""
    given = facts.parse((ROOT / "tests/data/facts-virtio").read_text())
    disks = (Device("vda", "web-system", "", 8 * GIB), Device("vdb", "web-data", "", GIB))
    return replace(given, efi=efi, disks=disks)


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("target", "efi", "expected"),
    [
        ("arch", False, []),
        ("arch", True, []),
        ("alpine", False, []),
        (
            "alpine",
            True,
            ["the machine starts by UEFI; bootloader=grub with this layout is for BIOS"],
        ),
    ],
)
def test_plan(target: str, efi: bool, expected: list[str]) -> None:
    spec = imgbuild.load(EXAMPLES / target)
    sizes = Sizes(base=60 * MIB, layer=20 * MIB, payload=MIB, base_is_there=False)
    assert plan.problems(Host("web", spec.directory), spec, machine(efi), sizes) == expected
    assert not access.problem(spec, [])


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("target", "word", "message"),
    [
        ("arch", "\ngrub\n", "bootloader=grub needs one of these packages: grub"),
        ("arch", "\nlinux\n", "the IMGBUILD has no kernel among its packages (linux...)"),
        ("alpine", "\ngrub-bios\n", "bootloader=grub needs one of these packages: grub-bios"),
        ("alpine", "\nlinux-virt\n", "the IMGBUILD has no kernel among its packages (linux-...)"),
        (
            "alpine",
            " rootfstype=ext4 ",
            "Alpine's initramfs needs rootfstype=ext4 in `cmdline`, to find /",
        ),
    ],
)
def test_refused_without(tmp_path: Path, target: str, word: str, message: str) -> None:
    text = (EXAMPLES / target / "IMGBUILD").read_text()
    (tmp_path / "IMGBUILD").write_text(text.replace(word, word[0], 1))
    assert list(plan.bootable(imgbuild.load(tmp_path))) == [message]


# What links the services of its arguments, which have to be there.
SYSTEMCTL = """#!/bin/sh -e
cd /usr/lib/systemd/system
for unit; do
    [ "$unit" = enable ] || ln -s "$(readlink -e "$unit.service")" /etc/systemd/system
done
"""
RC_UPDATE = """#!/bin/sh -e
mkdir -p "/etc/runlevels/$3"
ln -s "$(readlink -e "/etc/init.d/$2")" "/etc/runlevels/$3"
"""
# As mkinitcpio's own script: an initramfs with the hooks that are set.
MKINITCPIO = """
bash -ec 'HOOKS=(base autodetect block); . /etc/mkinitcpio.conf.d/*.conf
echo "${HOOKS[*]}" >/boot/initramfs-linux.img'
"""
# Stands for apk-tools: it unpacks the packages that are named.
APK = """#!/bin/sh -e
root=$3
while [ "$1" != --repositories-file ]; do shift; done
place=$(cat "$2")/$(uname -m)
shift 2
for name; do tar -xzf "$place/$name-1.0.0.apk" -C "$root" --exclude='.[A-Z]*'; done
mkdir -p "$root/lib/apk/db"
: >"$root/lib/apk/db/installed"
"""
UNIT = "/usr/lib/systemd/system/{}.service"
BASE = (
    "bootmisc devfs dmesg hostname hwdrivers killprocs mdev modules mount-ro networking savecache"
)
SERVICES = (*BASE.split(), "sysctl", "syslog")
PACKAGES = {
    "arch": {
        "base": {"/usr/bin/systemctl": SYSTEMCTL, UNIT.format("systemd-networkd"): ""},
        "grub": {f"/usr/lib/grub/{each}/kernel.img": "" for each in ("i386-pc", "x86_64-efi")},
        "linux": {"/boot/vmlinuz-linux": ""},
        "mkinitcpio": {"/etc/mkinitcpio.conf": ""},
        "nginx": {UNIT.format("nginx"): ""},
        "openssh": {UNIT.format("sshd"): ""},
    },
    "alpine": {
        "alpine-base": {
            "/sbin/rc-update": RC_UPDATE,
            **{f"/etc/init.d/{each}": "" for each in SERVICES},
        },
        "grub-bios": {"/usr/lib/grub/i386-pc/kernel.img": ""},
        "linux-virt": {"/boot/vmlinuz-virt": "", "/boot/initramfs-virt": ""},
        "nginx": {"/etc/init.d/nginx": ""},
        "openssh": {"/etc/init.d/sshd": ""},
    },
}
ENABLED = {
    "arch": {
        "etc/systemd/system": {"nginx.service", "sshd.service", "systemd-networkd.service"},
    },
    "alpine": {
        "etc/runlevels/sysinit": {"devfs", "dmesg", "hwdrivers", "mdev"},
        "etc/runlevels/default": {"nginx", "sshd"},
    },
}


@pytest.fixture
def project(tmp_path: Path, target: str) -> Iterator[Tree]:
    """The example as hosts/web, and a repository with all that it asks for."""
    root = tiny.make(tmp_path / "root", "chpasswd")
    if target == "arch":  # packages' scripts are for bash
        shutil.copy2(root / "usr/bin/bash", root / "usr/bin/sh")
    (root / "etc/shadow").write_text("root::20000::::::\n")
    (root / "etc/systemd/system").mkdir(parents=True)
    made = [Package(name, files) for name, files in PACKAGES[target].items()]
    made[0] = replace(made[0], tree=root)
    made = [replace(e, postinst=MKINITCPIO if e.name == "mkinitcpio" else "") for e in made]
    with tree.copied(tmp_path / "tree") as copy:
        web = Path(shutil.copytree(EXAMPLES / target, copy.directory / "hosts/web"))
        (web / "keys").mkdir()
        (tmp_path / "repository").mkdir()
        {"arch": publish_pacman, "alpine": publish_apk}[target](made, tmp_path / "repository", web)
        yield copy


def publish_pacman(made: list[Package], repository: Path, web: Path) -> None:
    with signer("Packager <packager@example.org>") as key:
        pacman_repository(made, repository, key)
        shutil.copy(key.public, web / "keys/packager.asc")
    text = "[options]\nArchitecture = x86_64\nSigLevel = Required TrustedOnly\n"
    (web / "pacman.conf").write_text(f"{text}[test]\nServer = file://{repository}\n")


def publish_apk(made: list[Package], repository: Path, web: Path) -> None:
    key = apk_key(repository, "packager@example.org-1")
    static = Package("apk-tools-static", {"/sbin/apk.static": APK})
    apk_repository([*made, static], repository, key)
    shutil.copy(key.public, web / "keys")
    (web / "repositories").write_text(f"{repository}\n")


@pytest.mark.root
@pytest.mark.real("run", "gpg")
@pytest.mark.parametrize("target", list(PACKAGES))
def test_build(project: Tree, target: str) -> None:
    """Bootstrap and definition, provision() included, with the packages that are asked for."""
    spec = imgbuild.load(project.directory / "hosts/web")
    assert set(spec.packages) == PACKAGES[target].keys()
    done = project.inv("build", "--host", "web", "--format", "dir", timeout=600)
    assert done.status == 0, done.err
    root = project.directory / "images/web"
    for directory, names in ENABLED[target].items():
        assert {each.name for each in (root / directory).iterdir()} == names
    assert (root / "etc/shadow").read_text().startswith("root:*:")
    assert stat.S_IMODE((root / "etc/ssl/private/web.key").stat().st_mode) == 0o600
    assert (root / "etc/ssl/web.crt").is_file()
    initramfs = (root / "boot" / kernels.newest(root).initrd).read_text()
    assert initramfs == ("base block\n" if target == "arch" else "")
    assert not (root / "etc/mkinitcpio.conf.d/anemos.conf").exists()

    (layer,) = project.home.glob(".cache/anemos/layer-*.tar.zst")
    definition.rehearse_loader(spec, layer, [])
    with pytest.raises(Failure, match="the package layer has no /usr/lib/systemd/boot"):
        definition.rehearse_loader(replace(spec, bootloader="systemd-boot"), layer, [])


# A pipeline


PLANNED = "0123456789ab-ba9876543210"
CALLED = """#!/bin/sh
echo "${0##*/} $*" >>calls
[ "$2" != --host ] || printf '{"id": "%s"}' $ID
"""


@pytest.mark.real("run")
def test_pipeline(tmp_path: Path) -> None:
    """As a runner does it: the script of each job in one shell. The agent is a real one."""
    jobs = yaml.safe_load((EXAMPLES / "ci/gitlab-ci.yml").read_text())  # type: ignore[no-untyped-call]
    assert jobs["deploy"]["rules"][0]["when"] == "manual"
    assert jobs["deploy"]["needs"] == jobs["plan"]["stage"].split()
    for name in ("inv", "gpg", "gpgconf"):
        (tmp_path / name).write_text(CALLED)
        (tmp_path / name).chmod(0o755)
    sshd.make_key(tmp_path / "key")
    home = tmp_path / "gnupg"
    given = {"SSH_KEY": f"{tmp_path}/key", "GPG_KEY": "gpg.key", "GNUPGHOME": f"{home}"}
    env = {**jobs["variables"], **given, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ID": PLANNED}
    for stage in jobs["stages"]:
        script = "\n".join(jobs[stage]["script"])
        said = run(["bash", "-e", "-c", script], cwd=tmp_path, env=env)
        assert ("Agent pid" in said) == (stage != "build")
    assert home.is_dir()
    run(["bash", "-c", "\n".join(jobs["deploy"]["after_script"])], cwd=tmp_path, env=env)
    assert not home.exists()

    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        "inv build --host web",
        "inv plan --host web --json",
        "gpg --batch --import gpg.key",
        f"inv deploy --host web --yes web --plan {PLANNED}",
        "gpgconf --kill all",
    ]
    for words in (call.split()[1:] for call in calls if call.startswith("inv ")):
        (found,) = Parser(contexts=ns.to_contexts()).parse_argv(words)
        assert found.name == words[0]
