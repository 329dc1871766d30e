"""The one module that speaks SSH.

A server is met only under its pinned host key, and no configuration of the user (ssh_config,
fabric.yaml, known_hosts) has a say here, except on the way over jump hosts (jump.py). The login is
root's, or that of a user whom sudo makes root.

Commands and files go through channels of our own instead of fabric's `run` and `put`: `run` leaves
standard input open or feeds it 100 bytes a second, `put` needs an sftp-server and makes a file
before it narrows its mode. A channel is 8-bit clean and needs nothing but sh on the other side.
"""

import logging
import os
import select
import socket
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import chain
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import BinaryIO, NamedTuple

import fabric
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko import (
    AuthenticationException,
    BadHostKeyException,
    Channel,
    PKey,
    RejectPolicy,
    SSHException,
    Transport,
    UnknownKeyType,
)
from paramiko.ssh_exception import IncompatiblePeer

from anemos.log import BAD_INPUT, FAILED, Failure, Sink, die, info, reached
from anemos.run import Argv, CommandFailed, quote, tail
from anemos.workstation import jump, sudo

ANSWER_S = 10  # for the TCP handshake, then for the first line of the server
HANDSHAKE_S = 30  # for each of key exchange, login, opening a channel: emulated machines are slow
SILENCE_S = 30  # a peer that acknowledges nothing for so long is dead
STILL_S = 20  # a file that takes longer than this tells how far it is
CHUNK = 1 << 18
WINDOW = 1 << 21  # paramiko's receive window: no channel ever buffers more than this

# The command's output stands between two marks: the login shell's own files (.bashrc) may print
# before and after it, also the command itself, so that a mark comes in two halves, $1 and $2. Its
# status, death by a signal included, is kept apart from a lost connection: paramiko knows no
# exit-signal (RFC 4254, 6.10), it tells both as -1.
FRAMED = (
    'mark=$1$2; shift 2; printf %s "$mark"; {}"$@"{}; status=$?; printf %s "$mark"; exit $status'
)
MERGED = " 2>&1"  # in order; sshd would read two pipes in any order
# Drops what comes before the header, see sudo.py: read(1p) takes no byte of what follows a line.
HEADED = 'while read -r line && [ "$line" != "$mark" ]; do :; done; '

# Parameters: path, mode, size. The file begins empty with mode 0600, never wider, and gets its
# final mode before its first byte; `set -C` is O_EXCL: no link of somebody else is followed. Out of
# memory, the kernel ends this before anything that serves (proc_pid_oom_score_adj(5)).
RECEIVE = """
echo 1000 2>/dev/null >/proc/self/oom_score_adj
umask 077; set -C; part="$1.$$.part"
test ! -d "$1" && { chmod "$2" "$part" && cat; } >"$part" || { rm -f "$part"; exit 1; }
got=$(wc -c <"$part")
test "$got" -eq "$3" && mv -f "$part" "$1" && exit
rm -f "$part"; echo "$got of $3 bytes arrived" >&2; exit 1
"""

# Without a handler, Python prints the tracebacks of paramiko's threads. Errors are reported here.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class Unreachable(Failure):
    """Nobody answers there (yet), or the other side hung up before the login was done."""


class WrongHostKey(Failure):
    """Somebody answers, but does not hold the pinned key. Never worth a retry."""


class LoginRefused(Failure):
    """The right server answers and does not accept the user or any key."""


class ConnectionLost(Failure):
    """The connection ended while a command ran: what became of the command is unknown."""


class NotRun(Failure):
    """The login shell, or a forced command, said something, but did not run the command."""


class TimedOut(Failure):
    """A command did not end in time; the server may have gone without a word."""


# What tells most about a machine with several logins comes first.
TELLING = [WrongHostKey, LoginRefused, Unreachable]
_last: "Endpoint | None" = None  # the login that was let in last


@dataclass(frozen=True)
class Answer:
    """STATUS: as a shell tells it. OUT, ERR: what was said on standard output and error."""

    status: int
    out: bytes
    err: bytes


class Login(NamedTuple):
    """Another way in, under the same key. SUDO: it takes that to be root."""

    address: str
    port: int
    user: str
    sudo: bool


