"""How long images take: .venv/bin/python bench/build.py [MIRROR]

Builds the same packages, a small bootable Debian, with everything that is installed here: cold, and
warm, one file changed since. In memory, one after the other; a line for each: seconds, cold, warm.
Cold means without a cache of one's own: a first bootstrap, not counted, has warmed the mirror's and
the kernel's for all.
MIRROR: of Debian; the machine's own without one. Root, and an otherwise idle machine.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

ROOT = Path(__file__).parents[1]
SUITE = "bookworm"
PACKAGES = (
    "grub-pc-bin",
    "linux-image-cloud-amd64",
    "openssh-server",
    "systemd",
    "systemd-sysv",
)
IMGBUILD = f"""
imgname=bench
target=debian
debian_suite={SUITE}
packages='{" ".join(PACKAGES)}'
"""
DISK = """
format=disk
bootloader=grub
layout='
disk system size=1G image=1G
part bios type=bios size=1M
part root fs=ext4 mount=/
'
"""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT = """
Dir "{0}";
Dir::State::status "{0}/status";
Acquire::Check-Valid-Until "false";
"""
SOURCES = "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {}\n"

Build = Callable[[], object]
Result = tuple[float | None, float | None] | str


def call(argv: list[str | Path], cwd: Path | None = None, **env: str) -> None:
    subprocess.run(argv, cwd=cwd, env=os.environ | env, check=True, capture_output=True)


def timed(build: Build) -> float:
    start = time.monotonic()
    build()
    return time.monotonic() - start


def own_mirror() -> str:
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    return subprocess.check_output(argv, text=True).split("\n", 1)[0]


def anemos(more: str, scratch: Path, mirror: str) -> Result:
    """Cold only if no other has made the package layer. Bytecode is kept, as users do."""
    host, cache = Path(mkdtemp(dir=scratch)), scratch / "cache"
    (host / "files/etc").mkdir(parents=True)
    (host / "out").mkdir()
    cache.mkdir(exist_ok=True)
    empty = not list(cache.iterdir())
    (host / "IMGBUILD").write_text(IMGBUILD + more)
    env = {"PYTHONPATH": os.fspath(ROOT), "PYTHONDONTWRITEBYTECODE": ""}

    def build() -> None:
        (host / "files/etc/motd").write_text(str(time.time()))
        options: list[str | Path] = ["--output", "out", "--cache", cache, f"--mirror={mirror}"]
        call([sys.executable, "-m", "anemos.image", *options], host, **env)

    cold = timed(build)
    warm: list[float] = []
    for _ in range(3):
        shutil.rmtree(host / "out/bench", ignore_errors=True)
        warm.append(timed(build))
    return cold if empty else None, min(warm)


def lower_limits(scratch: Path) -> Result:
    """Cold: the layer unpacked; warm: copied into a file system."""
    (layer,) = (scratch / "cache").glob("layer-*.tar.zst")
    call(["zstd", "-q", "-d", layer, "-o", scratch / "layer.tar"])
    limit = scratch / "limit"
    limit.mkdir()
    unpack = ["tar", "-x", "-p", "-f", scratch / "layer.tar", "-C", limit]
    options = "assume_storage_prezeroed=1,nodiscard"
    fill = ["mkfs.ext4", "-q", "-E", options, "-d", limit, scratch / "limit.img", "1022M"]
    return timed(lambda: call(unpack)), timed(lambda: call(fill))


def mmdebstrap(scratch: Path, mirror: str) -> Result:
    argv = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
    output = scratch / "mmdebstrap"
    return timed(lambda: call([*argv, SUITE, output, mirror], TMPDIR=os.fspath(scratch))), None


def debootstrap(scratch: Path, mirror: str) -> Result:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    return timed(lambda: call([*argv, SUITE, scratch / "debootstrap", mirror])), None


def vmdb2() -> Result:
    if not Path("/dev/mapper/control").exists():
        return "needs device-mapper, which this kernel lacks"
    return "not measured: it needs a specification of its own"


def mkosi(scratch: Path, mirror: str) -> Result:
    """The one of Debian's unstable: it runs on older releases, and looks at kernels with pefile."""
    if not Path("/usr/lib/python3/dist-packages/pefile.py").exists():
        return "needs python3-pefile"
    private = scratch / "apt"
    for name in (
        "etc/apt/apt.conf.d",
        "etc/apt/sources.list.d",
        "var/lib/apt/lists/partial",
        "var/cache/apt",
    ):
        (private / name).mkdir(parents=True)
    (private / "status").touch()
    (private / "apt.conf").write_text(APT.format(private))
    sources = private / "etc/apt/sources.list.d/sid.sources"
    sources.write_text(SOURCES.format(mirror, "sid", KEYRING))
    conf = {"APT_CONFIG": os.fspath(private / "apt.conf")}
    call(["apt-get", "update"], **conf)
    call(["apt-get", "download", "mkosi"], scratch, **conf)
    call(["dpkg-deb", "-x", next(scratch.glob("mkosi_*.deb")), scratch / "program"])
    work = scratch / "mkosi"
    for name in ("mkosi.extra/etc", "mkosi.cache", "mkosi.sandbox/etc/apt/sources.list.d"):
        (work / name).mkdir(parents=True)
    sources = work / "mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources"
    sources.write_text(SOURCES.format(mirror, SUITE, KEYRING))
    argv: list[str | Path] = ["/usr/bin/python3", "-m", "mkosi", "--distribution=debian"]
    argv += [f"--release={SUITE}", f"--mirror={mirror}", "--format=directory", "--incremental=yes"]
    argv += [f"--package={','.join(PACKAGES)}", "--bootable=no", f"--workspace-directory={scratch}"]
    argv += ["--force", "build"]
    library = os.fspath(scratch / "program/usr/lib/python3/dist-packages")

    def build() -> None:
        (work / "mkosi.extra/etc/motd").write_text(str(time.time()))
        call(argv, work, PYTHONPATH=library)

    cold = timed(build)
    return cold, min(timed(build) for _ in range(3))


