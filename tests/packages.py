"""Real packages, made by nfpm, and signed repositories of them: for pacman and for apk."""

import base64
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from anemos.run import environment


@dataclass(frozen=True)
class Package:
    name: str
    files: Mapping[str, str | Path]  # path -> text, or the file with the content
    links: Mapping[str, str] = field(default_factory=dict)
    postinst: str = ""  # shell script
    version: str = "1.0.0"
    tree: Path | None = None  # a directory, all of it from / on


def tool(*argv: str | Path, cwd: Path | None = None, **extra: str) -> str:
    """Run a tool of the tests; the venv's own are found, too."""
    env = environment(extra)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, input=""
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def make(package: Package, out: Path, packager: str, **more: object) -> Path:
    """Make PACKAGE (archlinux or apk) in the directory OUT, named as its distribution does."""
    with TemporaryDirectory() as name:
        contents: list[dict[str, object]] = []
        for number, (path, content) in enumerate(package.files.items()):
            source = content if isinstance(content, Path) else Path(name) / str(number)
            if not isinstance(content, Path):
                source.write_text(content)
            mode = 0o755 if "bin/" in path else 0o644
            contents.append({"src": str(source), "dst": path, "file_info": {"mode": mode}})
        contents += [{"src": to, "dst": at, "type": "symlink"} for at, to in package.links.items()]
        contents += [{"src": str(package.tree), "dst": "/", "type": "tree"}] if package.tree else []
        description = {
            "name": package.name,
            "version": package.version,
            "arch": "amd64",
            "maintainer": "Test <test@example.org>",
            "description": package.name,
            "contents": contents,
            **more,
        }
        if package.postinst:
            (Path(name) / "postinst").write_text(package.postinst)
            description["scripts"] = {"postinstall": str(Path(name) / "postinst")}
        (Path(name) / "nfpm.yaml").write_text(json.dumps(description))  # JSON is YAML, too
        (Path(name) / "made").mkdir()
        tool("nfpm", "package", "--packager", packager, "--target", "made", cwd=Path(name))
        (made,) = (Path(name) / "made").iterdir()
        names = {"apk": f"{package.name}-{package.version}.apk"}
        return Path(shutil.copy(made, out / names.get(packager, made.name)))


# --- pacman


@dataclass(frozen=True)
class Signer:
    """A throw-away GPG key."""

    home: Path
    public: Path

    def sign(self, file: Path) -> None:
        signature = file.with_name(file.name + ".sig")
        signature.unlink(missing_ok=True)
        argv: list[str | Path] = [
            "--batch",
            "--detach-sign",
            "--no-armor",
            "--output",
            signature,
            file,
        ]
        tool("gpg", "--homedir", self.home, *argv)


@contextmanager
def signer(name: str) -> Iterator[Signer]:
    # Short: gpg-agent has a socket in it, which it may remove meanwhile.
    with TemporaryDirectory(dir="/tmp", prefix="gpg-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        home.chmod(0o700)
        argv: list[str | Path] = ["gpg", "--homedir", directory, "--batch"]
        tool(*argv, "--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", "never")
        public = home / "public.asc"
        public.write_text(tool(*argv, "--armor", "--export"))
        yield Signer(home, public)
        tool("gpgconf", "--homedir", directory, "--kill", "all")


def pacman_repository(packages: Sequence[Package], out: Path, key: Signer) -> None:
    """A repository called `test` in OUT: packages and database signed with KEY."""
    made = [make(package, out, "archlinux") for package in packages]
    for file in made:
        key.sign(file)
    database = out / "test.db.tar.gz"
    tool("repo-add", "--quiet", "--sign", database, *made, GNUPGHOME=os.fspath(key.home))


# --- apk


@dataclass(frozen=True)
class ApkKey:
    """A throw-away RSA key; Alpine's tools know it by the name of its public half."""

    private: Path
    public: Path


def apk_key(out: Path, name: str) -> ApkKey:
    key = ApkKey(out / name, out / f"{name}.rsa.pub")
    tool("openssl", "genrsa", "-out", key.private, "2048")
    tool("openssl", "rsa", "-in", key.private, "-pubout", "-out", key.public)
    return key


def signed(data: bytes, key: ApkKey, kind: str = "RSA") -> bytes:
    """DATA behind a stream with its signature: by openssl, so that ours is not checked by ours."""
    algorithm = {"RSA": "-sha1", "RSA256": "-sha256", "RSA512": "-sha512"}[kind]
    argv: list[str | Path] = ["openssl", "dgst", algorithm, "-sign", key.private]
    signature = subprocess.run(argv, input=data, capture_output=True, check=True).stdout
    return cut_tar({f".SIGN.{kind}.{key.public.name}": signature}, end=False) + data


def cut_tar(files: Mapping[str, bytes], end: bool) -> bytes:
    """A gzip stream with a tar archive of FILES; without END, others may follow."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        length = archive.offset
    return gzip.compress(buffer.getvalue() if end else buffer.getvalue()[:length], mtime=0)


def apk_repository(packages: Sequence[Package], out: Path, key: ApkKey) -> None:
    """A repository in OUT: packages and index signed with KEY, as apk-index(8) and abuild do."""
    place = out / platform.machine()
    place.mkdir()
    signature = {"key_file": str(key.private), "key_name": key.public.stem.removesuffix(".rsa")}
    blocks = []
    for package in packages:
        file = make(package, place, "apk", apk={"signature": signature})
        blocks.append(apk_block(file))
    apk_index(place, blocks, key)


def apk_index(place: Path, blocks: Sequence[str], key: ApkKey, kind: str = "RSA") -> None:
    files = {"DESCRIPTION": b"test", "APKINDEX": "\n".join(blocks).encode() + b"\n"}
    (place / "APKINDEX.tar.gz").write_bytes(signed(cut_tar(files, end=True), key, kind))


def apk_block(file: Path) -> str:
    """The lines of APKINDEX about the package FILE."""
    data = file.read_bytes()
    first = zlib.decompressobj(31)
    first.decompress(data)
    second = zlib.decompressobj(31)
    information = second.decompress(first.unused_data)
    control = first.unused_data[: len(first.unused_data) - len(second.unused_data)]
    fields = dict(
        line.split(" = ", 1)
        for line in information[512:].decode(errors="replace").splitlines()
        if " = " in line
    )
    checksum = base64.b64encode(hashlib.sha1(control).digest()).decode()  # noqa: S324
    return (
        f"C:Q1{checksum}\nP:{fields['pkgname']}\nV:{fields['pkgver']}\nA:{platform.machine()}\n"
        f"S:{len(data)}\nI:{fields.get('size', 0)}\nT:{fields['pkgname']}\n"
    )
