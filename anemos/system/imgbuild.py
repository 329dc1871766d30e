"""Loads an IMGBUILD: sources it in a POSIX shell and reads back its variables and functions."""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from anemos.architecture import AMD64, ARCHITECTURES, Architecture
from anemos.disks import Wanted, plain
from anemos.log import die
from anemos.run import SYSTEM_PATH, CommandFailed, NoEnd, meaning, run
from anemos.system import bootloader, carry, declared, grammar, layout, tree, typos
from anemos.system.bootloader import places
from anemos.system.declared import Declared
from anemos.system.layout import Disk, Kept, Layout, Part, Volume
from anemos.system.typos import Typo

SINGLE = ("imgname", "target", "arch", "debian_suite", "format", "mirror", "bootloader", "login")
WORDS = (
    "packages",
    "excludes",
    "layout",
    "keep",
    "hostconf",
    "components",
    "server_secrets",
    "carry",
)
VARIABLES = (*SINGLE, *WORDS, "apt_sources", "cmdline", "secrets", "volatile")
FREE = ("imgname", "secrets")  # with words that people read
RETYPE = "retype it, with plain blanks, quotes and hyphens"
FUNCTIONS = ("setup", "provision", "cleanup", "verify", "test_secrets", "fetch_secrets")
TARGETS = ("debian", "arch", "alpine")
FORMATS = ("dir", "tar", "raw", "custom", "squashfs", "disk")
# Suffixes that tar --auto-compress knows, and the programs that it runs for them. (For others it
# writes a plain archive, without a word. For lzma Debian's runs xz.)
COMPRESSORS = {
    **dict.fromkeys(("gz", "tgz", "taz"), "gzip"),
    **dict.fromkeys(("Z", "taZ"), "compress"),
    **dict.fromkeys(("bz2", "tz2", "tbz2", "tbz"), "bzip2"),
    **dict.fromkeys(("lz",), "lzip"),
    **dict.fromkeys(("lzo",), "lzop"),
    **dict.fromkeys(("xz", "txz", "lzma", "tlz"), "xz"),
    **dict.fromkeys(("zst", "tzst"), "zstd"),
}
HOSTCONF = ("keyring",)
RAW = ("8G", "msdos", "ext4")  # SIZE, PARTTYPE and FILESYSTEM when a `raw` does not say them
DEADLINE_S = 10.0

# An IMGBUILD sees nothing of its user's environment.
CLEAN = ("env", "-i", f"PATH={SYSTEM_PATH}", "LANG=C.UTF-8")

# Everything that the IMGBUILD prints goes to standard error; standard output carries NUL-terminated
# words only: `name value` for each variable that is set, `name` + "()" for each function, the end.
# The names are written into it: no variable of the IMGBUILD changes what is read.
READER = r"""
exec 3>&1 >&2 </dev/null
set -e
. ./IMGBUILD 3>&-
for name in {variables}; do
    eval "[ -z \"\${{$name+set}}\" ] || printf '%s\0%s\0' \"$name\" \"\$$name\" >&3"
done
for name in {functions}; do
    [ "$(command -v "$name")" != "$name" ] || printf '%s()\0\0' "$name" >&3
done
printf 'end\0\0' >&3
"""


