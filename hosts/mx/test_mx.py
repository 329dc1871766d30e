"""The mail server as other servers and its users see it.

Its users have the password of test_secrets().
"""

import base64
import hashlib
import http.client
import imaplib
import re
import smtplib
import ssl
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509 import load_der_x509_certificate
from testinfra.host import Host

from anemos.workstation.machine import Machine
from anemos.workstation.mail import STRANGER, Client, find, letter, wait
from anemos.workstation.outside import Outside, listening
from hosts import checks

HOST = "mx.example.org"
CERTIFICATE = f"/srv/acme/certs/{HOST}/fullchain.pem"
PASSWORD = "throw-away"  # noqa: S105
ALICE, BOB, CAROL = "alice@example.org", "bob@example.net", "carol@example.net"
NEWS = "news@example.org"
MARKED = "YJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
REJECTED = MARKED.replace("YJS", "XJS")
PORTS = checks.ports(__file__)
Trust = Callable[[str], ssl.SSLContext]


NAMES = [
    # Who asks the server seems to be 192.0.2.1, the gateway.
    "client.example.com. A 192.0.2.1",
    "1.2.0.192.in-addr.arpa. PTR client.example.com.",
    "example.com. MX 10 client.example.com.",
    "example.com. A 192.0.2.1",
    'strict.example.com. TXT "v=spf1 -all"',
    '_dmarc.strict.example.com. TXT "v=DMARC1; p=reject"',
    "strict.example.com. MX 10 client.example.com.",
    "strict.example.com. A 192.0.2.1",
]


@pytest.fixture(scope="module")
def names(host: Host, throwaway: Machine) -> Iterator[None]:
    """The server's resolver knows these names, and at once that there is no other."""
    host.check_output("unbound-control local_zone . static")
    for record in NAMES:
        host.check_output("unbound-control local_data %s %s %s", *record.split(maxsplit=2))
    yield
    for record in NAMES:
        host.check_output("unbound-control local_data_remove %s", record.split()[0])
    host.check_output("unbound-control local_zone_remove .")


@pytest.fixture(scope="module")
def guest(host: Host, machine: Machine, trust: Trust) -> Client:
    """It sends nothing."""
    # Until the end of the boot, Rspamd may be away, and Postfix asks everybody to try again.
    host.run("systemctl is-system-running --wait")
    return Client(machine, HOST, trust(CERTIFICATE), PASSWORD)


@pytest.fixture(scope="module")
def client(guest: Client, names: None) -> Client:
    return guest


# Delivery


@pytest.mark.parametrize(
    ("recipient", "user"),
    [
        (ALICE, ALICE),
        (BOB, BOB),
        ("ALICE@Example.ORG", ALICE),
        ("alice+tag@example.org", ALICE),
        ("postmaster@example.org", ALICE),
        ("abuse@example.org", ALICE),
        ("postmaster@example.net", BOB),
        ("abuse@example.net", BOB),
        ("anything-else@example.net", BOB),
        (CAROL, CAROL),
        (f"postmaster@{HOST}", ALICE),
    ],
)
def test_delivery(client: Client, recipient: str, user: str) -> None:
    subject = client.deliver(recipient)
    assert subject.encode() in client.wait_for(user, subject)


def test_alias_of_two_users(client: Client) -> None:
    subject = client.deliver("team@example.org")
    client.wait_for(ALICE, subject)
    client.wait_for(BOB, subject)


