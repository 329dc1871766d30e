"""A line of stage.EVENTS, the story of a deployment: JSON.

The last two end the stream; when the installation is resumed, it begins anew. init writes FAILED,
too, for a brain that was killed.
"""

from dataclasses import dataclass

LOG = "log"  # with `line`
BEGAN = "began"  # a step, with its name as `line`
ENDED = "ended"  # the same; with a `message` when it failed
REACHED = "reached"  # `done` bytes of `total`, of the innermost step
HELD = "held"  # with `seconds`
RELEASED = "released"
PASSED = "point-of-no-return"
FAILED = "failed"  # with `message`
DONE = "done"


@dataclass(frozen=True)
class Event:
    event: str = ""
    time: float = 0.0  # seconds since the epoch
    line: str = ""
    message: str = ""
    seconds: float = 0.0
    done: int = 0
    total: int = 0
