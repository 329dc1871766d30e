"""The web server as its visitors see it, and as the owners of its sites do."""

import gzip
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from testinfra.host import Host

from anemos.run import CommandFailed, run
from anemos.workstation.machine import Machine
from anemos.workstation.outside import Outside, listening
from hosts import checks

PORTS = checks.ports(__file__)
SITES = ["example.org", "example.net", "static.example.org"]
PAGE = b"<!doctype html><title>A page of a test</title>" + b"<p>text</p>" * 200


class Visitor:
    """An HTTP client that trusts the certificates on the kept disk, and resolves names itself."""

    def __init__(self, machine: Machine, name: str, tls: ssl.SSLContext) -> None:
        self.machine, self.name, self.tls = machine, name, tls

    def connect(self, tls: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        where = (self.machine.address, self.machine.port(443))
        plain = socket.create_connection(where, timeout=30)
        return (tls or self.tls).wrap_socket(plain, server_hostname=self.name)

    def get(self, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPSConnection(self.name)
        connection.sock = self.connect()
        return answer(connection, self.name, path, headers)


Visitors = Callable[[str], Visitor]


@pytest.fixture(scope="module")
def visitor(machine: Machine, trust: Callable[[str], ssl.SSLContext]) -> Visitors:
    """Makes the visitor of a site."""

    def make(name: str) -> Visitor:
        directory = f"/srv/acme/certs/{name.removeprefix('www.')}"
        return Visitor(machine, name, trust(f"{directory}/fullchain.pem"))

    return make


def answer(
    connection: http.client.HTTPConnection, name: str, path: str, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("GET", path, headers={"Host": name, **headers})
    response = connection.getresponse()
    return response, response.read()


def plain(machine: Machine, name: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(machine.address, machine.port(80), timeout=30)
    return answer(connection, name, path, {})[0]


@pytest.fixture(scope="module")
def pages(host: Host, throwaway: Machine) -> Iterator[None]:
    """A page in each site, and none of them afterwards."""
    for user in ("example-org", "example-net"):
        file = f"/srv/sites/{user}/public/anemos-test.html"
        host.check_output(f"printf %%s %s >{file} && chmod 644 {file}", PAGE.decode())
    yield
    host.check_output("rm /srv/sites/*/public/anemos-test.html")


@pytest.mark.safe
@pytest.mark.parametrize("name", SITES)
def test_certificate(visitor: Visitors, name: str) -> None:
    with visitor(name).connect() as connection:
        seen = connection.getpeercert() or {}
    assert ("DNS", name) in seen["subjectAltName"]


def test_certificate_is_for_no_other_name(visitor: Visitors) -> None:
    one = visitor("example.org")
    one.tls = visitor("example.net").tls
    with pytest.raises(ssl.SSLCertVerificationError):
        one.connect()


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("name", SITES[:2])
def test_page_on_the_kept_disk(visitor: Visitors, name: str) -> None:
    response, body = visitor(name).get("/anemos-test.html")
    assert (response.status, body) == (200, PAGE)


@pytest.mark.safe
def test_page_of_the_image(visitor: Visitors) -> None:
    response, body = visitor("static.example.org").get()
    assert response.status == 200
    assert b"A static site" in body


@pytest.mark.safe
@pytest.mark.parametrize("name", ["www.example.org", "www.example.net"])
def test_redirect_of_www(visitor: Visitors, name: str) -> None:
    response, _ = visitor(name).get("/a?b=c")
    wanted = f"https://{name.removeprefix('www.')}/a?b=c"
    assert (response.status, response.headers["Location"]) == (301, wanted)


@pytest.mark.safe
@pytest.mark.parametrize("name", [*SITES, "www.example.org", "www.example.net"])
def test_redirect_to_https(machine: Machine, name: str) -> None:
    response = plain(machine, name, "/a?b=c")
    assert (response.status, response.headers["Location"]) == (301, f"https://{name}/a?b=c")


@pytest.mark.safe
def test_answer_to_the_certificate_authority(machine: Machine) -> None:
    assert plain(machine, "example.org", "/.well-known/acme-challenge/nothing").status == 404


@pytest.mark.safe
def test_unknown_name_over_http(machine: Machine) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        plain(machine, "unknown.example.com", "/")


@pytest.mark.safe
def test_unknown_name_over_https(visitor: Visitors) -> None:
    one = visitor("example.org")
    one.name = "unknown.example.com"
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized[ _]name"):
        one.connect()


@pytest.mark.usefixtures("pages")
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
def test_headers(visitor: Visitors, name: str, part: str, path: str) -> None:
    response, _ = visitor("example.org").get(path)
    assert part in (response.headers[name] or "")


@pytest.mark.safe
def test_server_tells_no_version(visitor: Visitors) -> None:
    assert visitor("example.org").get()[0].headers["Server"] == "nginx"


@pytest.mark.safe
@pytest.mark.parametrize("name", SITES)
def test_page_that_is_not_there(visitor: Visitors, name: str) -> None:
    response, body = visitor(name).get("/nothing")
    assert response.status == 404
    assert b"This page is not here." in body


@pytest.mark.safe
@pytest.mark.parametrize("name", SITES)
def test_security_txt(visitor: Visitors, name: str) -> None:
    response, body = visitor(name).get("/.well-known/security.txt")
    assert response.status == 200
    assert b"Contact: mailto:" in body


@pytest.mark.usefixtures("pages")
def test_compression(visitor: Visitors) -> None:
    response, body = visitor("example.org").get("/anemos-test.html", **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == PAGE


@pytest.mark.safe
def test_http_2(visitor: Visitors) -> None:
    one = visitor("example.org")
    one.tls.set_alpn_protocols(["h2"])
    with one.connect() as connection:
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.safe
def test_tls(visitor: Visitors) -> None:
    one = visitor("example.org")
    checks.check_tls(one.tls, one.connect)


@pytest.fixture
def renewed(host: Host, throwaway: Machine, visitor: Visitors) -> Iterator[Visitor]:
    """Who trusts the new certificate and no older one. dehydrated failed after it was there."""
    with checks.renewed(host, "example.org", "nginx"):
        yield visitor("example.org")


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


@pytest.mark.safe
def test_what_listens(host: Host) -> None:
    """Beyond loopback exactly what the firewall opens."""
    assert listening(host) == {("udp", 443), *(("tcp", port) for port in PORTS)}


@pytest.mark.safe
def test_firewall(host: Host) -> None:
    rules = host.check_output("nft list chain inet filter input")
    assert "policy drop" in rules
    opened = [line.strip() for line in rules.splitlines() if "dport" in line]
    assert opened == ["tcp dport { 22, 80, 443 } accept", "udp dport 443 accept"]


def test_ports_from_outside(outside: Outside) -> None:
    checks.check_ports(outside, PORTS)


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("address", ["198.51.100.1", "[2001:db8:1::1]"])
def test_http_3(outside: Outside, address: str) -> None:
    """QUIC by curl, through the firewall."""
    visit = "ip netns exec outside curl --silent --show-error --http3-only --write-out %s"
    visit += " --cacert /srv/acme/certs/example.org/fullchain.pem --resolve %s %s"
    url, where = "https://example.org/anemos-test.html", f"example.org:443:{address}"
    said = outside.host.check_output(visit, "%{http_version}", where, url)
    assert said == f"{PAGE.decode()}3"


@pytest.mark.safe
def test_no_password_opens_the_server(host: Host) -> None:
    checks.check_logins(host)


@pytest.mark.safe
@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_owner_of_a_site(host: Host, user: str) -> None:
    top, public = (host.file(f"/srv/sites/{user}{each}") for each in ("", "/public"))
    assert (top.user, top.group, top.mode) == ("root", "root", 0o755)
    assert (public.user, public.group, public.mode) == (user, "www-data", 0o2750)
    words = host.check_output(f"sshd -T -C user={user},host=x,addr=192.0.2.1").splitlines()
    assert "forcecommand internal-sftp -d /public -u 0027" in words
    assert "chrootdirectory /srv/sites/%u" in words


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_publishing(machine: Machine, visitor: Visitors, user: str) -> None:
    """By sftp: the owner changes a page, visitors see it, and the other site is out of sight."""
    *options, _, port, _ = machine.login[1:]
    argv = ["sftp", "-b", "-", *options, "-P", port, f"{user}@{machine.address}"]
    said = run(argv, data=b"rename anemos-test.html new.html\nls -1 /\n")
    assert said.splitlines()[-1] == "/public"

    response, body = visitor(user.replace("-", ".")).get("/new.html")
    assert (response.status, body) == (200, PAGE)
    run(argv, data=b"rename new.html anemos-test.html\n")
    for path in ("/srv/sites", "/../example-org/public", "/../../example-net/public", "/etc"):
        with pytest.raises(CommandFailed, match="not found"):
            run(argv, data=f"ls {path}\n".encode())


@pytest.mark.usefixtures("pages")
def test_links_of_an_owner(machine: Machine, visitor: Visitors, tmp_path: Path) -> None:
    """They lead nowhere: not to the other site, not to the system. Those to her own files do."""
    *options, _, port, _ = machine.login[1:]
    argv = ["sftp", "-b", "-", *options, "-P", port, f"example-org@{machine.address}"]
    page = tmp_path / "page"
    page.write_bytes(PAGE)
    targets = {"other": "/srv/sites/example-net/public/anemos-test.html", "system": "/etc/passwd"}
    targets |= {"own": "page", "above": "../../example-net/public/anemos-test.html"}
    links = "".join(f"symlink {to} {name}\n" for name, to in targets.items())
    run(argv, data=f"put {page} page\n{links}".encode())
    found = {name: visitor("example.org").get(f"/{name}")[0].status for name in targets}
    run(argv, data="".join(f"rm {name}\n" for name in [*targets, "page"]).encode())
    assert found == {"other": 403, "system": 403, "above": 403, "own": 200}


@pytest.mark.parametrize("user", ["example-org", "example-net"])
def test_owner_gets_no_shell(machine: Machine, user: str) -> None:
    with pytest.raises(CommandFailed, match="sftp connections only"):
        run([*machine.login[:-1], f"{user}@{machine.address}", "id"])


def test_certificates_stay(host: Host, notes: dict[str, str]) -> None:
    """`inv test --redeploy` runs this twice: a deployment orders no certificate."""
    found = host.check_output("find /srv/acme -type f | sort | xargs sha256sum")
    assert notes.setdefault("certificates", found) == found


def test_journal(warnings: Callable[[Sequence[str]], list[str]]) -> None:
    """No warning but the expected ones, and the kernel's: these are about the emulated machine."""
    found = warnings(checks.EXPECTED)
    assert not found, "\n".join(found)