def test_large_message(client: Client) -> None:
    line = "x" * 75 + "\n"
    subject = client.deliver(ALICE, line * (10_000_000 // len(line)))
    assert len(client.wait_for(ALICE, subject)) > 10_000_000
    with client.imap(ALICE) as imap:
        imap.select("INBOX")
        for number in imap.search(None, "LARGER", "1000000")[1][0].split():
            imap.store(number.decode(), "+FLAGS", r"(\Deleted)")
        imap.expunge()


# What is refused


@pytest.mark.parametrize(
    "recipient",
    ["nobody@example.org", NEWS, f"alice@{HOST}", "someone@example.com", "a%b@example.org"],
)
def test_refused_recipient(client: Client, recipient: str) -> None:
    """Unknown users, an account that may only send, and relaying."""
    with client.smtp() as smtp:
        smtp.mail(STRANGER)
        code, text = smtp.rcpt(recipient)
    assert 550 <= code <= 554, text


@pytest.mark.parametrize("port", [465, 587])
def test_wrong_password(client: Client, port: int) -> None:
    with client.submission(ALICE, port):
        pass
    with client.smtp(587) as smtp, pytest.raises(smtplib.SMTPAuthenticationError):
        smtp.login(ALICE, "wrong")


def test_wrong_password_for_reading(client: Client) -> None:
    with (
        pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"),
        client.imap(ALICE, "wrong"),
    ):
        pass


def test_account_that_only_sends_has_no_mailbox(client: Client) -> None:
    with pytest.raises(imaplib.IMAP4.error), client.imap(NEWS) as imap:
        imap.select("INBOX")


def test_verify_command(client: Client) -> None:
    with client.smtp() as smtp:
        assert smtp.verify(ALICE)[0] == 502


@pytest.mark.parametrize("port", [25, 587])
def test_no_login_without_tls(client: Client, port: int) -> None:
    with client.smtp(port, starttls=False) as smtp:
        assert not smtp.has_extn("auth")
        code, _ = smtp.docmd(
            "AUTH PLAIN", base64.b64encode(f"\0{ALICE}\0{PASSWORD}".encode()).decode()
        )
    assert code >= 500


def test_no_login_for_other_servers(client: Client) -> None:
    with client.smtp(25) as smtp:
        assert not smtp.has_extn("auth")


def test_submission_needs_a_login(client: Client) -> None:
    with client.smtp(587) as smtp:
        smtp.mail(ALICE)
        assert smtp.rcpt(BOB)[0] >= 500


@pytest.mark.parametrize(
    ("user", "sender"),
    [(ALICE, BOB), (ALICE, STRANGER), (NEWS, ALICE), (CAROL, "invented@example.net")],
)
def test_forged_sender(client: Client, user: str, sender: str) -> None:
    with client.submission(user) as smtp:
        smtp.mail(sender)
        code, text = smtp.rcpt(BOB)
    assert code == 553, text


@pytest.mark.parametrize(
    ("user", "sender"), [(ALICE, "team@example.org"), (BOB, "team@example.org"), (NEWS, NEWS)]
)
def test_own_sender(client: Client, user: str, sender: str) -> None:
    with client.submission(user) as smtp:
        smtp.mail(sender)
        assert smtp.rcpt(BOB)[0] == 250
        smtp.rset()


def said(client: Client, user: str, header: bytes, sender: str = "") -> tuple[int, bytes]:
    """What USER is told who submits a message with HEADER."""
    number = uuid.uuid4().hex.encode()
    raw = header + b"\r\nTo: %b\r\nSubject: Budget %b\r\n\r\nText\r\n" % (BOB.encode(), number)
    with client.submission(user) as smtp:
        smtp.mail(sender or user)
        assert smtp.rcpt("bob+headers@example.net")[0] == 250
        return smtp.data(raw)


@pytest.mark.parametrize(
    "header",
    [
        b"From: bob@example.net",
        b"From: A <BOB@Example.NET>",
        b"FROM: someone@example.com",
        b"From:bob@example.net",
        b"From : bob@example.net",
        b"From: alice@example.org\r\nFrom : bob@example.net",
        # Several of them: mail programs show the first, the last, or all.
        b"From: alice@example.org, bob@example.net",
        b"From: bob@example.net, alice@example.org",
        b"From: alice@example.org\r\nFrom: bob@example.net",
        b"From: bob@example.net\r\nFrom: alice@example.org",
        b"From: alice@example.org\r\nFrom: alice@example.org",
        b"From: <bob@example.net> <alice@example.org>",
        b"From: <alice@example.org> <bob@example.net>",
        b"From: A,\r\n <alice@example.org>,\r\n\t<bob@example.net>",
        b"From: Board: alice@example.org, bob@example.net;",
        # The name is another's address.
        b'From: "bob@example.net" <alice@example.org>',
        b"From: bob@example.net <alice@example.org>",
        b"From: alice@example.org (bob@example.net)",
        b"From: =?utf-8?q?bob=40example=2Enet?= <alice@example.org>",
        b"From: =?utf-8?b?Ym9iQGV4YW1wbGUubmV0?= <alice@example.org>",
        b"From: =?utf-8?q?bob?=\r\n =?utf-8?q?=40example=2Enet?= <alice@example.org>",
        b"From: =?utf-16?b?AGIAbwBiAEAAZQB4AGEAbQBwAGwAZQAuAG4AZQB0?= <alice@example.org>",
        b"From: =?x-nobody-knows?q?bob=40example=2Enet?= <alice@example.org>",
        b"From: =?utf-8?q?=3D=3Futf-8=3Fq=3Fbob=3D40example=2Enet=3F=3D?= <alice@example.org>",
        b"From: bob\xe2\x80\x8b@example.net <alice@example.org>",
        # Not as one writes an address, but some program may read it.
        b'From: "bob"@example.net',
        b"From: bob(me)@example.net",
        b"From: bob @ example.net",
        b"From: bob@[192.0.2.25]",
        b"From: <@example.org:bob@example.net>",
        b"From: alice@example.org@example.net",
        b"From: alice@example.org\0, bob@example.net",
        b"From: bob@example.net\0alice@example.org",
        b"From: alice@example.org\r, bob@example.net",
        b"From: alice@example.org\nFrom: bob@example.net",
        b"From: alice@example.org <bob>",
        # None at all.
        b"X-Nothing: here",
        b"From:",
        b"From: Alice",
        b"From: undisclosed:;",
        # A name for herself that she does not own.
        b"From: alice@example.net",
        b"From: postmaster@example.net",
        b"From: news@example.org",
        b"From: anything-else@example.net",
        # Mail programs show these, too.
        b"From: alice@example.org\r\nSender: bob@example.net",
        b"From: bob@example.net\r\nSender: alice@example.org",
        b"From: alice@example.org\r\nResent-From: bob@example.net",
        b"From: alice@example.org\r\nResent-Sender: bob@example.net",
        b"From: bob@example.net\r\nResent-From: alice@example.org",
    ],
)
def test_forged_header(client: Client, header: bytes) -> None:
    """Alice sends under her own name in the envelope, and under another one in the header."""
    code, text = said(client, ALICE, header)
    assert code == 554, text
    assert b"your own addresses" in text


@pytest.mark.parametrize(
    ("user", "address"),
    [(NEWS, ALICE), (CAROL, "invented@example.net"), (BOB, ALICE), (BOB, CAROL)],
)
def test_forged_header_of_others(client: Client, user: str, address: str) -> None:
    assert said(client, user, f"From: {address}".encode())[0] == 554


def test_forged_header_after_a_good_message(client: Client) -> None:
    """The same connection, and on the other port."""
    for port in (465, 587):
        with client.submission(ALICE, port) as smtp:
            smtp.sendmail(ALICE, BOB, b"From: alice@example.org\r\n\r\nText\r\n")
            with pytest.raises(smtplib.SMTPDataError):
                smtp.sendmail(ALICE, BOB, b"From: bob@example.net\r\n\r\nText\r\n")


@pytest.mark.parametrize(
    ("user", "header"),
    [
        (ALICE, "From: alice@example.org"),
        (ALICE, "from: ALICE@Example.ORG"),
        (ALICE, 'From: "Person, A." <alice@example.org>'),
        (ALICE, "From: =?utf-8?q?Alice_Mei=C3=9Fner?= <alice@example.org>"),
        (ALICE, "From: =?iso-8859-1?q?Ren=E9e?=\r\n =?utf-8?b?w6k=?= <alice@example.org>"),
        (ALICE, 'From: "alice@example.org" <alice@example.org>'),
        (ALICE, "From: alice@example.org (at home)"),
        (ALICE, "From: alice+lists@example.org"),
        (ALICE, "From: Team <team@example.org>"),
        (ALICE, "From: team@example.org\r\nSender: alice@example.org"),
        (ALICE, "From: alice@example.org, team@example.org\r\nSender: alice@example.org"),
        (ALICE, "From: alice@example.org\r\nReply-To: bob@example.net"),
        (ALICE, "From: alice@example.org\r\nResent-From: team@example.org"),
        (BOB, "From: team@example.org"),
        (BOB, "From: anything-else@example.net"),
        (NEWS, "From: news@example.org"),
    ],
)
def test_own_header(client: Client, user: str, header: str) -> None:
    code, text = said(client, user, header.encode())
    assert code == 250, text


# Submission


@pytest.fixture(scope="module")
def submitted(client: Client) -> bytes:
    """What Bob gets when Alice writes."""
    message = letter(ALICE, BOB)
    with client.submission(ALICE, 465) as smtp:
        smtp.send_message(message)
    return client.wait_for(BOB, str(message["Subject"]))


def test_client_address_is_hidden(submitted: bytes, client: Client) -> None:
    header = submitted.partition(b"\r\n\r\n")[0]
    assert b"client.example.com" not in header
    with client.submission(ALICE) as smtp:
        address = smtp.sock.getsockname()[0] if smtp.sock else ""
    assert b"Received: from" not in header or address.encode() not in header


@pytest.mark.parametrize(("user", "recipient"), [(ALICE, BOB), (BOB, ALICE), (NEWS, BOB)])
def test_dkim(host: Host, client: Client, user: str, recipient: str) -> None:
    message = letter(user, recipient)
    with client.submission(user) as smtp:
        smtp.send_message(message)
    raw = client.wait_for(recipient, str(message["Subject"]))
    check_dkim(raw, user.partition("@")[2], zone(host))


def check_dkim(raw: bytes, domain: str, records: dict[tuple[str, str], list[str]]) -> None:
    """RFC 6376, with relaxed canonicalization of header and body, as Rspamd signs."""
    header, _, body = raw.partition(b"\r\n\r\n")
    fields = re.split(rb"\r\n(?![ \t])", header)
    named = [(field.partition(b":")[0].lower().strip(), field) for field in fields]
    signature = next(field for name, field in named if name == b"dkim-signature")
    value = re.sub(rb"\s+", b"", signature.partition(b":")[2]).decode()
    tags = dict(part.split("=", 1) for part in value.split(";") if part)
    assert (tags["d"], tags["c"]) == (domain, "relaxed/relaxed")

    lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in body.split(b"\r\n")]
    whole = b"\r\n".join(lines).rstrip(b"\r\n") + b"\r\n"
    assert tags["bh"] == base64.b64encode(hashlib.sha256(whole).digest()).decode()

    left = list(named)
    signed = b""
    for name in tags["h"].lower().split(":"):
        for at in reversed(range(len(left))):
            if left[at][0] == name.encode():
                signed += relaxed(left.pop(at)[1]) + b"\r\n"
                break
    signed += relaxed(re.sub(rb"(\bb=)[^;]+", rb"\1", signature))
    record = records["TXT", f"{tags['s']}._domainkey.{domain}."][0]
    key = load_der_public_key(base64.b64decode(record.partition("p=")[2]))
    assert isinstance(key, RSAPublicKey)
    key.verify(base64.b64decode(tags["b"]), signed, PKCS1v15(), SHA256())


def relaxed(field: bytes) -> bytes:
    name, _, value = field.partition(b":")
    return name.lower().strip() + b":" + re.sub(rb"\s+", b" ", value).strip()


@pytest.fixture
def unlimited(host: Host) -> Iterator[None]:
    """Afterwards, what was sent in this hour is forgotten, and the queue is empty."""
    yield
    host.check_output("postsuper -d ALL")
    forget = "for _, key in ipairs(redis.call('keys', 'RL*')) do redis.call('del', key) end"
    host.check_output("redis-cli -s /run/redis/redis.sock --raw eval %s 0", forget)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("last", [STRANGER, "postmaster@example.com"])
def test_rate_limit(client: Client, last: str) -> None:
    """For recipients: nobody gets around it by writing one message to many."""
    for count, expected in ((190, 250), (20, 451)):
        recipients = [f"someone+{number}@example.com" for number in range(1, count)]
        with client.submission(NEWS) as smtp:
            smtp.mail(NEWS)
            for recipient in [*recipients, last]:
                assert smtp.rcpt(recipient)[0] == 250
            code, text = smtp.data(letter(NEWS, STRANGER).as_bytes())
        assert code == expected, text


# The filter


def test_marked_spam_lands_in_junk(client: Client) -> None:
    subject = client.deliver(ALICE, MARKED)
    assert b"X-Spam: Yes" in client.wait_for(ALICE, subject, "Junk")


def test_worst_spam_is_rejected(client: Client) -> None:
    with pytest.raises(smtplib.SMTPDataError) as caught:
        client.deliver(ALICE, REJECTED)
    assert caught.value.smtp_code == 554


def test_forged_domain_is_rejected(client: Client) -> None:
    """Its owner says by DMARC that no such message is his."""
    with pytest.raises(smtplib.SMTPDataError) as caught:
        client.deliver(ALICE, sender="someone@strict.example.com")
    assert caught.value.smtp_code == 554


def learnt(host: Host, kind: str) -> int:
    said = host.check_output("rspamc --connect=127.0.0.1:11334 stat")
    return int(re.findall(rf"BAYES_{kind}.*learned: (\d+)", said)[0])


def has_learnt(host: Host, kind: str, before: int) -> bytes | None:
    return b"" if learnt(host, kind) > before else None


def test_moved_mail_is_learnt(host: Host, client: Client) -> None:
    """To Junk and back. The text is a new one: what was learnt is not learnt again."""
    text = " ".join(uuid.uuid4().hex[:8] for _ in range(60))
    subject = client.deliver(ALICE, text)
    client.wait_for(ALICE, subject)
    for kind, source, target in (("SPAM", "INBOX", "Junk"), ("HAM", "Junk", "INBOX")):
        before = learnt(host, kind)
        with client.imap(ALICE) as imap:
            imap.select(source)
            number = imap.uid("SEARCH", "SUBJECT", f'"{subject}"')[1][0].decode()
            assert imap.uid("MOVE", number, target)[0] == "OK"
        wait(partial(has_learnt, host, kind, before))


# Mailboxes


def test_standard_folders(client: Client) -> None:
    with client.imap(ALICE) as imap:
        said = b"\n".join(each for each in imap.list()[1] if isinstance(each, bytes))
    for name in (b"Drafts", b"Sent", b"Trash", b"Junk"):
        assert rb"\%b" % name in said


def test_idle(client: Client) -> None:
    """A client that waits hears of a new message without asking."""
    with client.imap(BOB) as imap:
        imap.select("INBOX")
        imap.send(b"idle1 IDLE\r\n")
        assert imap.readline().startswith(b"+")
        client.deliver(BOB)
        while b"EXISTS" not in imap.readline():
            pass
        imap.send(b"DONE\r\n")
        while b"idle1 OK" not in imap.readline():
            pass


def test_twenty_logins_at_once(client: Client) -> None:
    def login(_: int) -> str:
        with client.imap(ALICE) as imap:
            return imap.select("INBOX")[0]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(login, range(20))) == ["OK"] * 20