@dataclass(frozen=True)
class Endpoint:
    address: str  # IP address or DNS name, nothing else in it
    port: int
    host_key: str  # "TYPE BASE64", as in a host_key.pub; a comment may follow
    identity: Path | None  # private key file; None: the agent's keys and the default ones
    user: str = "root"
    sudo: bool = False
    jumps: tuple[str, ...] = ()  # hosts on the way, see jump.py
    also: tuple[Login, ...] = ()  # of the machine's other systems, the new one's last

    @property
    def logins(self) -> list["Endpoint"]:
        """Each way in by itself, to the new system last."""
        others = [replace(self, **each._asdict(), also=()) for each in self.also]
        return [replace(self, also=()), *others]

    @property
    def known_as(self) -> str:
        """Its name in known_hosts, to every client (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user}@{address}:{self.port}"


class Remote(fabric.Connection):  # type: ignore[misc] # fabric has no types
    """A connection that talks only to the holder of ENDPOINT's host key. Made by `connect`."""

    def __init__(self, endpoint: Endpoint) -> None:
        identity = {"pkey": load_identity(endpoint.identity)} if endpoint.identity else {}
        super().__init__(
            endpoint.address,
            user=endpoint.user,
            port=endpoint.port,
            config=fabric.Config(lazy=True),  # lazy: reads no file
            gateway=False,
            forward_agent=False,
            connect_timeout=HANDSHAKE_S,
            connect_kwargs={
                "allow_agent": not identity,
                "look_for_keys": not identity,
                "banner_timeout": HANDSHAKE_S if endpoint.jumps else ANSWER_S,
                "auth_timeout": HANDSHAKE_S,
                **identity,
            },
        )
        self._set(endpoint=endpoint)  # a plain assignment would go into the configuration
        key = pinned_key(endpoint)
        self.client.set_missing_host_key_policy(RejectPolicy())
        self.client.get_host_keys().add(endpoint.known_as, key.get_name(), key)

    @property
    def login_key(self) -> str:
        """The public key, "TYPE BASE64", that the server let us in by."""
        key = self.transport.auth_handler.private_key
        return f"{key.get_name()} {b64encode(key.asbytes()).decode()}"

    def derive_shorthand(self, host_string: str) -> dict[str, str | None]:
        """Take no address apart: user and port come from the endpoint alone."""
        return {"host": host_string, "user": None, "port": None}

    def close(self) -> None:
        """Close also what fabric's `close` leaves open: a connection that failed half-way."""
        super().close()
        self.client.close()

    def sh(
        self,
        argv: Argv,
        *,
        data: bytes = b"",
        file: Path | None = None,
        timeout: float = 60,
        log: Sink | None = None,
        shown: Argv | None = None,
    ) -> str:
        """Run ARGV as root with DATA, and then FILE, as standard input, return its standard output,
        decoded.

        With LOG, every line of its standard output and error goes there as it comes, and both are
        returned. TIMEOUT: seconds until its end; it is not killed then, only left alone. ARGV is
        visible in the server's process list, and its words have at most 128 KiB (execve(2)): no
        secret belongs there, nor its digest, nor what the operator writes. SHOWN stands for it in
        messages.
        Raises CommandFailed, ConnectionLost, TimedOut, Failure when FILE cannot be read, all with
        status FAILED; NotRun.
        """
        with content(file or b"", f"{file}") as (_, rest):
            return self._exchange(argv, shown or argv, chain((data,), rest), timeout, log)

    def put(self, source: bytes | Path, path: str, *, mode: int, timeout: float = 60) -> int:
        """Make the file PATH (absolute, no directory) out of SOURCE, return its size in bytes.

        PATH appears, or is replaced, when the server has counted all bytes, by rename(2). TIMEOUT:
        seconds without progress. Raises as `sh` does.
        """
        name = path if isinstance(source, bytes) else source  # bytes may be a secret
        with content(source, f"{name}") as (size, data):
            receive = ["sh", "-c", RECEIVE, "sh", path, f"{mode:04o}", str(size)]
            self._exchange(receive, ["put", path], data, timeout, log=None)
        return size

    def _exchange(
        self, argv: Argv, shown: Argv, data: Iterable[bytes], timeout: float, log: Sink | None
    ) -> str:
        said = self.answer(argv, shown=shown, data=data, timeout=timeout, log=log)
        out, status = said.out.decode(errors="replace"), said.status
        if status:
            ended = 128 - status if 128 < status <= 192 else status
            words = [f"{self.endpoint}:", *shown]
            raise CommandFailed(words, ended, out + said.err.decode(errors="replace"))
        return out

    def answer(
        self,
        argv: Argv,
        *,
        shown: Argv | None = None,
        data: Iterable[bytes] = (),
        timeout: float = 60,
        log: Sink | None = None,
    ) -> Answer:
        """As `sh`, for a command that may fail: no CommandFailed. DATA comes in parts."""
        name = quote([f"{self.endpoint}:", *(shown or argv)])
        lost = ConnectionLost(f"{name}: the connection was lost", status=FAILED)
        halves, prompt = (f"<{token_hex(8)}", f"{token_hex(8)}>"), (token_hex(8), token_hex(8))
        mark, elevate = "".join(halves).encode(), self.endpoint.sudo
        script = FRAMED.format(HEADED if elevate else "", MERGED if log else "")
        framed = ["sh", "-c", script, "sh", *halves, *(os.fspath(word) for word in argv)]
        try:
            # Not create_session(): it would dial again by itself after a loss.
            channel = self.transport.open_session(timeout=HANDSHAKE_S)
            channel.exec_command(quote(sudo.elevated(framed, prompt) if elevate else framed))
        except (SSHException, EOFError, OSError):
            raise lost from None
        begun = bytearray(), bytearray()
        with channel:
            try:
                if elevate:
                    begun = sudo.admit(channel, mark, prompt, str(self.endpoint), timeout)
                    data = chain([mark + b"\n"], data) if mark in begun[0] else ()
                feed(channel, data, timeout)
                said = listen(channel, timeout, mark, log, *begun)
            except TimeoutError as error:
                end = f"{name}: no end after {timeout:.0f} s\n{tail(str(error))}".rstrip()
                raise TimedOut(end, status=FAILED) from None
            except OSError:  # while sudo was answered
                raise lost from None
        if said.status == -1:
            raise lost
        if mark not in said.out:
            raise not_run(self.endpoint, name, (said.out + said.err).decode(errors="replace"))
        return replace(said, out=between(said.out, mark))


