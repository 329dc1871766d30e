"""`inv export`: what it refuses, before anything is made."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT
from tests.tree import Tree

pytestmark = pytest.mark.real("run", "gpg")

NETWORK = ["--mac", "52:54:00:12:34:56", "--address", "192.0.2.5/24"]


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="anemos-test-", dir="/dev/shm") as name:
        (Path(name) / "full").mkdir()
        (Path(name) / "full/file").touch()
        yield Path(name)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_directory_of_somebody_else(module_tree: Tree, memory: Path, mode: int) -> None:
    """Who makes it before us, where everybody may, reads what lies in it."""
    module_tree.host("mx")
    (memory / "mx").mkdir()
    (memory / "mx").chmod(mode)

    done = module_tree.inv("export", "--host", "mx", f"--output={memory}/mx", *NETWORK)

    assert done.status == BAD_INPUT
    assert f"{memory}/mx belongs to somebody else, or others may read it" in done.err


@pytest.mark.parametrize(
    ("output", "words", "message"),
    [
        ("", NETWORK, "where to? --output DIR"),
        ("none/there", NETWORK, "no directory, and none can be made there"),
        ("full", NETWORK, "full is not empty"),
        ("/sys/x", NETWORK, "/sys/x lies on sysfs, not in memory"),
        ("/sys/x", NETWORK, "(--plaintext-on-disk writes them there all the same)"),
        ("x", [], "mx: no network is known, as no deployment was begun from here"),
        ("x", NETWORK[:2], "a network needs --mac and --address"),
        ("x", NETWORK[2:], "a network needs --mac and --address"),
        ("x", [*NETWORK[:3], "192.0.2.300/24"], "network: '192.0.2.300/24' does not appear to be"),
        ("x", [*NETWORK, "--gateway", "gw"], "network: 'gw' does not appear to be an IPv4 or IPv6"),
        ("x", [*NETWORK, "--dns", "ns"], "network: 'ns' does not appear to be an IPv4 or IPv6"),
        ("x", NETWORK, "mx: its SSH host key is not among its secrets"),
    ],
)
def test_refused(
    module_tree: Tree, memory: Path, output: str, words: list[str], message: str
) -> None:
    module_tree.host("mx")
    where = str(memory / output) if output else ""

    done = module_tree.inv("export", "--host", "mx", f"--output={where}", *words)

    assert done.status == BAD_INPUT
    assert message in done.err
    assert not (memory / "x").exists()


def test_mac_of_nothing(module_tree: Tree, memory: Path) -> None:
    """It would be found out when nobody answers."""
    module_tree.host("mx")
    words = ["--mac", "52:54:00", "--address", "192.0.2.5/24"]

    done = module_tree.inv("export", "--host", "mx", f"--output={memory}/x", *words)

    assert done.status == BAD_INPUT
    assert "52:54:00 is no MAC address" in done.err
