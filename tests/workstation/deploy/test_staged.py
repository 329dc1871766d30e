"""What is staged on a server goes away again, whatever ends the work; the real scripts, on a /run
and with processes of the test's own."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from anemos import log
from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.run import CommandFailed, run
from anemos.workstation import lock, places, scratch
from anemos.workstation.deploy import clean, reach, staged
from anemos.workstation.deploy.state import State, load_state
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Endpoint, Unreachable, WrongHostKey

HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "ssh-ed25519 AAAA", 2222)
ME = "anna@laptop:anemos-0-1"
OTHER = "bert@desk:anemos-0-2"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(staged, "PAUSE_S", 0)
    monkeypatch.setattr(places, "who", lambda: ME)
    monkeypatch.setattr(lock, "held", {})


# The server


# $1: directory with a base image, the scripts, and a chroot(8) that stands for kexec(8)'s deed.
# $2: what else is to be done; the rest: what becomes of it.
SERVER = """
set -e
mount -t tmpfs tmpfs /run
here=$1 more=$2; shift 2
echo 0 >/run/loaded
stage() { sh "$here/stage.sh" 5 "$@"; }
unstage() { PATH=$here/bin:$PATH sh "$here/unstage.sh" "$@"; }
work() { # as enter.sh does it
    mkdir -p /run/anemos.root
    unshare -m sh -c 'mount -o rbind / /run/anemos.root; exec chroot /run/anemos.root sleep 1000' &
    until [ "$(readlink /proc/$!/root)" = /run/anemos.root ]; do sleep 0.1; done
}
load() {
    stage d-1 "$1"
    touch /run/anemos/payload /run/anemos/initramfs /run/anemos/layer.77.part
    cp "$here/base-1.squashfs" /run/anemos
    work
    echo 1 >/run/loaded
    mkdir /run/initramfs
    mount -t squashfs -o loop,ro /run/anemos/base-1.squashfs /run/initramfs
}
eval "$more"
ls -A -I mount /run /run/anemos
grep -oE ' /run/(anemos|initramfs)[^ ]* [^ ]*' /proc/mounts || :
pgrep -x sleep >/dev/null && echo works || :
echo "loaded $(cat /run/loaded)"
"""
FAKE = '#!/bin/sh\necho "chroot $*" >&2\n[ -e /run/stubborn ] || echo 0 >/run/loaded\n'


@pytest.fixture
def server(tmp_path: Path) -> Path:
    for name in ("stage.sh", "unstage.sh"):
        text = (reach.SERVER / name).read_text()
        (tmp_path / name).write_text(text.replace("/sys/kernel/kexec_loaded", "/run/loaded"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/chroot").write_text(FAKE)
    (tmp_path / "bin/chroot").chmod(0o755)
    (tmp_path / "root").mkdir()
    run(["mksquashfs", tmp_path / "root", tmp_path / "base-1.squashfs", "-quiet", "-no-progress"])
    return tmp_path


def on(server: Path, script: str) -> list[str]:
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return run([*alone, "sh", "-c", SERVER, "sh", server, script], timeout=120).split("\n")[:-1]


@pytest.mark.root
@pytest.mark.real("run")
@pytest.mark.parametrize("who", [ME, ""])
def test_nothing_is_left(server: Path, who: str) -> None:
    """Files, the loaded kernel, mounts, and who still works on it; twice is once."""
    left = on(server, f"load {ME}; unstage '{who}' ''; unstage '{who}' ''")

    assert left == [
        "/run:",
        "anemos",
        "anemos.root",
        "initramfs",
        "loaded",
        "",
        "/run/anemos:",
        "loaded 0",
    ]


@pytest.mark.root
@pytest.mark.real("run")
def test_next_try(server: Path) -> None:
    """The base image may stay: it need not be sent again. Older ones take memory."""
    more = f"load {ME}; touch /run/anemos/base-0.squashfs; unstage {ME} base-1.squashfs"
    left = on(server, f"{more}; stage d-2 {ME}; cut -d ' ' -f 1 /run/anemos.owner")

    assert left[0] == "d-2"
    assert left[left.index("/run/anemos:") + 1 :] == [
        "base-1.squashfs",
        " /run/anemos ramfs",
        "loaded 0",
    ]


@pytest.mark.root
@pytest.mark.real("run")
def test_somebody_else(server: Path) -> None:
    """What she has staged stays as it is, and nobody stages beside it."""
    left = on(server, f"load {OTHER}; unstage {ME} ''; ! stage d-2 {ME} 2>&1")

    assert left[0].startswith(f"d-1 {OTHER} 20")
    assert left[1].startswith(f"deployment d-1 of {OTHER} is staged here since 20")
    assert {"payload", "initramfs", " /run/anemos ramfs", "works", "loaded 1"} <= set(left)


@pytest.mark.root
@pytest.mark.real("run")
def test_what_stays_is_told(server: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        on(server, f"touch /run/stubborn; load {ME}; unstage {ME} ''")

    assert "could not be removed: what the kernel has loaded for kexec" in caught.value.output
    unload = "chroot /run/anemos.root kexec --kexec-file-syscall --unload"
    assert unload in caught.value.output


@pytest.mark.root
@pytest.mark.real("run")
def test_initramfs_is_left_alone(server: Path) -> None:
    left = on(server, f"load {ME}; touch /run/anemos/boot.json; unstage '' ''")

    assert left[0] == "initramfs"
    assert {"payload", "loaded 1"} <= set(left)


@pytest.mark.root
@pytest.mark.real("run")
def test_not_enough_memory(server: Path) -> None:
    with pytest.raises(CommandFailed, match=r"needs 99999999999999 bytes of memory, has \d+"):
        on(server, f'sh "$here/stage.sh" 99999999999999 d-1 {ME}')


# The workstation


class Server:
    """A Remote whose connections and scripts fail with what is given, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failures: Failure | str) -> None:
        self.failures, self.done = list(failures), list[str]()
        monkeypatch.setattr(staged, "connect", self.connect)
        monkeypatch.setattr(reach, "script", self.script)

    @contextmanager
    def connect(self, endpoint: Endpoint, *, status: int) -> Iterator["Server"]:
        if self.failures and isinstance(self.failures[0], Unreachable | WrongHostKey):
            raise self.failures.pop(0)  # type: ignore[misc]
        yield self

    def script(self, remote: "Server", name: str, *words: str, **_options: object) -> str:
        self.done.append(" ".join([name, *words]).strip())
        answer = self.failures.pop(0) if self.failures else ""
        if isinstance(answer, Failure):
            raise answer
        return answer


