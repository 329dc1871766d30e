"""anemos.run against real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from anemos import run as owner
from anemos.log import FAILED, Failure
from anemos.run import TAIL_LINES, CommandFailed, NoEnd, environment, quote, read, run
from tests.waiting import until

pytestmark = pytest.mark.real("run")
SHELL = shutil.which("sh")


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def failure(argv: list[str], log: Callable[[str], None] | None = None) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        run(argv, log=log)
    return caught.value


def test_output_is_returned_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(shell("echo out; echo err >&2")) == "out\n"
    assert capfd.readouterr() == ("", "")


def test_words_are_passed_as_they_are(tmp_path: Path) -> None:
    words = ["*", "$HOME", "a b", "", "-n", "_x", "ä"]
    assert run(["printf", r"%s\n", *words]) == "".join(f"{word}\n" for word in words)
    assert run(["printf", "%s", tmp_path]) == os.fspath(tmp_path)


def test_output_is_no_terminal() -> None:
    run(shell("! test -t 1 && ! test -t 0"))


def test_undecodable_bytes_are_replaced() -> None:
    lines: list[str] = []
    assert run(["printf", r"a\377b\n"], log=lines.append) == "a\ufffdb\n"
    assert lines == ["a\ufffdb"]
    assert run(["printf", r"a\377b\n"]) == "a\ufffdb\n"


@pytest.mark.parametrize("data", [b"", b"one\0two\nthree", b"x" * 1_000_000])
def test_data_is_the_standard_input(data: bytes) -> None:
    assert run(["cat"], data=data) == data.decode()


def test_standard_input_is_empty_without_data() -> None:
    assert run(["cat"], timeout=60) == ""


def test_data_that_nobody_reads_is_no_failure() -> None:
    assert run(["true"], data=b"x" * 1_000_000) == ""


def test_directory(tmp_path: Path) -> None:
    assert run(["pwd", "-P"], cwd=tmp_path) == f"{tmp_path.resolve()}\n"


def test_log_gets_both_streams_and_both_are_returned() -> None:
    lines: list[str] = []
    assert run(shell("echo 1; echo 2 >&2; echo; printf 3"), log=lines.append) == "1\n2\n\n3"
    assert lines == ["1", "2", "", "3"]


def test_log_gets_lines_as_they_come(tmp_path: Path) -> None:
    """The command ends only because its first line was logged while it ran."""
    seen = tmp_path / "seen"
    script = f"echo first; until test -e {seen}; do sleep 0.05; done; echo last"
    assert run(shell(script), log=lambda _line: seen.touch(), timeout=60) == "first\nlast\n"


def test_output_is_read_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command has written is there when it has ended, and when any time after that is up."""
    monkeypatch.setattr(owner, "LINGER_S", 0)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        until(lambda: not Path("/proc", lines[0]).exists())

    assert run(shell("echo $$; seq 9999"), log=log).endswith("\n9999\n")
    assert lines[1:] == [str(n) for n in range(1, 10000)]


@pytest.mark.parametrize("quiet", [True, False])
def test_output_that_others_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    """A daemon may keep it open, and even write; nobody waits for that."""
    monkeypatch.setattr(owner, "LINGER_S", 0.2)
    daemon = "sleep 1000" if quiet else "yes"
    script = f"{daemon} & echo $! >{tmp_path}/pid; echo end >&2; exit 3"
    try:
        assert failure(shell(script)).output.endswith("end\n")
    finally:
        with suppress(ProcessLookupError):  # by SIGPIPE
            os.kill(int((tmp_path / "pid").read_text()), 9)


def test_error_in_log_ends_the_command(tmp_path: Path) -> None:
    def log(_line: str) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(shell(f"echo $$ >{tmp_path}/pid; echo 1; exec sleep 1000"), log=log)
    ended(tmp_path / "pid")


def test_failure_tells_command_status_and_last_lines() -> None:
    error = failure(shell("seq 100; echo 'the reason' >&2; exit 7"))
    head, *tail = str(error).splitlines()
    assert head == "sh -c 'seq 100; echo '\"'\"'the reason'\"'\"' >&2; exit 7': exit status 7"
    assert tail == [f"  | {n}" for n in range(77, 101)] + ["  | the reason"]
    assert len(tail) == TAIL_LINES
    assert error.output.startswith("1\n2\n")
    assert (error.returncode, error.status) == (7, FAILED)


def test_failure_with_log_has_the_output_too() -> None:
    lines: list[str] = []
    error = failure(shell("echo out; echo err >&2; exit 1"), lines.append)
    assert lines == ["out", "err"]
    assert error.output == "out\nerr\n"


def test_long_output_of_a_failure_is_whole() -> None:
    assert failure(shell("seq 10000; false")).output.endswith("\n9999\n10000\n")


@pytest.mark.parametrize("signal", [9, 13, 15])
def test_death_by_signal(signal: int) -> None:
    error = failure(shell(f"kill -{signal} $$"))
    assert str(error).endswith(f": killed by signal {signal}")
    assert error.returncode == -signal


def test_timeout_kills() -> None:
    with pytest.raises(Failure, match=r"^sleep 600: no end after 0\.2 s$") as caught:
        run(["sleep", "600"], timeout=0.2)
    assert caught.value.status == FAILED


# A process in the background, too, that does not end by itself, nor by SIGTERM.
STUBBORN = "trap '' TERM; sleep 1000 & echo $! >{0}; echo begun; wait; wait"


def ended(file: Path) -> None:
    """Wait for the end of the process whose number is in FILE."""
    status = Path("/proc", file.read_text().strip(), "status")
    with suppress(FileNotFoundError, ProcessLookupError):  # proc(5): it may go while it is read
        until(lambda: "(zombie)" in status.read_text())


