"""Following the initramfs by its events, as recorded ones tell them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anemos.log import FAILED, IN_INITRAMFS, Failure
from anemos.run import CommandFailed
from anemos.workstation import facts, places, reach, watch
from anemos.workstation.facts import Identity
from anemos.workstation.host import Host, Timeouts
from anemos.workstation.ssh import ConnectionLost, Endpoint, Unreachable, WrongHostKey
from anemos.workstation.state import State

HOST = Host("mx", Path("hosts/mx"), "192.0.2.1", "key", 2222)


def event(name: str, **fields: str) -> str:
    return json.dumps({"time": 1.5, "event": name, **fields})


LOG = event("log", line="Hardware and network ...")
PASSED = event("point-of-no-return")
DONE = event("done")
BAD = event("failed", message="disk 'system': no disks match serial=X")


def heard(*lines: str) -> watch.Watch:
    watching = watch.Watch(HOST)
    for line in lines:
        try:
            watching.hear(line)
        except watch.Ended:
            assert line in (DONE, BAD)
    return watching


def test_log_lines_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    watching = heard(LOG, event("log", line="  two ä"))

    assert capsys.readouterr().err == "| Hardware and network ...\n|   two ä\n"
    assert (watching.seen, watching.passed, watching.status) == (2, False, FAILED)


@pytest.mark.parametrize("last", [DONE, BAD])
def test_last_event(last: str) -> None:
    with pytest.raises(watch.Ended):
        watch.Watch(HOST).hear(last)


def test_point_of_no_return() -> None:
    assert heard(LOG).status == FAILED
    assert heard(LOG, PASSED, LOG).status == IN_INITRAMFS


@pytest.mark.parametrize("junk", [DONE[:-1], '{"ti', "", "tail: /run/anemos/events: no file"])
def test_line_that_is_cut_off(junk: str) -> None:
    """A lost connection cuts the last line: it is not counted, so it is asked for again."""
    watching = heard(LOG, junk)

    assert (watching.seen, watching.last["event"]) == (1, "log")
    assert heard(LOG, junk, PASSED, DONE).seen == 3


# The whole way, with a machine that is only told


class Machine:
    """What answers, connection by connection: an exception, a deployment, or events."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []
        self.result: dict[str, Any] = {}

    @contextmanager
    def connect(self, endpoint: Endpoint, *, status: int) -> Iterator["Machine"]:
        self.now = self.answers.pop(0)
        if isinstance(self.now, Failure) and not isinstance(self.now, ConnectionLost):
            raise self.now
        yield self

    def identify(self, remote: object) -> Identity:
        if isinstance(self.now, ConnectionLost):
            raise self.now
        deployment = self.now if isinstance(self.now, str) else "d-1"
        return Identity("boot", not isinstance(self.now, str), deployment, 1.0)

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


def run(monkeypatch: pytest.MonkeyPatch, *answers: Any, host: Host = HOST) -> Machine:
    machine = Machine(*answers)
    for module in (watch, reach):
        monkeypatch.setattr(module, "connect", machine.connect)
    monkeypatch.setattr(facts, "identify", machine.identify)
    machine.result = watch.watch(host)
    return machine


def test_done(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = run(monkeypatch, [LOG, PASSED, DONE])

    assert machine.result == {"host": "mx", "events": 3}


def test_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = ConnectionLost("lost", status=FAILED)
    away = Unreachable("no route", status=FAILED)
    killed = CommandFailed(["tail"], -15, "")

    machine = run(monkeypatch, away, [LOG, LOG[:9]], lost, [PASSED, killed], away, [LOG, DONE])

    assert [argv[2] for argv in machine.asked] == ["+1", "+2", "+3"]


def test_new_system_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, [LOG, PASSED], Unreachable("rebooting", status=FAILED), "d-1")
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
    assert caught.value.hint == "it waits in the initramfs: ssh -p 2222 root@192.0.2.1"


def test_failed_after_the_point_of_no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"^mx: disk 'system': no disks") as caught:
        run(monkeypatch, [LOG, PASSED, LOG, BAD])

    assert caught.value.status == IN_INITRAMFS
    assert caught.value.hint == "it waits in the initramfs: ssh -p 2222 root@192.0.2.1"


@pytest.mark.parametrize(("before", "status"), [([LOG], FAILED), ([LOG, PASSED], IN_INITRAMFS)])
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


def test_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    State("mx").save()

    with pytest.raises(Failure, match="mx: not ready for this phase") as caught:
        run(monkeypatch)

    assert caught.value.hint == "./inv pack --host mx"
