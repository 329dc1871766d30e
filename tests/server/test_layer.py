"""The package layer, made on the old system: by the base image, in the old system's memory."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.files import sha256
from anemos.log import Failure
from anemos.run import run
from anemos.server import layer
from anemos.system import bootstrap, imgbuild
from anemos.workstation import images
from anemos.workstation.deploy import payload
from tests.packages import Package, Signer, pacman_repository, signer
from tests.tree import ROOT

pytestmark = [pytest.mark.real("run"), pytest.mark.root, pytest.mark.vm]

SERVER = ROOT / "anemos/server"
# The old system, but for its /run. $1: the payload, $2: the layer, $3: the payload's
# digest; the rest: enter.sh, base, ...
OLD_SYSTEM = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/anemos
cp "$1" /run/anemos/payload
layer=$2 digest=$3; shift 3
printf '{"command": "Bootstrap", "payload": "%s"}' "$digest" | sh "$@"
cp /run/anemos/layer "$layer"
"""


@pytest.fixture(scope="module")
def key() -> Iterator[Signer]:
    with signer("Packager <packager@example.org>") as made:
        yield made


@pytest.fixture
def sent(tmp_path: Path, key: Signer) -> Path:
    """The payload of a host with target=arch: pacman.conf and keys/ travel along."""
    host = tmp_path / "mx"
    (host / "keys").mkdir(parents=True)
    shutil.copy(key.public, host / "keys/packager.asc")
    (tmp_path / "repository").mkdir()
    pacman_repository([Package("hello", {"/usr/bin/hello": "hi"})], tmp_path / "repository", key)
    (host / "pacman.conf").write_text(
        "[options]\nArchitecture = x86_64\nSigLevel = Required TrustedOnly\n"
        f"[test]\nServer = file:///host{tmp_path}/repository\n"
    )
    (host / "IMGBUILD").write_text("target=arch\npackages=hello\n")
    made = tmp_path / "payload"
    payload.write(made, imgbuild.load(host), "d-1", {}, tmp_path / "none")
    return made


def enter(sent: Path, digest: str) -> str:
    argv: list[str | Path] = ["unshare", "--mount", "--propagation=private", "sh"]
    argv += ["-c", OLD_SYSTEM, "sh", sent]
    argv += [sent.parent / "layer", digest, SERVER / "enter.sh", images.base()]
    return run(argv, timeout=120)


def test_made_by_the_server(sent: Path, tmp_path: Path) -> None:
    answer = json.loads(enter(sent, sha256(sent)))
    made = tmp_path / "layer"
    assert answer == {"layer": sha256(made), "size": made.stat().st_size}
    (tmp_path / "root").mkdir()
    bootstrap.unpack(made, tmp_path / "root")
    assert (tmp_path / "root/usr/bin/hello").read_text() == "hi"


def test_not_the_payload_that_was_sent(sent: Path) -> None:
    with pytest.raises(Failure, match="payload: not there as it was sent"):
        enter(sent, "0" * 64)


def test_no_secret_is_taken(sent: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets/etc").mkdir(parents=True)
    (tmp_path / "secrets/etc/key").write_text("secret")
    payload.write(sent, imgbuild.load(tmp_path / "mx"), "d-1", {}, tmp_path / "secrets")
    (tmp_path / "room").mkdir()
    layer.take_definition(sent, tmp_path / "room")
    found = {str(f.relative_to(tmp_path / "room")) for f in (tmp_path / "room").rglob("*.*")}
    assert found == {"host/pacman.conf", "host/keys/packager.asc"}
    assert not (tmp_path / "room/secrets").exists()
