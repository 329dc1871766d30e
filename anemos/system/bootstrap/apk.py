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

GZIP = 16 + zlib.MAX_WBITS  # zlib.h, inflateInit2
# Name of a signature's member -> hash (RSASSA-PKCS1-v1_5), and its DigestInfo (RFC 8017, 9.2).
SIGNATURES = {
    "RSA": ("sha1", bytes.fromhex("3021300906052b0e03021a05000414")),
    "RSA256": ("sha256", bytes.fromhex("3031300d060960864801650304020105000420")),
    "RSA512": ("sha512", bytes.fromhex("3051300d060960864801650304020305000440")),
}


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
    """RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2): compares whole encoded messages."""
    modulus, exponent = public_key(key)
    length = (modulus.bit_length() + 7) // 8
    name, prefix = SIGNATURES[kind]
    ending = prefix + hashlib.new(name, signed).digest()
    expected = b"\0\1" + b"\xff" * (length - len(ending) - 3) + b"\0" + ending
    number = int.from_bytes(signature)
    return len(signature) == length and pow(number, exponent, modulus) == int.from_bytes(expected)


def public_key(file: Path) -> tuple[int, int]:
    """Modulus and exponent of an RSA key in PEM (RFC 5280, SubjectPublicKeyInfo)."""
    match = re.search(r"-----BEGIN PUBLIC KEY-----(.*?)-----END", file.read_text(), re.DOTALL)
    try:
        if not match:
            raise ValueError("no public key in PEM")
        information = next(elements(base64.b64decode(match[1])))
        _, bits = elements(information)
        modulus, exponent = elements(next(elements(bits[1:])))  # [0]: unused bits
        return int.from_bytes(modulus), int.from_bytes(exponent)
    except (ValueError, IndexError, StopIteration) as error:
        raise Untrusted(f"{file}: {error}") from None


def elements(data: bytes) -> Iterator[bytes]:
    """The contents of the DER elements in DATA (X.690), one after the other."""
    while data:
        length, start = data[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[2:start])
        yield data[start : start + length]
        data = data[start + length :]
