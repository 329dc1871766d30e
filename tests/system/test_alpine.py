"""Alpine: signed indexes and packages, apk.static from the repository, and a real apk if any."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from anemos.log import Failure
from anemos.run import run
from anemos.system import bootstrap, imgbuild
from anemos.system.bootstrap import alpine, apk
from tests.packages import ApkKey, Package, apk_index, apk_key, apk_repository, make, signed

pytestmark = [pytest.mark.real("run"), pytest.mark.root]

# Stands for apk-tools: what is real of it is the way that it comes here, and its argv.
PROGRAM = """#!/bin/sh
set -e
root=$3
mkdir "$root/lib"
printf '%s\\n' "$@" >"$root/lib/argv"
cat "$(echo "$@" | sed 's/.*--repositories-file \\([^ ]*\\).*/\\1/')" >"$root/lib/repositories"
ls "$root/dev" >"$root/lib/dev"
case $* in *nosuch*)
    echo 'ERROR: unable to select packages:'
    echo '  nosuch (no such package):'
    exit 1
esac
"""
STATIC = Package("apk-tools-static", {"/sbin/apk.static": PROGRAM}, version="2.14.4")
HELLO = Package(
    "hello",
    {"/usr/bin/hello": "#!/bin/sh\necho hello\n"},
    postinst="#!/bin/sh\necho done >/postinst\n",
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> ApkKey:
    return apk_key(tmp_path_factory.mktemp("key"), "packager@example.org-1")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> ApkKey:
    """Another key of the same name."""
    return apk_key(tmp_path_factory.mktemp("stranger"), "packager@example.org-1")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, key: ApkKey) -> Path:
    made = tmp_path_factory.mktemp("repository")
    apk_repository([HELLO, STATIC], made, key)
    return made


@pytest.fixture
def repository(tmp_path: Path, pristine: Path) -> Path:
    """A repository to be spoiled."""
    return shutil.copytree(pristine, tmp_path / "repository")


@pytest.fixture
def host(tmp_path: Path, repository: Path, key: ApkKey) -> Path:
    made = tmp_path / "host"
    (made / "keys").mkdir(parents=True)
    shutil.copy(key.public, made / "keys")
    (made / "repositories").write_text(f"# ours\n\n{repository}\n")
    (made / "IMGBUILD").write_text("target=alpine\npackages='\nhello\n'\n")
    return made


def bootstrapped(host: Path, more: str = "") -> Path:
    with (host / "IMGBUILD").open("a") as file:
        file.write(more)
    root = host / "root"
    bootstrap.bootstrap(imgbuild.load(host), root)
    return root


@pytest.fixture
def without_apk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "apk" else found(name))


@pytest.mark.usefixtures("without_apk")
def test_apk_from_the_repository(host: Path, key: ApkKey) -> None:
    root = bootstrapped(host)
    assert str(host) not in Path("/proc/self/mountinfo").read_text()
    argv = (root / "lib/argv").read_text().split()
    assert argv[:4] == ["add", "--root", str(root), "--initdb"]
    assert argv[argv.index("--keys-dir") + 1] == f"{root}/etc/apk/keys"
    assert argv[-1] == "hello"
    # Repositories are used, not copied; keys are both.
    assert (root / "lib/repositories").read_text() == (host / "repositories").read_text()
    assert not (root / "etc/apk/repositories").exists()
    assert (root / "etc/apk/keys" / key.public.name).read_bytes() == key.public.read_bytes()
    # Scripts of packages find a /dev of their own, without disks.
    assert "null\n" in (root / "lib/dev").read_text()
    assert "loop" not in (root / "lib/dev").read_text()
    assert not list((root / "dev").iterdir())


@pytest.mark.usefixtures("without_apk")
def test_unknown_package(host: Path) -> None:
    with pytest.raises(Failure, match=r"packages: Alpine has no package nosuch$") as failure:
        bootstrapped(host, "packages='hello nosuch'")
    assert failure.value.status == 2


def other_key(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    sign_again(place, stranger)


def sign_again(place: Path, key: ApkKey, kind: str = "RSA") -> None:
    index = place / "APKINDEX.tar.gz"
    (first, _), *_ = apk.streams(index.read_bytes())
    index.write_bytes(signed(index.read_bytes()[len(first) :], key, kind))


def no_signature(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    index = place / "APKINDEX.tar.gz"
    (first, _), *_ = apk.streams(index.read_bytes())
    index.write_bytes(index.read_bytes()[len(first) :])


def changed_index(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    """The signature is good, of another index."""
    index = place / "APKINDEX.tar.gz"
    (first, _), *_ = apk.streams(index.read_bytes())
    apk_index(place, ["C:Q1AAAA\nP:evil\nV:1\n"], stranger)
    (foreign, _), *_ = apk.streams(index.read_bytes())
    index.write_bytes(first + index.read_bytes()[len(foreign) :])


def replaced_package(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    """Well signed, but not the one that the index means: an old version, say."""
    file = place / "apk-tools-static-2.14.4.apk"
    file.unlink()
    signature = {"key_file": str(key.private), "key_name": key.public.stem.removesuffix(".rsa")}
    old = Package("apk-tools-static", {"/sbin/apk.static": "old"}, version="2.14.4")
    make(old, place, "apk", apk={"signature": signature})


def replaced_files(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    """Signature and control data are as they were."""
    file = place / "apk-tools-static-2.14.4.apk"
    (signature, _), (control, _), _ = apk.streams(file.read_bytes())
    (*_, (content, _)) = apk.streams((place / "hello-1.0.0.apk").read_bytes())
    file.write_bytes(signature + control + content)


def cut_package(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    file = place / "apk-tools-static-2.14.4.apk"
    file.write_bytes(file.read_bytes()[:-100])


def foreign_package(place: Path, key: ApkKey, stranger: ApkKey) -> None:
    file = place / "apk-tools-static-2.14.4.apk"
    (_, _), (control, _), (content, _) = apk.streams(file.read_bytes())
    file.write_bytes(signed(control, stranger) + content)


Spoil = Callable[[Path, ApkKey, ApkKey], None]


@pytest.mark.usefixtures("without_apk")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_key, r"APKINDEX.tar.gz: the signature of packager@example.org-1.rsa.pub does not"),
        (no_signature, r"APKINDEX.tar.gz: not signed"),
        (changed_index, r"APKINDEX.tar.gz: the signature of .* does not hold"),
        (replaced_package, r"2.14.4.apk: not the package that the index names"),
        (replaced_files, r"2.14.4.apk: its files do not have the hash that it says"),
        (cut_package, r"2.14.4.apk: cut short"),
        (foreign_package, r"2.14.4.apk: the signature of .* does not hold"),
    ],
)
def test_spoiled(
    host: Path, repository: Path, key: ApkKey, stranger: ApkKey, spoil: Spoil, message: str
) -> None:
    """Nothing of it is run."""
    spoil(next(repository.iterdir()), key, stranger)
    with pytest.raises(Failure, match=message) as failure:
        bootstrapped(host)
    assert "keys/" in str(failure.value)
    assert not (host / "root/lib").exists()


@pytest.mark.parametrize("kind", ["RSA", "RSA256", "RSA512"])
def test_kinds_of_signatures(
    tmp_path: Path, repository: Path, key: ApkKey, stranger: ApkKey, kind: str
) -> None:
    index = next(repository.iterdir()) / "APKINDEX.tar.gz"
    sign_again(index.parent, key, kind)
    found = apk.read_index(index.read_bytes(), key.public.parent)
    assert [(each.name, each.version) for each in found] == [
        ("hello", "1.0.0"),
        ("apk-tools-static", "2.14.4"),
    ]
    with pytest.raises(apk.Untrusted, match="does not hold"):
        apk.read_index(index.read_bytes(), stranger.public.parent)
    with pytest.raises(apk.Untrusted, match="no such file in"):
        apk.read_index(index.read_bytes(), tmp_path)


def test_damaged_key(tmp_path: Path, pristine: Path, key: ApkKey) -> None:
    index = next(pristine.iterdir()) / "APKINDEX.tar.gz"
    for text in ("", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        (tmp_path / key.public.name).write_text(text)
        with pytest.raises(apk.Untrusted, match=key.public.name):
            apk.read_index(index.read_bytes(), tmp_path)


@pytest.mark.usefixtures("without_apk")
def test_what_is_missing(host: Path, repository: Path, key: ApkKey) -> None:
    with pytest.raises(Failure, match="excludes: apk"):
        bootstrapped(host, "excludes=/usr\n")
    (host / "IMGBUILD").write_text("target=alpine\n")
    apk_index(next(repository.iterdir()), [], key)
    with pytest.raises(Failure, match="no apk here, and no package apk-tools-static"):
        bootstrapped(host)
    next(repository.glob("*/APKINDEX.tar.gz")).unlink()
    with pytest.raises(Failure, match=r"the mirror does not give .*APKINDEX.tar.gz"):
        bootstrapped(host)
    (host / "keys" / key.public.name).unlink()
    with pytest.raises(Failure, match="target=alpine without keys"):
        bootstrapped(host)
    (host / "repositories").unlink()
    with pytest.raises(Failure, match="target=alpine without repositories"):
        bootstrapped(host)


@pytest.mark.usefixtures("without_apk")
def test_keys_of_this_machine(
    host: Path, tmp_path: Path, key: ApkKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hostconf=keyring: those in /etc/apk/keys are trusted, and go into the image."""
    monkeypatch.setattr(alpine, "KEYS", host.parent / "own")
    (host / "keys").rename(host.parent / "own")
    root = bootstrapped(host, "hostconf=keyring\n")
    assert [file.name for file in (root / "etc/apk/keys").iterdir()] == [key.public.name]


@pytest.mark.skipif(not shutil.which("apk"), reason="no apk on PATH")
def test_real_apk(host: Path) -> None:
    root = bootstrapped(host)
    assert run([root / "usr/bin/hello"]) == "hello\n"
    assert (root / "postinst").read_text() == "done\n"
    assert "P:hello\n" in (root / "lib/apk/db/installed").read_text()
    assert (root / "etc/apk/world").read_text() == "hello\n"
    with pytest.raises(Failure, match="packages: Alpine has no package nosuch"):
        bootstrap.bootstrap(imgbuild.load(bad(host)), host / "other")


def bad(host: Path) -> Path:
    (host / "IMGBUILD").write_text("target=alpine\npackages=nosuch\n")
    return host
