"""`./inv export`: a deployment as files, for a machine that is started by hand."""

import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from anemos import log
from anemos.border import records
from anemos.border.network import Network
from anemos.disks import Fingerprint
from anemos.log import BAD_INPUT, Failure, die
from anemos.workstation import Result, places, qemu
from anemos.workstation.deploy import byhand, consent, payload, phases, plan
from anemos.workstation.deploy.state import (
    Captured,
    State,
    captured_file,
    load_state,
    payload_file,
)
from anemos.workstation.hosts import Host
from anemos.workstation.scratch import require_memory

README = """\
Deployment {deployment} of {host}. These files hold its SECRETS in clear: remove them afterwards.

The machine that starts `initrd` with `kernel` comes up in memory as {address}, port {port}, under
the host's pinned SSH key. It waits there, without a deadline, and has written nothing. Then

    ./inv go --host {host}          ERASES the system disks and installs
    ./inv watch --host {host}
    ./inv verify --host {host}

or by hand: ssh -p {port} root@{address} touch /run/anemos/go; tail -f /run/anemos/log there.
After a failure it stays and answers. At the end it reboots from its disk.

Rescue system of a provider (it needs kexec-tools):
    kexec --load kernel --initrd=initrd --command-line="$(cat cmdline)" && kexec --exec

iPXE:
    #!ipxe
    kernel kernel initrd=initrd {cmdline}
    initrd initrd
    boot

USB stick or disk with GRUB (grub-install --removable ...), the files in its topmost directory:
    menuentry anemos {{
        linux /kernel {cmdline}
        initrd /initrd
    }}

QEMU:
    qemu-system-{machine} -m 2048 -kernel kernel -initrd initrd -append "$(cat cmdline)" ...
"""


@dataclass(frozen=True)
class Options:
    """Of the task. The network, unless it is to be the one that was captured last."""

    output: str
    plaintext_on_disk: bool = False
    mac: str = ""
    address: str = ""
    gateway: str = ""
    dns: str = ""


def export(host: Host, options: Options) -> Result:
    """Write kernel, initrd, cmdline and README of a new deployment. Raises Failure."""
    directory = places.given(options.output)
    check_output(options, directory)
    phases.refuse(host, *plan.bootable(host.imgbuild()))
    network, kept = described(options) if options.mac or options.address else captured(host)
    consent.withdraw(host)
    with phases.forgotten(host):
        phases.reveal(host)
        keys = host_keys(host)  # first, as packing takes its time
        phases.pack(host)
        keys["authorized_keys"] = authorized(host)
        state = load_state(host)
        directory.mkdir(mode=0o700, exist_ok=True)
        require_private(directory)
        made = byhand.of(host, state, keys, network, kept)
        byhand.write(directory, made)
    state.stays, state.kept = True, kept or []
    state.save()
    write_readme(directory, host, state)
    log.info(f"{directory}: kernel, initrd, cmdline, README; the initrd holds secrets in clear")
    return {"host": host.name, "deployment": state.deployment, "output": str(directory)}


def check_output(options: Options, directory: Path) -> None:
    if not options.output:
        die("where to? --output DIR", hint="in memory: --output /dev/shm/NAME")
    if not directory.parent.is_dir() or (directory.exists() and not directory.is_dir()):
        die(f"{directory}: no directory, and none can be made there")
    if directory.is_dir() and any(directory.iterdir()):
        die(f"{directory} is not empty")
    if directory.is_dir():
        require_private(directory)
    if options.plaintext_on_disk:
        return
    try:
        require_memory(directory)
    except Failure as failure:
        die(failure.message, hint="--plaintext-on-disk writes them there all the same")


def require_private(directory: Path) -> None:
    """Die if others may read there, or put something there: who makes a directory first owns it.
    A file system without modes (vfat) shows what its mount allows."""
    seen = directory.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        hint = "name one that is not there yet, for example /dev/shm/NAME, and copy it from there"
        die(f"{directory} belongs to somebody else, or others may read it", hint=hint)


def described(options: Options) -> tuple[Network, None]:
    """The network of the options. Nothing is known of kept disks: they are taken as they are."""
    if not (options.mac and options.address):
        die("a network needs --mac and --address", hint="without both: the one captured last")
    try:
        for each in filter(None, (options.gateway, options.dns)):
            ipaddress.ip_address(each)
        dns = [options.dns] if options.dns else []
        return qemu.describe(options.mac, options.address, options.gateway, dns), None
    except ValueError as error:
        die(f"network: {error}", hint="--address 192.0.2.5/24 --gateway 192.0.2.1")


def captured(host: Host) -> tuple[Network, list[Fingerprint]]:
    """What the old system said in the last deployment that came so far."""
    file = captured_file(host)
    hint = "say it: --mac 52:54:00:12:34:56 --address 192.0.2.5/24 --gateway 192.0.2.1"
    if not file.exists():
        die(f"{host.name}: no network is known, as no deployment was begun from here", hint=hint)
    found = records.load(Captured, file.read_bytes(), f"{file}", hint, BAD_INPUT)
    return found.network, found.kept


def host_keys(host: Host) -> dict[str, bytes | Path]:
    """The pinned host key (see hostkeys.problem). Raises Failure without one."""
    keys = byhand.host_keys(places.memory(host.name) / "secrets")
    if not keys:
        hint = f"./inv secrets.generate --host {host.name} --kind ssh-host-key; pin what it prints"
        die(f"{host.name}: its SSH host key is not among its secrets", hint=hint)
    return dict(keys)


def authorized(host: Host) -> bytes:
    """Who logs in: those who will on the new system. Raises Failure when that is nobody."""
    found = payload.authorized(payload_file(host))
    own = host.identity_file
    public = own.with_name(f"{own.name}.pub") if own else None
    if public and public.is_file():
        found.append(public.read_bytes())
    if not any(each.strip() for each in found):
        die(
            f"{host.name}: /{payload.AUTHORIZED} will list nobody",
            hint="or `identity` in host.toml",
        )
    return b"\n".join(found)


def write_readme(directory: Path, host: Host, state: State) -> None:
    fields = {"deployment": state.deployment, "host": host.name, "port": host.port}
    line = (directory / "cmdline").read_text().strip()
    address = host.address or host.vm.network.ip
    fields |= {"address": address, "cmdline": line, "machine": host.imgbuild().arch.machine}
    (directory / "README").write_text(README.format(**fields))
