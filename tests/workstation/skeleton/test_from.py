"""The first definition of a server that runs: what is taken over, what is told, what stays there.

The server is the stock server's files behind a real sshd. `./inv new --from` looks at it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT
from anemos.run import run
from anemos.system import bootstrap, imgbuild
from anemos.system.imgbuild import Imgbuild
from anemos.workstation import access, images, places, ssh
from anemos.workstation.deploy import plan
from anemos.workstation.secrets.throwaway import OPERATOR_KEY
from anemos.workstation.ssh import Endpoint
from tests import leaks, sshd, tree
from tests.sshd import Server
from tests.tree import Done, Tree

pytestmark = [pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]

KEY = tree.HOST_KEY
# What nobody on the workstation may ever see.
MARKERS = {
    "closed": b"marker-in-a-closed-directory",
    "hash": b"$2y$10$abcdefghijklmnopqrstuuMARKERmarkerMARKERmarkerMARKERm",
    "hidden": b"marker-of-a-hidden-file",
    "linked": b"AAAAmarker-of-a-file-that-a-user-linked-to",
    "url": b"marker-of-a-password-in-a-url",
}
SET_UP = r"""
set -e
echo mail >/etc/hostname
mkdir -p /root/.ssh && echo "$operator" >/root/.ssh/authorized_keys
useradd --create-home --shell /bin/bash --groups sudo --comment 'Alice, of the office' alice
useradd --create-home --shell /usr/sbin/nologin robot
useradd --create-home --shell /bin/sh mallory
for name in alice robot mallory; do
    mkdir "/home/$name/.ssh"
    echo "from=\"192.0.2.1\" KEY $name" >"/home/$name/.ssh/authorized_keys"
    chown -R "$name:" "/home/$name" && chmod -R go= "/home/$name"
