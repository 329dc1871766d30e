"""The chain of the phases: what is left behind when one of them fails."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from anemos.log import FAILED, Failure
from anemos.workstation import places, report
from anemos.workstation.deploy import chain, consent, phases
from anemos.workstation.hosts import Host

HOST = Host("mx", Path("hosts/mx"), address="192.0.2.1", host_key="ssh-ed25519 AAAA")


@pytest.mark.parametrize("failing", ["reveal-secrets", "upload", "verify"])
def test_failure_leaves_no_secret_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    """In the workstation's memory; of the server's, test_staged.py tells."""

    def fail(host: Host) -> NoReturn:
        secret = places.memory("mx") / "secrets/files/key"
        secret.parent.mkdir(parents=True)
        secret.touch()
        raise Failure("broken", status=FAILED)

    def work(host: Host) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    broken = {name: fail if name == failing else work for name in chain.PHASES}
    monkeypatch.setattr(chain, "PHASES", broken)

    with pytest.raises(Failure, match="broken"):
        chain.deploy(HOST, yes="mx")
    assert not list(tmp_path.rglob("key"))


@pytest.mark.parametrize("changed", ["", "plan", "pack"])
def test_plan_that_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    """It goes on if nothing has changed until the definition is packed."""
    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    host = replace(HOST, directory=tmp_path / "mx")
    host.directory.mkdir()
    lines = [["server", "mx, kernel 6.1"], ["send", "nothing"]]
    shown = consent.identity(host, lines)
    seen: list[str] = []

    def work(name: str) -> chain.Phase:
        def phase(host: Host) -> dict[str, Any]:
            seen.append(name)
            if name == changed:
                (host.directory / "IMGBUILD").touch()
            return {"plan": lines} if name == "plan" else {}

        return phase

    monkeypatch.setattr(chain, "PHASES", {name: work(name) for name in chain.PHASES})
    monkeypatch.setattr(report, "show", lambda *_: None)
    with pytest.raises(Failure) if changed else nullcontext():
        chain.deploy(host, yes="mx", plan=shown)
    assert seen[-1] == (changed or "verify")


def test_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends with the jump; watching and verifying are `resume`'s."""
    seen: list[str] = []

    def work(name: str) -> chain.Phase:
        def phase(host: Host, **words: bool) -> dict[str, Any]:
            seen.append(f"{name} {words or ''}".strip())
            return {}

        return phase

    monkeypatch.setattr(places, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(phases, "kexec", work("kexec"))
    monkeypatch.setattr(chain, "PHASES", {name: work(name) for name in chain.PHASES})

    chain.deploy(HOST, yes="mx", hold=True)

    assert seen[-1] == "kexec {'hold': True}"
    assert "verify" not in seen
