"""A server's life: a stock one with data on its second disk, deployed, used, deployed again.

    with begun("www", directory) as story:
        story.deploy()
        story.certify("example.org", "nginx")
        with story.visited("example.org") as visitor:
            story.deploy()
        visitor.outage

It answers at the same ports all the while: QEMU runs on. Used by bench/hosts.py, too.
"""

import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, HTTPSConnection
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any

from anemos.log import Failure
from anemos.run import Argv, run
from anemos.system import chroot
from anemos.workstation.ssh import Endpoint, connect
from anemos.workstation.vm import vm
from tests import imaging, tree
from tests.tree import DEMO_S, ROOT, Done, Tree

PATIENCE_S = 5.0
VM = """stock = "stock"

[timeouts] # for an emulated machine on a busy one
down = 360
initramfs = 600
up = 1200
trial = 1800
"""
# What makes hosts/stock the server that each host finds.
NETWORKS = {"www": "192.0.2.80", "mx": "192.0.2.25"}
DATA = {
    "mx": """\
    inbox=/srv/mail/example.org/alice/Maildir
    mkdir -p $inbox/cur $inbox/new $inbox/tmp
    printf 'Subject: Of long ago\\n\\nText\\n' >$inbox/cur/1.M1P1.old:2,S
    chown -R 2000:2000 /srv/mail
    chmod -R go= /srv/mail
}
""",
    "www": """\
    mkdir -p /srv/sites/example-org/public
    echo 'A page of long ago' >/srv/sites/example-org/public/index.html
    head -c 8M /dev/urandom >/srv/sites/example-org/public/photo.jpg
    chown -R 2001:33 /srv/sites/example-org/public
}
""",
}
BOOT_ID = "/proc/sys/kernel/random/boot_id"
ISSUE = """
cd /srv/acme/certs/$1
cat >fullchain-1.pem
ln -sf fullchain-1.pem fullchain.pem
shift
systemctl reload "$@"
"""
CONTENT = """
cd /srv
find . -xdev \\( -type f -o -type l \\) -printf '%p %m %U:%G %Ts %l\\n' | sort
find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum
"""


