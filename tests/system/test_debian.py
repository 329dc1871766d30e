"""What mmdebstrap's output means to a user. (The demo bootstraps Debian for real.)"""

from pathlib import Path

import pytest

from anemos import log
from anemos.log import Failure
from anemos.run import CommandFailed, run
from anemos.system import bootstrap, imgbuild, tree
from anemos.system.bootstrap import debian
from anemos.system.bootstrap.common import FETCHED

pytestmark = pytest.mark.real("run")

# As apt 2.6 and mmdebstrap 1.3 say it.
UNKNOWN = """
Reading package lists...
E: Unable to locate package nosuch
E: Unable to locate package other
E: apt-get --yes install -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed
"""
AWAY = """
Err:1 http://nowhere.invalid/debian bookworm InRelease
  Could not resolve 'nowhere.invalid'
E: Failed to fetch http://nowhere.invalid/debian/dists/bookworm/InRelease  Could not resolve
E: Some index files failed to download. They have been ignored, or old ones used instead.
"""
NO_SUITE = "E: The repository 'http://x/debian bookwurm Release' does not have a Release file.\n"
EXPIRED = "E: Release file for http://x/InRelease is expired (invalid since 19d 2h). Updates ...\n"
EARLY = "E: Release file for http://x/InRelease is not valid yet (invalid for another 2h). ...\n"
UNTRUSTED = """
  The following signatures couldn't be verified because the key is not available: NO_PUBKEY 0E98
E: The repository 'http://x/debian bookworm InRelease' is not signed.
"""


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        (
            UNKNOWN,
            2,
            "{0}: packages: Debian has no package nosuch\n"
            "{0}: packages: Debian has no package other",
        ),
        (AWAY, 1, "the mirror cannot be reached: nowhere.invalid\n  ("),
        (
            EXPIRED,
            1,
            "the mirror is out of date, its Release file has expired: http://x/InRelease\n",
        ),
        (EARLY, 1, "the mirror's Release file is from the future: http://x/InRelease\n"),
        (NO_SUITE, 1, "no Debian suite at the mirror: http://x/debian bookwurm Release\n  ("),
        (UNTRUSTED, 1, "the mirror is signed with a key that is not trusted: 0E98"),
        ("E: something else\n", 1, "sh -c"),
    ],
)
def test_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, status: int, message: str
) -> None:
    (tmp_path / "IMGBUILD").write_text("target=debian\n")
    argv = ["sh", "-c", 'printf "%s" "$0"; exit 9', output]
    monkeypatch.setattr(debian, "mmdebstrap", lambda *_: argv)
    with pytest.raises(Failure) as failure:
        bootstrap.bootstrap(imgbuild.load(tmp_path), tmp_path / "root")
    assert str(failure.value).startswith(message.format(tmp_path / "IMGBUILD"))
    assert failure.value.status == status
    assert isinstance(failure.value, CommandFailed) == (message == "sh -c")


SOURCES = """
target=debian
debian_suite=bookworm
components='main contrib non-free-firmware'
apt_sources='
deb [arch=amd64 signed-by=keys/own.asc] https://example.org/apt bookworm stable
deb [trusted=yes] file:/srv/flat ./
'
"""


def test_sources(tmp_path: Path) -> None:
    """mmdebstrap's own lines stay; others come beside them, the keys as the new system has them."""
    (tmp_path / "IMGBUILD").write_text(SOURCES.replace("file:/", "file:///"))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/own.asc").write_text("key")
    spec = imgbuild.load(tmp_path)
    bootstrap.check(spec)
    argv = [str(word) for word in debian.mmdebstrap(spec, tmp_path / "x.tar")]
    assert argv[-2:] == ["bookworm", str(tmp_path / "x.tar")]
    assert "--components=main,contrib,non-free-firmware" in argv
    root = tmp_path / "root"
    (root / "etc/apt/sources.list.d").mkdir(parents=True)
    seen = []
    for kind in ("--setup-hook=", "--customize-hook="):
        for option in debian.sources(spec):
            if option.startswith(kind):
                run(["sh", "-ec", option.removeprefix(kind), "sh", root])
        seen.append((root / debian.LIST).read_text().splitlines()[0])
    options = "deb [arch=amd64 signed-by={}/etc/apt/keyrings/own.asc] https://example.org/apt"
    assert seen == [f"{options.format(where)} bookworm stable" for where in (root, "")]
    assert (root / "etc/apt/keyrings/own.asc").read_text() == "key"
    before = bootstrap.key(spec)
    (tmp_path / "keys/own.asc").write_text("another key")
    assert bootstrap.key(spec) != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("https://example.org/apt bookworm main", "is no line of sources.list"),
        ("deb example.org bookworm main", "is no line of sources.list"),
        ("deb [signed-by=keys/none.asc] https://example.org x main", "there is no keys/none.asc"),
    ],
)
def test_bad_sources(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "IMGBUILD").write_text(f"target=debian\napt_sources='{line}'\n")
    with pytest.raises(Failure, match=message):
        bootstrap.check(imgbuild.load(tmp_path))


