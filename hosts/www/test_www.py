"""The web server as its visitors see it, and as the owners of its sites do."""

import gzip
import http.client
import socket
import ssl
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.run import CommandFailed, run
from anemos.workstation.machine import Machine
from anemos.workstation.outside import ADDRESSES, LISTENS, Outside

PORTS = set(tomllib.loads(Path(__file__).with_name("host.toml").read_text())["ports"])
SITES = ["example.org", "example.net", "static.example.org"]
PAGE = b"<!doctype html><title>A page of a test</title>" + b"<p>text</p>" * 200


class Visitor:
    """An HTTP client that trusts the certificates on the kept disk, and resolves names itself."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name
        directory = name.removeprefix("www.")
        self.trusted = machine.run("cat", f"/srv/acme/certs/{directory}/fullchain.pem")

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.trusted)

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        where = (self.machine.address, self.machine.port(443))
        plain = socket.create_connection(where, timeout=30)
        return (context or self.context()).wrap_socket(plain, server_hostname=self.name)

    def get(self, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPSConnection(self.name)
        connection.sock = self.connect()
        return answer(connection, self.name, path, headers)


def answer(
    connection: http.client.HTTPConnection, name: str, path: str, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("GET", path, headers={"Host": name, **headers})
    response = connection.getresponse()
    return response, response.read()


def plain(machine: Machine, name: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(machine.address, machine.port(80), timeout=30)
    return answer(connection, name, path, {})[0]


@pytest.fixture(scope="module", autouse=True)
def pages(machine: Machine) -> Iterator[None]:
    """A page in each site, and none of them afterwards."""
    for user in ("example-org", "example-net"):
        file = f"/srv/sites/{user}/public/anemos-test.html"
        machine.run("sh", "-c", 'printf %s "$1" >"$2" && chmod 644 "$2"', "sh", PAGE.decode(), file)
    yield
    machine.run("sh", "-c", "rm /srv/sites/*/public/anemos-test.html")


@pytest.mark.parametrize("name", SITES)
def test_certificate(machine: Machine, name: str) -> None:
    with Visitor(machine, name).connect() as connection:
        seen = connection.getpeercert() or {}
    assert ("DNS", name) in seen["subjectAltName"]


def test_certificate_is_for_no_other_name(machine: Machine) -> None:
    visitor = Visitor(machine, "example.org")
    visitor.trusted = Visitor(machine, "example.net").trusted
    with pytest.raises(ssl.SSLCertVerificationError):
        visitor.connect()


@pytest.mark.parametrize("name", SITES[:2])
def test_page_on_the_kept_disk(machine: Machine, name: str) -> None:
    response, body = Visitor(machine, name).get("/anemos-test.html")
    assert (response.status, body) == (200, PAGE)


def test_page_of_the_image(machine: Machine) -> None:
    response, body = Visitor(machine, "static.example.org").get()
    assert response.status == 200
    assert b"A static site" in body


@pytest.mark.parametrize("name", ["www.example.org", "www.example.net"])
def test_redirect_of_www(machine: Machine, name: str) -> None:
    response, _ = Visitor(machine, name).get("/a?b=c")
    wanted = f"https://{name.removeprefix('www.')}/a?b=c"
    assert (response.status, response.headers["Location"]) == (301, wanted)


@pytest.mark.parametrize("name", [*SITES, "www.example.org", "www.example.net"])
def test_redirect_to_https(machine: Machine, name: str) -> None:
    response = plain(machine, name, "/a?b=c")
    assert (response.status, response.headers["Location"]) == (301, f"https://{name}/a?b=c")


def test_answer_to_the_certificate_authority(machine: Machine) -> None:
    assert plain(machine, "example.org", "/.well-known/acme-challenge/nothing").status == 404


def test_unknown_name_over_http(machine: Machine) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        plain(machine, "unknown.example.com", "/")


def test_unknown_name_over_https(machine: Machine) -> None:
    visitor = Visitor(machine, "example.org")
    visitor.name = "unknown.example.com"
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized[ _]name"):
        visitor.connect()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Strict-Transport-Security", "max-age="),
        ("Content-Security-Policy", "default-src 'self'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Alt-Svc", 'h3=":443"'),
    ],
)
@pytest.mark.parametrize("path", ["/anemos-test.html", "/nothing"])
def test_headers(machine: Machine, name: str, part: str, path: str) -> None:
    response, _ = Visitor(machine, "example.org").get(path)
    assert part in (response.headers[name] or "")


def test_server_tells_no_version(machine: Machine) -> None:
    assert Visitor(machine, "example.org").get()[0].headers["Server"] == "nginx"


@pytest.mark.parametrize("name", SITES)
def test_page_that_is_not_there(machine: Machine, name: str) -> None:
    response, body = Visitor(machine, name).get("/nothing")
    assert response.status == 404
    assert b"This page is not here." in body


@pytest.mark.parametrize("name", SITES)
def test_security_txt(machine: Machine, name: str) -> None:
    response, body = Visitor(machine, name).get("/.well-known/security.txt")
    assert response.status == 200
    assert b"Contact: mailto:" in body


def test_compression(machine: Machine) -> None:
    visitor = Visitor(machine, "example.org")
    response, body = visitor.get("/anemos-test.html", **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == PAGE


def test_http_2(machine: Machine) -> None:
    visitor = Visitor(machine, "example.org")
    context = visitor.context()
    context.set_alpn_protocols(["h2"])
    with visitor.connect(context) as connection:
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(machine: Machine, version: ssl.TLSVersion) -> None:
    visitor = Visitor(machine, "example.org")
    context = visitor.context()
    context.minimum_version = context.maximum_version = version
    with visitor.connect(context) as connection:
        assert connection.version() == version.name.replace("_", ".")


def test_old_tls(machine: Machine) -> None:
    visitor = Visitor(machine, "example.org")
    context = visitor.context()
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this side would refuse
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol[ _]version"):
        visitor.connect(context)


RENEWAL = """
directory=/srv/acme/certs/example.org
unit=/run/systemd/system/certificates.service.d
mkdir -p $unit
cat >$unit/test.conf <<END
[Service]
ExecStart=
ExecStart=/bin/cp -p $directory/fullchain.pem $directory/before.pem
ExecStart=/usr/bin/openssl req -x509 -key $directory/privkey.pem -days 80 -subj /CN=renewed \\
    -addext subjectAltName=DNS:example.org -out $directory/fullchain.pem
