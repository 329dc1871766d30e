"""What the old system's sshd goes by: by which keys it is known, and who may log in as root, or as
the user whom sudo makes root.

The initramfs takes both over. Paths are the old system's, whose root lies somewhere else here.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from anemos import files, keys
from anemos.border.requests import Logins
from anemos.log import Failure, die
from anemos.run import CommandFailed, run
from anemos.system import tree

# sshd(8), -T: its settings as they are for one connection; $0: where the operator came from.
ASK = 'PATH=$PATH:/usr/sbin:/usr/local/sbin; exec sshd -T -C "user=$1,host=$0,addr=$0"'
ROOT = "root"
ALLOWED = ".ssh/authorized_keys .ssh/authorized_keys2"  # sshd_config(5), AuthorizedKeysFile
# A line of authorized_keys(5), whose options may hold quoted blanks: type and key.
KEY = re.compile(r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-\S+)\s+(AAAA[\w+/]*=*)")


def ssh_keys(host: Path) -> dict[str, bytes]:
    """Host keys and authorized_keys, by their names in the initramfs's anemos/ssh.

    HOST: the old system's root. Raises Failure without them: nobody could log in to the initramfs.
    """
    return {**host_keys(host), "authorized_keys": authorized(host)}


def host_keys(host: Path) -> dict[str, bytes]:
    """Private halves, and public ones beside them, by the names that any sshd looks for: the new
    system gets them, too, if it has none."""
    usual = sorted(f"/etc/ssh/{key.name}" for key in (host / "etc/ssh").glob("ssh_host_*_key"))
    found: dict[str, bytes] = {}
    for path in settings(host, ROOT).get("hostkey", usual):
        file = tree.resolved(host, path)
        public = public_of(file.read_bytes()) if file.is_file() else ""
        name = f"ssh_host_{kind(public)}_key"
        if public and name not in found:
            found |= {name: file.read_bytes(), f"{name}.pub": f"{public}\n".encode()}
    if not found:
        die("no host key in /etc/ssh: the initramfs could not prove what it is")
    return found


def public_of(key: bytes) -> str:
    """The public half of a private KEY, "TYPE BASE64", "" for one that OpenSSH cannot use."""
    try:
        return " ".join(keys.public(key).split()[:2])
    except CommandFailed:
        return ""


def kind(public: str) -> str:
    """As in the names of files: "ecdsa" of "ecdsa-sha2-nistp256 AAAA..."."""
    return public.partition(" ")[0].removeprefix("ssh-").partition("-")[0]


def authorized(host: Path) -> bytes:
    """Of the operator, who may be another user than root, and then of root. In this order: sshd
    takes the first line with a key, and root's may have a forced command."""
    users = dict.fromkeys([os.environ.get("SUDO_USER") or ROOT, ROOT])
    found = b"\n".join(text for user in users for text in listed(host, user))
    if not found.strip():
        die(f"nobody is listed for {' or '.join(users)}: nobody could log in to the initramfs")
    return found


def listed(host: Path, user: str) -> Iterator[bytes]:
    (words,) = settings(host, user).get("authorizedkeysfile", [ALLOWED])
    uid, home = account(host, user)
    for path in expanded(words.split(), home, user, uid):
        file = tree.resolved(host, path)
        if file.is_file():
            yield file.read_bytes()


@cache  # host keys and lists of keys are asked for one after the other
def settings(host: Path, user: str) -> Mapping[str, list[str]]:
    """By keyword; {} where sshd does not tell: it may be another server, or none."""
    client = (os.environ.get("SSH_CONNECTION") or "127.0.0.1").split()[0]
    try:
        lines = run(["chroot", host, "sh", "-c", ASK, client, user]).splitlines()
    except Failure:
        return {}
    found: dict[str, list[str]] = {}
    for keyword, _, value in (line.partition(" ") for line in lines):
        found.setdefault(keyword, []).append(value)
    return found


def expanded(words: Iterable[str], home: str, user: str = ROOT, uid: str = "0") -> Iterator[str]:
    """The files of AuthorizedKeysFile, with its tokens (sshd_config(5), TOKENS)."""
    tokens = {"%h": home, "%u": user, "%U": uid, "%%": "%"}
    for word in words:
        if word != "none":
            yield str(Path(home, re.sub("%[huU%]", lambda token: tokens[token[0]], word)))


def account(host: Path, user: str) -> tuple[str, str]:
    """Number and home of USER, by passwd(5), or the usual ones."""
    file = tree.resolved(host, "etc/passwd")
    entries = [line.split(":") for line in files.text(file).split("\n")]
    found = (words for words in entries if words[0] == user and len(words) > 5)
    usual = "/root" if user == ROOT else f"/home/{user}"
    return next(((words[2], words[5]) for words in found), ("0", usual))


def public(found: Mapping[str, bytes]) -> Logins:
    """What ssh_keys has FOUND, as anybody may see it."""
    own = [key.decode().strip() for name, key in found.items() if name.endswith(".pub")]
    lines = found["authorized_keys"].decode(errors="replace").split("\n")
    may = [KEY.search(line) for line in lines if not re.match(r"\s*(#|cert-authority)", line)]
    return Logins(own, [" ".join(each.groups()) for each in may if each])
