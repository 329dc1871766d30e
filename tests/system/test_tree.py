"""Writing into a root file system never leaves it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.system import tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    for name in ("etc", "usr/lib", "run", "var"):
        (made / name).mkdir(parents=True)
    for name, target in {
        "lib": "usr/lib",
        "var/run": "/run",
        "var/up": "../../../../etc",
        "out": "../outside",
        "double": "//outside",
        "host": os.fspath(tmp_path),
        "dots": "usr/../usr/./lib/..",
        "loop": "pool",
        "pool": "/loop",
        "chain": "var/run",
        "self": "/",
        "etc/link": "/etc/target",
    }.items():
        (made / name).symlink_to(target)
    (made / "etc/file").write_text("old")
    return made


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("etc/hostname", "etc/hostname"),
        ("/etc/hostname", "etc/hostname"),
        ("//etc//hostname/", "etc/hostname"),
        ("lib/x", "usr/lib/x"),
        ("var/run/x/y", "run/x/y"),
        ("chain/x", "run/x"),
        ("var/up/passwd", "etc/passwd"),
        ("out/x", "outside/x"),
        ("double/x", "outside/x"),
        ("dots/x", "usr/x"),
        ("self/self/self/etc/x", "etc/x"),
        ("../../x", "x"),
        ("etc/../../../x", "x"),
        ("var/run/../x", "x"),  # as the kernel does: /run/.., not /var
        ("etc/link", "etc/link"),
        ("loop", "loop"),
        ("", "."),
        ("/", "."),
    ],
)
def test_inside(root: Path, path: str, place: str) -> None:
    assert tree.inside(root, path) == root / place


def test_absolute_links_stay_inside(root: Path, tmp_path: Path) -> None:
    target = tree.write(root, "host/secret", "x")
    assert target == root / os.fspath(tmp_path).lstrip("/") / "secret"
    assert target.read_text() == "x"
    assert not (tmp_path / "secret").exists()


def test_loop(root: Path) -> None:
    with pytest.raises(Failure, match=r"^loop/x: too many symbolic links in the image$"):
        tree.inside(root, "loop/x")


@pytest.fixture(params=[0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("wanted", [0o600, 0o644, 0o4755, 0o000, 0o666])
def test_modes(root: Path, tmp_path: Path, wanted: int) -> None:
    """They are those asked for, and directories are open, whatever the umask."""
    source = tmp_path / "source"
    source.write_bytes(b"\0\xff")
    source.chmod(wanted)
    assert mode(tree.write(root, "srv/a/b/written", "x", wanted)) == wanted
    assert mode(tree.copy(source, root, "srv/a/b/copied", 0o600)) == 0o600
    assert {mode(root / name) for name in ("srv", "srv/a", "srv/a/b")} == {0o755}
    if os.geteuid() == 0 or wanted & 0o400:
        copied = tree.copy(source, root, "srv/same")
        assert mode(copied) == wanted
        assert copied.read_bytes() == b"\0\xff"


def test_modes_of_directories_that_exist_are_kept(root: Path) -> None:
    (root / "etc").chmod(0o700)
    tree.write(root, "etc/x", "")
    assert mode(root / "etc") == 0o700


def test_links_are_copied_as_links(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/nowhere")
    assert tree.copy(tmp_path / "link", root, "lib/l", 0o600).readlink() == Path("/etc/nowhere")
    assert (root / "usr/lib/l").is_symlink()


def test_links_are_replaced_not_followed(root: Path, tmp_path: Path) -> None:
    """As a file in the way, and without touching what they lead to."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (root / "etc/precious").symlink_to(precious)
    tree.write(root, "etc/precious", "new")
    tree.write(root, "etc/file", "new")
    assert precious.read_text() == "kept"
    assert not (root / "etc/precious").is_symlink()
    assert (root / "etc/file").read_text() == (root / "etc/precious").read_text() == "new"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("etc", "/etc: is a directory in the image, a file among the inputs"),
        ("lib/../lib", "/lib/../lib: is a directory in the image"),
        ("etc/file/x", "/etc/file: is a file in the image, a directory among the inputs"),
        ("etc/file/x/y", "/etc/file: is a file in the image, a directory among the inputs"),
    ],
)
def test_in_the_way(root: Path, path: str, message: str) -> None:
    with pytest.raises(Failure, match=f"^{message}") as caught:
        tree.write(root, path, "")
    assert caught.value.status == BAD_INPUT
    assert (root / "etc/file").read_text() == "old"


def test_inputs(tmp_path: Path) -> None:
    names = ["etc/hostname", "etc/-rf", "etc/a b", "etc/new\nline", "z", ".hidden/x", "etc/sub/x"]
    names += [os.fsdecode(b"etc/\xff\xfe"), "etc/grün", "%s", "$(id)"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name.encode(errors="surrogateescape").hex())
    (tmp_path / "empty").mkdir()
    (tmp_path / "dir-link").symlink_to("etc")
    (tmp_path / "etc/dangling").symlink_to("/nowhere")
    found = dict(tree.inputs(tmp_path))
    assert sorted(found) == sorted([*names, "dir-link", "etc/dangling"])
    assert all(file == tmp_path / path for path, file in found.items())
    assert list(tree.inputs(tmp_path)) == list(tree.inputs(tmp_path))


def test_odd_names_are_copied(tmp_path: Path, root: Path) -> None:
    name = os.fsdecode(b"-n \xff\n\\x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("x")
    for path, file in tree.inputs(tmp_path / "in"):
        tree.copy(file, root, f"etc/{path}")
    assert (root / "etc" / name).read_text() == "x"


def test_no_inputs(tmp_path: Path) -> None:
    assert not list(tree.inputs(tmp_path / "nonexistent"))


def test_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failure, match=r"/pipe: neither a regular file nor a symbolic link$"):
        list(tree.inputs(tmp_path))


def test_file_instead_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match=r"/file: Not a directory$"):
        list(tree.inputs(tmp_path / "file"))
