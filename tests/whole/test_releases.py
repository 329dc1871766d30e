"""An upgrade by redeploying, and the way back: each release of Debian becomes the other one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests import tree
from tests.tree import ROOT, Tree

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]


@pytest.mark.parametrize(("old", "new"), [("bookworm", "trixie"), ("trixie", "bookworm")])
@pytest.mark.proves("VM", source="Debian 12", target="Debian 13")
@pytest.mark.proves("VM", source="Debian 13", target="Debian 12")
def test_release(tmp_path: Path, old: str, new: str) -> None:
    with tree.copied(tmp_path) as project:
        describe(project, "stock", old)
        file = describe(project, "demo", new)
        proof = f"verify() {{\n    grep -x VERSION_CODENAME={new} /etc/os-release\n"
        file.write_text(file.read_text().replace("verify() {\n", proof))
        try:
            report = json.loads(project.demo("demo").out)
        finally:
            project.inv("demo", "--stop")
    assert report["verified"]
    assert report["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]


def describe(project: Tree, host: str, suite: str) -> Path:
    """The host HOST of the project, with another release; its IMGBUILD."""
    directory = project.directory / "hosts" / host
    shutil.copytree(ROOT / "hosts" / host, directory)
    file = directory / "IMGBUILD"
    file.write_text(re.sub("(?m)^debian_suite=.*", f"debian_suite={suite}", file.read_text()))
    return file