ExecStart=/bin/false
END
systemctl daemon-reload
! systemctl start certificates
"""
UNDO = """
mv /srv/acme/certs/example.org/before.pem /srv/acme/certs/example.org/fullchain.pem
rm /run/systemd/system/certificates.service.d/test.conf
systemctl daemon-reload
systemctl reset-failed certificates
systemctl reload nginx
"""


@pytest.fixture
def renewed(machine: Machine) -> Iterator[Visitor]:
    """Who trusts the new certificate and no older one. dehydrated failed after it was there."""
    machine.run("sh", "-ec", RENEWAL)
    yield Visitor(machine, "example.org")
    machine.run("sh", "-ec", UNDO)


def test_new_certificate_is_used(renewed: Visitor) -> None:
    """nginx takes it when its new processes have started."""
    end = time.monotonic() + 60
    while True:
        try:
            renewed.connect().close()
            return
        except ssl.SSLCertVerificationError:
            assert time.monotonic() < end
            time.sleep(1)


def test_what_listens(machine: Machine) -> None:
    """Beyond loopback exactly what the firewall opens; the time's client only sends questions."""
    said = machine.run("ss", "--no-header", "--listening", "--numeric", "--processes", "-t", "-u")
    lines = [line.split() for line in said.splitlines() if "systemd-timesyn" not in line]
    found = {(words[0], words[4]) for words in lines}
    outside = {(kind, at.rpartition(":")[2]) for kind, at in found if not at.startswith("127.")}
    assert outside == {("udp", "443"), *(("tcp", str(port)) for port in PORTS)}