def empty(imap: imaplib.IMAP4) -> None:
    if imap.select("INBOX")[1] != [b"0"]:
        imap.store("1:*", "+FLAGS", r"(\Deleted)")
        imap.expunge()


def test_quota(client: Client) -> None:
    """Who is over quota gets no more; the sender hears of it at once."""
    block = "x" * 75 + "\n"
    message = letter(STRANGER, CAROL, block * 110_000).as_bytes().replace(b"\n", b"\r\n")
    with client.imap(CAROL) as imap:
        empty(imap)
        assert imap.getquotaroot("INBOX")[0] == "OK"
        answers = [imap.append("INBOX", "", "", message)[0] for _ in range(3)]
        assert answers == ["OK", "OK", "NO"]
        with client.smtp() as smtp:
            smtp.ehlo()
            # More than what is left, and the grace that Dovecot gives to a last message.
            smtp.mail(STRANGER, ["SIZE=16000000"])
            code, text = smtp.rcpt(CAROL)
        assert code == 552, text
        empty(imap)


class Sieve:
    """Enough of ManageSieve (RFC 5804) to install a script."""

    def __init__(self, client: Client) -> None:
        self.file = (sock := client.connect(4190)).makefile("rb")
        self.greeting = self.answer()
        sock.sendall(b"STARTTLS\r\n")
        self.answer()
        self.sock = client.tls.wrap_socket(sock, server_hostname=HOST)
        self.file = self.sock.makefile("rb")
        self.secure = self.answer()

    def answer(self) -> bytes:
        said = b""
        while not said.splitlines()[-1:] or said.splitlines()[-1][:2] not in (b"OK", b"NO", b"BY"):
            line = self.file.readline()
            assert line, said
            said += line
        return said

    def ask(self, text: str) -> bytes:
        self.sock.sendall(text.encode() + b"\r\n")
        return self.answer().splitlines()[-1]

    @contextmanager
    def script(self, user: str, text: str) -> Iterator[None]:
        """TEXT is USER's active script."""
        login = base64.b64encode(f"\0{user}\0{PASSWORD}".encode()).decode()
        assert self.ask(f'AUTHENTICATE "PLAIN" "{login}"').startswith(b"OK")
        assert self.ask('PUTSCRIPT "bad" {6+}\r\nnot it').startswith(b"NO")
        assert self.ask(f'PUTSCRIPT "test" {{{len(text)}+}}\r\n{text}').startswith(b"OK")
        assert self.ask('SETACTIVE "test"').startswith(b"OK")
        yield
        assert self.ask('SETACTIVE ""').startswith(b"OK")
        assert self.ask('DELETESCRIPT "test"').startswith(b"OK")


