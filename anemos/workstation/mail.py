"""For a host's own tests: a mail client.

@pytest.fixture(scope="module")
def client(machine, trust):
    return Client(machine, "mx.example.org", trust("/etc/ssl/mx.crt"), "throw-away")

def test_delivery(client):
    subject = client.deliver("alice@example.org")
    assert b"Budget" in client.wait_for("alice@example.org", subject)
"""

import imaplib
import smtplib
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage

from anemos.workstation.machine import Machine

STRANGER = "someone@example.com"
WORDS = "The committee has approved the budget of the library and thanks all its readers."
PATIENCE = 120  # seconds


@dataclass(frozen=True)
class Client:
    """Of the mail server NAME on MACHINE: it checks the certificate against that. All users have
    the same PASSWORD."""

    machine: Machine
    name: str
    tls: ssl.SSLContext
    password: str

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection((self.machine.address, self.machine.port(port)), 60)

    def secure(self, port: int, name: str = "", tls: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        sock = self.connect(port)
        return (tls or self.tls).wrap_socket(sock, server_hostname=name or self.name)

    @contextmanager
    def smtp(self, port: int = 25, *, starttls: bool = True) -> Iterator[smtplib.SMTP]:
        """As another mail server, or on 587 as a user who has not logged in."""
        client = smtplib.SMTP(local_hostname="client.example.com", timeout=PATIENCE)
        client.connect(self.machine.address, self.machine.port(port))
        client._host = self.name  # type: ignore[attr-defined]
        client.ehlo()
        if starttls:
            client.starttls(context=self.tls)
            client.ehlo()
        with client:
            yield client

    @contextmanager
    def submission(self, user: str, port: int = 587) -> Iterator[smtplib.SMTP]:
        if port == 587:
            with self.smtp(port) as client:
                client.login(user, self.password)
                yield client
            return
        implicit = smtplib.SMTP(local_hostname="client.example.com", timeout=PATIENCE)
        implicit.sock = self.secure(port)
        implicit.file = implicit.sock.makefile("rb")
        assert implicit.getreply()[0] == 220
        with implicit:
            implicit.ehlo()
            implicit.login(user, self.password)
            yield implicit

    @contextmanager
    def imap(self, user: str, password: str = "") -> Iterator[imaplib.IMAP4]:
        outer = self

        class Imap(imaplib.IMAP4):
            def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
                self.sock = outer.secure(993)
                self.sock.settimeout(PATIENCE)
                # imaplib reads the answers from it (its attribute has another name since 3.14)
                self.file = self._file = self.sock.makefile("rb")

        client = Imap()
        client.login(user, password or self.password)
        try:
            yield client
        finally:
            client.logout()

    def deliver(self, recipient: str, text: str = WORDS, sender: str = STRANGER) -> str:
        """Send a message from outside, wait until the server has taken it; its subject."""
        message = letter(sender, recipient, text)
        with self.smtp() as client:
            client.send_message(message, sender, [recipient])
        return str(message["Subject"])

    def wait_for(self, user: str, subject: str, folder: str = "INBOX") -> bytes:
        """The message as it lies in the mailbox."""
        with self.imap(user) as client:
            return wait(lambda: find(client, subject, folder))


def letter(sender: str, recipient: str, text: str = WORDS) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = f"A Person <{sender}>", recipient
    message["Subject"] = f"Budget {uuid.uuid4().hex}"
    message["Date"] = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
    message["Message-ID"] = f"<{uuid.uuid4().hex}@{sender.partition('@')[2]}>"
    message.set_content(f"{text}\n")
    return message


def wait(condition: Callable[[], bytes | None]) -> bytes:
    end = time.monotonic() + PATIENCE
    while (found := condition()) is None:
        assert time.monotonic() < end, "the message did not arrive"
        time.sleep(1)
    return found


def find(client: imaplib.IMAP4, subject: str, folder: str = "INBOX") -> bytes | None:
    assert client.select(folder)[0] == "OK"
    numbers = client.search(None, "SUBJECT", f'"{subject}"')[1][0].split()
    if not numbers:
        return None
    assert len(numbers) == 1, "it arrived more than once"
    part = client.fetch(numbers[0].decode(), "(BODY.PEEK[])")[1][0]
    assert isinstance(part, tuple)
    return part[1]
