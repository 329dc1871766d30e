"""Alpine's signed files: repository indexes and packages, of the second version of the format.

Both are gzip streams, one after the other: signature, and then what is signed, byte for byte as
it stands there: of an index all the rest, of a package the second stream, whose .PKGINFO has the
hash of the third. Alpine's wiki, "Apk spec", describes them.
"""

import base64
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from anemos.run import CommandFailed, run

GZIP = 16 + zlib.MAX_WBITS  # zlib.h, inflateInit2
# Name of a signature's member -> its hash; all are RSASSA-PKCS1-v1_5 (RFC 8017, 8.2).
SIGNATURES = {"RSA": "sha1", "RSA256": "sha256", "RSA512": "sha512"}


class Untrusted(Exception):
    """Damaged, not signed, or not with a key that is trusted."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    checksum: bytes  # SHA-1 of the control stream


def streams(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The gzip streams in DATA: (as they stand there, unpacked). Raises Untrusted."""
    while data:
        stream = zlib.decompressobj(GZIP)
        try:
            unpacked = stream.decompress(data)
        except zlib.error as error:
            raise Untrusted(str(error)) from None
        if not stream.eof:
            raise Untrusted("cut short")
        raw, data = data[: len(data) - len(stream.unused_data)], stream.unused_data
        yield raw, unpacked


def members(unpacked: bytes) -> dict[str, bytes]:
    """The regular files of a tar archive, which may lack its end. Raises Untrusted."""
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            found = {each.name: archive.extractfile(each) for each in archive if each.isreg()}
            return {name: file.read() for name, file in found.items() if file}
    except tarfile.TarError as error:
        raise Untrusted(str(error)) from None


def read_index(data: bytes, keys: Path) -> list[Package]:
    """The packages in the repository index DATA (APKINDEX.tar.gz), whose signature is checked."""
    (signature, _), *rest = list(streams(data)) or [(b"", b"")]
    verify(signature, data[len(signature) :], keys)
    text = b"".join(members(unpacked).get("APKINDEX", b"") for _, unpacked in rest).decode()
    return [package(block) for block in text.split("\n\n") if block.strip()]


def package(block: str) -> Package:
    fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
    checksum = fields.get("C", "")
    if not checksum.startswith("Q1"):
        raise Untrusted(f"a checksum of unknown kind: {checksum}")
    return Package(fields["P"], fields["V"], base64.b64decode(checksum[2:]))


def read_package(data: bytes, wanted: Package, keys: Path) -> dict[str, bytes]:
    """The files in the package DATA, which must be the one that the index means by WANTED."""
    parts = list(streams(data))
    if len(parts) != 3:
        raise Untrusted(f"{len(parts)} parts instead of 3")
    (signature, _), (control, information), (content, unpacked) = parts
    verify(signature, control, keys)
    if hashlib.sha1(control).digest() != wanted.checksum:  # noqa: S324 (what the format has)
        raise Untrusted("not the package that the index names")
    datahash = re.search(rb"(?m)^datahash = (\w+)$", members(information).get(".PKGINFO", b""))
    if not datahash or datahash[1].decode() != hashlib.sha256(content).hexdigest():
        raise Untrusted("its files do not have the hash that it says")
    return members(unpacked)


def verify(signature: bytes, signed: bytes, keys: Path) -> None:
    """Raise Untrusted unless the stream SIGNATURE has one of SIGNED by a key in KEYS."""
    names = []
    for _, unpacked in streams(signature):
        for member, value in members(unpacked).items():
            if match := re.fullmatch(r"\.SIGN\.(RSA|RSA256|RSA512)\.([^/]+)", member):
                names.append(match[2])
                key = keys / match[2]
                if key.is_file() and good(key, match[1], value, signed):
                    return
    if not names:
        raise Untrusted("not signed")
    known = [name for name in names if (keys / name).is_file()]
    if known:
        raise Untrusted(f"the signature of {known[0]} does not hold")
    raise Untrusted(f"signed by {', '.join(names)}: no such file in {keys}")


def good(key: Path, kind: str, signature: bytes, signed: bytes) -> bool:
    """By openssl-dgst(1). Raises Untrusted for a KEY that is none."""
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(signature)
        words = ["openssl", "dgst", f"-{SIGNATURES[kind]}", "-signature", file.name, "-verify"]
        try:
            run([*words, key], data=signed)
        except CommandFailed as failed:
            if "Could not read" in failed.output:
                raise Untrusted(f"{key}: no public key in PEM") from None
            return False
    return True