def test_sieve(client: Client) -> None:
    sieve = Sieve(client)
    assert b"PLAIN" not in sieve.greeting
    assert b"PLAIN" in sieve.secure
    script = 'require ["fileinto", "mailbox"];\r\nif header :contains "X-Topic" "sieve" '
    script += '{ fileinto :create "Topic"; }\r\n'
    message = letter(STRANGER, BOB)
    message["X-Topic"] = "sieve"
    with sieve.script(BOB, script):
        with client.smtp() as smtp:
            smtp.send_message(message)
        with client.imap(BOB) as imap:
            wait(lambda: b"" if imap.select("Topic")[0] == "OK" else None)
            wait(lambda: find(imap, str(message["Subject"]), "Topic"))


def test_sieve_answers(host: Host, client: Client) -> None:
    """An answer in absence goes out, and is signed."""
    # With a handle of its own: who has had this answer gets no second one.
    script = f'require "vacation";\r\nvacation :handle "{uuid.uuid4().hex}" "Away";\r\n'
    message = letter(ALICE, BOB)
    with Sieve(client).script(BOB, script):
        with client.submission(ALICE) as smtp:
            smtp.send_message(message)
        raw = client.wait_for(ALICE, f"Auto: {message['Subject']}")
    check_dkim(raw, "example.net", zone(host))


