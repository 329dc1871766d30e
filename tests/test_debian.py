"""What mmdebstrap's output means to a user. (The demo bootstraps Debian for real.)"""

from pathlib import Path

import pytest

from anemos.image import bootstrap, imgbuild
from anemos.image.bootstrap import debian
from anemos.log import Failure
from anemos.run import CommandFailed

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


def test_hostconf_is_for_others(tmp_path: Path) -> None:
    (tmp_path / "IMGBUILD").write_text("target=debian\nhostconf=keyring\n")
    with pytest.raises(Failure, match="IMGBUILD: hostconf is for target=arch"):
        bootstrap.check(imgbuild.load(tmp_path))
    (tmp_path / "IMGBUILD").write_text("target=arch\nhostconf=locale\n")
    with pytest.raises(Failure, match="IMGBUILD: hostconf is 'locale'"):
        imgbuild.load(tmp_path)
