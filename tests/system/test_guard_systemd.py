"""The guard beside a real systemd, in namespaces. Plain files are in the place of what resets a
machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anemos.run import CommandFailed, run
from anemos.system import bootstrap, imgbuild
from anemos.system.installation import CONFIRM, TRIAL
from anemos.workstation import images, places
from anemos.workstation.deploy import reach, word
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host
from tests import container
from tests.container import Container, Far
from tests.system.test_guard import SCRIPT
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

ADDRESS = "192.0.2.2"
SIX = "2001:db8::2"
LISTEN = " ".join(f"listen {each};" for each in ("80", "2022", "[::]:80", "[::]:2022"))
SITE = f'server {{ {LISTEN} location / {{ return 200 "here"; }} }}\n'
# The machine's own /proc has neither. /own is writable in each host.
FAKES = {"/proc/sysrq-trigger": "/own/sysrq", "/dev/kmsg": "/own/kmsg"}
START = f"""#!/bin/sh
mount --bind /own/cmdline /proc/cmdline
exec /{TRIAL}
"""
LIST = f"""
for each in /proc/[0-9]*; do
    tr '\\0' ' ' <$each/cmdline | grep -qE '^[^ ]* (-I )?/{TRIAL} ' || continue
    echo "$(sed -n 's/^PPid:.//p' $each/status) $(sed -n 's/^0:://p' $each/cgroup)"
done
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian 13 with systemd."""
    root = tmp_path_factory.mktemp("image") / "root"
    root.mkdir()
    bootstrap.unpack(images.layer(imgbuild.load(places.HOSTS / "stock")), root)
    script = faked(SCRIPT.read_text())
    (root / "etc/network/interfaces").write_text("iface eth0 inet manual\n")
    (root / "etc/systemd/system/ssh.service").symlink_to("/dev/null")  # it has no host keys
    files = {TRIAL: script, "own/start": START, "own/sysrq": "", "own/kmsg": ""}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root


def faked(script: str) -> str:
    """SCRIPT, with files of our own in the place of the machine's."""
    for real, fake in FAKES.items():
        script = script.replace(real, fake)
    return script


@contextmanager
def trial(image: Path, kept: Path, seconds: int, more: str = "") -> Iterator[tuple[Container, Far]]:
    (image / "own/cmdline").write_text(f"anemos.trial={seconds} anemos.deployment=d-1 {more}\n")
    with (
        container.far("192.0.2.1/24") as far,
        container.booted(image, kept, far, "/own/start") as host,
    ):
        assert host.run("cat", "/proc/1/comm") == "systemd\n"
        yield host, far


def guards(host: Container) -> list[str]:
    """Of each of its processes the parent and the cgroup."""
    return sorted(host.run("sh", "-c", LIST).splitlines())


def test_word(image: Path, tmp_path: Path) -> None:
    """Nothing that goes wrong in systemd ends it; the word does."""
    with trial(image, tmp_path, 600) as (host, _):
        before = guards(host)
        assert len(before) == 2
        assert before[0] == "1 /init.scope"
        host.run("systemctl", "daemon-reexec")
        host.run("systemctl", "emergency")
        until(lambda: "inactive" in state(host, "basic.target"))
        assert guards(host) == before

        host.run("sh", "-c", "echo d-1 >/run/anemos.word")
        until(lambda: not guards(host))
        assert "the word was given: deployment d-1 stays" in host.run("cat", "/own/kmsg")
        assert host.run("cat", "/own/sysrq") == ""


IMGBUILD = """
target=debian
packages=systemd
verify() {{
    test -e {}
    echo "it's good"
}}
"""


ASKED = '{"command": "Commit", "deployment": "d-1"}\n/var/lib/anemos/base-5f.squashfs\n'


