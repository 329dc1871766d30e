"""What crosses a border, changed at random: its reader takes it, or says in one message what is
wrong.

The inputs are the same in each run. A failure shows its seed. `inv check --all` tries a million.
"""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from anemos import log
from anemos.border import boot, payload, records, requests, resuming, stage
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed, Deployment, Revision
from anemos.border.network import Network
from anemos.border.requests import Built, Fingerprints, Layer, Logins
from anemos.disks import Fingerprint, Wanted
from anemos.initramfs import network as initramfs
from anemos.initramfs import progress
from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.server import logins
from anemos.server import network as server
from anemos.system import imgbuild, layout, slots, typos
from anemos.workstation import hosts, places
from anemos.workstation.deploy import (
    consent,
    export,
    facts,
    plan,
    reach,
    state,
    status,
    watch,
    ways,
)
from anemos.workstation.deploy.payload import authorized
from anemos.workstation.deploy.state import State
from anemos.workstation.hosts import Host
from anemos.workstation.secrets import sources
from anemos.workstation.vm import rehearsal
from tests.tree import ROOT
from tests.whole.test_network import BRIDGE, CAPTURED, ETH0, VLAN
from tests.workstation.deploy.test_plan import FACTS, SIZES, spec

DATA = ROOT / "tests/data"
MILLION = 1_000_000  # inputs of all readers
BATCH, SOME = 20, 15  # inputs of one seed; seeds of each reader in every check
HANGS_S = 60  # one input takes less than a hundredth of a second
HOST = Host("mx", Path("hosts/mx"))
PRINT = Fingerprint("data", "S", 512, "d1g35t", ((0, "U", "ext4"),))
AGREED = Agreed("d1g35t", {"system": FACTS.disks[0]})
BOND: Any = {**ETH0, "name": "bond0", "kind": "bond", "members": ["eth0"]}
BOND["options"] = {"mode": "active-backup", "miimon": 100, "primary": "eth0"}
NETWORK: Network = {"interfaces": [ETH0, BRIDGE, VLAN, BOND], "dns": [], "operator": "inet"}
BOOT = Boot("d-1", "mx", "0" * 64, "1" * 64, "", 22, NETWORK, [PRINT], 1.5, agreed=AGREED)
BUILT = Built(BOOT, Logins(["ssh-ed25519 A"], ["ssh-ed25519 B"]))
RULES = [{"priority": 32766, "src": "all", "table": "main"}]
IP = [CAPTURED["address show"], CAPTURED["-4 route show"], CAPTURED["-6 route show"], RULES]


class Reader(NamedTuple):
    """READ is given one input, and the file where it stands."""

    examples: list[bytes]  # inputs that are right: READ returns
    read: Callable[[bytes, Path], object]


# How an example becomes an input

JSON = re.compile(rb"(?<![^=])[{\[].*")  # of a line
TOKENS = [b"", b"\0", b"\xff", b"-1", b"0", b"9" * 30, b"1e999", b"null", b"[]", b"{}", b"true"]
TOKENS += [bytes([each]) for each in b"\"'=|,:\n \r/#\\"]
TOKENS += [
    b"../..",
    b"\\040",
    "\u00a0".encode(),
    "\u2028".encode(),
    "\u202e".encode(),
    "\u0663".encode(),
    b"99999999999T",
]
VALUES: list[Any] = [None, True, -1, 0, 2**70, 1.5, float("inf"), "", "x", "../x", "\0", "9", "ä"]
VALUES += [10**400, "\ud800", [], {}, [[]], [None], ["x"], {"a": 1}, {"": {}}]


def changed(example: bytes, random: Random) -> bytes:
    """With one to four changes; or something else altogether."""
    if random.random() < 0.1:
        return random.choice([random.randbytes(random.randrange(200)), dumped(random)])
    for _ in range(random.randint(1, 4)):
        example = random.choice([in_bytes, in_lines, in_json])(example, random)
    return example


def in_bytes(data: bytes, random: Random) -> bytes:
    """A token is put there, or stands for what was there; or the rest is cut off."""
    start, token = random.randint(0, len(data)), random.choice(TOKENS)
    end = random.choice([start, start, start + random.randrange(40), len(data)])
    return data[:start] + token + data[end:]


