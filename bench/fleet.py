"""How long many servers take: .venv/bin/python -m bench.fleet [NUMBER]

NUMBER (500) copies of hosts/demo, with tags, in a repository of their own. This machine stands in
for all of them, by one real sshd, without apt: that is work of each server's own. A line for each
task: seconds, and seconds of the processors.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import times
from pathlib import Path
from subprocess import DEVNULL, run
from tempfile import TemporaryDirectory

from tests import sshd, tree
from tests.tree import ROOT

TOML = """address = "127.0.0.1"
port = {port}
host_key = "{key}"
identity = "{identity}"
tags = ["rack{rack}"]
"""
TASKS = (["inventory", "--list"], ["status"], ["plan", "--host", "h000"])


@contextmanager
def repository(number: int) -> Iterator[Path]:
    with ExitStack() as stack:
        top = Path(stack.enter_context(TemporaryDirectory()))
        project = stack.enter_context(tree.copied(top)).directory
        server = sshd.prepare(stack.enter_context(sshd.scratch()))
        server.program("apt-get", "false")
        where = stack.enter_context(sshd.serving(server)).endpoint
        for count in range(number):
            shutil.copytree(ROOT / "hosts/demo", place := project / f"hosts/h{count:03}")
            words = {"port": where.port, "key": where.host_key, "identity": where.identity}
            (place / "host.toml").write_text(TOML.format(rack=count % 20, **words))
        yield project


def measured(project: Path, words: list[str]) -> tuple[float, float]:
    begun, before = time.monotonic(), times()
    argv = [sys.executable, "-m", "invoke", *words]
    run(argv, cwd=project, stdout=DEVNULL, stderr=DEVNULL, check=False)
    now = times()
    used = now.children_user + now.children_system - before.children_user - before.children_system
    return time.monotonic() - begun, used


if __name__ == "__main__":
    with repository(int(sys.argv[1]) if len(sys.argv) > 1 else 500) as project:
        for words in TASKS:
            took, used = measured(project, words)
            print(f"{' '.join(words)}: {took:.1f} s, {used:.1f} s of the processors", flush=True)