def between(out: bytes, mark: bytes) -> bytes:
    """What of OUT the command has said; one that was killed has set no second MARK."""
    said = out.partition(mark)[2]
    return said.rpartition(mark)[0] if mark in said else said


def not_run(endpoint: Endpoint, name: str, said: str) -> NotRun:
    forced = (
        "root's authorized_keys may have a forced command there (command=...), as images for"
        " clouds do: it has to go, or user in host.toml names who may log in; or the login shell"
        " does not run commands"
    )
    return NotRun(
        f"{name}: was not run; this was said instead:\n{tail(said)}".rstrip(),
        hint=sudo.HINT.format(endpoint.user) if endpoint.sudo else forced,
        status=BAD_INPUT,
    )


def pinned_key(endpoint: Endpoint) -> PKey:
    try:
        kind, blob = endpoint.host_key.split()[:2]
        key = PKey.from_type_string(kind, b64decode(blob))
        if key.asbytes() == b64decode(blob):  # else cut off: paramiko fills up with zeros
            return key
    except (ValueError, SSHException, UnknownKeyType):
        pass
    die(f"{endpoint}: the pinned host key is not a public key of a known type")


def presented_key(endpoint: Endpoint) -> str:
    """The host key, "TYPE BASE64", of whoever answers there. Proves nothing yet. Raises Failure."""
    sock = None
    try:
        sock = dial(endpoint)
        with closing(Transport(sock)) as transport:
            transport.start_client(timeout=HANDSHAKE_S)
            key = transport.get_remote_server_key()
    except (OSError, EOFError, SSHException, UnicodeError, OverflowError) as error:
        raise on_the_way(sock, translate(endpoint, error, BAD_INPUT)) from None
    return f"{key.get_name()} {key.get_base64()}"