@pytest.mark.parametrize(("good", "end"), [("/own/start", f"0\n{ASKED}"), ("/own/no", "1\n")])
def test_word_of_its_own(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str, end: str
) -> None:
    """When all units run and verify() succeeds, it asks for its commit, and leaves no script."""
    (tmp_path / "enter.sh").write_text("cat >/own/asked\necho $1 >>/own/asked\n")
    (tmp_path / "IMGBUILD").write_text(IMGBUILD.format(good))
    monkeypatch.setattr(reach, "SERVER", tmp_path)
    spec = imgbuild.load(tmp_path)
    state = State("mx", "d-1", base="/cache/base-5f.squashfs")
    files = {
        CONFIRM: "#!/bin/sh\n${0%/*}/own\necho $? >/own/end\n",
        f"{Path(CONFIRM).parent}/own": faked(word.script(Host("mx", tmp_path), spec, state)),
    }
    for name, text in files.items():
        (image / name).write_text(text)
        (image / name).chmod(0o700)
    with trial(image, tmp_path, 600, "anemos.confirm") as (host, _):
        until(lambda: host.run("sh", "-c", "cat /own/end || :"), lambda: units(host))
        assert host.run("sh", "-c", "cat /own/end /own/asked || :") == end, units(host)
        assert ("own" in host.run("ls", "/usr/lib/anemos").split()) == (end == "1\n")
        assert ("verify(): IMGBUILD: line 5" in host.run("cat", "/own/kmsg")) == (end == "1\n")


def units(host: Container) -> str:
    return host.run("systemctl", "list-units", "--failed", "--plain", "--no-legend")


def test_deadline(image: Path, tmp_path: Path) -> None:
    """In emergency mode, too, and with a systemd that hangs."""
    with trial(image, tmp_path, 20) as (host, _):
        host.run("systemctl", "--no-block", "emergency")
        until(lambda: "b" in host.run("cat", "/own/sysrq"))
        assert host.run("cat", "/own/sysrq").startswith("s\nb\n")


@pytest.fixture(scope="module")
def server(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of another layer: a web server, whose own nftables begins with a flush."""
    root = tmp_path_factory.mktemp("server") / "root"
    root.mkdir()
    bootstrap.unpack(images.layer(imgbuild.load(places.HOSTS / "www")), root)
    for name in (TRIAL, "own/start", "own/sysrq", "own/kmsg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(image / name, root / name)
    (root / "etc/network/interfaces").write_text(f"iface eth0 inet static\naddress {ADDRESS}/24\n")
    shutil.copy(places.HOSTS / "www/files/etc/nftables.conf", root / "etc")
    (root / "etc/nginx/sites-enabled/default").unlink()
    (root / "etc/nginx/conf.d/site.conf").write_text(SITE)
    return root


def test_ports(server: Path, tmp_path: Path) -> None:
    """Until the word SSH alone is let in, whatever the definition's own firewall does."""
    with trial(server, tmp_path, 600, "anemos.ports=22,2022") as (host, far):
        host.run("systemctl", "start", "nginx")
        host.run("ip", "address", "add", f"{SIX}/64", "dev", "eth0", "nodad")
        container.ip(f"-n {far.name} address add 2001:db8::1/64 dev cable nodad")
        for address in (ADDRESS, f"[{SIX}]"):
            assert served(far, f"{address}:2022")
            assert not served(far, f"{address}:80")
        for argv in (["systemctl", "start", "nftables"], ["nft", "flush", "ruleset"]):
            host.run(*argv)
            assert not served(far, ADDRESS)
        with pytest.raises(CommandFailed, match="not permitted"):
            host.run("nft", "delete", "table", "inet", "anemos_trial")
        assert host.run("curl", "--silent", f"http://{ADDRESS}") == "here"

        host.run("sh", "-c", "echo d-1 >/run/anemos.word")
        until(lambda: not guards(host))
        assert served(far, ADDRESS)
        assert host.run("nft", "list", "ruleset") == ""
        assert host.run("cat", "/own/sysrq") == ""


def test_ports_are_not_held_any_more(server: Path, tmp_path: Path) -> None:
    with trial(server, tmp_path, 600, "anemos.ports=22") as (host, _):
        host.run("sh", "-c", "kill -KILL $(pidof nft)")
        until(lambda: "b" in host.run("cat", "/own/sysrq"))
        assert "nobody keeps clients out: back to the old" in host.run("cat", "/own/kmsg")


def served(far: Far, place: str) -> bool:
    try:
        return run(far.argv("curl", "--silent", "--max-time", "3", f"http://{place}")) == "here"
    except CommandFailed as failure:
        assert failure.returncode == 28  # no answer, and no refusal: curl(1)
        return False


def state(host: Container, unit: str) -> str:
    try:
        return host.run("systemctl", "is-active", unit)
    except CommandFailed as failure:
        return failure.output
