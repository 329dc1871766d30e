"""Following the initramfs by its events, as recorded ones tell them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anemos import log
from anemos.border.boot import Seen
from anemos.log import BAD_INPUT, FAILED, IN_INITRAMFS, UNVERIFIED, Failure
from anemos.run import CommandFailed
from anemos.workstation import places
from anemos.workstation.deploy import facts, reach, status, watch
from anemos.workstation.deploy.facts import Identity
from anemos.workstation.deploy.state import DONE, PASSED, WORD, State, load_state
from anemos.workstation.deploy.status import Status
from anemos.workstation.hosts import Host, Timeouts
from anemos.workstation.ssh import ConnectionLost, Endpoint, Unreachable, WrongHostKey

WAITS = "it waits in the initramfs: ./inv rescue --host mx, then ./inv resume"
HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "key", 2222)


def event(name: str, **fields: str) -> str:
    return json.dumps({"time": 1.5, "event": name, **fields})


LOG = event("log", line="Hardware and network ...")
POINT = event("point-of-no-return")
ENDED = event("done")
BAD = event("failed", message="disk 'system': no disks match serial=X")


def heard(*lines: str) -> watch.Watch:
    watching = watch.Watch(HOST, State("mx", deployment="d-1"), lambda: True)
    for line in lines:
        try:
            watching.hear(line)
        except watch.Ended:
            assert line in (ENDED, BAD)
    return watching


def test_log_lines_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    watching = heard(LOG, event("log", line="  two ä"))

    assert capsys.readouterr().err == "| Hardware and network ...\n|   two ä\n"
    assert (watching.seen, watching.passed) == (2, False)


@pytest.mark.parametrize("last", [ENDED, BAD])
def test_last_event(last: str) -> None:
    with pytest.raises(watch.Ended):
        heard().hear(last)


def test_point_of_no_return() -> None:
    """It is remembered at once: whatever comes then may end this task."""
    assert not heard(LOG).passed
    assert heard(LOG, POINT, LOG).passed
    assert load_state(HOST).reached == PASSED


@pytest.mark.parametrize(
    "junk", [ENDED[:-1], '{"ti', "", "tail: /run/anemos/events: no file", "1", "[]", "null"]
)
def test_line_that_is_cut_off(junk: str) -> None:
    """A lost connection cuts the last line: it is not counted, so it is asked for again."""
    watching = heard(LOG, junk)

    assert (watching.seen, watching.last.event) == (1, "log")
    assert heard(LOG, junk, POINT, ENDED).seen == 3


class Steps(log.Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def reached(self, done: int, total: int) -> None:
        self.told.append(f"{done} of {total}")

    def began(self, step: log.Step) -> None:
        assert (step.there, step.start) == (True, 1.5)
        self.told.append(f"{step.name} ...")

    def ended(self, step: log.Step, end: float, done: bool) -> None:
        self.told.append(f"{step.name} {done}")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(log, "observers", [observer := Steps()])
    return observer.told


def test_steps_of_the_initramfs(steps: list[str]) -> None:
    """Whose end got lost has failed; an end without beginning is none."""
    heard(
        event("began", line="Disks\x1b[2J"),
        event("began", line="mkfs"),
        event("ended", line="Disks\x1b[2J", message=""),
        event("ended", line="Disks\x1b[2J", message=""),
        POINT,
        event("began", line="Package layer"),
        event("ended", line="Package layer", message="failed"),
    )
    assert steps == [
        "Disks\\x1b[2J ...",
        "mkfs ...",
        "mkfs False",
        "Disks\\x1b[2J True",
        "point of no return ...",
        "point of no return True",
        "Package layer ...",
        "Package layer False",
    ]


def test_how_far_it_is(steps: list[str]) -> None:
    """What makes no sense is no bar."""
    for done, total in ((5, 9), (-1, 9), (9, 5), (5, 10**30)):
        heard(json.dumps({"time": 1.5, "event": "reached", "done": done, "total": total}))
    assert steps == ["5 of 9"]


def test_step_that_was_killed(monkeypatch: pytest.MonkeyPatch, steps: list[str]) -> None:
    with pytest.raises(Failure):
        run(monkeypatch, [POINT, event("began", line="Disks"), BAD])
    assert steps[-2:] == ["Disks ...", "Disks False"]


# The whole way, with a machine that is only told


class Machine:
    """What answers, connection by connection: an exception, a deployment, or events."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []
        self.result: dict[str, Any] = {}
        self.passed = False

    @contextmanager
    def connect(self, endpoint: Endpoint, *, status: int) -> Iterator["Machine"]:
        self.now = self.answers.pop(0)
        if isinstance(self.now, Failure) and not isinstance(self.now, ConnectionLost):
            raise self.now
        yield self

    def ask(self, remote: object) -> Status:
        if isinstance(self.now, ConnectionLost):
            raise self.now
        stamp = Seen(base="abc")
        if isinstance(self.now, str):
            return Status(status.DEPLOYED if self.now else status.SYSTEM, self.now, stamp=stamp)
        return Status(status.GOING, "d-1", "boot", passed=self.passed, stamp=stamp)

    def identify(self, remote: object) -> Identity:
        seen = self.ask(remote)
        return Identity("boot", seen.in_initramfs, seen.deployment, 1.0)

    def sh(self, argv: list[str], *, timeout: float, log: Callable[[str], None]) -> str:
        self.asked.append(argv)
        for line in self.now:
            if isinstance(line, Failure):
                raise line
            log(line)
        raise ConnectionLost("lost", status=FAILED)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(reach, "POLL_S", 0)
    State("mx", deployment="d-1").save()