def fingerprint(public: str) -> str:
    """A public key's fingerprint as ssh-keygen(1) shows it: "SHA256:..."."""
    digest = sha256(b64decode(public.split()[1])).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


def load_identity(path: Path) -> PKey:
    """Load a private key. It is loaded here because paramiko tries a file as every type of key and
    reports the last attempt."""
    try:
        return PKey.from_path(path)
    except OSError as error:
        die(f"{path}: {error.strerror}")
    except TypeError:
        die(f"{path} is locked by a passphrase", hint="ssh-add it, and name no identity")
    except (ValueError, UnsupportedAlgorithm, SSHException, UnknownKeyType):
        die(f"{path} is not a private key of a known type")


def dial(endpoint: Endpoint) -> socket.socket:
    """Connect to the first address that answers; paramiko gives up where IPv6 has no route."""
    if endpoint.jumps:
        return jump.Tunnel(endpoint.jumps, endpoint.address, endpoint.port)
    sock = socket.create_connection((endpoint.address, endpoint.port), ANSWER_S)
    # paramiko's own keepalive expects no answer. The kernel's does, and reports data that nobody
    # acknowledges (tcp(7)); without, a dead peer is noticed after a quarter of an hour.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, SILENCE_S // 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, SILENCE_S // 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)
    return sock


@contextmanager
def content(source: bytes | Path, name: str) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The size of SOURCE in bytes, and its bytes. NAME stands for it in messages."""
    with readable(name):
        stream = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        stream.read(1)  # nothing of an empty file would be missed on the other side
        stream.seek(0)
    with stream:
        yield size, chunks(stream, size, name)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """What cannot be read inside is a Failure: an OSError would be the connection's."""
    try:
        yield
    except OSError as error:
        die(f"{name}: {error.strerror}", status=FAILED)


def chunks(stream: BinaryIO, size: int, path: str) -> Iterator[bytes]:
    """The bytes of STREAM; tell how far it is."""
    spoke = monotonic()
    while True:
        with readable(path):
            chunk = stream.read(CHUNK)
        if not chunk:
            return
        yield chunk
        if size > CHUNK:  # what is small is no work of its own
            reached(stream.tell(), size)
        if monotonic() - spoke >= STILL_S:
            spoke = monotonic()
            info(f"still sending {path}: {stream.tell() >> 20} of {size >> 20} MiB")


def feed(channel: Channel, data: Iterable[bytes], timeout: float) -> None:
    """Give DATA to the command as its standard input, then end of file."""
    channel.settimeout(timeout)
    for chunk in data:
        try:
            channel.sendall(chunk)
        except TimeoutError:
            raise
        except OSError:
            return  # it ended before it took everything: its status and output say why
    channel.shutdown_write()


def listen(
    channel: Channel,
    timeout: float,
    mark: bytes,
    log: Sink | None,
    out: bytearray,
    err: bytearray,
) -> Answer:
    """Wait for the command's end: its status is -1 when the connection was lost. Standard output
    and error are read in turns: they share one window. OUT, ERR: what was said so far."""
    deadline = monotonic() + timeout
    told, ended = 0, False
    while not ended:
        left = deadline - monotonic()
        if left <= 0 or not select.select([channel], [], [], left)[0]:
            raise TimeoutError
        ended = channel.eof_received or channel.closed  # what came before is in the buffers by now
        if channel.recv_stderr_ready():
            err += channel.recv_stderr(WINDOW)
        if channel.recv_ready():
            out += channel.recv(WINDOW)
        told = tell(out, told, ended, mark, log)
    if not channel.status_event.wait(max(0, deadline - monotonic())):
        raise TimeoutError
    return Answer(channel.exit_status, bytes(out), bytes(err))


def tell(out: bytearray, told: int, ended: bool, mark: bytes, log: Sink | None) -> int:
    """Pass on the complete lines from TOLD on that are between MARKs, return where the next one
    begins."""
    if log is None or mark not in out:
        return told
    told = told or out.find(mark) + len(mark)
    end = out.find(mark, told)
    if end < 0:
        end = len(out) if ended else out.rfind(b"\n", told) + 1
    if end <= told:
        return told
    for line in out[told:end].decode(errors="replace").splitlines():
        log(line)
    return end