def test_sieve_sends_on(client: Client) -> None:
    """What a stranger wrote in Alice's name gets no signature of Alice's domain on its way."""
    with Sieve(client).script(BOB, 'redirect "alice+sent-on@example.org";\r\n'):
        subject = client.deliver(BOB, sender=ALICE)
        raw = client.wait_for(ALICE, subject)
    assert b"X-Sieve-Redirected-From" in raw
    assert b"DKIM-Signature" not in raw


# TLS


@pytest.mark.safe
@pytest.mark.parametrize("port", [465, 993, 443])
def test_tls(guest: Client, trust: Trust, port: int) -> None:
    checks.check_tls(trust(CERTIFICATE), lambda tls: guest.secure(port, tls=tls))


@pytest.fixture
def renewed(host: Host, client: Client, trust: Trust) -> Iterator[Client]:
    """Who trusts the new certificate and no older one. dehydrated failed after it was there."""
    with checks.renewed(host, HOST, "nginx postfix dovecot"):
        yield replace(client, tls=trust(CERTIFICATE))


def shown(client: Client, port: int) -> bytes | None:
    """The certificate, DER; none when the client does not trust it."""
    with suppress(ssl.SSLCertVerificationError):
        if port in (25, 587):
            with client.smtp(port) as smtp:
                assert isinstance(smtp.sock, ssl.SSLSocket)
                return smtp.sock.getpeercert(binary_form=True)
        with Sieve(client).sock if port == 4190 else client.secure(port) as sock:
            return sock.getpeercert(binary_form=True)
    return None


