"""The whole pipeline, for real, seen from outside: a stock server becomes hosts/demo, which then
gets a new system in its other slot."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from anemos.workstation import places
from tests import leaks
from tests.tree import ROOT

MIB = 2**20
PARTITION = 1 * MIB  # where the data disk's file system starts
PREPARING = ["reveal-secrets", "pack", "upload", "build-initramfs"]
PHASES = ["plan", *PREPARING, "kexec", "watch", "verify"]
SLOT_PHASES = ["plan", "reveal-secrets", "pack", "fill", "kexec", "verify", "commit"]


pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh", "gpg")]


@dataclass
class Run:
    """One task or more, and what was seen of the data disk's raw bytes meanwhile."""

    report: dict[str, Any]
    log: list[str]
    raw: dict[str, str] = field(default_factory=dict)  # at which line -> SHA-256


@dataclass
class Demo:
    state: Path
    seen: Path
    runs: list[Run] = field(default_factory=list)
    processes: set[bytes] = field(default_factory=set)
    swapped_kib: int = 0
    old_disk: list[str] = field(default_factory=list)  # hits on it
    new_disk: list[dict[str, int]] = field(default_factory=list)  # how often each marker is there
    birth: str = ""  # log of the first deployment

    @property
    def directory(self) -> Path:
        (found,) = self.state.glob("anemos/*/demo")
        return found

    @property
    def disk(self) -> Path:
        return self.directory / "vm" / "stock-data.img"

    def port(self, guest: int) -> int:
        return int((self.directory / "vm" / f"port-{guest}").read_text())

    def inv(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "anemos.workstation.cli.program", *words],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": os.fspath(self.state)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def task(self, *words: str) -> Run:
        """Run a task, which must succeed."""
        with self.inv(*words, "--json") as process:
            assert process.stderr and process.stdout
            log, raw = [], {}
            for line in process.stderr:
                log.append(line.rstrip("\n"))
                for moment in ("POINT OF NO RETURN", "Rebooting into the new system"):
                    if moment in line:
                        raw[moment] = sha256(self.disk)
            printed = process.stdout.read()
        assert process.returncode == 0, "\n".join(log)
        return Run(json.loads(printed), log, raw)

    def deploy(self) -> None:
        self.runs.append(self.task("demo"))

    def deploy_by_phases(self) -> None:
        """As a shell script would do it; the old disk is looked at when all is staged."""
        whole = Run({}, [])
        for phase in PHASES:
            if phase == "kexec":
                self.look_at_the_old_disk()
            done = self.task(phase, "--host", "demo")
            whole.report, whole.log = done.report, whole.log + done.log
            whole.raw |= done.raw
        self.runs.append(whole)

    def phase(self, name: str, status: int, *words: str) -> dict[str, Any]:
        """Run one phase as a task of its own, which must end with STATUS; its JSON document."""
        with self.inv(name, "--host", "demo", *words, "--json") as process:
            printed, log = process.communicate()
        assert process.returncode == status, log
        with (self.seen / "phases").open("a") as file:
            file.write(printed + log)
        return dict(json.loads(printed))

    def ssh_argv(self) -> list[str]:
        """OpenSSH's own client, which knows nothing but the key that the stock server had."""
        known = self.directory / "known"
        public = self.secret("stock", "host_key")
        known.write_text(f"[127.0.0.1]:{self.port(22)} {public}")
        options = ["-F", "none", "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
        options += ["-o", "ServerAliveInterval=15"]  # a machine that is gone ends no connection
        options += ["-o", "StrictHostKeyChecking=yes", "-i", f"{self.directory}/id_ed25519"]
        return ["ssh", *options, "-p", str(self.port(22)), "root@127.0.0.1"]

    def ssh(self, *words: str) -> str:
        argv = [*self.ssh_argv(), *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def secret(self, host: str, path: str) -> str:
        file = self.directory / "secrets" / host / f"{path}.gpg"
        argv = ["gpg", "--homedir", f"{self.directory}/gnupg", "--batch", "--quiet", "--decrypt"]
        return subprocess.run([*argv, file], check=True, capture_output=True, text=True).stdout

    def turn_swap_on(self) -> None:
        self.ssh("fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap")

    def look_at_the_old_disk(self) -> None:
        """All is staged, the jump comes next: have the server swap what it can, and search."""
        more = "$(awk '/MemAvailable/ { print int($2 / 1024) + 100 }' /proc/meminfo)M"
        self.ssh(f"dd if=/dev/zero of=/dev/null bs={more} count=2; sync")
        self.swapped_kib = int(self.ssh("awk 'NR > 1 { print $4 }' /proc/swaps"))
        self.old_disk = leaks.hits([self.system_disk], self.markers())

    def look_at_the_new_disk(self) -> None:
        self.ssh("sync")
        self.new_disk.append(leaks.counts(self.system_disk, self.markers()))

    @property
    def system_disk(self) -> Path:
        return self.directory / "vm" / "stock-system.img"

    def markers(self) -> dict[str, bytes]:
        """What must not be seen: a line of the private key, the password."""
        key = self.secret("demo", "etc/ssl/private/demo.key").splitlines()[1]
        return {"key": key.encode(), "password": self.secret("demo", "PASSWORD").strip().encode()}

    def kept_file(self, path: str) -> bytes:
        """A file on the data disk, read from the raw image."""
        image = f"{self.disk}?offset={PARTITION}"
        argv = ["debugfs", "-R", f"cat {path}", image]
        return subprocess.run(argv, check=True, capture_output=True).stdout

    def ends(self) -> tuple[bytes, bytes]:
        """The raw bytes of the data disk's two partition tables."""
        with self.disk.open("rb") as file:
            head = file.read(PARTITION)
            file.seek(-MIB, os.SEEK_END)
            return head, file.read()


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    machine = Demo(tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("seen"))
    try:
        machine.task("demo", "--start")
        machine.turn_swap_on()
        with (
            leaks.sampled_processes() as machine.processes,
            leaks.sampled_server(machine.ssh_argv(), machine.seen / "server"),
        ):
            machine.deploy_by_phases()
            machine.look_at_the_new_disk()
            machine.birth = machine.ssh("cat /var/log/anemos.log")
            machine.deploy()
            machine.look_at_the_new_disk()
        machine.task("support", "--host", "demo")
        yield machine
    finally:
        stop = machine.inv("demo", "--stop")
        stop.communicate()
        subprocess.run(
            ["gpgconf", "--homedir", machine.directory / "gnupg", "--kill", "all"], check=False
        )


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.proves("VM", source="Debian 13", target="Debian 13")
def test_report(demo: Demo, number: int) -> None:
    report = demo.runs[number].report

    assert report["host"] == "demo"
    assert report["verified"] is True
    assert report["boot_id"]["old"] != report["boot_id"]["new"]
    assert report["downtime_s"] > 0
    assert report["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
    assert all(check["passed"] for check in report["checks"])
    assert 0 < report["bytes_sent"]["payload"] < 100_000


def test_what_is_sent(demo: Demo) -> None:
    """Base image and packages at the first deployment; then the server fetches packages itself."""
    first, second = (run.report["bytes_sent"] for run in demo.runs)

    assert 0 < first["base"] <= 64 * MIB
    assert first["layer"] > 50 * MIB
    assert (second["base"], second["layer"]) == (0, 0)
    kept = demo.ssh("cd /var/lib/anemos/packages && sha256sum --check SHA256SUMS && ls")
    assert re.search(r"^nginx-light_.*: OK$", kept, re.MULTILINE)


def test_seconds_of_each_phase(demo: Demo) -> None:
    """The second deployment is one command, and goes into the slot that did not run."""
    assert [phase["name"] for phase in demo.runs[1].report["phases"]] == SLOT_PHASES


def test_deployments_follow_each_other(demo: Demo) -> None:
    first, second = (run.report for run in demo.runs)

    assert first["deployment"] != second["deployment"]
    assert first["boot_id"]["new"] == second["boot_id"]["old"]


def test_ssh_from_outside(demo: Demo) -> None:
    """The stock server's host key answers; the system says what the report says."""
    report = demo.runs[-1].report
    words = ["cat", "/proc/sys/kernel/random/boot_id", "/etc/anemos/deployment.json"]
    boot_id, stamp = demo.ssh(*words).splitlines()

    assert boot_id == report["boot_id"]["new"]
    assert json.loads(stamp)["deployment"] == report["deployment"]
    assert demo.ssh("uname", "-r").strip() == report["kernel"]


def test_new_system(demo: Demo) -> None:
    """It is the described one: packages, patch, modes, fstab, log of its birth, base image."""
    says = demo.ssh(
        "hostname; sshd -T | grep ^passwordauthentication;"
        " stat -c '%a %U %n' /etc/ssl/private/demo.key /var/log/anemos.log;"
        " findmnt -n -o SOURCE,FSTYPE /home; grep -c ' / ' /etc/fstab;"
        " ls /var/lib/anemos | grep base;"
        " dpkg-query -W -f '${Status}\\n' nginx-light; ls -d /home/alice;"
        " grep -c UUID= /proc/cmdline"
    ).splitlines()

    assert says[:2] == ["demo", "passwordauthentication no"]
    assert says[2] == "640 root /etc/ssl/private/demo.key"
    assert says[3] == "400 root /var/log/anemos.log"
    assert says[4].split()[1] == "ext4"
    assert says[5] == "1"
    assert says[6].startswith("base-")
    assert says[7] == "install ok installed"
    assert says[8:] == ["/home/alice", "1"]


def fetch(demo: Demo, path: str, **headers: str) -> str:
    """Over TLS, with the certificate from the secrets and no other."""
    context = ssl.create_default_context(cadata=demo.secret("demo", "etc/ssl/demo.crt"))
    server = HTTPSConnection("127.0.0.1", demo.port(443), timeout=60, context=context)
    with closing(server):
        server.request("GET", path, headers=headers)
        answer = server.getresponse()
        return f"{answer.status} {answer.read().decode()}"


def test_https(demo: Demo) -> None:
    """The page shows the deployment's id."""
    assert f"<code>{demo.runs[-1].report['deployment']}</code>" in fetch(demo, "/")


def test_password(demo: Demo) -> None:
    """A value from the secrets, in a template, opens the private page."""
    login = b64encode(f"operator:{demo.secret('demo', 'PASSWORD').strip()}".encode()).decode()

    assert fetch(demo, "/private/").startswith("401 ")
    assert "knows the password" in fetch(demo, "/private/", Authorization=f"Basic {login}")


def test_old_system_is_gone(demo: Demo) -> None:
    assert demo.ssh("grep", "-c", "stock", "/etc/hostname", "||", "true").strip() == "0"


def test_kept_disk_is_out_of_reach(demo: Demo) -> None:
    """Between the point of no return and the reboot, not one raw byte of the data disk changes."""
    raw = demo.runs[0].raw

    assert len(raw) == 2
    assert len(set(raw.values())) == 1


def test_kept_files(demo: Demo) -> None:
    """What the stock server had put into /home is there, seen from inside and on the raw disk."""
    inside = demo.ssh("sha256sum", "/home/alice/kept.txt", "/home/alice/mail.mbox").split()[::2]
    outside = [demo.kept_file("/alice/kept.txt"), demo.kept_file("/alice/mail.mbox")]

    assert outside[0] == b"a kept file\n"
    assert len(outside[1]) == 8 * MIB
    assert inside == [hashlib.sha256(data).hexdigest() for data in outside]


def test_log_names_the_point_of_no_return(demo: Demo) -> None:
    lines = demo.birth.splitlines()
    moment = next(n for n, line in enumerate(lines) if "POINT OF NO RETURN" in line)

    assert any("taken from the kernel" in line for line in lines[:moment])
    assert any("Package layer" in line for line in lines[moment:])


def test_nothing_stays_in_memory(demo: Demo) -> None:
    """No revealed secret is left on the workstation: neither private key nor payload."""
    secret = demo.secret("demo", "etc/ssl/private/demo.key").encode()
    left = [
        file
        for file in Path("/dev/shm").glob("anemos-*/demo/**/*")
        if file.is_file() and secret in file.read_bytes()
    ]

    assert left == []


def test_no_secret_on_the_old_disk(demo: Demo) -> None:
    """Not in a file, not in swap, though that was in use: the machine was short of memory."""
    assert demo.swapped_kib > 0
    assert demo.old_disk == []


def test_no_secret_in_processes_and_logs(demo: Demo) -> None:
    """Arguments, environments, logs, events, reports, of the workstation and of the server."""
    (demo.seen / "workstation").write_bytes(b"\n".join(demo.processes))
    for number, run in enumerate(demo.runs):
        (demo.seen / f"log-{number}").write_text("\n".join([*run.log, json.dumps(run.report)]))
    (demo.seen / "born").write_text(demo.ssh("cat /var/log/anemos.log; journalctl || dmesg"))
    sampled = (demo.seen / "server").read_bytes()

    assert b"anemos.workstation.cli.program" in (demo.seen / "workstation").read_bytes()
    assert all(word in sampled for word in (b"anemos.initramfs", b"point-of-no-return", b"sshd"))
    assert leaks.hits(demo.seen.iterdir(), demo.markers()) == []


def test_no_secret_in_the_workstations_files(demo: Demo) -> None:
    """Nor elsewhere on its disk: what is kept of a deployment, caches, the project."""
    files = [file for file in leaks.everything_below(demo.state, places.cache(), ROOT)]

    names = {file.name for file in files}
    assert "demo.key.gpg" in names
    assert any(name.endswith("-deploy.html") for name in names)
    assert "support.txt" in names
    assert leaks.hits(set(files) - {demo.system_disk}, demo.markers()) == []


def test_secrets_are_in_their_places_only(demo: Demo) -> None:
    """On the raw disk of the new system each stands once; then once in each slot."""
    assert demo.new_disk == [{"key": 1, "password": 1}, {"key": 2, "password": 2}]


@pytest.mark.all
def test_failure_before_the_point_of_no_return(demo: Demo) -> None:
    """The kept disk changes behind the deployment's back: the initramfs notices and goes back.

    Phase by phase, as a shell script would do it. Comes last: it reboots the machine.
    """
    before = demo.ssh("cat", "/etc/anemos/deployment.json")
    with leaks.sampled_processes() as processes:
        demo.phase("plan", 0, "--whole")
        for phase in PREPARING:
            demo.phase(phase, 0)
        demo.ssh("e2label $(findmnt -n -o SOURCE /home) changed && sync")
        demo.phase("kexec", 0)
        error = demo.phase("watch", 1)
    (demo.seen / "failing").write_bytes(b"\n".join(processes))

    assert "kept 'data' is not what it was in the old system" in error["error"]
    assert "runs the old system again" in error["error"]
    assert demo.ssh("cat", "/etc/anemos/deployment.json") == before
    assert demo.ssh("systemctl is-system-running --wait").strip() == "running"
    assert demo.kept_file("/alice/kept.txt") == b"a kept file\n"
    assert demo.phase("verify", 1)["status"] == 1
    assert leaks.hits(demo.seen.iterdir(), demo.markers()) == []
