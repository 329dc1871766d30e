"""The first definition of a server that runs: `./inv new --host NAME --from ADDRESS`.

What the server says (seen.py) becomes files below hosts/NAME, all at once. What cannot be taken
over, or has to be decided, is told at the top of the IMGBUILD. No secret comes here.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos import log
from anemos.log import Failure, die
from anemos.system import filesystems, imgbuild
from anemos.workstation import Result, access, adopt, hosts, qemu, skeleton
from anemos.workstation.deploy import plan
from anemos.workstation.hosts import ROOT
from anemos.workstation.skeleton import choice, layout, provision, seen
from anemos.workstation.skeleton.layout import Drawn
from anemos.workstation.skeleton.seen import Seen
from anemos.workstation.ssh import Endpoint, connect

# Of the kernel's command line: what Anemos and GRUB write themselves.
OWN_WORDS = re.compile(
    r"(BOOT_IMAGE|root|initrd|resume|init|panic|oops|anemos\..*)=.*|r[ow]|quiet|--"
)
PASSWORD = re.compile(rb"(?i)(passw(or)?d|secret|token|api_?key)\w*\s*[=:]\s*\S")
HARMLESS = ("etc/pam.d/", "etc/ssh/", "etc/nsswitch.conf", "etc/login.defs", "etc/apt/")
CONFIGURED = ("etc/network/interfaces", "etc/systemd/network/", "etc/NetworkManager/system-")
LOOK = "# - "
CARD = (
    "`./inv test` has no network card {}: write net.ifnames=0 into cmdline,"
    " and eth0 into files/etc/network"
)
NETPLAN = "netplan is not taken over: describe the network in files/etc/network/interfaces"

IMGBUILD = """\
# {name}, from the server at {address}, Debian {release}. docs/imgbuild.md of Anemos explains it.
#
# Look at these first:
{notes}
imgname={name}
target=debian
arch={arch}
debian_suite={suite}
{components}format=disk
bootloader={loader}
cmdline='{cmdline}'

packages='
{packages}
'

# These disks are erased.
layout='
{layout}
'
{keep}{secrets}
# Runs in the new system, as root, before its first boot.
provision() {{
{provision}
}}

