"""Programs that go on when the brain has ended: init ends all else that it has started."""

from anemos.run import Argv, run

OUTSIDE = "/sys/fs/cgroup/cgroup.procs"  # the brain runs in a group below (kernel: cgroup-v2.rst)
START = 'echo $$ >"$0"; exec "$@"'


def start(argv: Argv, timeout: float | None = None) -> None:
    """Run ARGV, which puts itself into the background. Raises as `run` does."""
    run(["sh", "-c", START, OUTSIDE, *argv], timeout=timeout)