def in_lines(data: bytes, random: Random) -> bytes:
    """A line has another value, stands elsewhere, too, or is lost."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    name, sign, _ = lines[at].partition(b"=")
    value = name + sign + random.choice(TOKENS)
    lines[at : at + 1] = random.choice([[value], [lines[at], random.choice(lines)], []])
    return b"\n".join(lines)


def in_json(data: bytes, random: Random) -> bytes:
    """A value is lost or another one: in a document, a line, or behind a line's first `=`."""
    lines = data.split(b"\n")
    at = random.choice([i for i, line in enumerate(lines) if JSON.search(line)] or [0])
    if not (found := JSON.search(lines[at])):
        return in_bytes(data, random)
    try:
        document = [json.loads(found[0])]
    except ValueError:
        return in_bytes(data, random)
    box, key = random.choice([*nodes(document)])
    box[key] = random.choice(VALUES)
    if random.random() < 0.25 and box is not document:
        del box[key]
    lines[at] = lines[at][: found.start()] + json.dumps(document[0]).encode()
    return b"\n".join(lines)


def nodes(box: Any) -> Iterator[tuple[Any, Any]]:
    for key in box if isinstance(box, dict) else range(len(box)):
        yield box, key
        if isinstance(box[key], dict | list):
            yield from nodes(box[key])


def dumped(random: Random) -> bytes:
    return json.dumps({"x": random.choices(VALUES, k=2)} | {"": random.choice(VALUES)}).encode()


# The readers


def text(data: bytes) -> str:
    return data.decode(errors="replace")


def read_passwd(_: bytes, file: Path) -> None:
    [
        *logins.expanded(
            [".ssh/authorized_keys", "%h/keys"], logins.account(file.parents[1], "root")[1]
        )
    ]


def read_resolver(_: bytes, file: Path) -> None:
    found = server.nameservers(file.parents[1])
    records.parse(list[str], records.text(found))


def read_state(*_: object) -> None:
    ways.of(state.load_state(HOST))
    status.last_known(HOST)


def read_facts(data: bytes, _: Path) -> None:
    """And what the plan makes of them."""
    seen = facts.parse(text(data))
    for machine in (SPEC, RAID):
        if not plan.problems(HOST, machine, seen, SIZES):
            plan.describe(HOST, machine, seen, SIZES)


def read_identity(data: bytes, _: Path) -> None:
    remote: Any = SimpleNamespace(endpoint="mx", sh=lambda *_, **__: text(data))
    facts.identify(remote)


def read_status(data: bytes, _: Path) -> None:
    seen = status.parse(text(data))
    status.describe(seen, "d-1", status.Known())
    status.known(HOST, seen)


def read_events(data: bytes, _: Path) -> None:
    watching = watch.Watch(HOST, State("mx", "d-1"), lambda: True)
    for line in text(data).splitlines():
        try:
            watching.hear(line)
        except watch.Ended:
            return


def read_answers(data: bytes, _: Path) -> None:
    remote: Any = SimpleNamespace(sh=lambda *_, **__: text(data))
    kinds: Any = Built | Layer | list[Fingerprint]
    reach.answer(remote, "/base", Fingerprints([]), kinds)


def read_boot(_: bytes, file: Path) -> None:
    """And the commands that its network becomes."""
    found = boot.load(file)
    assert records.parse(boot.Stamp, found.stamp({}, Revision()))
    names = {each["name"]: each["name"] for each in found.network["interfaces"]}
    for each in found.network["interfaces"]:
        if each["kind"] != "vlan" or each["parent"] in names:  # as network.make sees to it
            for argv in initramfs.commands(each["name"], each, names):
                assert all(isinstance(word, str) for word in argv)


def read_ip(data: bytes, file: Path) -> None:
    """What ip(8) says on the server: links, routes, rules."""
    lines = iter(text(data).splitlines())
    with mock.patch.object(server, "run", lambda _: next(lines, "")):
        server.capture(file.parent, "203.0.113.7")


def read_words(data: bytes, file: Path) -> None:
    """The words of an IMGBUILD, as the shell has read them."""
    pairs = [part.partition("=")[::2] for part in text(data).split("\x1e")]
    for kind, known in (("variable", imgbuild.VARIABLES), ("function", imgbuild.FUNCTIONS)):
        [*typos.suspects(text(data), kind, known)]
    found = imgbuild.interpret(file.parent, dict(pairs), text(data))
    layout.digest(found.layout, found.keep)


def read_host(*_: object) -> None:
    hosts.secret_settings("mx")
    hosts.is_local("mx")
    hosts.load("mx")


def read_payload(_: bytes, file: Path) -> None:
    payload.manifest(file)
    authorized(file)


def read_last(*_: object) -> None:
    status.describe(status.Status(status.UNREACHABLE), "d-1", status.asked(HOST))


def read_agreed(*_: object) -> None:
    consent.check_disks(HOST, State("mx", agreed=consent.recall(HOST)), FACTS)


