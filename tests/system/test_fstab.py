"""Own lines in /etc/fstab, beside those of a layout."""

from pathlib import Path

import pytest

from anemos import log
from anemos.log import Failure
from anemos.system import definition, fstab, imgbuild
from anemos.system.definition import Definition
from anemos.workstation.deploy import payload

LAYOUT = """\
UUID=1 / ext4 defaults 0 1
UUID=2 none swap defaults 0 0
UUID=3 /srv/a xfs defaults 0 2
"""
OWN = """\
# mine
tmpfs /tmp tmpfs nosuid 0 0

/swapfile none swap sw 0 0
nas:/x\\040y /srv/nas\\040y nfs4 _netdev,nofail 0 0
UUID=old\t/srv/a/\text4 defaults 0 2
word
"""
HOST = """
target=debian
layout='
disk system serial=S
part root fs=ext4 mount=/
'
keep='
disk data serial=D mount=/srv/kept
'
"""


@pytest.mark.parametrize("times", [1, 2])
def test_own_lines_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "sink", said.append)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text(OWN)
    for _ in range(times):
        fstab.write(tmp_path, LAYOUT)
    left_out = "UUID=old\t/srv/a/\text4 defaults 0 2"
    assert (tmp_path / "etc/fstab").read_text() == LAYOUT + OWN.replace(f"{left_out}\n", "")
    assert said == [f"/etc/fstab: left out, as the layout mounts /srv/a: {left_out}"]


def test_no_own_lines(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").symlink_to("/etc/elsewhere")
    fstab.write(tmp_path, LAYOUT)
    assert (tmp_path / "etc/fstab").read_text() == LAYOUT


@pytest.mark.real("run")
@pytest.mark.parametrize(
    ("name", "text", "point"),
    [
        ("fstab", "# all\nUUID=x / ext4 defaults 0 1\n", "/"),
        ("fstab.makeimg.template", "# all\n{{ NAME }} /srv/kept ext4 defaults 0 1\n", "/srv/kept"),
        ("fstab", "tmpfs /tmp tmpfs\ntmpfs /srv//k\\145pt/ tmpfs\n", "/srv/kept"),
    ],
)
def test_refused_in_time(tmp_path: Path, name: str, text: str, point: str) -> None:
    """By a build and by `pack`: before anything is fetched or sent."""
    (tmp_path / "files/etc").mkdir(parents=True)
    (tmp_path / "IMGBUILD").write_text(HOST)
    (tmp_path / f"files/etc/{name}").write_text(text)
    spec, values = imgbuild.load(tmp_path), {"NAME": "UUID=y"}
    message = rf"etc/fstab.*: line 2: {point} is mounted by layout or keep\n  \(remove the line"
    with pytest.raises(Failure, match=message):
        definition.check(Definition([tmp_path / "files"], values), spec.mount_points())
    with pytest.raises(Failure, match=message):
        payload.write(tmp_path / "payload", spec, "d-1", values, tmp_path / "none")
