"""Root's rights for an ordinary user: sudo(8) on the server, sudo-rs as well.

Password and data go through the same standard input, and must never be taken for each other. So
sudo does not go by what it remembers (-k), and gets the password only when it asks: its question is
a word that nobody else knows. Data follow only when the command runs as root and has said so,
behind a header: the command drops what comes before that.
"""

import getpass
import json
import os
import re
import select
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from anemos import log
from anemos.log import die

# $1 and $2: what sudo asks with, in two halves, as a login shell may print the command. The rest is
# the command. sudo takes all of the environment away but this.
ELEVATE = (
    "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; SUDO_PROMPT=$1$2; export PATH SUDO_PROMPT;"
    ' shift 2; exec sudo -k -S -- env SSH_CONNECTION="$SSH_CONNECTION" "$@"'
)
# sudo-rs did not always know SUDO_PROMPT.
OTHER_PROMPT = rb"\[sudo: authenticate\]"
HINT = (
    "sudo has to let {} run all commands, without a terminal (no requiretty), and may ask for a"
    " password only; doas does not do"
)


class Channel(Protocol):
    """What is needed of ssh.py's."""

    closed: bool
    eof_received: bool

    def fileno(self) -> int: ...
    def recv(self, nbytes: int) -> bytes: ...
    def recv_ready(self) -> bool: ...
    def recv_stderr(self, nbytes: int) -> bytes: ...
    def recv_stderr_ready(self) -> bool: ...
    def sendall(self, s: bytes) -> None: ...


# Passwords by user and place, for as long as this process runs.
_known: dict[str, str] = {}


def elevated(argv: Sequence[str], prompt: Sequence[str]) -> list[str]:
    """ARGV as root's. sudo asks for the password with PROMPT, in two halves."""
    return ["sh", "-c", ELEVATE, "sh", *prompt, *argv]


def admit(
    channel: Channel, mark: bytes, prompt: Sequence[str], who: str, timeout: float
) -> tuple[bytearray, bytearray]:
    """Answer sudo's questions for the password of WHO until the command has begun, or has ended
    without that; what was said on standard output, and on standard error by sudo if it refuses.

    The command begins with MARK. Raises TimeoutError, with what sudo said, when there was nothing
    new for TIMEOUT seconds.
    """
    out, err, answered = bytearray(), bytearray(), 0
    question = re.compile("".join(prompt).encode() + b"|" + OTHER_PROMPT)
    end, ended = monotonic() + timeout, False
    while mark not in out and not ended:
        if not select.select([channel], [], [], max(0, end - monotonic()))[0]:
            raise TimeoutError(err.decode(errors="replace"))
        ended = channel.eof_received or channel.closed
        if channel.recv_stderr_ready():
            err += channel.recv_stderr(1 << 16)
        if channel.recv_ready():
            out += channel.recv(1 << 16)
        if len(question.findall(err)) > answered:
            channel.sendall(password(who, again=answered > 0).encode() + b"\n")
            answered += 1
            end = monotonic() + timeout  # it took its time to be typed
    if mark in out:
        return out, bytearray()
    _known.pop(who, None)
    return out, bytearray(question.sub(b"", err))


def password(who: str, *, again: bool) -> str:
    """The password of WHO. A person types it once, and AGAIN when it was not the right one."""
    if again:
        log.info(f"sudo does not take this password of {who}")
    if again or who not in _known:
        _known[who] = asked(who)
    return _known[who]


def asked(who: str) -> str:
    """What is typed on the terminal, and nowhere else. Raises Failure."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return getpass.getpass(f"sudo's password of {who}: ")
    except OSError:
        die(
            f"{who}: sudo asks for a password, and there is no terminal to type it on",
            hint="start the task on a terminal; for scripts: NOPASSWD in the server's sudoers",
        )
    except EOFError:
        die(f"{who}: no password was given")


def known() -> bytes:
    """What was typed so far, for the standard input of a process of ours."""
    return json.dumps(_known).encode()


def learn(text: str) -> None:
    """Take over what `known` has told."""
    _known.update(json.loads(text))