SPEC = spec()
LAYOUT = """\
disk first serial=F image=4G
part esp type=esp size=64M fs=vfat mount=/boot/efi
part boot size=128M fs=ext4 mount=/boot
part r1 type=raid size=2G
part pv type=lvm
disk second wwn="naa.5 x" table=msdos
part r2 type=raid size=2G
raid md0 level=1 on=first/r1,second/r2
luks crypt on=md0 key=etc/luks/crypt.key
vg vg0 on=crypt,first/pv
lv root on=vg0 size=1G fs=ext4 mount=/
lv home on=vg0 fs=xfs mount=/home options=noatime
"""
WORDS = {
    "imgname": "mx",
    "target": "debian",
    "debian_suite": "bookworm",
    "format": "disk",
    "mirror": "https://deb.example.org/debian",
    "bootloader": "grub",
    "hostconf": "keyring",
    "packages": "grub-pc linux-image-amd64\nlvm2",
    "layout": LAYOUT,
    "keep": "disk data serial=DATA part=1 mount=/data\npart old disk=first number=7 mount=/old\n",
    "cmdline": "console=ttyS0 quiet",
    "secrets": "PASSWORD password\netc/key ask\n",
    "server_secrets": "etc/ssl/private/mx.key",
    "fetch_secrets()": "",
}
RAID = spec(layout=LAYOUT, keep="disk data size=34359738368 part=1 mount=/data\n")
HOST_TOML = b"""\
address = "mx.example.org"
host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"
port = 22
identity = "~/.ssh/id_ed25519"
build_on = "server"
ports = [22, 443]
start = "once"
finish = "kexec"
[timeouts]
down = 180
[secrets]
source = "age"
identity = "~/key"
[vm]
memory = 1024
firmware = "uefi"
forward = [443]
address = "10.0.2.15/24"
gateway = "10.0.2.2"
"""
STATUS = b"""\
boot_id=b-1
kernel=6.1.0
place=initramfs
stamp={"deployment": "d-1", "host": "mx", "base": "0", "kept": [], "ssh_port": 22}
passed=yes
left=890
event={"time": 1.5, "event": "failed", "message": "no disks match"}
line=FAILED: no disks match
end=end
"""
EVENTS = b"""\
{"time": 1.5, "event": "log", "line": "Preflight ..."}
{"time": 1.5, "event": "held", "seconds": 3600.0}
{"time": 1.5, "event": "point-of-no-return"}
{"time": 1.5, "event": "failed", "message": "no disks"}
"""


def json_of(*given: object) -> list[bytes]:
    return [records.text(each).encode() for each in given]


def told_by_ip() -> bytes:
    names = ("ip_links", "ip_routes4", "ip_routes6", "ip_rules")
    lines = [f"{name}={json.dumps(said)}" for name, said in zip(names, IP, strict=True)]
    return "\n".join([*lines, "connection=192.0.2.9 40000 203.0.113.7 22", "end=end"]).encode()


FACTS_TEXT = (DATA / "facts-virtio").read_bytes()


def facts_of_servers() -> list[bytes]:
    found = [file.read_bytes() for file in sorted(DATA.glob("facts-*"))]
    return [*found, FACTS_TEXT.replace(b"end=end", told_by_ip())]


def a_payload() -> bytes:
    members = [payload.Member("files/root/.ssh/authorized_keys", b"ssh-ed25519 B\n", 0o600)]
    given = Deployment("d-1", "mx", [Wanted("data", {"serial": "S"})], AGREED)
    with TemporaryDirectory() as directory:
        file = Path(directory, "payload")
        payload.write(file, given, "reboot", members)
        return file.read_bytes()


