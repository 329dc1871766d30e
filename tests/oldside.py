"""Anemos in the base image, on the old system that yard.py makes: python -m tests.oldside.

It asks neither which network there is nor which drivers: those of this machine do not count.
"""

import sys
from pathlib import Path

from anemos import disks, kexec
from anemos.border.network import Network
from anemos.server import __main__ as server
from anemos.server import drivers, logins, network
from tests import brain

LOADED = Path("/run/loaded")  # /sys/kernel/kexec_loaded
TOP = Path("/run/yard")
NETWORK: Network = {"interfaces": [], "left": [], "dns": ["192.0.2.1"], "operator": "inet"}


def stand_in() -> None:
    nodes = (TOP / "nodes").read_text().split()
    found = [brain.device(node, each) for node, each in zip(nodes, ("SYSTEM", "DATA"), strict=True)]
    for module, name, value in (
        (kexec, "LOADED", LOADED),
        (disks, "devices", lambda *_: found),
        (drivers, "check_disks", lambda _: None),
        (drivers, "check_network", lambda _: None),
        (network, "capture", lambda *_: NETWORK),
        (logins, "ASK", f"cat {TOP}/settings"),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)


if __name__ == "__main__":
    stand_in()
    server.main(sys.stdin.read())
