"""What the old system's sshd goes by, for root: by which keys it is known, and who may log in.

The initramfs takes both over. Paths are the old system's, whose root lies somewhere else here.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from anemos import files, keys
from anemos.border.requests import Logins
from anemos.log import Failure, die
from anemos.run import CommandFailed, run
from anemos.system import tree

# sshd(8), -T: its settings as they are for one connection; $0: where the operator came from.
ASK = 'PATH=$PATH:/usr/sbin:/usr/local/sbin; exec sshd -T -C "user=root,host=$0,addr=$0"'
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
    for path in settings(host).get("hostkey", usual):
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
    (words,) = settings(host).get("authorizedkeysfile", [ALLOWED])
    files = [tree.resolved(host, path) for path in expanded(words.split(), home(host))]
    found = b"\n".join(file.read_bytes() for file in files if file.is_file())
    if not found.strip():
        die(f"{words}: nobody is listed, so nobody could log in to the initramfs")
    return found


def settings(host: Path) -> dict[str, list[str]]:
    """By keyword; {} where sshd does not tell: it may be another server, or none."""
    client = (os.environ.get("SSH_CONNECTION") or "127.0.0.1").split()[0]
    try:
        lines = run(["chroot", host, "sh", "-c", ASK, client]).splitlines()
    except Failure:
        return {}
    found: dict[str, list[str]] = {}
    for keyword, _, value in (line.partition(" ") for line in lines):
        found.setdefault(keyword, []).append(value)
    return found


def expanded(words: Iterable[str], home: str) -> Iterator[str]:
    """The files of AuthorizedKeysFile, with its tokens for root (sshd_config(5), TOKENS)."""
    tokens = {"%h": home, "%u": "root", "%U": "0", "%%": "%"}
    for word in words:
        if word != "none":
            yield str(Path(home, re.sub("%[huU%]", lambda token: tokens[token[0]], word)))


def home(host: Path) -> str:
    """root's, by passwd(5)."""
    file = tree.resolved(host, "etc/passwd")
    entries = [line.split(":") for line in files.text(file).split("\n")]
    return next((each[5] for each in entries if each[0] == "root" and len(each) > 5), "/root")


def public(host: Path) -> Logins:
    """The same as anybody may see it."""
    found = host_keys(host)
    own = [key.decode().strip() for name, key in found.items() if name.endswith(".pub")]
    lines = authorized(host).decode(errors="replace").split("\n")
    listed = [KEY.search(line) for line in lines if not re.match(r"\s*(#|cert-authority)", line)]
    return Logins(own, [" ".join(each.groups()) for each in listed if each])