def talk(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Machine:
    machine = Machine(*answers)
    for module in (watch, reach):
        monkeypatch.setattr(module, "connect", machine.connect)
    monkeypatch.setattr(facts, "identify", machine.identify)
    monkeypatch.setattr(status, "ask", machine.ask)
    return machine


def run(monkeypatch: pytest.MonkeyPatch, *answers: Any, host: Host = HOST) -> Machine:
    machine = talk(monkeypatch, *answers)
    machine.result = watch.watch(host)
    return machine


def test_done(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = run(monkeypatch, [LOG, POINT, ENDED])

    assert machine.result == {"host": "mx", "events": 3}
    assert load_state(HOST).reached == DONE


def test_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = ConnectionLost("lost", status=FAILED)
    away = Unreachable("no route", status=FAILED)
    killed = CommandFailed(["tail"], -15, "")

    machine = run(monkeypatch, away, [LOG, LOG[:9]], lost, [POINT, killed], away, [LOG, ENDED])

    assert [argv[4] for argv in machine.asked] == ["+1", "+2", "+3"]


def test_new_system_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, [LOG, POINT], Unreachable("rebooting", status=FAILED), "d-1")
    run(monkeypatch, "d-1")


@pytest.mark.parametrize("deployment", ["", "d-0"])
def test_old_system_came_back_unseen(monkeypatch: pytest.MonkeyPatch, deployment: str) -> None:
    """Nothing was heard of a failure, but nothing of success either."""
    with pytest.raises(Failure, match="mx runs the old system") as caught:
        run(monkeypatch, [LOG], deployment)

    assert caught.value.status == FAILED


def test_failed_before_the_point_of_no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells so when the old system is really back."""
    with pytest.raises(Failure, match="mx runs the old system again: disk 'system'") as caught:
        run(monkeypatch, [LOG, BAD], [], Unreachable("down", status=FAILED), "d-0")

    assert caught.value.status == FAILED


def test_failed_and_the_old_system_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("mx", HOST.directory, "192.0.2.1", "key", timeouts=Timeouts(up=0))
    with pytest.raises(Failure, match="no answer from the old system within 0 s"):
        run(monkeypatch, [LOG, BAD], host=host)


def test_failed_where_no_old_system_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand, the machine stays, before the point of no return, too."""
    State("mx", deployment="d-1", stays=True).save()

    with pytest.raises(Failure, match=r"^mx: disk 'system': no disks") as caught:
        run(monkeypatch, [LOG, BAD])

    assert caught.value.status == FAILED
    assert caught.value.hint == WAITS


def test_failed_after_the_point_of_no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"^mx: disk 'system': no disks") as caught:
        run(monkeypatch, [LOG, POINT, LOG, BAD])

    assert caught.value.status == IN_INITRAMFS
    assert (
        caught.value.hint == "it waits in the initramfs: ./inv rescue --host mx, then ./inv resume"
    )