@dataclass(frozen=True)
class Imgbuild:
    """What an IMGBUILD declares. Multi-line strings have become tuples, one value each."""

    directory: Path
    name: str
    target: str
    suite: str
    format: str
    format_options: tuple[str, ...]
    hostconf: tuple[str, ...]
    packages: tuple[str, ...]
    mirror: str
    excludes: tuple[str, ...]
    layout: Layout
    keep: tuple[Kept, ...]
    kept_volumes: tuple[Volume, ...]
    bootloader: str
    cmdline: str
    login: str
    secrets: tuple[Declared, ...]
    server_secrets: tuple[str, ...]
    functions: frozenset[str]
    arch: Architecture = AMD64
    components: tuple[str, ...] = ()
    apt_sources: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()  # without leading slash

    @property
    def file(self) -> Path:
        return self.directory / "IMGBUILD"

    @property
    def package_names(self) -> list[str]:
        """The packages without version, release, architecture and repository: grub-pc=2.06-13,
        grub-pc/bookworm, grub-pc:amd64 (apt-get(8)); core/linux (pacman(8)); linux@edge (apk)."""
        names = [re.split("[=<>~:@]", each)[0] for each in self.packages]
        return [each.split("/")[-1 if self.target == "arch" else 0] for each in names]

    @property
    def kept(self) -> tuple[Kept | Volume, ...]:
        """All that is kept: a volume stands behind what it lies on."""
        return (*self.keep, *self.kept_volumes)

    @property
    def wanted(self) -> list[Wanted]:
        """What finds all that is kept."""
        return [each.wanted for each in self.kept]

    @property
    def changing(self) -> tuple[str, ...]:
        """What changes on the server by itself: what is carried is the old systems' state."""
        return (*self.volatile, *(f"/{each}" for each in self.carry))

    def mount_points(self) -> set[str]:
        """What the layout mounts, and of what is kept."""
        kept = {each.mount for each in self.kept if each.mount}
        return kept | {each.mount for each in self.layout.mounts()}


