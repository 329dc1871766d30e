"""hosts/www, from a stock server with data, in use, to the second deployment and beyond.

A visitor is there all the while.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import story
from tests.story import Story, Visitor

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

SITE = "/srv/sites/example-org/public"
# The first superblock is gone, as after a bad write. There are more (ext4(5)).
DAMAGE = """
node=$(findmnt -n -o SOURCE /srv)
systemctl stop nginx kept
umount /srv
dd if=/dev/zero of=$node bs=1k seek=1 count=1 conv=notrunc,fsync status=none
echo $node
"""


@dataclass
class Www:
    story: Story
    found: str  # the page that the stock server had
    kept: str  # the whole kept disk, after the first deployment and after the second one
    still: str
    visitor: Visitor


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Www]:
    with redeployed_www(tmp_path_factory.mktemp("www")) as told:
        yield told


@contextmanager
def redeployed_www(directory: Path) -> Iterator[Www]:
    with story.begun("www", directory) as www:
        www.deploy()
        found = www.sh(f"cat {SITE}/index.html")
        www.certify("example.org", "nginx")
        kept = www.kept()
        www.change("files/usr/share/static/index.html", "A static site", "Another static site")
        www.change("IMGBUILD", "\ncurl\n", "\ncurl\nfile\n")
        with www.visited("example.org") as visitor:
            www.deploy()
        yield Www(www, found, kept, www.kept(), visitor)


def test_deployments_of_www(www: Www) -> None:
    first, second = www.story.reports
    assert first["verified"]
    assert second["verified"]
    assert second["bytes_sent"]["base"] == 0
    assert www.found == "A page of long ago\n"


def test_visitor(www: Www, record_property: Callable[[str, object], None]) -> None:
    """He waits, and is told of no error; the certificate is the one that was issued."""
    record_property("seen", f"www: {www.visitor.outage:.0f} s without a page")
    check_answers(www.visitor)


def check_answers(visitor: Visitor) -> None:
    answers = {answer for _, answer in visitor.seen}
    assert {answer for answer in answers if isinstance(answer, int)} == {200}
    assert "SSLCertVerificationError" not in answers


def test_kept_disk_of_www(www: Www) -> None:
    """Byte for byte, owners, modes and times: pages, certificates, keys."""
    assert f".{SITE.removeprefix('/srv')}/photo.jpg" in www.kept
    assert "./acme/certs/example.org/fullchain-1.pem" in www.kept
    assert www.still == www.kept


def test_changes_of_www(www: Www) -> None:
    assert "Another static" in www.story.sh("cat /usr/share/static/index.html")
    assert "HTML" in www.story.sh("file /usr/share/static/index.html")


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("files/etc/nginx/sites.conf", "root /usr", "rot /usr", "`unshare --net nginx -t`: exit"),
        ("IMGBUILD", "serial=www-data", "serial=other", "disk 'data': no disks match serial=other"),
        (
            "files/root/.ssh/authorized_keys.makeimg.template",
            "operator_key",
            "SECRET",
            "undefined name 'SECRET'",
        ),
    ],
)
def test_wrong_redeployment(www: Www, path: str, old: str, new: str, message: str) -> None:
    """One message, before anything is sent; the server goes on."""
    before = www.story.boot_id()
    with www.story.changed(path, old, new):
        done = www.story.inv("deploy")
    assert done.status == 2, done.err
    assert message in done.err.partition("error: ")[2]
    assert www.story.boot_id() == before


@pytest.fixture(scope="module")
def broken(www: Www) -> Iterator[str]:
    """The kept disk is damaged, and the server starts with it; its node."""
    node = www.story.sh(DAMAGE).strip()
    www.story.reboot()
    yield node


def test_broken_kept_disk(www: Www, broken: str) -> None:
    """sshd answers while /srv is still waited for, and what needs /srv does not start."""
    states = www.story.sh("systemctl is-active ssh srv.mount kept nginx || true").split()
    assert states == ["active", "inactive", "inactive", "inactive"]
    assert www.story.sh("ls -A /srv") == ""


def test_repaired_kept_disk(www: Www, broken: str) -> None:
    """As docs/hosts.md says: repair it and reboot."""
    www.story.sh(f"e2fsck -y -b 32768 {broken} || test $? = 1")
    www.story.reboot()
    assert www.story.sh("systemctl is-system-running --wait") == "running\n"
    assert www.story.sh("systemctl is-active nginx") == "active\n"
    assert www.story.kept() == www.kept