class Visitor(threading.Thread):
    """Asks for a page twice a second, and trusts one authority alone.

    SEEN: when, in seconds, and the status of the answer, or why there was none.
    """

    def __init__(self, name: str, path: str, port: int, authority: Path) -> None:
        super().__init__(daemon=True)
        self.host, self.path, self.port = name, path, port
        self.tls = ssl.create_default_context(cafile=authority)
        self.seen: list[tuple[float, int | str]] = []
        self.gone = threading.Event()

    def run(self) -> None:
        while not self.gone.wait(0.5):
            self.seen.append((time.monotonic(), self.ask()))

    def ask(self) -> int | str:
        connection = HTTPSConnection(self.host)
        try:
            plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
            connection.sock = self.tls.wrap_socket(plain, server_hostname=self.host)
            connection.request("GET", self.path)
            return connection.getresponse().status
        except (OSError, HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    @property
    def outage(self) -> float:
        """The longest time from one good answer to the next one, in seconds."""
        good = [when for when, answer in self.seen if answer == 200]
        return max(later - when for when, later in pairwise(good))


SENDER = """
target=debian
debian_suite=trixie
packages='postfix'
format=dir
"""
# Its queue is like any other's, and only tries more often.
CONFIG = """
compatibility_level = 3.10
myhostname = client.example.com
mydestination =
default_database_type = texthash
relayhost = [127.0.0.1]:{port}
smtp_tls_security_level = may
smtp_connect_timeout = 10s
queue_run_delay = 5s
minimal_backoff_time = 5s
default_destination_concurrency_limit = 2
maximal_backoff_time = 10s
maillog_file = /var/log/postfix.log
virtual_mailbox_domains = example.com
virtual_mailbox_maps = static:somebody
virtual_mailbox_base = /var/mail
virtual_uid_maps = static:65534
virtual_gid_maps = static:8
"""
# Seconds from one mail to the next: an emulated server takes some for each.
PACE = {"kvm": 1, "tcg": 8}
# $1: the port where it takes mail itself, on the loopback interface. $2: see PACE.
SEND = r"""
postconf -F '*/*/chroot = n'
postconf -MX smtp/inet
postconf -M "127.0.0.1:$1/inet=127.0.0.1:$1 inet n - n - - smtpd"
postfix start
number=0
until [ -e /stop ]; do
    number=$((number + 1))
    printf 'To: <alice@example.org>\nSubject: Number %s\n\nText\n' $number |
        sendmail -f someone@example.com alice@example.org
    echo $number >/sent
    sleep "$2"
done
exec sleep infinity
"""


@dataclass
class Sender:
    """Postfix in a root and in namespaces of its own: one mail after the other for Alice.

    It takes mail for example.com, too, at its PORT.
    """

    root: Path
    port: int

    @property
    def queue(self) -> list[Path]:
        names = ("maildrop", "incoming", "active", "deferred")
        places = [self.root / "var/spool/postfix" / name for name in names]
        return [file for place in places for file in place.rglob("*") if file.is_file()]

    @property
    def sent(self) -> int:
        return int((self.root / "sent").read_text())

    @property
    def delays(self) -> list[float]:
        """How long each mail that the server has taken was on its way there, in seconds."""
        file = self.root / "var/log/postfix.log"
        text = file.read_text() if file.exists() else ""
        return [float(each) for each in re.findall(r" delay=([\d.]+),.* \(250 2\.0\.0 Ok: ", text)]

    @property
    def received(self) -> str:
        """All that has come for example.com."""
        file = self.root / "var/mail/somebody"
        return file.read_text() if file.exists() else ""

    def stop(self) -> None:
        """No new mail; until the last one has left the queue."""
        (self.root / "stop").touch()
        while left := self.queue:  # an emulated server has waited for some, and takes 14 a minute
            wait(partial(self.fewer, len(left)))

    def fewer(self, than: int) -> bool:
        return len(self.queue) < than


@contextmanager
def sending(directory: Path, server: int, port: int) -> Iterator[Sender]:
    """At home in DIRECTORY. SERVER: port of the server; PORT: its own."""
    sender = Sender(imaging.root(directory / "sender", SENDER), port)
    (sender.root / "etc/postfix/main.cf").write_text(CONFIG.format(port=server))
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    enter = [*namespaces, "sh", "-c", chroot.ENTER, "sh", str(sender.root), str(directory)]
    words = [str(sender.port), str(PACE[vm.accelerator()])]
    with Popen([*enter, "sh", "-c", SEND, "sh", *words]) as process:
        try:
            yield sender
        finally:
            process.kill()


@dataclass
class Story:
    """The host NAME in a copy of the project, at home in a local VM."""

    project: Tree
    name: str
    directory: Path
    reports: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for host in (self.name, "stock"):
            shutil.copytree(ROOT / "hosts" / host, self.project.directory / "hosts" / host)
        # An emulated server would take minutes for each; test_demo's own does it.
        toml = self.file("host.toml")
        toml.write_text(f'build_on = "workstation"\n{toml.read_text()}')
        if self.name in NETWORKS:
            self.describe_stock()

    def describe_stock(self) -> None:
        """The server that the host finds, with its network and its data."""
        with self.file("host.toml").open("a") as file:
            file.write(VM)
        top = self.project.directory / "hosts/stock"
        here = NETWORKS[self.name]
        words = {"demo-": f"{self.name}-", "10.0.2.15": here, "10.0.2.2\n": "192.0.2.1\n"}
        words |= {"10.0.2.3": "192.0.2.3", "mount=/home": "mount=/srv"}
        for path in ("IMGBUILD", "files/etc/network/interfaces", "files/etc/resolv.conf"):
            text = (top / path).read_text()
            for old, new in words.items():
                text = text.replace(old, new)
            (top / path).write_text(text)
        described = (top / "IMGBUILD").read_text().partition("    useradd")[0]
        (top / "IMGBUILD").write_text(described + DATA[self.name])

    def file(self, path: str, host: str = "") -> Path:
        return self.project.directory / "hosts" / (host or self.name) / path

    def change(self, path: str, old: str, new: str, host: str = "") -> None:
        """Write NEW for OLD, which must be there, in the file PATH of this host, or of HOST."""
        text = self.file(path, host).read_text()
        assert old in text
        self.file(path, host).write_text(text.replace(old, new))

    def add(self, path: str, text: str) -> None:
        self.file(path).parent.mkdir(parents=True, exist_ok=True)
        self.file(path).write_text(text)

    @contextmanager
    def changed(self, path: str, old: str, new: str) -> Iterator[None]:
        """The same for a while."""
        before = self.file(path).read_text()
        self.change(path, old, new)
        yield
        self.file(path).write_text(before)

    def inv(self, task: str, *words: str) -> Done:
        return self.project.inv(task, "--host", self.name, *words, timeout=DEMO_S, cached=True)

    def reboot(self) -> None:
        """Have the server do it; until sshd answers again."""
        old = self.boot_id()
        with suppress(Failure):  # it may be that quick
            self.sh("systemctl reboot")
        wait(lambda: self.boot_id() not in ("", old))

    def slots(self) -> dict[str, dict[str, Any]]:
        """By name, as `status` tells of them."""
        told = json.loads(self.inv("status", "--json").out)
        return {each["name"]: each for each in told["slots"]}

    def boot_id(self) -> str:
        """ "" while nobody answers."""
        try:
            return self.sh(f"cat {BOOT_ID}")
        except Failure:
            return ""

    def deploy(self) -> None:
        """Also makes and starts the stock server, if nothing runs yet."""
        self.reports.append(json.loads(self.project.demo(self.name).out))

    @property
    def home(self) -> Path:
        return tree.where(f"state({self.name!r})", self.project.directory, self.project.home)

    def port(self, number: int) -> int:
        """The port on this machine that leads to port NUMBER of the server."""
        return int((self.home / f"vm/port-{number}").read_text())

    @property
    def endpoint(self) -> Endpoint:
        key = (self.home / "vm/host_key").read_text()
        return Endpoint("127.0.0.1", self.port(22), key, self.home / "id_ed25519")

    def kept(self) -> str:
        """Names, modes, owners, times and digests of all that is on the kept disk."""
        return self.sh(CONTENT)

    def certify(self, name: str, *units: str) -> None:
        """Have an authority of our own issue the certificate NAME, and UNITS use it."""
        place = f"/srv/acme/certs/{name}"
        given = f"-in {place}/fullchain.pem -signkey {place}/privkey.pem"
        copied = ["-copy_extensions", "copy"]
        request = self.sh(f"openssl x509 -x509toreq -copy_extensions copy {given}")
        authority: Argv = ["-CA", self.authority, "-CAkey", self.directory / "ca.key"]
        sign = ["openssl", "x509", "-req", *copied, "-days", "80", *authority]
        issued = run(sign, data=request.encode())
        self.sh(ISSUE, name, *units, data=issued.encode())

    def sh(self, script: str, *words: str, data: bytes = b"") -> str:
        """Standard output of a shell script with WORDS, run by root on the server."""
        with connect(self.endpoint) as remote:
            return remote.sh(["sh", "-ec", script, "sh", *words], data=data, timeout=600)

    @property
    def authority(self) -> Path:
        file = self.directory / "ca.pem"
        if not file.exists():
            make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "group:P-256", "-noenc"]
            key: Argv = ["-keyout", self.directory / "ca.key", "-subj", "/CN=Authority"]
            run([*make, *key, "-out", file])
        return file

    @contextmanager
    def visited(
        self, name: str, path: str = "/", authority: Path | None = None
    ) -> Iterator[Visitor]:
        """A visitor meanwhile: he has had a page before, and has some after it. AUTHORITY: that he
        trusts, if it is not ours."""
        visitor = Visitor(name, path, self.port(443), authority or self.authority)
        visitor.start()
        try:
            wait(lambda: [answer for _, answer in visitor.seen[-4:]] == [200] * 4)
            yield visitor
            wait(lambda: [answer for _, answer in visitor.seen[-20:]] == [200] * 20)
        finally:
            visitor.gone.set()
            visitor.join()


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


@contextmanager
def begun(name: str, directory: Path) -> Iterator[Story]:
    """The story of hosts/NAME, at home in the empty DIRECTORY; its VM is gone afterwards."""
    (directory / "tree").mkdir()
    with tree.copied(directory / "tree") as project:
        story = Story(project, name, directory)
        try:
            yield story
        finally:
            project.inv("demo", "--host", name, "--stop")