def load(directory: Path, format: str = "", *, name: str = "", arch: str = "") -> Imgbuild:
    """The IMGBUILD in DIRECTORY; FORMAT takes the place of its `format`.

    NAME: its name when it does not say one; else that is the directory's. ARCH: what its variable
    `arch` is before it says something.
    Raises Failure (status 2) that names the file and the line.
    """
    file = directory / "IMGBUILD"
    if not file.is_file():
        die(f"{directory}: no IMGBUILD there")
    try:
        data = file.read_bytes()
    except OSError as error:
        die(f"{file}: {error.strerror}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        die(f"{file}: is no UTF-8 text, but UTF-16 perhaps", hint="save it as UTF-8, without BOM")
    if data.startswith(codecs.BOM_UTF8):
        die(f"{file}: line 1: a byte order mark (BOM)", hint="save it as UTF-8, without BOM")
    before, carriage_return, _ = data.partition(b"\r")
    if carriage_return:
        line = before.count(b"\n") + 1
        die(f"{file}: line {line}: carriage return", hint="save it with Unix line ends")
    text = data.decode(errors="replace")
    suspects = (
        *typos.suspects(text, "variable", VARIABLES),
        *typos.suspects(text, "function", FUNCTIONS),
    )
    found = read(directory, suspects, arch, (text, *around(directory)))
    refuse_typos(file, suspects, found)
    given = {"format": format} if format else {}
    return interpret(directory, {"imgname": name, **found, **given}, text)


def around(directory: Path) -> Iterator[tuple[str, int, int]]:
    """What lies there, each with its size and when it was changed: an IMGBUILD may read it."""
    with suppress(OSError):  # whoever needs the file tells it
        for path, status in tree.walk(directory):
            yield path, status.st_size, status.st_ctime_ns


@cache  # a command asks again and again what the same IMGBUILD says
def read(
    directory: Path, suspects: tuple[Typo, ...], arch: str, _inputs: object
) -> Mapping[str, str]:
    """Source the IMGBUILD: its variables by name, its functions as "name()", SUSPECTS, too. INPUTS:
    as long as they are the same, so is the answer."""
    given = [f"arch={arch}"] if arch else []
    names = {"variable": VARIABLES, "function": FUNCTIONS}
    words = {
        f"{kind}s": " ".join([*known, *{each.name for each in suspects if each.kind == kind}])
        for kind, known in names.items()
    }
    script = READER.format(**words)
    try:
        output = run([*CLEAN, *given, "sh", "-c", script, "sh"], cwd=directory, timeout=DEADLINE_S)
    except NoEnd:
        die(f"{directory}/IMGBUILD: does not end within {DEADLINE_S:.0f} s when sourced")
    except CommandFailed as failed:
        die(f"{directory}/IMGBUILD: {shell_error(failed)}")
    words_read = output.split("\0")
    found = dict(zip(words_read[::2], words_read[1::2], strict=False))
    if found.pop("end", None) is None:
        die(f"{directory}/IMGBUILD: ends the shell that reads it", hint="remove the `exit`")
    return found


def shell_error(failed: CommandFailed) -> str:
    """What went wrong: "line 3: Syntax error: ..." where the shell tells it.

    Its message is "sh: 3: ./IMGBUILD: ..." or, of a command, "sh: 3: ..." from dash(1), and
    "./IMGBUILD: line 3: ..." from bash(1). It is the last, and has several lines if a word has.
    """
    shells = r"(?ms)^(?:\S*/)?(?:sh|IMGBUILD): (?:line )?(\d+): (?:\./IMGBUILD: )?(.*)"
    if match := re.search(shells, failed.output):
        found = typos.odd(" ".join(match[2].split()))
        why = f" (it has a {typos.described(found)}: {RETYPE})" if found else ""
        return f"line {match[1]}: {' '.join(match[2].split())}{why}"
    message = failed.output.rstrip().rpartition("\n")[2]
    return f"a command in it fails, {meaning(failed.returncode)}: {message or 'no message'}"


def refuse_typos(file: Path, suspects: Iterable[Typo], found: Mapping[str, str]) -> None:
    for each in suspects:
        other = each.name in typos.ALIASES.get(each.meant, ())
        if other and (each.meant in found or found.get("target", "").strip() != "debian"):
            continue
        if each.name + ("()" if each.kind == "function" else "") in found:
            hint = f"did you mean {each.meant}? Names of your own may begin with _"
            die(f"{file}: line {each.line}: unknown {each.kind} {each.name!r}", hint=hint)


def interpret(directory: Path, found: Mapping[str, str], text: str = "") -> Imgbuild:
    """Check and convert what `read` found in TEXT. Pure; DIRECTORY is for messages."""
    where = f"{directory}/IMGBUILD"
    check_values(where, found)
    kind, *options = found.get("format", "dir").split() or [""]
    try:
        disks = grammar.parse(found.get("layout", ""))
        kept = grammar.parse_keep(found.get("keep", ""), disks)
        volumes = grammar.parse_kept_volumes(found.get("keep", ""), kept, disks)
        check_format(kind, options, disks)
        secrets = declared.parse(found.get("secrets", ""), text)
    except ValueError as error:
        die(f"{where}: {error}")
    loaders, known = ("", *bootloader.LOADERS), tuple(ARCHITECTURES)
    spec = Imgbuild(
        directory=directory,
        name=found.get("imgname", "").strip() or directory.resolve().name,
        target=choice(where, "target", found.get("target", "").strip(), TARGETS),
        suite=found.get("debian_suite", "").strip() or "stable",
        format=kind,
        format_options=tuple(options),
        hostconf=tuple(found.get("hostconf", "").split()),
        packages=tuple(found.get("packages", "").split()),
        mirror=found.get("mirror", "").strip(),
        excludes=tuple(found.get("excludes", "").split()),
        layout=disks,
        keep=kept,
        kept_volumes=volumes,
        bootloader=choice(where, "bootloader", found.get("bootloader", "").strip(), loaders),
        cmdline=" ".join(found.get("cmdline", "").split()),
        login=found.get("login", "").strip(),
        secrets=secrets,
        server_secrets=tuple(found.get("server_secrets", "").split()),
        functions=frozenset(name[:-2] for name in found if name.endswith("()")),
        arch=ARCHITECTURES[choice(where, "arch", found.get("arch", AMD64.name).strip(), known)],
        components=tuple(found.get("components", "").split()),
        apt_sources=tuple(filter(None, map(str.strip, found.get("apt_sources", "").split("\n")))),
        volatile=tuple(found.get("volatile", "").split()),
        carry=tuple(each.removeprefix("/") for each in found.get("carry", "").split()),
    )
    check(where, spec)
    return spec


def check_values(where: str, found: Mapping[str, str]) -> None:
    for name, value in found.items():
        if "\ufffd" in value:
            die(f"{where}: {name} has bytes that are not UTF-8")
        if name in SINGLE and "\n" in value.strip():
            hint = "`apt_sources` names more repositories" if name == "mirror" else ""
            die(f"{where}: {name} has several lines, it takes one", hint=hint)
        if name in VARIABLES and name not in FREE:
            check_characters(where, name, value)


def check_characters(where: str, name: str, value: str) -> None:
    """Refuse what an editor or a web page made of a blank or a quote, and comments in a value."""
    for line in value.split("\n"):
        if found := typos.odd(line.replace("\t", " ")):
            die(f"{where}: {name}: {line.strip()!r} has a {typos.described(found)}", hint=RETYPE)
        if name in WORDS and any(word.startswith("#") for word in line.split()):
            hint = "comments stand on lines of their own, outside of the quotes"
            die(f"{where}: {name}: {line.strip()!r}: a comment in a value", hint=hint)


def check(where: str, spec: Imgbuild) -> None:
    """What no variable alone can tell."""
    if not re.fullmatch(r"[^-./\0-\x1f\x7f][^/\0-\x1f\x7f]{0,199}", spec.name):
        die(f"{where}: imgname {spec.name!r} is no name of a file")
    if spec.arch != AMD64 and spec.target != "debian":
        die(f"{where}: arch={spec.arch.name} is for target=debian")
    for each in spec.hostconf:
        choice(where, "hostconf", each, HOSTCONF)
    if spec.format == "custom" and not spec.functions & {"setup", "cleanup"}:
        die(f"{where}: format=custom needs setup() or cleanup()")
    for each in spec.volatile:
        if not each.startswith("/"):
            die(f"{where}: volatile: {each!r} does not begin with /", hint="like /opt/app/data")
    check_mounts(where, spec.layout, spec.kept)
    check_apart(where, spec.layout, spec.keep)
    check_carry(where, spec)
    check_server_secrets(where, spec.server_secrets, fetched="fetch_secrets" in spec.functions)
    disks = for_image(spec).layout
    if spec.bootloader and disks.disks:
        check_loader(where, spec.bootloader, disks, spec.cmdline)
        check_arch(where, spec, disks)
        check_kernel(where, spec, disks)


def check_format(kind: str, options: list[str], disks: Layout) -> None:
    """Raises ValueError. The options of squashfs are mksquashfs's, which checks them itself."""
    if kind not in FORMATS:
        shown = f"is {kind!r}" if kind else "is not set"
        raise ValueError(f"format {shown}\n  (one of: {', '.join(FORMATS)})")
    if kind == "disk" and not disks.disks:
        raise ValueError("format=disk needs a layout")
    if kind == "raw" and not disks.disks:
        raw_layout(options)
        return
    known = COMPRESSORS if kind == "tar" else ()
    if kind != "squashfs" and (options[1:] or not set(options) <= set(known)):
        why = ", as the layout says it all" if kind == "raw" else ""
        raise ValueError(f"format={kind} does not know {' '.join(options)!r}{why}")


def for_image(spec: Imgbuild) -> Imgbuild:
    """SPEC for the image builder: with `raw` and no layout, one partition is the layout.

    Never for a deployment: that disk fits every disk of a server.
    """
    if spec.format != "raw" or spec.layout.disks:
        return spec
    return replace(spec, layout=raw_layout(spec.format_options))


def raw_layout(options: Sequence[str]) -> Layout:
    """The layout of `raw SIZE PARTTYPE FILESYSTEM`, any of them left out from the right.

    Raises ValueError.
    """
    if len(options) > len(RAW):
        raise ValueError(f"format=raw does not know {' '.join(options[len(RAW) :])!r}")
    size, table, fs = [*options, *RAW[len(options) :]]
    where = f"format='raw {size} {table} {fs}'"
    if table not in layout.LABELS:
        raise ValueError(f"{where}: {table!r} is not one of {', '.join(layout.LABELS)}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", fs):
        raise ValueError(f"{where}: {fs!r} is no type of a file system")
    disk = Disk("raw", {}, table, truncate_size(size), (Part("root", fs=fs, mount="/"),))
    try:
        layout.extents(disk, disk.image)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).rpartition(': ')[2]}") from None
    return Layout((disk,))


