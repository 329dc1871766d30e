"""The guard beside a real systemd, in namespaces. Plain files are in the place of what resets a
machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anemos.run import CommandFailed
from anemos.system import bootstrap, imgbuild
from anemos.system.installation import TRIAL
from anemos.workstation import images, places
from tests import container
from tests.container import Container
from tests.test_guard import SCRIPT

pytestmark = [pytest.mark.root, pytest.mark.real("run")]

END_S = 120.0
# The machine's own /proc has neither. /own is writable in each host.
FAKES = {"/proc/sysrq-trigger": "/own/sysrq", "/dev/kmsg": "/own/kmsg"}
START = f"""#!/bin/sh
mount --bind /own/cmdline /proc/cmdline
exec /{TRIAL}
"""
LIST = f"""
for each in /proc/[0-9]*; do
    tr '\\0' ' ' <$each/cmdline | grep -q '^[^ ]* /{TRIAL} ' || continue
    echo "$(sed -n 's/^PPid:.//p' $each/status) $(sed -n 's/^0:://p' $each/cgroup)"
done
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian 13 with systemd."""
    root = tmp_path_factory.mktemp("image") / "root"
    root.mkdir()
    bootstrap.unpack(images.layer(imgbuild.load(places.HOSTS / "stock")), root)
    script = SCRIPT.read_text()
    for real, fake in FAKES.items():
        assert real in script
        script = script.replace(real, fake)
    (root / "etc/network/interfaces").write_text("iface eth0 inet manual\n")
    files = {TRIAL: script, "own/start": START, "own/sysrq": "", "own/kmsg": ""}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root


@contextmanager
def trial(image: Path, kept: Path, seconds: int) -> Iterator[Container]:
    (image / "own/cmdline").write_text(f"anemos.trial={seconds} anemos.deployment=d-1\n")
    with (
        container.far("192.0.2.1/24") as far,
        container.booted(image, kept, far, "/own/start") as host,
    ):
        assert host.run("cat", "/proc/1/comm") == "systemd\n"
        yield host


def guards(host: Container) -> list[str]:
    """Of each of its processes the parent and the cgroup."""
    return sorted(host.run("sh", "-c", LIST).splitlines())


def await_(done: Callable[[], bool]) -> None:
    end = time.monotonic() + END_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_word(image: Path, tmp_path: Path) -> None:
    """Nothing that goes wrong in systemd ends it; the word does."""
    with trial(image, tmp_path, 600) as host:
        before = guards(host)
        assert len(before) == 2
        assert before[0] == "1 /init.scope"
        host.run("systemctl", "daemon-reexec")
        host.run("systemctl", "emergency")
        await_(lambda: "inactive" in state(host, "basic.target"))
        assert guards(host) == before

        host.run("sh", "-c", "echo d-1 >/run/anemos.word")
        await_(lambda: not guards(host))
        assert "the word was given: deployment d-1 stays" in host.run("cat", "/own/kmsg")
        assert host.run("cat", "/own/sysrq") == ""


def test_deadline(image: Path, tmp_path: Path) -> None:
    """In emergency mode, too, and with a systemd that hangs."""
    with trial(image, tmp_path, 20) as host:
        host.run("systemctl", "--no-block", "emergency")
        await_(lambda: "b" in host.run("cat", "/own/sysrq"))
        assert host.run("cat", "/own/sysrq").startswith("s\nb\n")


def state(host: Container, unit: str) -> str:
    try:
        return host.run("systemctl", "is-active", unit)
    except CommandFailed as failure:
        return failure.output
