"""Certificates by ACME: however often a host is deployed, each of its names has one order in all.

Pebble, an authority for tests, asks the host's own nginx, through its firewall. The hosts are those
of hosts/, with their own units, scripts and dehydrated; only the authority is another one.
"""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from anemos.run import CommandFailed, environment, run
from anemos.workstation import hosts
from anemos.workstation.vm import build
from tests import container
from tests.container import Container, Far

pytestmark = [pytest.mark.all, pytest.mark.root, pytest.mark.real("run", "gpg")]

GATEWAY = "192.0.2.1"  # of both hosts
# No delays, no nonce refused by chance, and no name taken as proven because it once was.
PEBBLE = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
KEY, CERTIFICATE = "pebble.key", "pebble.pem"
CONFIG = {
    "listenAddress": ":443",
    "managementListenAddress": ":15000",
    "certificate": CERTIFICATE,
    "privateKey": KEY,
    "httpPort": 80,
    "tlsPort": 443,
}
DEPLOYMENTS = 3


@dataclass(frozen=True)
class Authority:
    far: Far
    directory: Path

    @property
    def certificate(self) -> str:
        """Of the server itself; the certificates that it signs have another root."""
        return (self.directory / CERTIFICATE).read_text()

    def proofs(self) -> Counter[str]:
        """How often each name had to be proven: once for each order."""
        said = (self.directory / "log").read_text()
        return Counter(re.findall(r'vaTask{Identifier:.*?Value:"(.*?)"', said))

    def orders(self) -> int:
        return (self.directory / "log").read_text().count("Added order ")


@pytest.fixture
def authority(name: str, tmp_path: Path) -> Iterator[Authority]:
    """All names lead to the host NAME."""
    (tmp_path / "pebble.json").write_text(json.dumps({"pebble": CONFIG}))
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", KEY]
    words = [*key, "-subj", "/CN=Pebble", "-addext", f"subjectAltName=IP:{GATEWAY}"]
    run(["openssl", "req", "-x509", *words, "-out", CERTIFICATE], cwd=tmp_path)
    address = hosts.load(name, server=False).vm.network.ip
    dns = ["pebble-challtestsrv", "-dns01=127.0.0.1:53", "-defaultIPv6=", f"-defaultIPv4={address}"]
    dns += [f"-{each}=" for each in ("http01", "https01", "tlsalpn01", "management")]
    pebble = ["pebble", "-strict", "-config=pebble.json", "-dnsserver=127.0.0.1:53"]
    env = environment(PEBBLE)
    with container.far(f"{GATEWAY}/24") as far, (tmp_path / "log").open("w") as log:
        started = [
            subprocess.Popen(far.argv(*argv), cwd=tmp_path, env=env, stdout=log, stderr=log)
            for argv in (dns, pebble)
        ]
        yield Authority(far, tmp_path)
        for process in started:
            process.kill()
            process.wait()


def built(name: str, authority: Authority) -> Path:
    """The image of hosts/NAME, with another authority, which it trusts."""
    (authority.directory / "image").mkdir()
    build.build(name, "dir", str(authority.directory / "image"))
    image = authority.directory / "image" / name
    config = image / "etc/dehydrated/config"
    other = f"CA=https://{GATEWAY}/dir"
    config.write_text(re.sub("(?m)^CA=.*", other, config.read_text()))
    with (image / "etc/ssl/certs/ca-certificates.crt").open("a") as trusted:
        trusted.write(authority.certificate)
    return image


def is_served(host: Container, name: str) -> bool:
    """Whether nginx has a certificate for NAME that the authority has signed."""
    root = "/root/authority.pem"
    host.run("curl", "--silent", "--output", root, f"https://{GATEWAY}:15000/roots/0")
    at = ["--resolve", f"{name}:443:127.0.0.1", f"https://{name}/"]
    try:
        host.run("curl", "--silent", "--show-error", "--cacert", root, *at)
    except CommandFailed as failed:
        assert "self-signed" in failed.output
        return False
    return True


@pytest.mark.parametrize("name", ["www", "mx"])
def test_one_order(name: str, authority: Authority) -> None:
    image = built(name, authority)
    lines = (image / "etc/dehydrated/domains.txt").read_text().splitlines()
    names = [each for line in lines for each in line.split()]
    kept = authority.directory / "kept"
    kept.mkdir()
    for deployment in range(DEPLOYMENTS):
        with container.booted(image, kept, authority.far) as host:
            host.run("systemctl", "start", "nginx")
            # From the first answer on: nobody waits for the authority.
            assert [is_served(host, each) for each in names] == [deployment > 0] * len(names)
            host.run("systemctl", "start", "certificates")

    assert authority.orders() == len(lines)
    assert authority.proofs() == Counter(names)