done
echo 'ssh-ed25519 LINKED' >/root/other && chmod 600 /root/other
ln -sf /root/other /home/mallory/.ssh/authorized_keys
echo 'by hand' >>/etc/issue
rm /etc/cron.d/e2scrub_all
mkdir -m 700 /etc/closed && echo CLOSED >/etc/closed/file
mkdir /etc/app
echo HIDDEN >/etc/app/hidden && chmod 640 /etc/app/hidden && chgrp www-data /etc/app/hidden
echo 'alice:HASH' >/etc/app/users
echo 'url = https://alice:URL@db.example.org/' >/etc/app/url
echo 'password = easy' >/etc/app/maybe
echo 'echo "$dir/$name"' >/etc/app/run && chmod 755 /etc/app/run
ssh-keygen -q -t ed25519 -N '' -C marker -f /etc/app/key && chmod 644 /etc/app/key
ln -s run /etc/app/link
cat >/etc/systemd/system/own.service <<'END'
[Service]
ExecStart=true
[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable own
systemctl --quiet disable fstrim.timer
ln -s /dev/null /etc/systemd/system/apt-daily.service
echo '/dev/sdz1 /data ext4 defaults 0 2' >>/etc/fstab
echo 'deb https://packages.example.org/debian stable own' >/etc/apt/sources.list.d/own.list
mkdir -p /opt/own && touch '/opt/own/file' '/etc/app/a name'
"""
ENTER = """
exec unshare --mount --propagation private sh -c '
for each in proc sys dev; do mount --rbind "/$each" "$1/$each"; done
exec chroot "$1" /bin/sh -c "$SSH_ORIGINAL_COMMAND"' sh {}
"""


@dataclass(frozen=True)
class Site:
    """SERVER answers with the files in ROOT; PROJECT is where its definition is written."""

    project: Tree
    server: Server
    root: Path

    def new(self, name: str, fingerprint: str = "") -> Done:
        where = self.server.endpoint
        words = [f"--from={where.user}@127.0.0.1:{where.port}", f"--identity={where.identity}"]
        words += [f"--fingerprint={fingerprint or ssh.fingerprint(where.host_key)}"]
        return self.project.inv("new", "--host", name, *words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("site")
    for name in ("root", "tree"):
        (top / name).mkdir()
    root = top / "root"
    bootstrap.unpack(images.layer(imgbuild.load(places.HOSTS / "stock")), root)
    script = SET_UP.replace("KEY", KEY)
    for name, marker in MARKERS.items():
        script = script.replace(name.upper(), marker.decode())
    with sshd.scratch() as directory, tree.copied(top / "tree") as project:
        server = sshd.prepare(directory)
        operator = (directory / "authorized_keys").read_text().strip()
        enter = server.program("enter", ENTER.format(root))
        run([enter], env={"SSH_ORIGINAL_COMMAND": f"operator='{operator}'\n{script}"})
        server.settings = [f"ForceCommand {enter}"]
        with sshd.serving(server):
            yield Site(project, server, root)


@pytest.fixture(scope="module")
def made(site: Site) -> Done:
    done = site.new("mail")
    assert done.status == 0, done.err
    return done


@pytest.fixture
def host(site: Site, made: Done) -> Path:
    return site.project.directory / "hosts/mail"


@pytest.fixture
def spec(host: Path) -> Imgbuild:
    return imgbuild.load(host)


def test_what_is_said_of_the_image(spec: Imgbuild) -> None:
    """The packages are those of the stock server; nothing keeps it from being deployed."""
    assert (spec.target, spec.suite, spec.bootloader) == ("debian", "trixie", "grub")
    assert set(spec.packages) == {*imgbuild.load(places.HOSTS / "stock").packages}
    assert list(plan.bootable(spec)) == []
    assert access.problem(spec, [each.name for each in spec.secrets]) == ""


def test_secrets_stay_there(site: Site, made: Done, spec: Imgbuild) -> None:
    """Nothing of them is on the workstation, in no form. Each is declared, and has a line."""
    key = (site.root / "etc/app/key").read_bytes().splitlines()[1]
    markers = leaks.encoded({**MARKERS, "key": key})
    places = (site.project.directory, site.project.home, site.project.memory)
    assert leaks.hits((each for top in places for each in top.rglob("*")), markers) == []
    assert not [name for name, each in markers.items() if each in (made.out + made.err).encode()]
    assert {each.name: each.kind for each in spec.secrets} == {
        "etc/app/hidden": "ask",
        "etc/app/key": "ask",
        "etc/app/url": "ask",
        "etc/app/users": "ask",
        "etc/closed/file": "ask",
    }


def test_files(site: Site, host: Path) -> None:
    for path in ("issue", "hostname", "network/interfaces", "app/run", "app/maybe", "app/key.pub"):
        assert (host / "files/etc" / path).read_bytes() == (site.root / "etc" / path).read_bytes()
    assert os.access(host / "files/etc/app/run", os.X_OK)
    assert (host / "files/etc/app/link").readlink() == Path("run")
    assert (host / "files/etc/systemd/system/apt-daily.service").readlink() == Path("/dev/null")
    assert (host / "files/etc/systemd/system/own.service").is_file()
    for name in ("passwd", "shadow", "fstab", "machine-id", "ssh/sshd_config", "default/grub"):
        assert not (host / "files/etc" / name).exists()
    assert not list(host.glob("files/etc/**/*.wants"))
    assert (site.root / "etc/pam.d/common-auth").is_file()
    assert not list(host.glob("files/etc/pam.d/common-*"))  # as pam-auth-update(8) has made them


def test_who_may_log_in(site: Site, host: Path) -> None:
    """With all that a key is bound to; not who has linked to a file of root's."""
    lists = {f"{each.relative_to(host / 'files')}" for each in host.rglob("authorized_keys")}
    homes = ("root", "home/alice", "home/robot")
    assert lists == {f"{each}/.ssh/authorized_keys" for each in homes}
    alice = (host / "files/home/alice/.ssh/authorized_keys").read_text()
    assert alice == f'from="192.0.2.1" {KEY} alice\n'


def test_what_provision_does(host: Path) -> None:
    text = (host / "IMGBUILD").read_text()
    body = text.partition("provision() {\n")[2].partition("\n}")[0].split("\n    ")
    assert [line.strip() for line in body] == [
        "chmod 700 /root/.ssh",
        "groupadd --gid 1000 alice",
        "groupadd --gid 1001 robot",
        "groupadd --gid 1002 mallory",
        "useradd --uid 1000 --gid 1000 --groups sudo --comment 'Alice, of the office'"
        " --home-dir /home/alice --shell /bin/bash --create-home alice",
        "chown -R alice: /home/alice",
        "chmod 700 /home/alice/.ssh",
        "useradd --uid 1001 --gid 1001 --home-dir /home/robot --shell /usr/sbin/nologin"
        " --create-home robot",
        "chown -R robot: /home/robot",
        "chmod 700 /home/robot/.ssh",
        "useradd --uid 1002 --gid 1002 --home-dir /home/mallory --shell /bin/sh --create-home"
        " mallory",
        "chown root:www-data /etc/app/hidden",
        "chmod 640 /etc/app/hidden",
        "chmod 644 /etc/app/key",
        "chmod 644 /etc/app/url",
        "chmod 644 /etc/app/users",
        "chmod 644 /etc/closed/file",
        "rm -f /etc/cron.d/e2scrub_all",
        "systemctl --quiet enable own.service",
        "systemctl --quiet disable fstrim.timer",
    ]


@pytest.mark.parametrize(
    "note",
    [
        "nobody has a password in the new system; by key log in: root, alice",
        "no key, and so no login in the new system: mallory",
        "5 files that are secret, or may be, stayed there: `secrets` lists them",
        "files/etc/app/maybe: is there a password in it?",
        "/etc/app/a name: its name is not taken over",
        "other repositories: `apt_sources` has to name https://packages.example.org/debian",
        "/etc/fstab mounts /data, which is in neither layout nor keep",
        "/opt is not taken over (1 files)",
        "/etc/app/key may be secret, and everybody can read it",
    ],
)
def test_told(made: Done, host: Path, note: str) -> None:
    assert note in made.err
    assert f"# - {note}\n" in (host / "IMGBUILD").read_text()


def test_host_toml(site: Site, host: Path) -> None:
    where = site.server.endpoint
    text = (host / "host.toml").read_text()
    for key, value in {
        "host_key": " ".join(where.host_key.split()[:2]),
        "address": "127.0.0.1",
        "port": where.port,
        "identity": f"{where.identity}",
    }.items():
        assert f"{key} = {json.dumps(value)}\n" in text


def test_nothing_is_overwritten(site: Site, made: Done) -> None:
    before = site.project.files()
    done = site.new("mail")

    assert (done.status, site.project.files()) == (BAD_INPUT, before)
    assert "hosts/mail is there already" in done.err


def test_network_is_the_servers(site: Site) -> None:
    words = ["--from=192.0.2.1", "--address=192.0.2.2/24"]
    done = site.project.inv("new", "--host=other", *words)

    assert done.status == BAD_INPUT
    assert "--from goes with --host alone" in done.err


def test_another_key(site: Site) -> None:
    done = site.new("other", "SHA256:other")

    assert done.status == BAD_INPUT
    assert "not SHA256:other" in done.err
    assert not (site.project.directory / "hosts/other").exists()


def test_another_system(site: Site) -> None:
    file = site.root / "usr/lib/os-release"
    before = file.read_text()
    file.write_text(before.replace("ID=debian", "ID=devuan"))
    done = site.new("other")
    file.write_text(before)

    assert done.status == BAD_INPUT
    assert "the server runs devuan 13" in done.err
    assert not list(site.project.directory.glob("hosts/*/host.toml.*"))
    assert not (site.project.directory / "hosts/other").exists()


@pytest.mark.all
def test_image(site: Site, made: Done, tmp_path: Path) -> None:
    """It builds as it is, with throw-away secrets, and has what the server had."""
    words = ["--host=mail", "--format=dir", f"--output={tmp_path}"]
    done = site.project.inv("build", *words, timeout=1800, cached=True)
    assert done.status == 0, done.err
    image = tmp_path / "mail"

    def seen(path: str) -> tuple[str, str]:
        mode = run(["chroot", image, "stat", "-c", "%A %U:%G", path]).strip()
        return path, mode

    assert [seen(path) for path in ("/etc/app/hidden", "/etc/app/run", "/home/alice/.ssh")] == [
        ("/etc/app/hidden", "-rw-r----- root:www-data"),
        ("/etc/app/run", "-rwxr-xr-x root:root"),
        ("/home/alice/.ssh", "drwx------ alice:alice"),
    ]
    assert run(["chroot", image, "id", "alice"]) == run(["chroot", site.root, "id", "alice"])
    wanted = {each.name for each in image.glob("etc/systemd/system/*.wants/*")}
    assert {"own.service", "ssh.service", "fstrim.timer"} & wanted == {"own.service", "ssh.service"}
    assert not (image / "etc/cron.d/e2scrub_all").exists()


@pytest.mark.vm
@pytest.mark.all
def test_stock_server(tmp_path: Path) -> None:
    """A stock Debian that runs becomes a definition, which passes `./inv test` as it is."""
    with tree.copied(tmp_path) as project:
        for name in ("demo", "stock"):
            shutil.copytree(places.HOSTS / name, project.directory / "hosts" / name)
        start = ["demo", "--host", "demo", "--start"]
        done = project.inv(*start, timeout=tree.DEMO_S, cached=True)
        assert done.status == 0, done.err
        try:
            home = tree.where("state('demo')", project.directory, project.home)
            where = Endpoint("127.0.0.1", int((home / "vm/port-22").read_text()), "", None)
            words = [f"--from=127.0.0.1:{where.port}", f"--identity={home / OPERATOR_KEY}"]
            words += [f"--fingerprint={ssh.fingerprint(ssh.presented_key(where))}"]
            done = project.inv("new", "--host", "copy", *words, timeout=tree.DEMO_S)
            assert done.status == 0, done.err
        finally:
            assert project.inv("demo", "--host", "demo", "--stop").status == 0
        toml = project.directory / "hosts/copy/host.toml"
        port = f"port = {where.port}\n"  # of this machine: it leads to the server's port 22
        toml.write_text(toml.read_text().replace(port, ""))
        spec = imgbuild.load(project.directory / "hosts/copy")
        assert [disk.match for disk in spec.layout.disks] == [{"serial": "demo-system"}]
        assert [(kept.match, kept.part, kept.mount) for kept in spec.keep] == [
            ({"serial": "demo-data"}, 1, "/home")
        ]

        done = project.inv("test", "--host", "copy", timeout=tree.DEMO_S, cached=True)
        assert done.status == 0, done.err