def test_new_certificate_is_used(renewed: Client) -> None:
    for port in (25, 443, 465, 587, 993, 4190):
        wait(partial(shown, renewed, port))


# Web


def get(client: Client, name: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPSConnection(name)
    connection.sock = client.secure(443, name)
    connection.request("GET", path, headers={"Host": name})
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.mark.safe
@pytest.mark.parametrize("domain", ["example.org", "example.net"])
def test_mta_sts(guest: Client, domain: str) -> None:
    status, text = get(guest, f"mta-sts.{domain}", "/.well-known/mta-sts.txt")
    assert status == 200
    assert text.splitlines()[:3] == ["version: STSv1", "mode: enforce", f"mx: {HOST}"]


@pytest.mark.safe
@pytest.mark.parametrize("domain", ["example.org", "example.net"])
def test_autoconfig(guest: Client, domain: str) -> None:
    status, text = get(guest, f"autoconfig.{domain}", "/mail/config-v1.1.xml")
    assert status == 200
    assert f"<domain>{domain}</domain>" in text
    assert f"<hostname>{HOST}</hostname>" in text


# DNS


def zone(host: Host) -> dict[tuple[str, str], list[str]]:
    """/root/dns.zone: type and name -> what the records say."""
    records: dict[tuple[str, str], list[str]] = {}
    for line in host.file("/root/dns.zone").content_string.splitlines():
        if line.startswith(";"):
            continue
        name, kind, value = re.fullmatch(r"(\S+\.) IN ([A-Z]+) (.+)", line).groups()  # type: ignore[union-attr]
        if kind == "TXT":
            strings = re.findall(r'"([^"]*)"', value)
            assert all(len(each) < 256 for each in strings)
            value = "".join(strings)
        records.setdefault((kind, name), []).append(value)
    return records


@pytest.mark.safe
@pytest.mark.parametrize("domain", ["example.org", "example.net"])
def test_records_of_a_domain(host: Host, domain: str) -> None:
    records = zone(host)
    assert records["MX", f"{domain}."] == [f"10 {HOST}."]
    assert records["TXT", f"{domain}."] == ["v=spf1 mx -all"]
    assert records["TXT", f"_dmarc.{domain}."][0].startswith("v=DMARC1; p=quarantine")
    assert records["TXT", f"_mta-sts.{domain}."][0].startswith("v=STSv1; id=")
    assert records["TXT", f"_smtp._tls.{domain}."][0].startswith("v=TLSRPTv1; rua=")
    assert records["CAA", f"{domain}."] == ['0 issue "letsencrypt.org"']
    for name in ("mta-sts", "autoconfig"):
        assert records["CNAME", f"{name}.{domain}."] == [f"{HOST}."]


@pytest.mark.safe
def test_records_of_the_server(host: Host) -> None:
    records = zone(host)
    here = host.check_output("ip -brief address show dev eth0")
    assert records["A", f"{HOST}."][0] in here
    assert records["AAAA", f"{HOST}."][0] in here
    assert records["TXT", f"{HOST}."] == ["v=spf1 a -all"]


@pytest.mark.parametrize("port", [25, 465, 587, 993])
def test_tlsa(host: Host, client: Client, port: int) -> None:
    """The record is of the key that the server shows."""
    key = load_der_x509_certificate(shown(client, port) or b"").public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    expected = f"3 1 1 {hashlib.sha256(spki).hexdigest()}"
    assert zone(host)["TLSA", f"_{port}._tcp.{HOST}."] == [expected]


# The machine


@pytest.mark.safe
def test_what_listens(host: Host) -> None:
    """Nothing beyond loopback but what the firewall opens."""
    assert listening(host) == {("tcp", port) for port in PORTS}


@pytest.mark.safe
def test_firewall(host: Host) -> None:
    rules = host.check_output("nft list chain inet filter input")
    assert "policy drop" in rules
    (opened,) = [line for line in rules.splitlines() if "dport" in line]
    assert {int(port) for port in re.findall(r"\d+", opened)} == PORTS


def test_ports_from_outside(outside: Outside) -> None:
    checks.check_ports(outside, PORTS)


@pytest.mark.safe
def test_no_password_opens_the_server(host: Host) -> None:
    checks.check_logins(host)


@pytest.mark.safe
@pytest.mark.parametrize(
    ("path", "user", "number"),
    [
        ("/srv/mail", "vmail", 2000),
        ("/srv/postfix/active", "postfix", 2001),
        ("/srv/redis", "redis", 2002),
        ("/srv/rspamd", "_rspamd", 2003),
    ],
)
def test_owners_on_the_kept_disk(host: Host, path: str, user: str, number: int) -> None:
    file = host.file(path)
    assert (file.user, file.uid) == (user, number)


@pytest.mark.safe
def test_state_is_on_the_kept_disk(host: Host) -> None:
    assert host.check_output("postconf -h queue_directory") == "/srv/postfix"
    for name in ("redis/appendonlydir", "rspamd/rspamd.rrd"):
        assert host.file(f"/srv/{name}").exists


@pytest.mark.safe
def test_resolver_validates(host: Host) -> None:
    assert "validator" in host.check_output("unbound-checkconf -o module-config")
    assert host.check_output("grep -c ^nameserver /etc/resolv.conf") == "1"


# What lasts from one deployment to the next: `inv test --redeploy` runs these twice


def test_mail_stays(client: Client, notes: dict[str, str]) -> None:
    """Byte for byte; clients need not read the mailbox anew (RFC 9051, 2.3.1.1).

    Not Carol's: another test empties her mailbox.
    """
    if "subject" not in notes:
        notes["subject"] = client.deliver(BOB)
    subject = notes["subject"]
    digest = hashlib.sha256(client.wait_for(BOB, subject)).hexdigest()
    assert notes.setdefault("message", digest) == digest
    with client.imap(BOB) as imap:
        imap.select("INBOX")
        validity = str(imap.response("UIDVALIDITY")[1][0])
    assert notes.setdefault("validity", validity) == validity


def test_names_and_certificates_stay(host: Host, notes: dict[str, str]) -> None:
    """DNS needs no change: selectors, keys and TLSA records are the same."""
    zone = host.file("/root/dns.zone").content_string
    assert notes.setdefault("zone", zone) == zone
    account = host.check_output("find /srv/acme -type f | sort | xargs sha256sum")
    assert notes.setdefault("account", account) == account


def test_what_was_learnt_stays(host: Host, notes: dict[str, str]) -> None:
    """The message that was moved to Junk and back is ham in the end, and no spam any more."""
    known = learnt(host, "HAM")
    assert known >= int(notes.setdefault("learnt", str(known))) > 0


EXPECTED = (
    *checks.EXPECTED,
    "SIGHUP received - reloading configuration",
    # The tests' clients: an old TLS, an unknown certificate, a wrong password, no mailbox.
    "TLS library problem: .*(unsupported protocol|alert unknown ca)",
    "SASL (PLAIN|LOGIN) authentication failed: .*sasl_username=alice@example.org",
    "not found from (any )?userdb",
    # The resolver knows nothing but the names of the tests.
    "dnssec_probe",
    "DNSSEC validation may be unavailable",
    # The tests empty the queue while Postfix works on it.
    "open active [0-9A-F]+: No such file or directory",
    # A slow machine: after a reload, Dovecot's processes take their time to end. So does its clock.
    "Processes aren't dying after reload",
    "Sent SIGTERM to [0-9]+ .*processes",
    "Killed with signal 15 ",
    "Time moved forward by",
)


def test_journal(warnings: Callable[[Sequence[str]], list[str]]) -> None:
    """No warning but the expected ones, and the kernel's: these are about the emulated machine."""
    found = warnings(EXPECTED)
    assert not found, "\n".join(found)
