"""The example servers, from a stock one with data, in use, to the second deployment and beyond.

A sender and a visitor are there all the while.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from anemos.workstation.vm import vm
from tests import story
from tests.story import Sender, Story, Visitor, wait

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


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
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


# The mail server

HOST = "mx.example.org"
USERS = ("alice@example.org", "bob@example.net")
# Its resolver knows these names, and that there are no others.
NAMES = """server:
    local-zone: "." static
    local-data: "client.example.com. A 192.0.2.1"
    local-data: "1.2.0.192.in-addr.arpa. PTR client.example.com."
    local-data: "example.com. MX 10 client.example.com."
    local-data: "example.com. A 192.0.2.1"
"""
RULE = b"""require ["fileinto", "mailbox"];
if header :matches "Subject" "Number *0" { fileinto :create "Tens"; }
"""
SPAM = b"From: x@example.com\nSubject: Offer\n\n" + b" ".join(b"word%d" % n for n in range(99))
FOUND = "find /srv/mail -type f \\( -path '*/cur/*' -o -path '*/new/*' \\) -exec"
# What clients, DNS and other servers rely on.
STATE = """
cat /root/dns.zone
find /srv/acme /etc/dkimkeys -type f | sort | xargs sha256sum
doveadm mailbox status -u alice@example.org uidvalidity INBOX Tens
rspamc --connect=127.0.0.1:11334 stat | grep learned
"""


@dataclass
class Mx:
    story: Story
    sender: Sender
    visitor: Visitor
    mails: set[str]  # digests of all messages, after the first deployment
    state: str

    @property
    def arrived(self) -> list[tuple[int, str]]:
        """Number and folder of the sender's mails."""
        lines = self.story.sh(f"{FOUND} grep -Hm 1 '^Subject: Number ' {{}} +").splitlines()
        return sorted((int(line.split()[-1]), line.split("/")[6]) for line in lines)


def mails(story: Story) -> set[str]:
    return {line.split()[0] for line in story.sh(f"{FOUND} sha256sum {{}} +").splitlines()}


def goes_out(story: Story, sender: Sender, subject: str) -> None:
    text = f"From: alice@example.org\nTo: someone@example.com\nSubject: {subject}\n\nText\n"
    story.sh("sendmail -f alice@example.org someone@example.com", data=text.encode())
    wait(lambda: subject in sender.received)


@pytest.fixture(scope="module")
def mx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mx]:
    with redeployed_mx(tmp_path_factory.mktemp("mx")) as told:
        yield told


@contextmanager
def redeployed_mx(directory: Path) -> Iterator[Mx]:
    port = vm.free_port()
    with story.begun("mx", directory) as mx:
        mx.add("files/etc/unbound/unbound.conf.d/names.conf", NAMES)
        route = f"transport_maps = inline:{{ example.com=smtp:[192.0.2.1]:{port} }}"
        mx.change("files/etc/postfix/main.cf", "\nbiff = no\n", f"\nbiff = no\n{route}\n")
        mx.deploy()
        mx.certify(HOST, "nginx", "postfix", "dovecot")
        mx.sh("doveadm sieve put -u alice@example.org -a mine", data=RULE)
        mx.sh("rspamc --connect=127.0.0.1:11334 learn_spam", data=SPAM)
        with (
            story.sending(directory, mx.port(25), port) as sender,
            mx.visited("mta-sts.example.org", "/.well-known/mta-sts.txt") as visitor,
        ):
            wait(lambda: len(sender.delays) > 20)
            goes_out(mx, sender, "Before")
            before = mails(mx), mx.sh(STATE)
            info = "alias   info@example.org          alice@example.org\n"
            mx.change("files/etc/mail.table", "\nalias   team", f"\n{info}alias   team")
            mx.change("IMGBUILD", "\ncurl\n", "\ncurl\nfile\n")
            mx.deploy()
            sender.stop()
            wait(lambda: not mx.sh("postqueue -j"))
            yield Mx(mx, sender, visitor, *before)


@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
def test_each_mail_arrives_once(mx: Mx, record_property: Callable[[str, object], None]) -> None:
    """In its folder: the rule is in force all the while."""
    record_property("seen", f"mx: mail waited for {max(mx.sender.delays):.0f} s")
    assert [number for number, _ in mx.arrived] == list(range(1, mx.sender.sent + 1))
    assert {folder for number, folder in mx.arrived if number % 10 == 0} == {".Tens"}


def test_visitor_of_mx(mx: Mx, record_property: Callable[[str, object], None]) -> None:
    record_property("seen", f"mx: {mx.visitor.outage:.0f} s without a page")
    check_answers(mx.visitor)


def test_kept_disk_of_mx(mx: Mx) -> None:
    """Mail byte for byte; DKIM, TLSA, certificate, UIDVALIDITY, what the filter has learnt."""
    assert mx.mails <= mails(mx.story)
    assert all(word in mx.state for word in ("_domainkey", "TLSA", "fullchain-1.pem", "learned: 1"))
    assert mx.story.sh(STATE) == mx.state


def test_changes_of_mx(mx: Mx) -> None:
    assert [report["verified"] for report in mx.story.reports] == [True, True]
    assert "alice" in mx.story.sh("postmap -q info@example.org lmdb:/etc/postfix/maps/aliases")
    mx.story.sh("file /etc/mail.table")
    goes_out(mx.story, mx.sender, "After")


def test_changed_number_of_the_mail_user(mx: Mx) -> None:
    """As a definition without it would give: `verify` says so."""
    mx.story.sh("sed -i s/^vmail:x:2000:/vmail:x:2222:/ /etc/passwd")
    done = mx.story.inv("verify")
    mx.story.sh("sed -i s/^vmail:x:2222:/vmail:x:2000:/ /etc/passwd")
    assert done.status == 4
    assert "! -user vmail" in done.err.partition("error: mx was deployed, but fails: verify()")[2]