def ends() -> list[BaseException]:
    return [
        Failure("refused", status=FAILED),
        KeyboardInterrupt(),
        BrokenPipeError(),
        OSError(28, "No space left on device"),
        ValueError("no JSON"),
        SystemExit(9),
    ]


@pytest.mark.parametrize("end", ends(), ids=lambda end: type(end).__name__)
def test_undone(monkeypatch: pytest.MonkeyPatch, end: BaseException) -> None:
    """Whatever ends a phase; it stays what is told in the end."""
    server = Server(monkeypatch)
    State("mx", remote_base="/run/anemos/base").save()

    with pytest.raises(type(end)) as caught, staged.undone(HOST):
        raise end

    assert caught.value is end
    assert server.done == [f"unstage.sh {ME}", "disarm.sh"]
    assert load_state(HOST).remote_base == ""


def test_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be told of it; it is done all the same."""
    server = Server(monkeypatch)

    def sink(line: str) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log, "sink", sink)
    with pytest.raises(KeyboardInterrupt), staged.undone(HOST):
        raise KeyboardInterrupt

    assert server.done[-1] == "disarm.sh"


def test_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd starts again, a command is killed: none of it is the last word."""
    away, killed = Unreachable("away", status=FAILED), CommandFailed(["sh"], -9, "")
    server = Server(monkeypatch, away, away, killed)

    assert staged.remove(HOST, ME) == ""
    assert server.done == [f"unstage.sh {ME}", f"unstage.sh {ME}", "disarm.sh"]


@pytest.mark.parametrize(
    "failure",
    [Unreachable("away", status=FAILED), WrongHostKey("not ours", status=FAILED)],
    ids=["away", "other"],
)
def test_in_vain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Failure
) -> None:
    monkeypatch.setattr(staged, "PATIENCE_S", 0)
    Server(monkeypatch, failure, failure, failure)

    with pytest.raises(KeyboardInterrupt), staged.undone(HOST):
        raise KeyboardInterrupt

    said = capsys.readouterr().err
    assert f"It may still be there, secrets included: {failure}" in said
    assert "./inv clean --host mx" in said


# clean


