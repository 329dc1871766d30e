"""What a build does to the machine that it runs on: nothing, whatever ends it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from anemos.image import build
from anemos.run import run
from tests import imaging, tiny
from tests.imaging import describe, image
from tests.waiting import until

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

CUSTOM = """
format=custom
setup() {
    truncate -s 64M "$imgname.ext4"
    mkfs.ext4 -q -F "$imgname.ext4"
    mount -o loop "$imgname.ext4" "$root"
    [ "$(ls "$root")" = lost+found ]
}
"""
WAITING = "provision() {\n    : >/started\n    mkdir /proof\n    sleep 1000\n}\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """Where an IMGBUILD is to lie. Afterwards nothing of the build is left on this machine."""
    yield tmp_path / "host"
    until(lambda: not left(tmp_path), lambda: left(tmp_path))


def left(directory: Path) -> list[str]:
    """Mounts, loop devices and processes that have to do with DIRECTORY, and scratch files."""
    name = os.fspath(directory)
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    found += [line for line in run(["losetup", "--list"]).splitlines() if name in line]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append((process / "cmdline").read_text())
    return found


def files(archive: Path) -> set[str]:
    return set(run(["tar", "--list", "--file", archive]).split())


def test_custom_on_a_mounted_file_system(host: Path) -> None:
    """setup() mounts it, and nobody has to unmount it; cleanup() knows how it went."""
    describe(host, CUSTOM + 'provision() { echo "$format" >/format; }\n')
    with (host / "IMGBUILD").open("a") as file:
        file.write('cleanup() { umount "$root"; [ "$status" = 0 ]; touch "$imgdir/was-here"; }\n')
    done = image(host, "--output", "out")
    assert (done.returncode, done.stdout) == (0, "out/mx.ext4\n"), done.stderr
    run(["e2fsck", "-f", "-n", host / "out/mx.ext4"])
    assert run(["debugfs", "-R", "cat /format", host / "out/mx.ext4"]) == "custom\n"
    manifest = json.loads((host / "out/mx.manifest.json").read_text())
    times = {entry["path"]: entry["mtime"] for entry in manifest["files"]}
    # The limit is the time of the layer's newest file, rounded up to a second.
    assert times["format"] <= max(times.values()) <= manifest["source_date_epoch"]
    found = run(["debugfs", "-R", "stat /format", host / "out/mx.ext4"])
    assert f"mtime: 0x{times['format']:08x}" in found
    assert (host / "was-here").is_file()


@pytest.mark.parametrize(
    ("text", "message", "status"),
    [
        ("provision() { echo because; false; }\n", "provision()", "1"),
        ("setup() { mount -o loop nowhere $root; }\n", "setup()", "1"),
        ("cleanup() { false; }\n", "cleanup()", None),
    ],
)
def test_custom_that_fails(host: Path, text: str, message: str, status: str | None) -> None:
    """cleanup() runs after a failure, too; the first failure is the one that is told."""
    cleanup = 'cleanup() { echo "$status" >>$imgdir/status; rm mx.ext4; false; }\n'
    describe(host, CUSTOM + cleanup + text)
    done = image(host, "--output", "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert f": in {message}: `" in done.stderr.partition("\nerror: ")[2].splitlines()[0]
    if status:
        assert (host / "status").read_text() == f"{status}\n"
        assert "in cleanup(): `cleanup()" in done.stderr
        assert not (host / "out/mx.ext4").exists()
    assert not (host / "out/mx.manifest.json").exists()


def test_custom_as_another_format(host: Path) -> None:
    """--format takes the place of `custom`: neither setup() nor cleanup() is called."""
    describe(host, CUSTOM + "cleanup() { false; }\nprovision() { echo $format >/format; }\n")
    done = image(host, "--output", "out", "--format", "tar gz")
    assert (done.returncode, done.stdout) == (0, "out/mx.tar.gz\n"), done.stderr
    said = run(["tar", "--extract", "--to-stdout", "--file", host / "out/mx.tar.gz", "./format"])
    assert said == "tar gz\n"


@pytest.mark.parametrize(
    ("format_", "label", "kind", "size"),
    [("raw 64M", "dos", "ext4", 64 * 2**20), ("raw 100MB gpt ext2", "gpt", "ext2", 10**8)],
)
def test_raw(host: Path, format_: str, label: str, kind: str, size: int) -> None:
    describe(host, f"format='{format_}'\n")
    done = image(host, "--output", "out")
    assert (done.returncode, done.stdout) == (0, "out/mx.img\n"), done.stderr
    file = host / "out/mx.img"
    table = run(["sfdisk", "--json", file])
    assert f'"label": "{label}"' in table
    assert table.count('"node"') == 1
    assert file.stat().st_size == size
    where = f"{file}?offset={2**20}"
    assert "/dev" not in run(["debugfs", "-R", "cat /etc/fstab", where])
    assert "root:x:0:0" in run(["debugfs", "-R", "cat /etc/passwd", where])
    assert kind in run(["blkid", "-p", "-O", str(2**20), "-o", "value", "-s", "TYPE", file])


def test_layout_as_raw(host: Path) -> None:
    """The disks of a layout, one file each; of a single one without its name."""
    layout = "format=disk\nlayout='\ndisk a serial=A image=64M\npart root fs=ext4 mount=/\n{}'\n"
    describe(host, layout.format(""))
    assert image(host, "--output", "out", "--format", "raw").stdout == "out/mx.img\n"
    describe(host, layout.format("disk b serial=B image=16M\npart b fs=ext4 mount=/home\n"))
    done = image(host, "--output", "out", "--format=raw")
    assert done.stdout.splitlines() == ["out/mx-a.img", "out/mx-b.img"], done.stderr


def test_provision_that_removes_everything(host: Path) -> None:
    """As root, whatever it reaches: the image is gone, and that is all."""
    witnesses = [Path("/etc/passwd"), Path("/dev/null"), Path("/dev/shm"), Path("/sys/kernel")]
    outside = host.parent / "outside"
    outside.mkdir()
    describe(host, "provision() { rm -rf --no-preserve-root / || true; }\n")
    (host / "files/etc").mkdir(parents=True)
    (host / "files/etc/link").symlink_to(outside)
    before = {*host.rglob("*")}
    done = image(host, "--output", "out", "--format", "tar gz")
    assert done.returncode == 0, done.stderr
    assert files(host / "out/mx.tar.gz") <= {"./", *(f"./{name}/" for name in tiny.DIRECTORIES)}
    (host / "out/mx.tar.gz").unlink()
    assert before <= {*host.rglob("*")}
    assert outside.is_dir()
    assert all(witness.exists() for witness in witnesses)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signal(host: Path, number: signal.Signals) -> None:
    """In the middle of provision(). The next build runs as if nothing had been."""
    cleanup = 'cleanup() { umount "$root"; echo "$status" >$imgdir/status; }\n'
    describe(host, CUSTOM + cleanup + WAITING)
    process = subprocess.Popen(
        imaging.command("--output", "out"),
        cwd=host,
        env=imaging.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "Running provision()" in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == f"error: ended by {number.name}"
        assert (host / "status").read_text() == "1\n"
    assert "Traceback" not in err

    describe(host, CUSTOM)
    assert image(host, "--output", "out").stdout == "out/mx.ext4\n"


def test_abandoned_scratch_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk kill -9 leaves one; the next build removes it, but not one that is in use."""
    monkeypatch.setattr(build, "DISK", tmp_path)
    abandoned = tmp_path / f"anemos-{os.geteuid()}-x"
    tiny.make(abandoned / "root")
    with build.workspace() as first, build.workspace() as second:
        assert {first, second} == set(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