# Runs on the new system, once it is up: every command has to succeed.
verify() {{
    sshd -t
}}
"""
KEEP = "\n# These are out of reach for as long as the installation runs.\nkeep='\n{}\n'\n"
SECRETS = """
# The server has these, and they stayed there: `./inv secrets.set --host {} --name PATH <FILE` each.
secrets='
{}
'
"""


@dataclass(frozen=True)
class Draft:
    """FILES: path below hosts/NAME -> content and mode. LINKS: path -> target."""

    files: dict[str, tuple[bytes, int]]
    links: dict[str, str]
    notes: list[str]


def begin(name: str, address: str, key_file: str, fingerprint: str) -> Result:
    """Write hosts/NAME from the server at ADDRESS, USER@HOST:PORT. Raises Failure."""
    directory = skeleton.place(name)
    where = endpoint(address, key_file)
    key, shown = adopt.meet(name, where, fingerprint)
    adopt.agree(name, shown, fingerprint)
    pinned = Endpoint(where.address, where.port, key, where.identity, where.user, where.sudo)
    with connect(pinned) as remote, log.step(f"Looking at {where.address}"):
        found = seen.look(remote)
    draft = make(name, found, pinned, key_file)
    notes = write(directory, draft, where.user)
    log.info(f"hosts/{name} describes {where.address}. Look at these first:")
    for note in notes:
        log.info(f"- {note}")
    log.info(f"Then: ./inv test --host {name}")
    return {"host": name, "directory": os.fspath(directory), "fingerprint": shown, "notes": notes}


def endpoint(address: str, key_file: str) -> Endpoint:
    found = hosts.spelt(address) or die(f"--from {address}: write [USER@]ADDRESS[:PORT]")
    user, port = found.user or ROOT, int(found.port or 22)
    return Endpoint(found.address, port, "", hosts.expanded(key_file), user, sudo=user != ROOT)


def make(name: str, found: Seen, where: Endpoint, key_file: str = "") -> Draft:
    """Pure."""
    loader = loader_of(found)
    drawn = layout.draw(name, found.facts, found.tables, loader)
    files = {f"files/{e.path}": (e.data, e.mode) for e in found.files if e.data is not None}
    links = {f"files/{path}": to for path, to in found.links.items() if provision.linked(path, to)}
    for path, lines in keys(found, drawn):
        files[f"files{path}"] = "\n".join([*lines, ""]).encode(), 0o644
    notes = [*drawn.notes, *told(found, drawn)]
    text = rendered(name, found, where, drawn, notes)
    files["host.toml"] = toml(found, where, key_file).encode(), 0o644
    files["IMGBUILD"] = text.encode(), 0o644
    return Draft(files, links, notes)


def loader_of(found: Seen) -> str:
    grub = any(each.startswith("grub-") for each in found.packages)
    return "systemd-boot" if "systemd-boot" in found.packages and not grub else "grub"


def loader_packages(found: Seen, loader: str) -> set[str]:
    if loader == "systemd-boot":
        return {"systemd-boot"}
    grub = f"grub-efi-{found.arch.name}"
    signed = {"shim-signed", f"{grub}-signed"} & found.packages.keys()
    return {grub, *signed} if found.facts.efi else {"grub-pc"}


def keys(found: Seen, drawn: Drawn) -> Iterator[tuple[str, list[str]]]:
    """Who may log in, by file: not what lies on a kept disk, where it stays."""
    people = {each.name for each in found.accounts if each.person or each.uid == 0}
    for (user, path), lines in found.keys.items():
        if user in people and drawn.here(path) and seen.PATH.fullmatch(path):
            yield path, lines


def rendered(name: str, found: Seen, where: Endpoint, drawn: Drawn, notes: list[str]) -> str:
    loader = loader_of(found)
    wanted = loader_packages(found, loader) | {filesystems.PACKAGES[each] for each in drawn.systems}
    wanted |= {"dosfstools"} if found.facts.efi else set()
    chosen = choice.choose(found, wanted)
    secrets = "\n".join(f"{e.path} ask what /{e.path} of {name} holds" for e in found.hidden)
    names, _ = choice.sources(found)
    body = [f"    {line}" for line in provision.lines(found, drawn)] or ["    :"]
    return IMGBUILD.format(
        name=name,
        address=where.address,
        release=found.release,
        notes="\n".join(f"{LOOK}{log.printable(each)}" for each in notes),
        suite=found.suite,
        arch=found.arch.name,
        components=f"components='{' '.join(names)}'\n" if names != ["main"] else "",
        loader=loader,
        cmdline=cmdline(found),
        packages="\n\n".join("\n".join(each) for each in chosen if each),
        layout="\n".join(drawn.layout),
        keep=KEEP.format("\n".join(drawn.keep)) if drawn.keep else "",
        secrets=SECRETS.format(name, secrets) if secrets else "",
        provision="\n".join(body),
    )


def cmdline(found: Seen) -> str:
    """The words of the administrator's, if a boot loader has started the kernel."""
    if not re.search(r"(^|\s)(BOOT_IMAGE|initrd)=", found.cmdline):
        return ""
    words = (each for each in found.cmdline.split() if not OWN_WORDS.fullmatch(each))
    return " ".join(each for each in words if re.fullmatch(r"[\w.,:=/@%+-]+", each))


