"""Waiting for what other processes do."""

import time
from collections.abc import Callable

LIMIT_S = 300.0  # only ends what would hang: a busy machine takes its time


def until(true: Callable[[], object], said: Callable[[], object] = str) -> None:
    """Wait until it is TRUE; SAID tells what there is instead."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(0.02)