def truncate_size(text: str) -> int:
    """Bytes of a SIZE for truncate(1): 8G and 8GiB (powers of 1024), 8GB (of 1000)."""
    match = re.fullmatch(r"([0-9]{1,18})(?:([kKmMgGtTPE])(iB|B)?)?", text)
    base = 1000 if match and match[3] == "B" else 1024
    size = int(match[1]) * base ** " KMGTPE".index((match[2] or " ").upper()) if match else 0
    if not match or size >= 2**63:
        raise ValueError(f"format=raw: {text!r} is no size that truncate(1) takes")
    return size


def check_mounts(where: str, disks: Layout, kept: Sequence[Kept | Volume]) -> None:
    taken = {each.mount for each in disks.mounts()}
    for each in kept:
        if each.mount in taken:
            die(f"{where}: keep: mount {each.mount!r} stands in the layout, too")


def check_carry(where: str, spec: Imgbuild) -> None:
    try:
        carry.check(spec.carry, spec.mount_points(), slots=bool(spec.layout.slots()))
    except ValueError as error:
        die(f"{where}: {error}", hint="like var/lib/dhcp")


def check_apart(where: str, disks: Layout, kept: tuple[Kept, ...]) -> None:
    """No whole disk is both erased and kept. Sizes alone name no disk; serials and WWNs do."""
    for erased, each in product(disks.disks, [each for each in kept if not each.disk]):
        for key in ("serial", "wwn", "path"):
            pair = [plain(key, one.match.get(key, "")) for one in (erased, each)]
            if pair[0] and pair[0] == pair[1]:
                words = f"{key}={each.match[key]}"
                die(f"{where}: {words} is disk {erased.name!r} of layout and {each.name!r} of keep")


