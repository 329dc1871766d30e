"""What a deployment is going to do, and everything that stands in its way. Nothing is changed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from anemos import disks, volumes
from anemos.disks import Device
from anemos.log import Failure
from anemos.server import network
from anemos.system import booting, layout, partitions, slots
from anemos.system.imgbuild import Imgbuild
from anemos.system.layout import Disk, Entry, Kept, Table
from anemos.workstation import places
from anemos.workstation.deploy import stack, ways
from anemos.workstation.deploy.facts import Facts
from anemos.workstation.deploy.sizes import MIB, STAGING_MEMORY, WORKING_MEMORY, Sizes
from anemos.workstation.deploy.stack import Place
from anemos.workstation.deploy.ways import Beside
from anemos.workstation.hosts import ROOT, Host

# What a system needs among its packages to find its volumes again: the beginning of the name.
TOOLS = {
    "raid": ("mdadm", "the package mdadm has to be among `packages`"),
    "luks": ("cryptsetup", "the package cryptsetup has to be among `packages`"),
    "vg": ("lvm2", "the package lvm2 has to be among `packages`"),
}
CRYPT = "crypto_LUKS"
# Of a slot, by whether the server makes its package layer.
PACKAGES = {True: "the server fetches them, except those that it has", False: "sent from here"}
# What the names of their kernel packages begin with.
KERNELS = {
    "debian": ("linux-image-", "proxmox-default-kernel", "proxmox-kernel-", "pve-kernel-"),
    "arch": ("linux",),
    "alpine": ("linux-",),
}
NO_KERNEL = re.compile(r"^linux-(firmware|api-headers|pam|tools)|-(headers|docs|dbg)$")
UNLOCKS = "cryptsetup-initramfs"


def problems(host: Host, spec: Imgbuild, facts: Facts, sizes: Sizes) -> list[str]:
    """All preconditions that do not hold, one line each."""
    return [
        *_system(spec, facts),
        *_staged(host, facts),
        *ways.WAYS[sizes.way].problems(host, facts, sizes),
        *_memory(facts, sizes),
        *_network(facts),
        *_disks(spec, facts),
        *_boot(spec, facts),
        *_identity(host, facts),
    ]


def beside(host: Host, spec: Imgbuild, facts: Facts, sizes: Sizes) -> list[str]:
    """The same for a slot: no disk is erased, and its own kernel is started by kexec."""
    return [
        *_system(spec, facts),
        *_staged(host, facts),
        *ways.SLOT.problems(host, spec, facts, sizes),
        *bootable(spec),
        *_identity(host, facts),
    ]


def _system(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    if facts.user != "0":
        yield "commands do not run as root there"
    if facts.sudo_logs:
        yield "sudo writes down what commands read, secrets too: log_input in the server's sudoers"
    if facts.machine != spec.arch.machine:
        yield f"the machine is {facts.machine}; arch={spec.arch.name} is for {spec.arch.machine}"
    if facts.container:
        yield f"this is a container ({facts.container}): its kernel is not its own"
    for module in sorted({"loop", "squashfs"} - set(facts.modules)):
        yield f"the kernel has no {module}"
    # Of others that nothing stops, build-initramfs finds out whether the initramfs drives them.
    if any(each.identity == "IPMI" and each.lasting for each in facts.watchdogs):
        yield "IPMI's watchdog cannot be stopped: load ipmi_watchdog without nowayout"
    if facts.place != "system":
        yield f"this is the initramfs of deployment {facts.deployment}, not a running system"


def _staged(host: Host, facts: Facts) -> Iterator[str]:
    """Another workstation's deployment. Our own has ended: lock.py sees to that."""
    if facts.staged and places.who() not in facts.staged.split():
        way = f"./inv clean --host {host.name} --yes {host.name} removes it"
        yield f"{foreign(facts.staged)}; {way}"


def foreign(note: str) -> str:
    """NOTE: as server/stage.sh writes it."""
    deployment, who, since, *_ = [*note.split(), "?", "?", "?"]
    return f"deployment {deployment} of {who} is staged there since {since}"