@pytest.mark.parametrize(("before", "status"), [([LOG], FAILED), ([LOG, POINT], IN_INITRAMFS)])
@pytest.mark.parametrize(
    "trouble",
    [
        Failure("tail: no end after 3600 s", status=FAILED),
        WrongHostKey("wrong host key", status=FAILED),
    ],
)
def test_trouble_keeps_what_is_known(
    monkeypatch: pytest.MonkeyPatch, before: list[str], status: int, trouble: Failure
) -> None:
    """After the point of no return nobody may read: the server runs the old system."""
    answers = [[*before, trouble]] if type(trouble) is Failure else [before, trouble]

    with pytest.raises(Failure, match=trouble.message) as caught:
        run(monkeypatch, *answers)

    assert caught.value.status == status


def test_end_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("mx", HOST.directory, "192.0.2.1", "key", timeouts=Timeouts(install=0))

    with pytest.raises(Failure, match="mx: no end of the installation in sight") as caught:
        run(monkeypatch, host=host)

    assert caught.value.status == FAILED
    assert caught.value.hint == "it may still go on: ./inv watch --host mx"


def test_machine_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local VM that has ended answers no more."""
    machine = talk(monkeypatch, [LOG, POINT], Unreachable("off", status=FAILED))

    with pytest.raises(Failure, match="mx: the machine is off") as caught:
        watch.watch(HOST, lambda: len(machine.answers) > 0)

    assert caught.value.status == IN_INITRAMFS


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Unreachable("no route", status=FAILED), "no route; and no deployment is known here"),
        ("", "mx is not being installed"),
        ("d-0", "mx is not being installed"),
    ],
)
def test_nothing_to_watch(monkeypatch: pytest.MonkeyPatch, answer: Any, message: str) -> None:
    State("mx").save()

    with pytest.raises(Failure, match=message) as caught:
        run(monkeypatch, answer)

    assert caught.value.status == BAD_INPUT


def test_from_another_workstation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine itself tells which deployment it is, and what `verify` needs."""
    State("mx").save()

    run(monkeypatch, [LOG, POINT], "d-1")

    state = load_state(HOST)
    assert (state.deployment, state.old_boot_id, state.kept) == ("d-1", "boot", [])


# What may be said once the word was given


LOST = ConnectionLost("the connection was lost", status=FAILED)


@pytest.mark.parametrize(
    ("reached", "least"), [("", FAILED), (WORD, 3), (PASSED, 3), (DONE, UNVERIFIED)]
)
def test_end_of_patience_after_the_word(
    monkeypatch: pytest.MonkeyPatch, reached: str, least: int
) -> None:
    State("mx", deployment="d-1", reached=reached).save()
    host = Host("mx", HOST.directory, "192.0.2.1", "key", timeouts=Timeouts(install=0))

    with pytest.raises(Failure, match="no end of the installation in sight") as caught:
        run(monkeypatch, host=host)

    assert caught.value.status == least
    assert ("the word to erase was given" in caught.value.hint) is (least == IN_INITRAMFS)
    assert "./inv watch --host mx" in caught.value.hint


def test_fault_of_ours_after_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    State("mx", deployment="d-1", reached=WORD).save()
    talk(monkeypatch, [LOG])
    monkeypatch.setattr(status, "ask", lambda _: [].pop())

    with pytest.raises(Failure, match="IndexError: pop from empty list") as caught:
        watch.watch(HOST)

    assert caught.value.status == IN_INITRAMFS


def test_the_old_system_itself_is_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word was given, but the initramfs went back before the point of no return."""
    State("mx", deployment="d-1", reached=WORD).save()

    with pytest.raises(Failure, match="mx runs the old system") as caught:
        run(monkeypatch, [LOG], "d-0")

    assert caught.value.status == FAILED
    assert status.last_known(HOST).deployment == "d-0"


def test_another_system_after_the_point_of_no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rescue system, say: the old one is erased."""
    with pytest.raises(Failure, match="a system answers that is not the new one") as caught:
        run(monkeypatch, [LOG, POINT], "d-0")

    assert caught.value.status == IN_INITRAMFS


def test_point_that_was_passed_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, the initramfs fails before it says the first word: the machine knows."""
    machine = talk(monkeypatch, [BAD])
    machine.passed = True

    with pytest.raises(Failure, match="no disks match") as caught:
        watch.watch(HOST)

    assert caught.value.status == IN_INITRAMFS


def test_silence_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "QUIET_S", 0)

    run(monkeypatch, [LOG], Unreachable("no route", status=FAILED), [LOST], [ENDED])

    assert "still waiting: no route" in capsys.readouterr().err
