"""What goes from here to a server, or to its initramfs."""

import os
from pathlib import Path

from anemos import log
from anemos.border import stage
from anemos.log import die
from anemos.workstation.deploy.sizes import size
from anemos.workstation.deploy.state import State, load_state, payload_file
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import Remote


def packed(host: Host, needs: str = "", hint: str = "") -> State:
    """As load_state; what was packed must still be there: it may have been removed, or pruned."""
    state = load_state(host, needs, hint)
    for file in filter(None, (os.fspath(payload_file(host)), state.base, state.layer)):
        if not Path(file).exists():
            die(f"{file} is not there any more", hint=f"./inv pack --host {host.name}")
    return state


def deployment(host: Host, state: State, remote: Remote) -> None:
    """Payload and package layer: to the old system, or after a one-shot boot to the initramfs."""
    payload(host, state, remote)
    layer(state, remote)


def payload(host: Host, state: State, remote: Remote) -> None:
    state.sent["payload"] = send(remote, payload_file(host), stage.PAYLOAD)


def layer(state: State, remote: Remote) -> None:
    if state.layer:
        state.sent["layer"] = send(remote, Path(state.layer), stage.LAYER)


def send(remote: Remote, file: Path, to: Path) -> int:
    with log.step(f"Sending {to.name} ({size(file) / 2**20:.1f} MiB)"):
        return remote.put(file, f"{to}", mode=0o600, timeout=300)