@contextmanager
def connect(endpoint: Endpoint, *, status: int = BAD_INPUT) -> Iterator[Remote]:
    """A connection by one of ENDPOINT's logins, closed at the end.

    Raises Unreachable, WrongHostKey, LoginRefused, or Failure for an unusable key of ours; all with
    STATUS but the last.
    """
    remote = opened(endpoint, status)
    try:
        yield remote
    finally:
        remote.close()


def opened(endpoint: Endpoint, status: int) -> Remote:
    """By the login that was let in last, or else the first one that is. Raises as `connect` does,
    what tells most."""
    global _last  # noqa: PLW0603 (a wait would be refused again and again)
    failures: list[Failure] = []
    silent: set[tuple[str, int]] = set()
    for each in sorted(dict.fromkeys(endpoint.logins), key=lambda each: each != _last):
        if (each.address, each.port) in silent:
            continue
        try:
            remote = logged_in(each, status)
        except (Unreachable, WrongHostKey, LoginRefused) as failure:
            failures.append(failure)
            if not isinstance(failure, LoginRefused):
                silent.add((each.address, each.port))
            continue
        _last = each
        return remote
    raise min(failures, key=lambda each: TELLING.index(type(each)))


def logged_in(endpoint: Endpoint, status: int) -> Remote:
    remote, sock = Remote(endpoint), None
    try:
        sock = remote.connect_kwargs["sock"] = dial(endpoint)
        remote.open()
    except (OSError, EOFError, SSHException, UnicodeError, OverflowError) as error:
        remote.close()
        raise on_the_way(sock, translate(endpoint, error, status)) from None
    except BaseException:
        remote.close()
        raise
    return remote


def on_the_way(sock: socket.socket | None, failure: Failure) -> Failure:
    """FAILURE, with what the jump hosts said if it is theirs."""
    if not isinstance(sock, jump.Tunnel) or not isinstance(failure, Unreachable):
        return failure
    hint = (
        "jump hosts have to be in your known_hosts, and let you in by a key of your agent or ~/.ssh"
    )
    return Unreachable(
        f"{failure.message}\n{tail(sock.words)}".rstrip(), hint=hint, status=failure.status
    )


def translate(endpoint: Endpoint, error: Exception, status: int) -> Failure:
    """Say in our words why `Remote.open` failed."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, BadHostKeyException):
        pinned, presented = (
            f"{key.get_name()} {key.fingerprint}" for key in (error.expected_key, error.key)
        )
        return WrongHostKey(
            f"{endpoint}: wrong host key\n  pinned:    {pinned}\n  presented: {presented}",
            hint="another machine answers there, or the server was installed anew: compare the"
            " fingerprint at its console before you change the pinned key",
            status=status,
        )
    if isinstance(error, IncompatiblePeer):
        return Failure(f"{endpoint}: no SSH algorithm in common: {reason}", status=status)
    # A server that hangs up during the login may be going down, or has seen too many keys: paramiko
    # tells both in these words. The former is worth another try.
    hung_up = any(words in reason for words in ("saw EOF", "timeout", "No existing session"))
    if not hung_up and (isinstance(error, AuthenticationException) or "No auth" in reason):
        return LoginRefused(
            f"{endpoint}: login refused: {reason}",
            hint=f"is the public key of {endpoint.identity or 'the agent (ssh-add -l)'} in the"
            f" authorized_keys of {endpoint.user}, and does sshd_config let {endpoint.user} in"
            f" ({'AllowUsers' if endpoint.sudo else 'PermitRootLogin prohibit-password'})?",
            status=status,
        )
    hint = ""
    if hung_up and not endpoint.identity:
        hint = "too many keys in the agent? name one as identity"
    if isinstance(error, socket.gaierror):
        hint = f'an entry of ~/.ssh/config? host.toml names it: ssh_config = "{endpoint.address}"'
    return Unreachable(f"{endpoint}: no SSH connection: {reason}", hint=hint, status=status)
