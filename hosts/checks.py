"""What the tests of more than one host share: TLS, a renewed certificate, firewall, logins."""

import ssl
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

from anemos.workstation.outside import ADDRESSES, LISTENS, Outside

CURRENT = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
# certificates.service gets a new certificate for $1, and fails then.
RENEWAL = """
directory=/srv/acme/certs/$1
unit=/run/systemd/system/certificates.service.d
mkdir -p $unit
cat >$unit/test.conf <<END
[Service]
ExecStart=
ExecStart=/bin/cp -p $directory/fullchain.pem $directory/before.pem
ExecStart=/usr/bin/openssl req -x509 -key $directory/privkey.pem -days 80 -subj /CN=renewed \\
    -addext subjectAltName=DNS:$1 -out $directory/fullchain.pem
ExecStart=/bin/false
END
systemctl daemon-reload
! systemctl start certificates
"""
# $1: the name, the rest: services.
UNDO = """
mv /srv/acme/certs/$1/before.pem /srv/acme/certs/$1/fullchain.pem
rm /run/systemd/system/certificates.service.d/test.conf
systemctl daemon-reload
systemctl reset-failed certificates
shift
systemctl reload "$@"
"""
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


def ports(tests: str) -> set[int]:
    """Those that the host.toml beside the file TESTS declares."""
    return set(tomllib.loads(Path(tests).with_name("host.toml").read_text())["ports"])


@contextmanager
def renewed(host: Host, name: str, services: str) -> Iterator[None]:
    """NAME has a new certificate, and dehydrated failed after it was there. Undone afterwards.

    SERVICES: those that have the certificate.
    """
    host.check_output(f"sh -ec %s sh {name}", RENEWAL)
    yield
    host.check_output(f"sh -ec %s sh {name} {services}", UNDO)


def check_tls(
    tls: ssl.SSLContext, connect: Callable[[ssl.SSLContext], AbstractContextManager[ssl.SSLSocket]]
) -> None:
    """The server speaks the current versions of TLS, and no older one. TLS is the client's."""
    for version in CURRENT:
        tls.minimum_version = tls.maximum_version = version
        with connect(tls) as sock:
            assert sock.version() == version.name.replace("_", ".")
    tls.set_ciphers("ALL:@SECLEVEL=0")  # or this side would refuse
    with pytest.warns(DeprecationWarning):
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol[ _]version"):
        connect(tls)


def check_ports(outside: Outside, declared: set[int]) -> None:
    """By IPv4 and IPv6 the DECLARED ports answer, and no other, even if something listens there."""
    for address in ADDRESSES:
        assert outside.answering_inside(address) == declared | {LISTENS}
        assert outside.answering(address) == declared


def check_logins(host: Host) -> None:
    """No password opens the server."""
    words = host.check_output("sshd -T").splitlines()
    assert {"passwordauthentication no", "kbdinteractiveauthentication no"} <= set(words)
    shadow = host.check_output("cut -d: -f2 /etc/shadow").split()
    assert all(each[:1] in ("*", "!") for each in shadow)