ENTRY = requests.BuildEntry("/b", "p", "", 1.5, True, "/boot", Deployment("d", "mx", [], AGREED))
STATE = State("mx", "d-1", "/b", agreed=AGREED, sent={"base": 0}, kept=[PRINT])
RECORD = slots.Record("a", {"a": slots.Slot(slots.GOOD, "U"), "b": slots.Slot()})
PROGRESS = progress.Progress(progress.disks_of(SPEC), [layout.Mounted("/home", "U", "ext4")], "k")
DISKS = rehearsal.Disks("d1g35t", [("system", "/d", {"serial": "S"})], [PRINT])
RESUME = resuming.Request("1" * 64, "", "definition")
READERS: dict[str, Reader] = {  # by the names of their inputs
    "mx/host.toml": Reader([HOST_TOML], read_host),
    "mx/IMGBUILD": Reader(["\x1e".join(map("=".join, WORDS.items())).encode()], read_words),
    "facts": Reader(facts_of_servers(), read_facts),
    "identity": Reader([b"b-1\n" + json_of(BOOT)[0], b"b-1\n"], read_identity),
    "status": Reader([STATUS, STATUS.replace(b"initramfs", b"system")], read_status),
    "events": Reader([EVENTS], read_events),
    "ip": Reader([b"\n".join(json_of(*IP))], read_ip),
    "etc/passwd": Reader([b"root:x:0:0:root:/root:/bin/sh\n"], read_passwd),
    "etc/resolv.conf": Reader([b"# mine\nnameserver 192.0.2.1\n"], read_resolver),
    "request": Reader([requests.text(ENTRY).encode()], lambda data, _: requests.read(text(data))),
    "answer": Reader(json_of(BUILT, Layer("1", 2), [PRINT]), read_answers),
    "payload": Reader([a_payload()], read_payload),
    "boot.json": Reader(json_of(BOOT), read_boot),
    "cmdline": Reader([b"anemos.hold=60 quiet"], lambda _, file: boot.held(file)),
    "record of slots": Reader([slots.encoded(RECORD)], lambda _, file: slots.read(file)),
    "resuming": Reader([*json_of(RESUME), b""], lambda _, file: progress.request(file)),
    "progress": Reader(json_of(PROGRESS), lambda *_: progress.load(SPEC)),
    "state.json": Reader(json_of(STATE), read_state),
    consent.FILE: Reader(json_of(AGREED), read_agreed),
    "captured.json": Reader(
        json_of(state.Captured(NETWORK, [PRINT])), lambda *_: export.captured(HOST)
    ),
    status.LAST: Reader(json_of(status.Known(1.0, "held", "d-1")), read_last),
    "drives.json": Reader(
        json_of(DISKS), lambda data, _: records.load(rehearsal.Disks, data, "drives.json")
    ),
    "mx.sops.json": Reader([b'{"etc/key": "s"}'], lambda data, file: sources.members(file, data)),
}


def hangs(_: int, __: FrameType | None) -> NoReturn:
    raise AssertionError(f"no end after {HANGS_S} s")


@pytest.fixture
def take(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bytes], object]]:
    """Has NAME's reader read an input."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(places, "HOSTS", tmp_path)
    monkeypatch.setattr(places, "state", lambda _: tmp_path)
    monkeypatch.setattr(stage, "PROGRESS", file)
    monkeypatch.setattr(log, "sink", lambda line: None)
    signal.signal(signal.SIGALRM, hangs)

    def one(data: bytes) -> object:
        file.write_bytes(data)
        signal.alarm(HANGS_S)
        return READERS[name].read(data, file)

    yield one
    signal.alarm(0)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("request", b"{}", "request: it has no command"),
        ("request", b'{"command": "X"}', "it knows no X"),
        ("cmdline", b"anemos.hold=1h", "anemos.hold=1h is no number of seconds"),
        ("ip", b'[{"ifname": "eth0", "addr_info": 1}]', "what ip.8. tells of the network"),
        ("state.json", b'{"host": "mx", "reached": "moon"}', "reached makes no sense"),
        ("state.json", b'{"host": "mx", "way": "moon"}', "way 'moon' is unknown"),
        (
            consent.FILE,
            re.sub(rb'"size": \d+', b'"size": ' + b"9" * 400, json_of(AGREED)[0]),
            "size",
        ),
        ("facts", re.sub(rb"vda\|\d+", b"vda|" + b"9" * 38, FACTS_TEXT), "is no size"),
        ("boot.json", json_of(BOOT)[0].replace(b"1.5", b"9" * 400), "time makes no sense"),
    ],
)
def test_refused(name: str, data: bytes, what: str, take: Callable[[bytes], object]) -> None:
    with pytest.raises(Failure, match=what):
        take(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (
            "facts",
            FACTS_TEXT.replace(b"mount=", b"content=vda1 \nmount=/dev/vdc /a\xc2\xa0b x\nmount="),
        ),
        (status.LAST, b"null"),
        (status.LAST, b'{"time": 1e300, "state": "held"}'),
        ("etc/passwd", b"root\nm\xfcller:x:1\nroot:x:0:0:M\xfcller:/root:/bin/sh\n"),
        ("etc/resolv.conf", b"# f\xfcr uns\nnameserver n\xfcll\nnameserver\n"),
    ],
)
def test_taken(name: str, data: bytes, take: Callable[[bytes], object]) -> None:
    take(data)


@pytest.mark.parametrize("name", READERS)
def test_any(name: str, request: pytest.FixtureRequest, take: Callable[[bytes], object]) -> None:
    """What is read is taken, or refused with a message; nothing hangs."""
    everything, examples = request.config.getoption("--all"), READERS[name].examples

    @settings(
        max_examples=MILLION // BATCH // len(READERS) if everything else SOME,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def some(seed: int) -> None:
        random = Random(seed)  # noqa: S311
        for _ in range(BATCH):
            data = changed(random.choice(examples), random)
            try:
                take(data)
            except Failure as failure:
                assert failure.status in (FAILED, BAD_INPUT)
                assert failure.message
            except Exception:
                note(f"{name} is {data!r}")
                raise

    for each in examples:
        take(each)
    some()