def test_firewall(machine: Machine) -> None:
    rules = machine.run("nft", "list", "chain", "inet", "filter", "input")
    assert "policy drop" in rules
    opened = [line.strip() for line in rules.splitlines() if "dport" in line]
    assert opened == ["tcp dport { 22, 80, 443 } accept", "udp dport 443 accept"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_ports_from_outside(outside: Outside, address: str) -> None:
    """By IPv4 and IPv6 the declared ports answer, and no other, even if something listens there."""
    assert outside.answering_inside(address) == PORTS | {LISTENS}
    assert outside.answering(address) == PORTS


def test_no_password_opens_the_server(machine: Machine) -> None:
    words = machine.run("sshd", "-T").splitlines()
    assert "passwordauthentication no" in words
    assert "kbdinteractiveauthentication no" in words
    shadow = machine.run("cut", "-d:", "-f2", "/etc/shadow").split()
    assert all(each[:1] in ("*", "!") for each in shadow)


@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_owner_of_a_site(machine: Machine, user: str) -> None:
    directory = f"/srv/sites/{user}"
    assert machine.run("stat", "-c", "%U %G %a", directory) == "root root 755\n"
    assert machine.run("stat", "-c", "%U %G %a", f"{directory}/public") == f"{user} www-data 2750\n"
    words = machine.run("sshd", "-T", "-C", f"user={user},host=x,addr=192.0.2.1").splitlines()
    assert "forcecommand internal-sftp -d /public -u 0027" in words
    assert "chrootdirectory /srv/sites/%u" in words


@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_publishing(machine: Machine, user: str) -> None:
    """By sftp: the owner changes a page, visitors see it, and the other site is out of sight."""
    *options, _, port, _ = machine.login[1:]
    argv = ["sftp", "-b", "-", *options, "-P", port, f"{user}@{machine.address}"]
    said = run(argv, data=b"rename anemos-test.html new.html\nls -1 /\n")
    assert said.splitlines()[-1] == "/public"

    response, body = Visitor(machine, user.replace("-", ".")).get("/new.html")
    assert (response.status, body) == (200, PAGE)
    run(argv, data=b"rename new.html anemos-test.html\n")
    for path in ("/srv/sites", "/../example-org/public", "/../../example-net/public", "/etc"):
        with pytest.raises(CommandFailed, match="not found"):
            run(argv, data=f"ls {path}\n".encode())


def test_links_of_an_owner(machine: Machine, tmp_path: Path) -> None:
    """They lead nowhere: not to the other site, not to the system. Those to her own files do."""
    *options, _, port, _ = machine.login[1:]
    argv = ["sftp", "-b", "-", *options, "-P", port, f"example-org@{machine.address}"]
    page = tmp_path / "page"
    page.write_bytes(PAGE)
    targets = {"other": "/srv/sites/example-net/public/anemos-test.html", "system": "/etc/passwd"}
    targets |= {"own": "page", "above": "../../example-net/public/anemos-test.html"}
    links = "".join(f"symlink {to} {name}\n" for name, to in targets.items())
    run(argv, data=f"put {page} page\n{links}".encode())
    visitor = Visitor(machine, "example.org")
    found = {name: visitor.get(f"/{name}")[0].status for name in targets}
    run(argv, data="".join(f"rm {name}\n" for name in [*targets, "page"]).encode())
    assert found == {"other": 403, "system": 403, "above": 403, "own": 200}


@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_owner_gets_no_shell(machine: Machine, user: str) -> None:
    with pytest.raises(CommandFailed, match="sftp connections only"):
        run([*machine.login[:-1], f"{user}@{machine.address}", "id"])


def test_certificates_stay(machine: Machine, notes: dict[str, str]) -> None:
    """`inv test --redeploy` runs this twice: a deployment orders no certificate."""
    found = machine.run("sh", "-c", "find /srv/acme -type f | sort | xargs sha256sum")
    assert notes.setdefault("certificates", found) == found


# Lines of the journal that may be there. All others are mistakes of the definition.
EXPECTED = (
    # A slow VM.
    "taking a long time",
    "is taking longer than",
    "ttyS0",
    # What the tests do: a scan of ports, a renewal that fails.
    "kex_exchange_identification",
    "Failed to start certificates.service",
    "certificates.service: Failed with result 'exit-code'",
)


def test_journal(machine: Machine) -> None:
    """No warning but the expected ones, and the kernel's: these are about the emulated machine."""
    found = machine.warnings(EXPECTED)
    assert not found, "\n".join(found)