def _memory(facts: Facts, sizes: Sizes) -> Iterator[str]:
    if facts.memory_available < sizes.before_jump:
        yield (
            f"memory: {sizes.before_jump // MIB} MiB needed before the jump,"
            f" {facts.memory_available // MIB} MiB available"
        )
    if facts.memory_total < sizes.after_jump:
        yield (
            f"memory: {sizes.after_jump // MIB} MiB needed in the initramfs,"
            f" {facts.memory_total // MIB} MiB in the machine"
        )


def _network(facts: Facts) -> Iterator[str]:
    """What keeps the initramfs from coming up as this system does, where the operator looks."""
    try:
        left_behind(facts)
    except Failure as failure:
        yield f"{failure.message}; {failure.hint}"


def left_behind(facts: Facts) -> list[str]:
    """What of the network is not going to be captured, as far as facts tell. Raises Failure for
    what cannot be missed."""
    if not facts.network or len(facts.connection) != 4:
        return []
    # ip(8) of another time: it is not the base image's
    with suppress(*network.STRANGE):
        return network.chosen(*facts.network, facts.connection[2])["left"]
    return []


def _disks(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    found: dict[str, Device] = {}
    named: list[Disk | Kept] = [*spec.layout.disks, *(k for k in spec.keep if not k.disk)]
    for each in named:
        try:
            device = disks.resolve(each.name, each.match, facts.disks)
        except Failure as failure:
            yield f"{failure.message}; {failure.hint}"
            continue
        for name, other in found.items():
            if other == device:
                yield f"disks {name!r} and {each.name!r} are the same: {device.name}"
        found[each.name] = device
    if found.keys() >= {disk.name for disk in spec.layout.disks}:
        yield from _room(spec, facts, found)
        yield from _apart(spec, facts, found)
        yield from _volumes(spec, facts)
    yield from _mounts(spec, facts, found)


def _room(spec: Imgbuild, facts: Facts, found: Mapping[str, Device]) -> Iterator[str]:
    """Whether the layout fits, around the partitions that are kept."""
    try:
        around = [_around(disk, spec, facts, found[disk.name]) for disk in spec.layout.disks]
        whole = replace(spec.layout, disks=tuple(around))
        layout.sizes(whole, {name: device.size for name, device in found.items()})
    except ValueError as error:
        yield str(error)


def _around(disk: Disk, spec: Imgbuild, facts: Facts, device: Device) -> Disk:
    there = {p.number: Entry(p.start, p.size, "") for p in facts.parts if p.disk == device.name}
    numbers = partitions.kept_numbers(spec.keep, disk)
    for number in set(numbers) - there.keys():
        raise ValueError(f"keep: {device.describe()} has no partition {number}")
    return partitions.fitted(disk, Table((), {number: there[number] for number in numbers}))


def _apart(spec: Imgbuild, facts: Facts, found: Mapping[str, Device]) -> Iterator[str]:
    """What lies on what is erased and on what stays, named or not; and names that are taken."""
    kept = {(found[each.disk].name, each.part) for each in spec.keep if each.disk}
    system = {found[disk.name].name for disk in spec.layout.disks}

    def stays(place: Place) -> bool:
        return place[0] not in system or place in kept

    spread: dict[frozenset[Place], list[str]] = {}
    for name, where in stack.pools(facts):
        if len({stays(place) for place in where}) > 1:
            spread.setdefault(frozenset(where), []).append(name)
    for both, names in spread.items():
        erased = {place for place in both if not stays(place)}
        yield (
            f"{', '.join(names)}: on {_nodes(erased)}, which is to be erased, and on"
            f" {_nodes(both - erased)}, which is not: keep all of it, or erase all of it"
        )
    for kind, name, where in stack.names(facts):
        mine = [each for each in layout.volumes(spec.layout, kind) if each.name == name]
        if mine and any(stays(place) for place in where):
            yield (
                f"layout: {kind} {name!r}: there is one of this name on"
                f" {_nodes({place for place in where if stays(place)})}, which is not erased"
            )


def _nodes(places: Iterable[Place]) -> str:
    words = (f"{disk}, partition {number}" if number else disk for disk, number in sorted(places))
    return "; ".join(words)


def _volumes(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """What keeps a kept volume from being found, by its members, as it has to be."""
    try:
        found = _located(spec, facts)
    except ValueError as error:
        yield str(error)
        return
    for name in found.values():
        if name in facts.degraded:
            yield f"{name} {volumes.DEGRADED}: {volumes.REPAIR}"


def _located(spec: Imgbuild, facts: Facts) -> dict[str, str]:
    """The kernel's names of kept volumes, by those in the IMGBUILD. Raises ValueError."""
    parts = {each.name: _node(each, facts) for each in spec.keep if each.disk}
    named = [(stack.kernel_names(node, facts), group) for node, group in facts.groups]
    groups = [(name, group) for names, group in named for name in names]
    return volumes.located(spec.wanted, parts, volumes.Stack(facts.slaves, facts.mapped, groups))


def _node(kept: Kept, facts: Facts) -> str:
    """The kernel's name of what a kept disk mounts, or of a kept partition."""
    device = disks.resolve(kept.name, kept.match, facts.disks)
    names = {(part.disk, part.number): part.name for part in facts.parts}
    return names.get((device.name, kept.part), device.part(kept.part).name)


def _mounts(spec: Imgbuild, facts: Facts, found: Mapping[str, Device]) -> Iterator[str]:
    """What is kept and to be mounted, and cannot be, or would take another one's place."""
    nodes = {k.name: _node(k, facts) for k in spec.keep if (k.disk or k.name) in found}
    with suppress(Failure, ValueError):  # what is not there is told already
        nodes |= _located(spec, facts)
    points = {point: node for node, point, _ in (line.split() for line in facts.mounts)}
    for each in spec.kept:
        node = nodes.get(each.name, "")
        if node and each.mount:
            if not disks.mountable(kind := _held(node, facts).partition(" ")[0]):
                yield (
                    f"keep: {each.name!r}: {node} holds {kind}, which cannot be mounted at"
                    f" {each.mount}: {disks.NO_MOUNT}"
                )
            now = stack.kernel_names(points.get(each.mount, f"/dev/{node}"), facts)
            # Before the first deployment it may have been anywhere.
            if facts.deployment and now != {node}:
                yield (
                    f"keep: {each.name!r}: {each.mount} is on {', '.join(sorted(now))} now, not on"
                    f" {node}; if that is meant, unmount it, or mount {node} there, and plan again"
                )


def _boot(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """What would leave a machine that does not come back."""
    yield from bootable(spec)
    if spec.bootloader and rooted(spec):
        yield from _firmware(spec, facts)
    if facts.boot_next:
        yield (
            f"the firmware starts entry {facts.boot_next} next, not the old system: efibootmgr -N"
        )


def rooted(spec: Imgbuild) -> bool:
    return any(each.mount == "/" for each in spec.layout.mounts())


def bootable(spec: Imgbuild) -> Iterator[str]:
    """The same, as far as the IMGBUILD alone tells it."""
    if not rooted(spec):
        yield "the IMGBUILD has no layout with a root: nothing to install on"
    if not spec.bootloader:
        yield "the IMGBUILD has no bootloader: the new system would not start"
    for missing in booting.missing(spec) if spec.bootloader and rooted(spec) else ():
        yield f"bootloader={spec.bootloader} needs one of these packages: {', '.join(missing)}"
    for kind, (tool, why) in TOOLS.items():
        made = list(layout.volumes(spec.layout, kind))
        kept = [each for each in spec.kept_volumes if each.kind == kind]
        if any(package.startswith(tool) for package in spec.package_names):
            continue
        for where, each in [*(("the layout", v) for v in made), *(("`keep`", v) for v in kept)][:1]:
            yield f"{where} has {kind} {each.name!r}: {why}"
    yield from _initramfs(spec)
    kernels = [each for each in spec.package_names if not NO_KERNEL.search(each)]
    if not any(each.startswith(KERNELS[spec.target]) for each in kernels):
        yield f"the IMGBUILD has no kernel among its packages ({KERNELS[spec.target][0]}...)"


def _initramfs(spec: Imgbuild) -> Iterator[str]:
    """What the new system's own initramfs could not put together."""
    early = layout.early(spec.layout)
    if spec.target != "debian":
        separate = [f"/usr on {e.path}" for e in spec.layout.mounts() if e.mount == "/usr"]
        for what in (*(f"/ on {each.kind} {each.name!r}" for each in early), *separate):
            yield f"the layout has {what}: with target={spec.target} no initramfs is made for it"
        yield from _alpine(spec)
    elif any(each.kind == "luks" for each in early) and UNLOCKS not in spec.package_names:
        yield f"the layout has / on luks: {UNLOCKS} has to be among `packages`"


def _alpine(spec: Imgbuild) -> Iterator[str]:
    """Its initramfs loads no file system that the command line does not name."""
    missing = [f"rootfstype={each.fs}" for each in spec.layout.mounts() if each.mount == "/"]
    if spec.target == "alpine" and not set(missing) <= set(spec.cmdline.split()):
        yield f"Alpine's initramfs needs {missing[0]} in `cmdline`, to find /"


def _firmware(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    ways = booting.ways(spec)
    if (way := "uefi" if facts.efi else "bios") not in ways:
        offered = " and ".join(sorted(ways)).upper()
        yield (
            f"the machine starts by {way.upper()}; bootloader={spec.bootloader} with this layout is"
            f" for {offered}"
        )
    if facts.secure_boot and (why := booting.untrusted(spec)):
        yield f"Secure Boot is on, and would not start the new system: {why}"


def _identity(host: Host, facts: Facts) -> Iterator[str]:
    stamped = facts.stamp.host or host.name
    if stamped != host.name and not host.adopt:
        yield (
            f"this machine was deployed as {stamped!r}, not as {host.name!r};"
            f" with --adopt it becomes {host.name!r}"
        )


def describe(host: Host, spec: Imgbuild, facts: Facts, sizes: Sizes) -> list[tuple[str, str]]:
    """The plan as (what, which) lines. Only for facts without problems."""
    where = f"{facts.name}, kernel {facts.kernel}"
    return [
        ("server", where + (f", deployment {facts.deployment}" if facts.deployment else "")),
        *(("login", each) for each in _logins(host)),
        *(("way", each) for each in _way(host)),
        *(
            ("ERASE", _disk(disks.resolve(d.name, d.match, facts.disks), facts))
            for d in spec.layout.disks
        ),
        *(("keep", _kept(k, facts)) for k in spec.keep),
        *(("keep", each) for each in _kept_volumes(spec, facts)),
        *(("untouched", _disk(each, facts)) for each in _others(spec, facts)),
        *(("warning", each) for each in _warnings(spec, facts)),
        *(("network", each) for each in (*facts.addresses, *facts.routes)),
        *(("network", f"left behind: {each}") for each in left_behind(facts)),
        *(("watchdog", each) for each in _ticking(facts)),
        *(("slot", each) for each in _no_slot(host, spec, facts)),
        *(("carry", f"/{each}: not carried, as whole disks are erased") for each in spec.carry),
        ("boot", ways.WAYS[sizes.way].describe(host, facts, sizes)),
        ("send", _sizes(sizes)),
        *(("memory", line) for line in _arithmetic(host, sizes, facts)),
    ]


def _ticking(facts: Facts) -> Iterator[str]:
    for name, identity, state, lasting in facts.watchdogs:
        if lasting:
            yield f"{name} ({identity}) cannot be stopped: the initramfs has to drive it"
        elif state == "active":
            yield f"{name} ({identity}) ticks: the jump stops it, or the initramfs takes it over"


def _logins(host: Host) -> Iterator[str]:
    """Who logs in to which system, where it is not always root."""
    if host.user != ROOT or host.new_user != ROOT:
        old, new = (
            name if name == ROOT else f"{name} with sudo" for name in (host.user, host.new_user)
        )
        yield f"{old}; root in the initramfs, by the same key; {new} in the new system"


def _no_slot(host: Host, spec: Imgbuild, facts: Facts) -> Iterator[str]:
    if spec.layout.slots():
        why = ways.slot(host, spec, facts).why or "as --whole asks"
        yield f"none is filled beside the running system: {why}"


def describe_slot(host: Host, spec: Imgbuild, facts: Facts, sizes: Sizes) -> list[tuple[str, str]]:
    """The same for a deployment into the slot that does not run."""
    where = f"{facts.name}, kernel {facts.kernel}, deployment {facts.deployment}"
    there = ways.slot(host, spec, facts)
    return [
        ("server", where),
        *(("login", each) for each in _logins(host)),
        *(("way", each) for each in _way(host)),
        ("OVERWRITE", _place(there, spec, facts)),
        ("packages", PACKAGES[sizes.by_server]),
        *(("keep", f"{_kept(k, facts)}; both slots use it") for k in spec.keep),
        *(("keep", f"{each}; both slots use it") for each in _kept_volumes(spec, facts)),
        *(("shared", f"{mount}: both slots use it") for mount in _shared(spec)),
        *(("carry", f"/{each}: copied from the running slot") for each in spec.carry),
        ("boot", _start(host, there)),
        *[("ports", "nothing but SSH is let in until then")][: host.hold_ports],
        *[("commit", "by the new system, if its verify() succeeds")][: host.confirm == "self"],
        ("back", "each reset starts the running slot, until then; after it ./inv rollback does"),
        ("memory", f"{sizes.beside // MIB} of {facts.memory_available // MIB} MiB"),
    ]


def trying(host: Host, spec: Imgbuild) -> Iterator[str]:
    """What SPEC lacks for a slot's trial, as HOST wants it."""
    if host.hold_ports and "nftables" not in spec.package_names:
        yield "hold_ports in host.toml: the package nftables has to be among `packages`"
    if host.confirm == "self" and "verify" not in spec.functions:
        yield 'confirm = "self" in host.toml: the IMGBUILD has no verify()'


def _shared(spec: Imgbuild) -> list[str]:
    """Where file systems of the layout are mounted that both slots use."""
    own = {each.mount for each in spec.layout.filesystems() if each.mount and not each.what.slot}
    return sorted(own - {layout.SHARED})


def _place(there: Beside, spec: Imgbuild, facts: Facts) -> str:
    """The partition or volume that is overwritten."""
    found = {d.name: disks.resolve(d.name, d.match, facts.disks) for d in spec.layout.disks}
    around = [_around(disk, spec, facts, found[disk.name]) for disk in spec.layout.disks]
    place = replace(spec.layout, disks=tuple(around)).into(there.other).root()
    holds = slots.decoded(facts.record).slots[there.other].state
    return f"slot {there.other} (running: {there.running}; it is {holds}): {place.node(found)}"


def _start(host: Host, there: Beside) -> str:
    by = f"GRUB, once ({there.once})" if there.once else "kexec"
    return f"by {by}, on trial for {host.timeouts.trial} s until it is committed"


def _way(host: Host) -> Iterator[str]:
    """How the server is reached, where that is not plain."""
    if host.proxy_jump:
        yield f"by the jump hosts {host.proxy_jump}, to the initramfs as well"
    if host.new_place != (host.address, host.port):
        address, port = host.new_place
        yield f"to the new system: {address}, port {port}"


def _others(spec: Imgbuild, facts: Facts) -> list[Device]:
    """The disks that the IMGBUILD does not name."""
    matches = [disk.match for disk in spec.layout.disks] + [kept.match for kept in spec.keep]
    return [
        device
        for device in facts.disks
        if device.size and not any(disks.matches(device, match) for match in matches)
    ]


def _warnings(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """What does not stand in the way, and may be regretted."""
    yield from _locked(spec, facts)
    yield from _holding_up(spec)
    yield from _way_back(facts)


def _locked(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """What stays and is encrypted: its key file may lie on what is erased."""
    system = {disks.resolve(disk.name, disk.match, facts.disks).name for disk in spec.layout.disks}
    for name in dict.fromkeys(line.split()[0] for line in facts.contents if CRYPT in line.split()):
        where = stack.ground([name], facts)
        if any(disk not in system for disk, _ in where) or _kept_places(spec, facts) & where:
            yield (
                f"{name} is encrypted and stays: copy its key file and its LUKS header from here"
                " first, if they lie on what is erased"
            )


def _holding_up(spec: Imgbuild) -> Iterator[str]:
    """What is kept and could keep sshd from starting, as systemd.mount(5) has it."""
    for each in spec.kept:
        if each.mount and "nofail" not in each.options.split(","):
            yield (
                f"{each.mount} is mounted without options=nofail: if {each.name} is broken one day,"
                " the server may wait on its console, without SSH"
            )


def _kept_places(spec: Imgbuild, facts: Facts) -> set[Place]:
    parts = [each for each in spec.keep if each.disk]
    return {(disks.resolve(k.name, k.match, facts.disks).name, k.part) for k in parts}


def _way_back(facts: Facts) -> Iterator[str]:
    """What keeps the old system from coming back alone, if the deployment fails early."""
    until = "a failure before the point of no return"
    roots = [node for node, point, _ in (line.split() for line in facts.mounts) if point == "/"]
    below = set().union(
        *(stack.below(n, facts) for r in roots for n in stack.kernel_names(r, facts))
    )
    locked = [line for line in facts.contents if CRYPT in line.split()]
    if any(stack.kernel_names(line.split()[0], facts) & below for line in locked):
        yield f"/ is encrypted: {until} ends where the old system asks for its passphrase"
    if not roots:
        yield (
            f"/ is on no disk that is known (a rescue system, a network, ZFS?): {until} ends in"
            " what the machine starts by itself, which may be another system"
        )


def _arithmetic(host: Host, sizes: Sizes, facts: Facts) -> list[str]:
    """How Sizes.before_jump and after_jump come about, in MiB."""
    unknown = []
    if not sizes.layer and host.build_on != "initramfs":
        unknown = ["it will be more: the package layer is not made yet, and counts as 0"]
    base, layer, payload = (
        f"{each / MIB:.0f}" for each in (sizes.base, sizes.layer, sizes.payload)
    )
    parts = f"(base {base} + layer {layer} + payload {payload})"
    held = f"(base {base} + payload {payload})" if sizes.late else parts
    staged = [] if sizes.base_is_there else [f"base {base}"]
    copies = [f"{sizes.copies} x {held}"] if sizes.copies else []
    before = " + ".join([*copies, *staged, f"{STAGING_MEMORY // MIB} to work with"])
    after = f"2 x {parts} + {WORKING_MEMORY // MIB} to work with"
    if sizes.after_jump == 2 * sizes.files:
        after = f"files take half of it: 2 x (base {base} + layer {layer} + 3 x payload {payload})"
    return [
        f"{sizes.before_jump // MIB} of {facts.memory_available // MIB} MiB before the jump:"
        f" {before}",
        f"{sizes.after_jump // MIB} of {facts.memory_total // MIB} MiB after it: {after}",
        *unknown,
    ]


def _sizes(sizes: Sizes) -> str:
    base = "is there" if sizes.base_is_there else _size(sizes.base)
    return f"base image: {base}; package layer: {_size(sizes.layer)}"


def _size(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size else "to be made"


def _kept(kept: Kept, facts: Facts) -> str:
    device = disks.resolve(kept.name, kept.match, facts.disks)
    return f"partition {kept.part} of {device.describe()}" if kept.disk else _disk(device, facts)


def _kept_volumes(spec: Imgbuild, facts: Facts) -> Iterator[str]:
    """Each with what it holds."""
    found = _located(spec, facts)
    for each in spec.kept_volumes:
        if name := found.get(each.name):
            what = _held(name, facts) or "nothing that is known"
            on = f"on {', '.join(each.on)}: {stack.shown(name, facts)} ({what})"
            yield f"{each.kind} {each.name} {on}"


def _held(name: str, facts: Facts) -> str:
    """File system or the like on NAME, one of the kernel's, and its label."""
    known = (line.partition(" ")[::2] for line in facts.contents)
    held = {stack.shown(each, facts): what for each, what in known}
    return held.get(stack.shown(name, facts), "")


def _disk(device: Device, facts: Facts) -> str:
    model = facts.models.get(device.name)
    what = device.describe() + (f", {model}" if model else "")
    return f"{what}: {', '.join(stack.holds(device, facts)) or 'nothing that is known'}"