def test_clean() -> None:
    """What an interrupted run left of any host is gone; not where its deployment got to."""
    left = places.memory("mx") / "secrets/files/etc/key"
    left.parent.mkdir(parents=True)
    left.write_text("clear")
    (places.memory("other") / "payload").touch()
    State("mx", deployment="d-1").save()

    assert clean.clean() == {"removed": ["mx", "other"]}
    assert not left.exists()
    assert load_state(HOST).deployment == "d-1"
    assert clean.clean() == {"removed": []}


def test_clean_leaves_what_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's secrets, and the file that an editor has open."""
    monkeypatch.setattr(scratch, "require_memory", lambda path: None)
    for name in ("mx", "other"):
        (places.memory(name) / "payload").touch()
    with scratch.directory() as mine, locked("mx"):
        (mine / "secret").touch()

        assert clean.clean() == {"removed": ["other"]}

        assert (places.memory("mx") / "payload").exists()
        assert (mine / "secret").exists()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """As another process has it: flock(2) goes by open files."""
    lock.take(name)
    mine = lock.held.pop(name)
    yield
    mine.close()


def test_one_task_for_a_host() -> None:
    with locked("mx"):
        with pytest.raises(
            Failure, match=r"^mx: another task works on it: \./inv .*, process \d+, "
        ):
            lock.take("mx")
        lock.take("other")
    lock.take("mx")
    lock.take("mx")


@pytest.mark.parametrize(
    ("answer", "yes", "asked", "message"),
    [
        ("", "", ME, ""),
        ("initramfs\n", "", ME, ""),
        (f"d-1 {OTHER} 2025\n", "", ME, f"deployment d-1 of {OTHER} is staged there"),
        ("\n", "mx", "", ""),
        ("", "other", None, "--yes other does not name the host mx"),
    ],
)
def test_clean_a_server(
    monkeypatch: pytest.MonkeyPatch, answer: str, yes: str, asked: str | None, message: str
) -> None:
    server = Server(monkeypatch, answer)
    failed = ""
    try:
        clean.clean(HOST, yes)
    except Failure as failure:
        assert failure.status == BAD_INPUT
        failed = str(failure)

    assert message in failed
    assert bool(message) == bool(failed)
    expected = [] if asked is None else [f"unstage.sh {asked}".strip()]
    assert server.done[:1] == expected


# Signals


def test_signals_within_signals() -> None:
    """What ignores the second signal is the outermost one: its own removal comes last."""
    with pytest.raises(KeyboardInterrupt), scratch.ending():
        try:
            with scratch.ending():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with scratch.ending():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# The jump without systemd


# $1: directory with jump.sh and programs; a database that ends in order, and one that does not.
OPENRC = """
set -e
mount -t tmpfs tmpfs /run
here=$1; PATH=$here/bin:$PATH
echo 1 >/run/loaded
sh -c 'trap "echo in order >/run/database; exit" TERM; while :; do /bin/sleep 0.1; done' &
sh -c 'trap "" TERM; while :; do /bin/sleep 0.1; done' &
stubborn=$!
/bin/sleep 0.5
trap '' TERM # as the first process
sh "$here/jump.sh" /base
until [ -e /run/jumped ]; do /bin/sleep 0.1 || :; done
cat /run/database /run/sysrq
! kill -0 $stubborn 2>/dev/null || [ "$(cut -d ' ' -f 3 /proc/$stubborn/stat)" = Z ]
"""


