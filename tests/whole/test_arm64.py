"""A server with arm64, from a workstation with amd64, which emulates programs and the machine."""

import json
import shutil
from pathlib import Path

import pytest

from tests import tree
from tests.tree import DEMO_S, ROOT, Tree

EMULATED = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists()
MACHINE = shutil.which("qemu-system-aarch64")
pytestmark = [
    *(pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all),
    pytest.mark.skipif(
        not EMULATED or not MACHINE,
        reason="apt-get install qemu-user-static qemu-system-arm qemu-efi-aarch64",
    ),
]


@pytest.mark.proves(
    "VM", source="Debian 13", target="Debian 13", firmware="UEFI", arch="arm64", disk="virtio"
)
def test_demo(tmp_path: Path) -> None:
    """Whole disks, and then the slot that does not run."""
    with tree.copied(tmp_path) as project:
        for host in ("demo-arm64", "stock-arm64"):
            shutil.copytree(ROOT / "hosts" / host, project.directory / "hosts" / host)
        try:
            deployed(project, "demo", "--arch", "arm64")
            report = deployed(project, "deploy", "--host", "demo-arm64", "--yes", "demo-arm64")
        finally:
            project.inv("demo", "--arch", "arm64", "--stop")
    assert report["way"] == "slot"


def deployed(project: Tree, *words: str) -> dict[str, object]:
    """The report of a deployment; of one that failed, what it has said."""
    done = project.inv(*words, "--json", timeout=2 * DEMO_S, cached=True)
    assert done.status == 0, done.err
    report: dict[str, object] = json.loads(done.out)
    assert report["verified"]
    assert report["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
    return report