def test_indexes_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "IMGBUILD").write_text(SOURCES + "mirror=http://x/debian/")
    assert debian.indexes(imgbuild.load(tmp_path)) == [
        "http://x/debian/dists/bookworm/InRelease",
        "https://example.org/apt/dists/bookworm/InRelease",
    ]


INSTALLED = """\
Package: a
Status: install ok installed
Version: 1:2
Architecture: all
"""


def test_packages_are_kept_for_the_next_time(tmp_path: Path) -> None:
    """What the new system has, and no other; a damaged one is fetched again."""
    for root in ("one", "two"):
        (tmp_path / root / debian.ARCHIVES).mkdir(parents=True)
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "var/lib/dpkg").mkdir(parents=True)
    (one / "var/lib/dpkg/status").write_text(INSTALLED)
    for name in ("a_1%3a2_all.deb", "a_1%3a1_all.deb", "b_1_all.deb"):
        (one / debian.ARCHIVES / name).write_text(name)
    kept = one / FETCHED
    _, take, keep = (each.partition("=")[2] for each in debian.cache(kept))

    run(["sh", "-ec", take, "sh", one])  # there is none yet
    run(["sh", "-ec", keep, "sh", one])
    assert sorted(each.name for each in kept.iterdir()) == ["SHA256SUMS", "a_1%3a2_all.deb"]
    run(["sh", "-ec", take, "sh", two])
    (taken,) = (two / debian.ARCHIVES).iterdir()
    assert taken.read_text() == "a_1%3a2_all.deb"
    taken.unlink()
    (kept / taken.name).write_text("damaged")
    run(["sh", "-ec", take, "sh", two])
    assert not list((two / debian.ARCHIVES).iterdir())
    tree.write(two, "var/lib/dpkg/status", INSTALLED)
    run(["sh", "-ec", keep, "sh", two])  # a mirror on a disk: apt takes them from there
    assert not list((two / FETCHED).iterdir())


def test_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fetches packages takes the way out that its user has, and no other variable."""
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "mirror.example")
    monkeypatch.setenv("OTHER", "x")
    monkeypatch.setattr(debian, "mmdebstrap", lambda *_: ["sh", "-c", "env >env"])
    (tmp_path / "IMGBUILD").write_text("target=debian\n")
    bootstrap.bootstrap(imgbuild.load(tmp_path), tmp_path / "root")
    found = (tmp_path / "env").read_text().splitlines()
    assert {"http_proxy=http://proxy.example:3128", "no_proxy=mirror.example"} <= set(found)
    assert not [line for line in found if line.startswith("OTHER=")]


@pytest.mark.parametrize(("suite", "told"), [("", 1), ("stable", 1), ("trixie", 0)])
def test_moving_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, told: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "sink", said.append)
    monkeypatch.setattr(debian, "mmdebstrap", lambda *_: ["true"])
    (tmp_path / "IMGBUILD").write_text(f"target=debian\ndebian_suite={suite}\n")
    bootstrap.bootstrap(imgbuild.load(tmp_path), tmp_path / "root")
    assert sum("stable becomes another release by itself" in line for line in said) == told


def test_hostconf_is_for_others(tmp_path: Path) -> None:
    (tmp_path / "IMGBUILD").write_text("target=debian\nhostconf=keyring\n")
    with pytest.raises(Failure, match="IMGBUILD: hostconf is for target=arch"):
        bootstrap.check(imgbuild.load(tmp_path))
    (tmp_path / "IMGBUILD").write_text("target=arch\nhostconf=locale\n")
    with pytest.raises(Failure, match="IMGBUILD: hostconf is 'locale'"):
        imgbuild.load(tmp_path)