@pytest.mark.root
@pytest.mark.real("run")
def test_processes_end_before_the_jump(tmp_path: Path) -> None:
    text = (reach.SERVER / "jump.sh").read_text()
    for old, new in {
        "/sys/kernel/kexec_loaded": "/run/loaded",
        "/proc/sysrq-trigger": "/run/sysrq",
        "/run/systemd/system": "/run/none",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "jump.sh").write_text(text)
    (tmp_path / "bin").mkdir()
    for name, script in {
        "sleep": '[ "$1" != 300 ] || exec /bin/sleep 99\nexec /bin/sleep 1',
        "mount": "",
        "reboot": "",
        "chroot": '[ "$*" != "/run/initramfs /shutdown reboot" ] || touch /run/jumped',
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    said = run([*alone, "sh", "-c", OPENRC, "sh", tmp_path], timeout=60)

    assert said == "in order\nu\n"


WATCHDOGS = {
    # name: (nowayout, state, its bus's alias) -> what is written when the jump works, and fails
    "watchdog0": (("0", "active", "platform:iTCO_wdt"), ("V", "V.")),
    "watchdog1": (("0", "active", "pci:v00008086d000025AB"), (".", ".")),
    "watchdog2": (("0", "inactive", "pci:v00008086d000025AB"), ("V", "V")),
    "watchdog3": (("1", "active", "pci:v00008086d000025AB"), ("", "")),
    "watchdog4": (("0", "active", "pci:unknown"), ("V", "V.")),
    "watchdog15": (("0", "active", ""), ("V", "V.")),
}
STAND_INS = """\
sync() { :; }; umount() { :; }; busybox() { echo "$*"; }
modprobe() { case $5 in pci:v*) echo i6300esb ;; esac; }
kexec() { [ $JUMPS = no ] || exit 0; }
"""


@pytest.mark.real("run")
@pytest.mark.parametrize(("jumps", "says"), [("yes", ""), ("no", "reboot -f\n")])
@pytest.mark.parametrize(("ipmi", "written"), [("N", "V"), ("Y", ""), ("", "")])
def test_watchdogs_before_the_jump(
    tmp_path: Path, jumps: str, says: str, ipmi: str, written: str
) -> None:
    """By every number, and IPMI's: stopped, or handed over. Stand-ins: files."""
    for name, ((nowayout, state, alias), _) in WATCHDOGS.items():
        (tmp_path / "class" / name / "device").mkdir(parents=True)
        (tmp_path / "class" / name / "nowayout").write_text(f"{nowayout}\n")
        (tmp_path / "class" / name / "state").write_text(f"{state}\n")
        (tmp_path / "class" / name / "device/modalias").write_text(f"{alias}\n")
    driver = tmp_path / "modules/6.1.0/kernel/drivers/watchdog/i6300esb.ko"
    driver.parent.mkdir(parents=True)
    for file in (driver, tmp_path / "watchdog", *(tmp_path / name for name in WATCHDOGS)):
        file.touch()
    (tmp_path / "loaded").write_text("1\n")
    (tmp_path / "nowayout").write_text(f"{ipmi}\n")
    text = (places.ROOT / "anemos/base/files/shutdown").read_text()
    for old, new in {
        "/sys/class/watchdog": f"{tmp_path}/class",
        "/lib/modules": f"{tmp_path}/modules",
        "/sys/module/ipmi_watchdog/parameters/nowayout": f"{tmp_path}/nowayout",
        ">/dev/": f">>{tmp_path}/",  # a device does not forget what was written before
        '>"/dev/': f'>>"{tmp_path}/',
        "/sys/kernel/kexec_loaded": f"{tmp_path}/loaded",
        "(sleep 300; echo b >/proc/sysrq-trigger) &": ":",
    }.items():
        assert old in text
        text = text.replace(old, new)

    assert run(["sh", "-c", f"JUMPS={jumps}\n{STAND_INS}{text}", "shutdown", "reboot"]) == says

    found = {name: (tmp_path / name).read_text() for name in WATCHDOGS}
    assert found == {name: told[jumps == "no"] for name, (_, told) in WATCHDOGS.items()}
    assert (tmp_path / "watchdog").read_text() == written


@pytest.mark.real("run")
def test_watchdogs_after_the_jump(tmp_path: Path) -> None:
    """init's guard pets all; after the point of no return it stops those that can be stopped."""
    text = (places.ROOT / "anemos/initramfs/init").read_text()
    functions = text[text.index("tend() {") : text.index("# Runs beside the brain")]
    for name, nowayout in {"watchdog0": "0", "watchdog2": "1", "watchdog6": "0"}.items():
        (tmp_path / "class" / name).mkdir(parents=True)
        (tmp_path / "class" / name / "nowayout").write_text(f"{nowayout}\n")
        (tmp_path / name).touch()
    (tmp_path / "watchdog5").mkdir()  # cannot be opened
    functions = functions.replace("/dev/watchdog", f"{tmp_path}/watchdog")
    functions = functions.replace("/sys/class/watchdog/", f"{tmp_path}/class/")
    script = f"""
        HERE={tmp_path} PASSED={tmp_path}/passed armed=
        {functions}
        every_watchdog; every_watchdog
        touch $PASSED; every_watchdog; every_watchdog
        touch $HERE/leaving; every_watchdog
        echo "left: $armed"
    """

    assert run(["sh", "-c", script]).endswith("left: \n")

    found = {
        name: (tmp_path / name).read_text() for name in ("watchdog0", "watchdog2", "watchdog6")
    }
    assert found == {"watchdog0": "\n\nV", "watchdog2": "\n\n\n\nV", "watchdog6": "\n\nV"}
