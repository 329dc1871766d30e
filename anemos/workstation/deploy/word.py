"""The word that a system on trial gives itself: for a server that nobody waits for."""

from shlex import quote

from anemos import log
from anemos.border import requests
from anemos.border.requests import Commit
from anemos.log import FAILED, die
from anemos.system import functions, installation
from anemos.system.imgbuild import Imgbuild
from anemos.workstation.deploy import reach, status, verify
from anemos.workstation.deploy.reach import Wait
from anemos.workstation.deploy.state import State
from anemos.workstation.deploy.status import Status
from anemos.workstation.hosts import Host
from anemos.workstation.ssh import connect

# The guard of the trial runs it beside the init. When all units run, and verify() succeeds, it asks
# the base image that the deployment has left for the commit. Else the guard goes on.
SCRIPT = """\
#!/bin/sh
until state=$(sh -c {units} {limit} 2>/dev/null) && [ "$state" = running ]; do
    case $state in degraded* | maintenance* | stopping*) exit 1 ;; esac
    sleep 2
done
if ! said=$(printf %s {imgbuild} | sh -c {own} sh {call} 2>&1); then
    echo "$said" | while read -r line; do echo "anemos: verify(): $line" >>/dev/kmsg; done
    exit 1
fi
printf '%s\\n' {commit} | sh -c {enter} sh {base} && rm "$0"
"""


def script(host: Host, spec: Imgbuild, state: State) -> str:
    """What the new system has to run: a shell script."""
    words = {
        "units": verify.UNITS,
        "limit": f"{host.timeouts.trial}",
        "imgbuild": spec.file.read_text(),
        "own": verify.OWN,
        "call": functions.script(spec, "verify"),
        "commit": requests.text(Commit(state.deployment)).strip(),
        "enter": (reach.SERVER / "enter.sh").read_text(),
        "base": f"/{installation.BASE.format(state.base_hash)}",
    }
    return SCRIPT.format_map({name: quote(text) for name, text in words.items()})


def given(seen: Status) -> bool:
    return any(each.runs and each.default for each in seen.slots)


def await_given(host: Host, state: State) -> None:
    """Until the system on trial has given itself the word. Raises Failure when it does not."""
    limit = host.timeouts.trial + host.timeouts.up
    wait = Wait("verify() of the system on trial", limit)
    with log.step(f"Waiting for the {wait.what}", limit=limit):
        for _ in wait.tries():
            wait.why = "the system on trial is not the default yet"
            with wait.patient(), connect(reach.endpoint(host), status=FAILED) as remote:
                seen = status.ask(remote)
                if seen.deployment != state.deployment:
                    die(f"{host.name} did not give itself the word", status=FAILED)
                if given(seen):
                    return
    die(
        f"{host.name} did not give itself the word within {limit} s",
        hint=f"the last try: {wait.why}",
        status=FAILED,
    )