def check_loader(where: str, loader: str, disks: Layout, cmdline: str) -> None:
    try:
        bootloader.LOADERS[loader].check(disks, cmdline)
    except ValueError as error:
        die(f"{where}: {error}")


def check_kernel(where: str, spec: Imgbuild, disks: Layout) -> None:
    """systemd-boot starts a kernel from the ESP; its upgrade must come there."""
    if spec.bootloader != "systemd-boot" or spec.target == "debian":
        return
    if (mount := places.esps(disks)[0].mount) != "/boot":
        hint = "with slots: bootloader=grub" if disks.slots() else "mount=/boot"
        why = f"target={spec.target} upgrades kernels in place, in /boot: no ESP at {mount}"
        die(f"{where}: bootloader=systemd-boot: {why}", hint=hint)


def check_arch(where: str, spec: Imgbuild, disks: Layout) -> None:
    if spec.arch != AMD64 and bootloader.LOADERS[spec.bootloader].ways(disks) != {"uefi"}:
        die(f"{where}: arch={spec.arch.name} starts by UEFI: `layout` needs type=esp, no type=bios")


def check_server_secrets(where: str, names: tuple[str, ...], *, fetched: bool) -> None:
    """What fetch_secrets() is to write, asked long before a disk is erased."""
    for name in names:
        try:
            declared.check_path(name)
        except ValueError as error:
            die(f"{where}: server_secrets: {error}", hint="like etc/ssl/private/mx.key")
    if bool(names) != fetched:
        die(f"{where}: server_secrets and fetch_secrets() need each other")


def choice(where: str, name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        shown = f"is {value!r}" if value else "is not set"
        die(f"{where}: {name} {shown}", hint=f"one of: {', '.join(filter(None, allowed))}")
    return value
