"""What became of a deployment: what its report tells."""

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from anemos.log import Failure
from anemos.workstation import Result
from anemos.workstation.deploy.state import State
from anemos.workstation.deploy.verify import Check, Disproved


class Line(NamedTuple):
    time: float
    text: str


class Span(NamedTuple):
    """A step. DEPTH: how many others it was in. THERE: in the initramfs."""

    name: str
    start: float
    end: float
    done: bool
    depth: int
    there: bool


@dataclass
class Account:
    """Times are seconds since the epoch, by the workstation's clock; 0 for what did not happen."""

    host: str
    task: str
    start: float
    end: float = 0.0
    status: int = 0  # the task's: see log.py
    message: str = ""
    hint: str = ""
    deployment: str = ""
    kernel: str = ""
    last_answer: float = 0.0  # of the old system
    first_answer: float = 0.0  # of the new system
    plan: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def take(self, result: Result) -> None:
        """What of a phase's RESULT belongs here."""
        self.plan = [(what, which) for what, which in result.get("plan", self.plan)]
        self.kernel = result.get("kernel", self.kernel)
        self.checks = [Check(**each) for each in result.get("checks", map(asdict, self.checks))]

    def fail(self, failure: Failure) -> None:
        self.status, self.message, self.hint = failure.status, failure.message, failure.hint
        if isinstance(failure, Disproved):
            self.checks = failure.checks

    def know(self, state: State) -> None:
        """What the phases have left for each other."""
        self.deployment, self.sent = state.deployment, state.sent
        self.last_answer, self.first_answer = state.last_answer, state.first_answer