def told(found: Seen, drawn: Drawn) -> Iterator[str]:
    """What a person has to look at."""
    names = [ROOT, *(each.name for each in found.people if each.logs_in)]
    keyed = [each for each in names if each in {user for user, _ in found.keys}]
    yield f"nobody has a password in the new system; by key log in: {', '.join(keyed) or 'none'}"
    if without := [each for each in names if each not in keyed]:
        yield f"no key, and so no login in the new system: {', '.join(without)}"
    if found.hidden:
        many = len(found.hidden)
        yield f"{many} files that are secret, or may be, stayed there: `secrets` lists them"
    for each in found.files:
        if each.data is None and each.mode & 0o004:
            yield f"/{each.path} may be secret, and everybody can read it"
        if each.data and PASSWORD.search(each.data) and not each.path.startswith(HARMLESS):
            yield f"files/{each.path}: is there a password in it?"
    for (_, path), lines in found.keys.items():
        if PASSWORD.search("\n".join(lines).encode()):
            yield f"files{path}: is there a password in it?"
    yield from (f"{path}: too large to be taken over" for path in found.large)
    yield from (f"{path}: its name is not taken over" for path in found.odd)
    yield from network(found)
    if "cloud-init" in found.packages:
        yield "cloud-init is left out: what it has set up lies in files/ now"
    if "etc/default/grub" in found.left:
        yield "/etc/default/grub was changed there: of it, cmdline has the kernel's words alone"
    if others := choice.sources(found)[1]:
        yield f"other repositories: `apt_sources` has to name {', '.join(others)}"
    for point in sorted(
        {each for each in found.fstab if each.startswith("/")} - drawn.mounts - drawn.kept
    ):
        yield f"/etc/fstab mounts {point}, which is in neither layout nor keep"
    for top, count in found.beside.items():
        yield f"{top} is not taken over ({count} files)"
    yield "home directories, databases and other data of services are not taken over"


def network(found: Seen) -> Iterator[str]:
    if any(path.startswith("etc/netplan/") for path in found.left):
        yield NETPLAN
    elif not any(each.path.startswith(CONFIGURED) for each in found.files):
        yield "no file for the network was found: nothing else carries it over"
    for _, card in gateways(found)[:1]:
        if not (card.startswith("eth") and "net.ifnames=0" in cmdline(found)):
            yield CARD.format(card)


def toml(found: Seen, where: Endpoint, key_file: str) -> str:
    lines = ["# docs/host-toml.md of Anemos explains all fields.", f'host_key = "{where.host_key}"']
    lines.append(f'address = "{where.address}"')
    lines += [f"port = {where.port}"] if where.port != 22 else []
    lines += [f'user = "{where.user}"'] if where.user != ROOT else []
    lines += [f"identity = {json.dumps(key_file)}"] if key_file else []  # a string as TOML's
    there = static(found)
    vm = [f'address = "{there[0]}"', f'gateway = "{there[1]}"'] if there else []
    firmware = "secure-boot" if found.facts.secure_boot else "uefi"
    vm += [f'firmware = "{firmware}"'] if found.facts.efi else []
    head = ["", "[vm] # for `./inv test`: what the server has, too", *vm] if vm else []
    return "\n".join([*lines, *head, ""])


def gateways(found: Seen) -> list[tuple[str, str]]:
    """Default gateways, and by which network card they are reached."""
    words = [each.split() for each in found.facts.routes]
    return [(e[2], e[e.index("dev") + 1]) for e in words if e[1:2] == ["via"] and "dev" in e[3:-1]]


def static(found: Seen) -> tuple[str, str] | None:
    """Address and gateway, unless DHCP gave them: DHCP works in a VM, too."""
    for gateway, card in gateways(found):
        for line in (each.split() for each in found.facts.addresses):
            if line[:2] == [card, "inet"] and "dynamic" not in line:
                with suppress(ValueError):
                    qemu.Network(line[2], gateway).check()
                    return line[2], gateway
    return None


def write(directory: Path, draft: Draft, user: str) -> list[str]:
    """Make DIRECTORY at once; all that is to be looked at."""
    directory.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=directory.parent) as room:
        top = Path(room) / directory.name
        for path, (data, mode) in draft.files.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(data)
            (top / path).chmod(0o755 if mode & 0o100 else 0o644)
        for path, target in draft.links.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).symlink_to(target)
        if problems := list(missing(top, user)):
            text = "".join(f"{LOOK}{each}\n" for each in problems)
            (top / "IMGBUILD").write_text(
                (top / "IMGBUILD").read_text().replace(LOOK, text + LOOK, 1)
            )
        top.rename(directory)
    return [*problems, *draft.notes]


def missing(top: Path, user: str) -> Iterator[str]:
    """What the definition in TOP lacks for a deployment, as far as it tells."""
    try:
        spec = imgbuild.load(top)
    except Failure as failure:
        yield " ".join(failure.message.replace(f"{top}/", "").split())
        return
    yield from plan.bootable(spec)
    yield from filter(None, [access.problem(spec, [each.name for each in spec.secrets], user)])
