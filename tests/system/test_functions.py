"""Functions of an IMGBUILD on the workstation. (Those in an image: test_definition.py.)"""

from pathlib import Path

import pytest

from anemos.log import FAILED, Failure
from anemos.system import functions, imgbuild

pytestmark = pytest.mark.real("run")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_on_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    """The function works in its directory, sees what counts, and nothing of the user's."""
    monkeypatch.setattr(functions, "BASH", (shell,))
    monkeypatch.setenv("SECRET", "of the caller")
    (tmp_path / "IMGBUILD").write_text(
        "target=debian\nformat=dir\nname=made\nroot=/\n"
        'setup() { echo "$format|$imgname|$debian_suite|$root|${SECRET-}|$HOME" >$name; }\n'
    )
    spec = imgbuild.load(tmp_path, "tar gz")
    work = tmp_path / "a b"
    work.mkdir()
    functions.on_host(spec, "setup", work, root="it's /\n")
    assert (work / "made").read_text() == f"tar gz|{tmp_path.name}|stable|it's /\n||{work}\n"


def test_failure_on_host(tmp_path: Path) -> None:
    """What fails first ends it. The user reads where that is."""
    (tmp_path / "IMGBUILD").write_text(
        "target=debian\ntest_secrets() {\n    : >first\n    ls ./nowhere\n    : >second\n}\n"
    )
    (tmp_path / "work").mkdir()
    with pytest.raises(Failure) as caught:
        functions.on_host(imgbuild.load(tmp_path), "test_secrets", tmp_path / "work")
    assert caught.value.status == FAILED
    where = (
        f"{tmp_path}/IMGBUILD: line 4: in test_secrets(): `ls ./nowhere`: exit status 2\n  | ls:"
    )
    assert str(caught.value).startswith(where)
    assert list((tmp_path / "work").iterdir()) == [tmp_path / "work/first"]