def measure(name: str, program: str, run: Callable[[], Result]) -> None:
    try:
        result = run() if shutil.which(program) else f"no {program} here"
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).decode(errors="replace").strip().rpartition("\n")[2]
        result = f"failed: {last}"
    if isinstance(result, str):
        print(f"{name:44} {result}", flush=True)
    else:
        cells = [" " * 7 if seconds is None else f"{seconds:7.2f}" for seconds in result]
        print(f"{name:44}", *cells, flush=True)


def main() -> None:
    mirror = sys.argv[1] if len(sys.argv) > 1 else own_mirror()
    load = os.getloadavg()[0]
    print(f"{len(PACKAGES)} packages and what they need; load at the start: {load:.1f}")
    print(f"{'seconds':44} {'cold':>7} {'warm':>7}")
    with TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        measure("mmdebstrap, not counted", "mmdebstrap", lambda: mmdebstrap(scratch, mirror))
        shutil.rmtree(scratch / "mmdebstrap", ignore_errors=True)
        measure("Anemos, disk image", "mmdebstrap", lambda: anemos(DISK, scratch, mirror))
        measure("Anemos, directory", "mmdebstrap", lambda: anemos("format=dir\n", scratch, mirror))
        measure("lower limits: tar -x, mkfs.ext4 -d", "mkfs.ext4", lambda: lower_limits(scratch))
        measure("mmdebstrap, directory", "mmdebstrap", lambda: mmdebstrap(scratch, mirror))
        measure("debootstrap, directory", "debootstrap", lambda: debootstrap(scratch, mirror))
        measure("mkosi, directory", "dpkg-deb", lambda: mkosi(scratch, mirror))
        measure("vmdb2, raw", "vmdb2", vmdb2)


if __name__ == "__main__":
    main()
