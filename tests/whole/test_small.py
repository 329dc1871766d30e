"""A server with 512 MiB of memory is deployed: its initramfs bootstraps Debian by itself."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from anemos.run import run
from anemos.workstation import places
from tests import tree

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run"), pytest.mark.all]

HOST = """
build_on = "initramfs"

[timeouts]
down = 360
initramfs = 600
up = 1200

[vm]
stock = "stock"
memory = 512
"""
# hosts/stock again.
MORE = """
layout='
disk system serial=demo-system
part bios type=bios size=1M
part root fs=ext4 mount=/
'
keep='
disk data serial=demo-data
'
unset -f test_secrets
provision() { chmod 700 /root/.ssh; }
verify() {
    [ "$(sed -n 's/^MemTotal: *//; s/ kB$//p' /proc/meminfo)" -lt 524288 ]
    echo 'this is a small machine'
}
"""


@dataclass
class Small:
    report: dict[str, Any]
    log: str


def mirror() -> str:
    """This machine's own: the preflight asks one that is named."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    return run(argv).split("\n", 1)[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with tree.copied(tmp_path_factory.mktemp("tree")) as project:
        for name in ("stock", "small"):
            shutil.copytree(places.HOSTS / "stock", project.directory / "hosts" / name)
        host = project.directory / "hosts/small"
        (host / "host.toml").write_text(HOST)
        with (host / "IMGBUILD").open("a") as imgbuild:
            imgbuild.write(f"mirror={mirror()}\n{MORE}")
        try:
            done = project.demo("small")
            yield Small(json.loads(done.out), done.err)
        finally:
            project.inv("demo", "--host", "small", "--stop")


def test_bootstrap(small: Small) -> None:
    """No package layer was sent; the plan's sum of memory held."""
    bootstrapped = small.log.partition("POINT OF NO RETURN")[2]

    assert small.report["verified"] is True
    assert small.report["bytes_sent"]["layer"] == 0
    assert "installing remaining packages" in bootstrapped
    assert re.search(r"memory +\d+ of 4\d\d MiB after it: 2 x \(base \d+ \+ layer 0", small.log)
