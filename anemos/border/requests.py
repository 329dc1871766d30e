"""What the workstation asks of `python3 -m anemos.server`, and what it is answered.

A request is a line of JSON on standard input, as arguments can be seen by every user of the
machine: the record's fields and its name as "command". The answer is JSON in the last line of
standard output.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from anemos.border import records
from anemos.border.boot import Boot
from anemos.border.deployment import Deployment
from anemos.disks import Wanted
from anemos.log import FAILED, die

Keys = dict[str, str]  # private SSH host keys and their public halves, by the names of files


@dataclass(frozen=True)
class Fingerprints:
    """Of what is kept: a list of disks.Fingerprint."""

    keep: Sequence[Wanted]


@dataclass(frozen=True)
class Drift:
    """What has changed since the deployment: server/drift.py's Drift."""

    volatile: Sequence[str]  # places that the IMGBUILD adds


@dataclass(frozen=True)
class Bootstrap:
    """The package layer of the staged payload: a Layer."""

    payload: str  # SHA-256


@dataclass(frozen=True)
class Build:
    """The initramfs from what is staged: Built."""

    base: str  # file on the old system
    payload: str  # SHA-256
    layer: str  # SHA-256, "" for none
    now: float  # the workstation's time, seconds since the epoch
    late: bool  # the layer comes after the jump


@dataclass(frozen=True)
class BuildEntry(Build):
    """The same in DIRECTORY, for a boot entry, without payload and layer: Built."""

    directory: str
    deployment: Deployment


@dataclass(frozen=True)
class Load:
    """The initramfs for kexec: Keys to be delivered, none. HOLD: seconds, see server/kexec.py."""

    hold: int
    late: bool  # as of Build


@dataclass(frozen=True)
class Arm:
    """The boot entry for the next boot: Keys to be delivered."""

    loader: str  # "grub" or "firmware"
    directory: str
    device: str
    hold: int


@dataclass(frozen=True)
class Try:
    """The system that DEPLOYMENT has put into the slot that does not run, for one boot: no Keys.
    SECONDS: until it has the word, or is reset. ONCE: by GRUB; else by kexec. PORT: its sshd's, if
    nothing but SSH is let in until then; or 0. CONFIRM: the script by which the system gives itself
    the word; "": the workstation does."""

    deployment: str
    seconds: int
    once: bool = False
    port: int = 0
    confirm: str = ""


@dataclass(frozen=True)
class Withdraw:
    """No Try any more, in the boot BOOT_ID that has made it, and goes on: no Keys."""

    boot_id: str


@dataclass(frozen=True)
class Commit:
    """The word for the running system, on trial or committed already: slots.Record."""

    deployment: str


@dataclass(frozen=True)
class Return:
    """The other slot, filled by DEPLOYMENT and good, is the default from now on: slots.Record."""

    deployment: str


@dataclass(frozen=True)
class Fill:
    """The staged payload's system in the slot that does not run: Filled."""

    base: str  # as of Build
    payload: str
    layer: str  # of the bytes that follow; "": none, it is bootstrapped in the slot


@dataclass(frozen=True)
class Filled:
    slot: str
    root: str  # UUID of its root file system
    kernel: str  # as its file in /boot is called, without "vmlinuz-"


@dataclass(frozen=True)
class Layer:
    layer: str  # SHA-256
    size: int  # bytes


@dataclass(frozen=True)
class Logins:
    """How the initramfs is known, and who may log in there: lists of "TYPE BASE64"."""

    host_keys: list[str]
    authorized: list[str]


@dataclass(frozen=True)
class Built:
    boot: Boot
    logins: Logins
    once_key: str = ""  # public half of the host key of this boot, if it has one of its own


Request = (
    Fingerprints
    | Drift
    | Bootstrap
    | Build
    | BuildEntry
    | Load
    | Arm
    | Fill
    | Try
    | Withdraw
    | Commit
    | Return
)
KINDS: dict[str, type[Request]] = {each.__name__: each for each in get_args(Request)}


def text(request: Request) -> str:
    return json.dumps({"command": type(request).__name__, **asdict(request)}) + "\n"


@dataclass(frozen=True)
class Named:
    command: str


def read(text: str) -> Request:
    """Raises Failure."""
    command = records.load(Named, text, "request").command
    if command not in KINDS:
        die(f"this base image is of an older Anemos: it knows no {command}", status=FAILED)
    return records.load(KINDS[command], text, command)