def test_limit_ends_all_that_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever that thinks of it."""
    monkeypatch.setattr(owner, "GRACE_S", 0.5)
    with pytest.raises(NoEnd, match=r"no end after 5 s\n  \| begun$"):
        run(shell(STUBBORN.format(tmp_path / "pid")), timeout=5)
    ended(tmp_path / "pid")


def test_limit_of_what_is_known_to_be_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(owner, "SHORT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("blkid", "tar"):
        (tmp_path / name).write_text("#!/bin/sh\nsleep 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(NoEnd, match=r"^blkid: no end after 0\.2 s$"):
        run(["blkid"])
    run(["tar"])


def test_limit_and_a_good_end() -> None:
    with pytest.raises(NoEnd):
        run(shell("trap 'exit 0' TERM; while :; do sleep 0.1; done"), timeout=0.5)


@pytest.mark.parametrize("trap", ["exit", "kill -INT $us"])
def test_signal_ends_the_command(tmp_path: Path, trap: str) -> None:
    """One to us alone, and a second one meanwhile."""
    file = tmp_path / "pid"
    script = f"us={os.getpid()}; trap '{trap}' TERM; echo $$ >{file}; kill -INT $us"
    with pytest.raises(KeyboardInterrupt):
        run(shell(f"{script}; while :; do sleep 0.1; done"))
    ended(file)


def test_our_own_death_ends_the_command(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"echo $$ >{file}; kill -KILL $PPID; exec sleep 1000"
    code = f"from anemos.run import run; run(['sh', '-c', {script!r}])"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    ended(file)


def test_no_terminal_to_wait_at() -> None:
    """It is an error at once; who only lacks the foreground would stop for ever (SIGTTIN)."""
    code = "from anemos.run import run; run(['sh', '-c', 'read -r x </dev/tty'])"
    pid, ours = os.forkpty()
    if pid == 0:
        os.chdir(Path(__file__).parents[1])
        os.execv(sys.executable, [sys.executable, "-c", code])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == FAILED
    os.close(ours)


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program"])
def test_missing_program(program: str) -> None:
    with pytest.raises(Failure, match=f"^{program} not found") as caught:
        run([program, "argument"])
    assert caught.value.hint
    assert caught.value.status == FAILED


def test_program_that_cannot_start(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, not really")
    program.chmod(0o755)
    with pytest.raises(Failure, match=r"^\S+/program: .*Exec format error"):
        run([program])
    with pytest.raises(Failure, match=r"^pwd: .*No such file or directory: '/no/such'"):
        run(["pwd"], cwd=Path("/no/such"))


def test_no_file_stays_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run(["true"])
        failure(["false"])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_environment_is_built_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    seen = dict(line.split("=", 1) for line in run(["env"], env={"EXTRA": "1"}).splitlines())
    assert seen == environment({"EXTRA": "1"})
    assert "SECRET" not in seen
    assert (seen["LANG"], seen["EXTRA"], seen["HOME"]) == ("C.UTF-8", "1", os.environ["HOME"])


@pytest.mark.parametrize("path", [None, ""])
def test_programs_are_found_without_path(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initramfs starts with none. An empty word in it would mean the current directory."""
    monkeypatch.delenv("PATH")
    if path is not None:
        monkeypatch.setenv("PATH", path)
    assert "" not in environment()["PATH"].split(":")
    assert run(["true"]) == ""


def test_program_of_the_interpreter() -> None:
    assert run([sys.executable, "-c", "print(6 * 7)"]) == "42\n"


def test_quoted_command_can_be_pasted() -> None:
    assert quote(["a b", Path("/c"), ""]) == "'a b' /c ''"


# What handles secrets


def test_read_returns_bytes() -> None:
    assert read(["printf", r"\0\377\r\n"], "x", timeout=60) == b"\0\xff\r\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo SECRET; echo why >&2; exit 3", "etc/x: exit status 3: why"),
        ("echo SECRET; exit 3", "etc/x: exit status 3"),
        ("echo SECRET; (trap '' TERM; sleep 30) & wait", "etc/x: no end after 0.1 s"),
        ("echo x </dev/tty", f"etc/x: exit status 2: {SHELL}: 1: cannot open /dev/tty"),
    ],
)
def test_read_shows_no_output(monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    monkeypatch.setattr(owner, "GRACE_S", 0.5)
    with pytest.raises(Failure) as failure:
        read(["sh", "-c", script], "etc/x", timeout=0.1 if "sleep" in script else 60)
    assert failure.value.message.startswith(message)
    assert "SECRET" not in str(failure.value)


def test_read_leaves_no_process_behind(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(Failure, match="no end after 5 s"):
        read(["sh", "-c", script], "x", timeout=5)
    ended(tmp_path / "pid")


def test_read_without_a_program() -> None:
    with pytest.raises(Failure, match="etc/x: no-such-program not found"):
        read(["no-such-program"], "etc/x", timeout=60)


CRASH = """
import os, resource, sys
from anemos.run import no_core_dumps
_, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
if sys.argv[1] == "off":
    no_core_dumps()
    no_core_dumps()
pid = os.fork()
if not pid:
    os.abort()
sys.exit(os.WCOREDUMP(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("mode", ["on", "off"])
def test_core_dumps(tmp_path: Path, mode: str) -> None:
    """A child's, too: a limit is inherited."""
    root = Path(__file__).parents[1]
    argv = [sys.executable, "-c", CRASH, mode]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    dumped = subprocess.run(argv, cwd=tmp_path, env=environment, check=False).returncode

    if mode == "on" and not dumped:
        pytest.skip("this machine makes no core dumps anyway")
    assert dumped == (mode == "on")
    assert (mode == "on") or list(tmp_path.iterdir()) == []
