"""Loading the initramfs and its kernel; what the old system's way of booting leaves in it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from anemos import kexec, memory
from anemos.border import stage
from anemos.border.requests import Load
from anemos.initramfs import events
from anemos.log import FAILED, Failure
from anemos.run import CommandFailed, run
from anemos.server import kexec as server

SAFE = "panic=10 oops=panic"


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            "BOOT_IMAGE=/vmlinuz root=UUID=1 ro console=tty0 console=ttyS1,115200n8 quiet\n",
            f"console=tty0 console=ttyS1,115200n8 {SAFE}",
        ),
        ("root=/dev/vda1 quiet\n", f"console=tty0 console=ttyS0 {SAFE}"),
        ("", f"console=tty0 console=ttyS0 {SAFE}"),
        # The driver of hvc0 may be a module: a machine without any console would end its PID 1.
        ("console=hvc0", f"console=tty0 console=hvc0 {SAFE}"),
        # The last console is /dev/console: the order stays.
        ("console=ttyS0 console=tty0", f"console=ttyS0 console=tty0 {SAFE}"),
        ("netconsole=x xconsole=y panic=0 init=/bin/sh", f"console=tty0 console=ttyS0 {SAFE}"),
    ],
)
def test_cmdline(old: str, expected: str) -> None:
    assert server.cmdline(old, 0) == expected


def test_hold() -> None:
    """init's deadline comes after the brain's."""
    line = server.cmdline("console=ttyS1", 3600)

    assert line == f"console=tty0 console=ttyS1 {SAFE} anemos.hold=3600 anemos.deadline=4500"
    assert f"DEADLINE={server.DEADLINE} " in (Path(events.__file__).parent / "init").read_text()


def test_load_argv() -> None:
    argv = kexec.load_argv("--kexec-file-syscall", server.KERNEL, stage.INITRAMFS, "a b=c")
    assert [str(word) for word in argv] == [
        "kexec",
        "--kexec-file-syscall",
        "--load",
        "/boot/vmlinuz",
        "--initrd=/run/anemos/initramfs",
        "--command-line=a b=c",
    ]


class Kernel:
    """kexec(8), which refuses METHODS."""

    def __init__(self, loaded: Path, refused: Sequence[str] = ()) -> None:
        self.loaded, self.refused = loaded, refused
        self.asked: list[str] = []
        loaded.write_text("0\n")

    def run(self, argv: Sequence[str]) -> str:
        self.asked.append(argv[1])
        if argv[1] in self.refused:
            raise CommandFailed(["kexec"], 1, "kexec_file_load failed: Operation not permitted\n")
        self.loaded.write_text("1\n")
        return ""


FILE, OLD = "--kexec-file-syscall", "--kexec-syscall"


def load(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kexec, "run", kernel.run)
    monkeypatch.setattr(kexec, "LOADED", kernel.loaded)
    kexec.load(Path("/kernel"), Path("/initrd"), "line")


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path / "loaded")

    load(kernel, monkeypatch)

    assert kernel.asked == [FILE]


def test_second_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(tmp_path / "loaded", [FILE])

    load(kernel, monkeypatch)

    assert kernel.asked == [FILE, OLD]
    assert "kexec_file_load refused: kexec_file_load failed: Operation" in capsys.readouterr().err


def test_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path / "loaded", [FILE, OLD])

    with pytest.raises(CommandFailed, match="Operation not permitted") as caught:
        load(kernel, monkeypatch)

    assert caught.value.status == FAILED


def test_the_kernel_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path / "loaded")
    monkeypatch.setattr(kernel, "run", lambda argv: "loaded, no problem")

    with pytest.raises(Failure, match="nothing is loaded") as caught:
        load(kernel, monkeypatch)

    assert caught.value.status == FAILED


@pytest.mark.real("run")
def test_no_console() -> None:
    """PID 1 lives on where the console cannot be opened, and whatever it says harms nobody."""
    init = (Path(events.__file__).parent / "init").read_text()
    (line,) = [line for line in init.splitlines() if "exec </dev/console" in line]
    script = line.replace("/dev/console", "/dev/none/such") + "; echo word; exit 7"

    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", script])

    assert caught.value.returncode == 7
    assert "word" not in caught.value.output


@pytest.mark.parametrize("lacking", [0, 2**20])
def test_memory_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    """The old system goes on serving, and may have taken what was there when the plan was made."""
    loaded: list[Path] = []
    (tmp_path / "initramfs").write_bytes(bytes(100))
    (tmp_path / "vmlinuz").write_bytes(bytes(2**23))
    monkeypatch.setattr(stage, "INITRAMFS", tmp_path / "initramfs")
    monkeypatch.setattr(server, "KERNEL", tmp_path / "vmlinuz")
    monkeypatch.setattr(kexec, "load", lambda *words: loaded.append(words[1]))
    need = 200 + 2**24 + server.LOADING
    monkeypatch.setattr(memory, "available", lambda: need - lacking)

    if lacking:
        with pytest.raises(Failure, match="memory: 24 MiB needed to load it, 23") as caught:
            server.load(Load(0, late=False))
        assert caught.value.status == FAILED
    else:
        server.load(Load(0, late=False))
    assert len(loaded) == (not lacking)


@pytest.mark.real("run")
def test_environment_of_the_login(tmp_path: Path) -> None:
    """Nothing of it comes into the base image, but where the operator came from."""
    for name, script in {
        "unshare": 'shift; exec "$@"',
        "mount": "",
        "mkdir": "",
        "modprobe": "",
        "chroot": "echo oom=$(cat /proc/$$/oom_score_adj) >&2; env >&2; exit 7",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    given = {"PYTHONHOME": "/x", "LD_LIBRARY_PATH": "/x", "SSH_CONNECTION": "a 1 b 22"}

    with pytest.raises(CommandFailed) as caught:
        run(["sh", "anemos/server/enter.sh", "base"], env=given | {"PATH": path})

    words = dict(line.partition("=")[::2] for line in caught.value.output.splitlines())
    assert words.pop("PATH").startswith(path)
    assert words.pop("oom") == "1000"  # it ends before anything that serves
    assert words.keys() - {"PWD", "SHLVL", "_"} == {"HOME", "SSH_CONNECTION", "SUDO_USER"}
    assert (words["SSH_CONNECTION"], words["SUDO_USER"]) == ("a 1 b 22", "root")
