"""Every kind of bad input, through the real program: one message, status 2, nothing changed."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from anemos.image import isolation
from anemos.log import BAD_INPUT, Failure
from anemos.run import run
from anemos.system import definition
from anemos.system.definition import Definition
from anemos.workstation.secrets.gpg import Keyring
from tests import imaging, sshd
from tests.tree import HOST_KEY, IMGBUILD, ROOT, TOML, Done, Tree

pytestmark = pytest.mark.real("run", "gpg")

FACTS = (ROOT / "tests/data/facts-virtio").read_text()
GOOD = IMGBUILD.replace("SYSTEM", "demo-system").replace("DATA", "demo-data")


@pytest.fixture
def project(module_tree: Tree) -> Tree:
    shutil.rmtree(module_tree.directory / "secrets", ignore_errors=True)
    module_tree.host("mx", imgbuild=GOOD)
    return module_tree


def refused(project: Tree, *words: str) -> Done:
    """Run `inv WORDS`, which must end with one message, and must not change anything."""
    before = project.files()
    done = project.inv(*words)
    assert done.status == BAD_INPUT, done.err
    assert done.out == ""
    assert [line[:7] for line in done.err.splitlines()].count("error: ") == 1
    assert project.files() == before
    return done


# host.toml


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("address = \n", "hosts/mx/host.toml: Invalid value (at line 1, column 11)"),
        ("", "hosts/mx/host.toml: no address"),
        (TOML + "prot = 22\n", "hosts/mx/host.toml: unknown name 'prot'"),
        (TOML.replace("port = 1", "port = true"), "hosts/mx/host.toml: port is True: should be"),
        (
            TOML.replace(HOST_KEY, HOST_KEY[:30]),
            "host_key is 'ssh-ed25519 AAAAC3NzaC1lZDI1NT': not a public key",
        ),
        (TOML + 'identity = "/nowhere/id"\n', "error: /nowhere/id: No such file or directory"),
    ],
)
def test_host_toml(project: Tree, toml: str, message: str) -> None:
    project.host("mx", toml, GOOD)

    assert message in refused(project, "plan", "--host", "mx").err


def test_missing_host_toml(project: Tree) -> None:
    (project.directory / "hosts/mx/host.toml").unlink()

    assert "hosts/mx/host.toml is missing" in refused(project, "plan", "--host", "mx").err


# IMGBUILD


@pytest.mark.parametrize(
    ("imgbuild", "message"),
    [
        ("target=debian\nif true; do\n", "/IMGBUILD: line 2: Syntax error"),
        ("target=debian\nno-such-command --x\n", "/IMGBUILD: line 2: no-such-command: not found"),
        ("target=debian\nexit 0\n", "/IMGBUILD: ends the shell that reads it"),
        ("target=plan9\n", "/IMGBUILD: target is 'plan9'\n  (one of: "),
        ("format=dir\n", "/IMGBUILD: target is not set\n  (one of: "),
        ("target=debian\nformat=floppy\n", "/IMGBUILD: format is 'floppy'\n  (one of: "),
        ("target=debian\nformat=disk\n", "/IMGBUILD: format=disk needs a layout"),
        (GOOD.replace("serial=demo-system", ""), ": which disk? one of serial="),
        (
            GOOD.replace("serial=demo-system", "serial=$typo").replace("'", '"'),
            "'disk system serial= table=msdos': serial must not be empty",
        ),
        (GOOD.replace("fs=ext4", "fs=zfs"), "/IMGBUILD: 'part root fs=zfs mount=/': 'zfs' is not"),
        (GOOD.replace("target=debian", "target=debian\r"), "/IMGBUILD: line 1: carriage return"),
    ],
)
def test_imgbuild(project: Tree, imgbuild: str, message: str) -> None:
    project.host("mx", imgbuild=imgbuild)

    assert message in refused(project, "plan", "--host", "mx").err


def test_missing_imgbuild(project: Tree) -> None:
    (project.directory / "hosts/mx/IMGBUILD").unlink()

    assert "hosts/mx: no IMGBUILD there" in refused(project, "plan", "--host", "mx").err


# Secrets


def test_secrets_without_recipients(project: Tree) -> None:
    (project.directory / "secrets/mx").mkdir(parents=True)
    (project.directory / "secrets/mx/KEY.gpg").write_bytes(b"x")

    done = refused(project, "reveal-secrets", "--host", "mx")

    assert "secrets/recipients is missing" in done.err


def test_plaintext_among_the_secrets(project: Tree) -> None:
    (project.directory / "secrets/mx").mkdir(parents=True)
    (project.directory / "secrets/mx/KEY").write_text("x")

    done = refused(project, "reveal-secrets", "--host", "mx")

    assert "secrets/mx/KEY does not end in .gpg" in done.err


# Input files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\ntwo {{ TOKEN }}\n", "line 2: undefined name 'TOKEN'"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_template(project: Tree, data: bytes, message: str) -> None:
    file = project.directory / "hosts/mx/files/etc/conf.makeimg.template"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert project.inv("reveal-secrets", "--host", "mx").status == 0

    done = refused(project, "pack", "--host", "mx")

    assert f"{file}: {message}" in done.err


# The server


def test_nobody_answers(project: Tree) -> None:
    toml = TOML.replace("port = 1", f"port = {sshd.free_port()}")
    project.host("mx", toml, GOOD)

    done = refused(project, "plan", "--host", "mx")

    assert "no SSH connection: Connection refused" in done.err


def test_unknown_address(project: Tree) -> None:
    project.host("mx", TOML.replace("127.0.0.1", "mx.invalid"), GOOD)

    assert "root@mx.invalid:1: no SSH " in refused(project, "plan", "--host", "mx").err


@dataclass
class Played:
    """A server that answers the question for its facts with the file `facts`, and runs nothing."""

    project: Tree
    sshd: sshd.Server

    def says(self, facts: str) -> None:
        (self.sshd.directory / "facts").write_text(facts)
        self.calls.write_text("")

    @property
    def calls(self) -> Path:
        return self.sshd.directory / "calls"

    def host(self, imgbuild: str = GOOD, host_key: str = "") -> None:
        where = self.sshd.endpoint
        toml = f'address = "{where.address}"\nport = {where.port}\nidentity = "{where.identity}"\n'
        self.project.host("mx", f'{toml}host_key = "{host_key or where.host_key}"\n', imgbuild)


# ssh.py calls sh -c FRAMED sh HALF HALF WORDS: WORDS are `sh -c SCRIPT NAME ...`.
SH = """
echo "$9" >>{0}/calls
printf %s "$4$5"
[ "$9" = facts ] && cat {0}/facts && printf %s "$4$5" && exit
exit 99
"""


@pytest.fixture(scope="module")
def module_server() -> Iterator[sshd.Server]:
    with sshd.scratch() as directory, sshd.serving(sshd.prepare(directory)) as server:
        server.program("sh", SH.format(directory))
        yield server


@pytest.fixture
def server(project: Tree, module_server: sshd.Server) -> Played:
    played = Played(project, module_server)
    played.says(FACTS)
    played.host()
    return played


root = pytest.mark.root  # the login is root's, always


@root
def test_good_input(server: Played) -> None:
    """Else the tests below would prove nothing."""
    done = server.project.inv("plan", "--host", "mx")

    assert done.status == 0, done.err
    assert "ERASE    vda (serial=demo-system, 6.4 GB): / (ext4)" in done.out
    assert "keep     vdb (serial=demo-data, 1.1 GB): /home (ext4)" in done.out
    assert server.calls.read_text() == "facts\n"


@root
def test_wrong_host_key(server: Played, tmp_path: Path) -> None:
    server.host(host_key=sshd.make_key(tmp_path / "other"))

    done = refused(server.project, "plan", "--host", "mx")

    assert "wrong host key\n  pinned:    ssh-ed25519 " in done.err
    assert server.calls.read_text() == ""


@root
def test_login_refused(server: Played, tmp_path: Path) -> None:
    sshd.make_key(tmp_path / "id")
    where = server.sshd.endpoint
    toml = TOML.replace("port = 1", f"port = {where.port}").replace(HOST_KEY, where.host_key)
    server.project.host("mx", f'{toml}identity = "{tmp_path}/id"\n', GOOD)

    assert "login refused" in refused(server.project, "plan", "--host", "mx").err


@root
def test_host_key_among_the_secrets(server: Played, tmp_path: Path) -> None:
    """It replaces the server's own: nobody could prove any more who answers."""
    project, name = server.project, "etc/ssh/ssh_host_ed25519_key"
    (project.home / ".gnupg").mkdir(0o700)
    fingerprint = Keyring(project.home / ".gnupg").generate("Alice")
    (project.directory / "secrets").mkdir()
    (project.directory / "secrets/recipients").write_text(fingerprint)
    made = project.inv("secrets.generate", "--host=mx", "--kind=ssh-host-key").out

    done = refused(project, "plan", "--host", "mx")

    assert f"the pinned host key is none of those among the secrets: {name}" in done.err
    with (server.sshd.directory / "host_key").open() as file:
        words = ["secrets.set", "--host=mx", f"--name={name}"]
        assert project.inv(*words, stdin=file.fileno()).status == 0
    assert project.inv("plan", "--host", "mx").status == 0
    assert server.sshd.endpoint.host_key.split()[1] not in made
    # What GPG does not open stands in the list of problems, too.
    file_ = project.directory / f"secrets/mx/{name}.gpg"
    file_.write_bytes(file_.read_bytes()[:-1])
    assert f"  - {file_} is damaged" in refused(project, "plan", "--host", "mx").err


@root
def test_what_the_definition_lacks(server: Played) -> None:
    """All of it, before anything is sent: declared secrets, and whoever may log in."""
    declares = GOOD + "\nsecrets='\nPASSWORD password\netc/x ask\n'\n"
    server.host(declares)
    (server.project.directory / "hosts/mx/files/root/.ssh/authorized_keys").unlink()

    done = refused(server.project, "plan", "--host", "mx")

    first = declares.split("\n").index("PASSWORD password") + 1
    assert (
        f"IMGBUILD declares: PASSWORD (line {first}), etc/x (line {first + 1}): ./inv" in done.err
    )
    assert "  - nobody could log in to the new system as root" in done.err
    assert server.calls.read_text() == "facts\n"


LITTLE = FACTS.replace("memory_total_kib=1001432", "memory_total_kib=100000")
TWICE = FACTS.replace("vdb|2097152|demo-data", "vdb|2097152|demo-system")


@root
@pytest.mark.parametrize(
    ("facts", "imgbuild", "message"),
    [
        (
            FACTS,
            GOOD.replace("demo-system", "other"),
            "disk 'system': no disks match serial=other; seen: vda (serial=demo-system, 6.4 GB)",
        ),
        (TWICE, GOOD, "disk 'system': 2 disks match serial=demo-system; seen: vda (serial="),
        (
            FACTS,
            GOOD.replace("serial=demo-data", f"size={12582912 * 512}"),
            "disks 'system' and 'data' are the same: vda",
        ),
        (FACTS.replace("|12582912|", "|2048|"), GOOD, "partitions do not fit in 1048576 bytes"),
        (LITTLE, GOOD, "memory: 200 MiB needed in the initramfs, 97 MiB in the machine"),
        (FACTS.replace("kexec_disabled=0", "kexec_disabled=1"), GOOD, "the kernel has no kexec"),
        (FACTS.replace("stamp=", 'stamp={"host": "web"}'), GOOD, "deployed as 'web', not as 'mx'"),
    ],
)
@pytest.mark.parametrize("words", [["plan"], ["deploy", "--yes", "mx"]], ids=" ".join)
def test_preconditions(
    server: Played, words: list[str], facts: str, imgbuild: str, message: str
) -> None:
    """`deploy` ends with its plan, confirmed or not."""
    server.says(facts)
    server.host(imgbuild)

    done = refused(server.project, *words, "--host", "mx")

    assert "error: mx cannot be deployed:\n  - " in done.err
    assert message in done.err
    assert server.calls.read_text() == "facts\n"


@root
def test_all_preconditions_at_once(server: Played) -> None:
    server.says(LITTLE.replace("demo-", "x-"))

    done = refused(server.project, "plan", "--host", "mx")

    assert done.err.count("\n  - ") == 3


@root
@pytest.mark.parametrize("facts", ["", FACTS[:-8], FACTS.replace("=0016", "=x")])
def test_facts_that_make_no_sense(server: Played, facts: str) -> None:
    server.says(facts)

    done = server.project.inv("plan", "--host", "mx")

    assert "error: the facts of the server make no sense" in done.err
    assert done.status == 1


@root
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: mx: not confirmed"),
        (["--yes", "web"], "error: --yes web does not name the host mx"),
    ],
)
def test_deploy_without_confirmation(server: Played, words: list[str], message: str) -> None:
    """It has told its plan, and that was all: the server was only asked for its facts."""
    done = refused(server.project, "deploy", "--host", "mx", *words)

    assert "ERASE    vda (serial=demo-system, 6.4 GB)" in done.err
    assert message in done.err
    assert server.calls.read_text() == "facts\n"


# What an image is built from. python3 -m anemos.image, as a user runs it.


PATCH = "--- a\n+++ b\n@@ -1 +1 @@\n-nobody\n+somebody\n"


def fill_disk(host: Path) -> None:
    run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", host / "full"])


def link_out(host: Path) -> None:
    (host / "files/out").symlink_to("/etc")
    (host / "files/etc").mkdir()
    (host / "files/etc/x.makeimg.template").symlink_to("/nowhere/at/all")


@pytest.fixture
def imaged(tmp_path: Path) -> Iterator[Path]:
    host = tmp_path / "host"
    imaging.describe(host, "provision() { :; }\n")
    for name in ("files", "full"):
        (host / name).mkdir()
    yield host
    if (host / "full").is_mount():
        run(["umount", host / "full"])


Prepare = Callable[[Path], object]


@root
@pytest.mark.parametrize(
    ("prepare", "options", "status", "message"),
    [
        (lambda h: run(["mkfifo", h / "files/x"]), [], 2, "files/x: neither a regular file nor a"),
        (
            lambda h: run(["mknod", h / "files/x", "c", "1", "3"]),
            [],
            2,
            "files/x: neither a regular file nor a symbolic link",
        ),
        (
            lambda h: (
                (h / "files/usr/x.makeimg.patch").parent.mkdir()
                or (h / "files/usr/x.makeimg.patch").write_text(PATCH)
            ),
            [],
            2,
            "files/usr/x.makeimg.patch: the image has no file /usr/x to patch",
        ),
        (
            lambda h: (
                (h / "files/etc").mkdir()
                or (h / "files/etc/passwd.makeimg.patch").write_text(PATCH)
            ),
            [],
            2,
            "files/etc/passwd.makeimg.patch: does not apply to /etc/passwd",
        ),
        (
            lambda h: (h / "files/x.makeimg.template").write_text("1\n2\n{{ X }}"),
            [],
            2,
            "files/x.makeimg.template: line 3: undefined name 'X'",
        ),
        (link_out, [], 2, "files/etc/x.makeimg.template: [Errno 2] No such file or directory"),
        (lambda h: (h / "files/etc").symlink_to("/"), [], 2, "/etc: is a directory in the image"),
        (lambda h: (h / "files/tmp").write_text(""), [], 2, "/tmp: is a directory in the image"),
        (
            lambda h: (
                (h / "files/etc/passwd").mkdir(parents=True)
                or (h / "files/etc/passwd/x").write_text("")
            ),
            [],
            2,
            "/etc/passwd: is a file in the image, a directory among the inputs",
        ),
        (fill_disk, ["--output", "full", "--cache", "out"], 1, "No space left on device"),
        (
            lambda h: run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", h / "full"]),
            ["--output", "full", "--cache", "out"],
            2,
            "full: cannot be written",
        ),
        (
            lambda h: None,
            ["--format", "tar Z"],
            2,
            "compress not found\n  (format='tar Z' needs it",
        ),
        (lambda h: None, ["--format", "raw 7E gpt"], 1, ""),
        (lambda h: None, ["--format", "raw 4M"], 1, ""),
    ],
)
def test_image(
    imaged: Path, prepare: Prepare, options: list[str], status: int, message: str
) -> None:
    """One message that names the file; no traceback, no image."""
    prepare(imaged)
    options = [*options, *(() if "--output" in options else ("--output", "out"))]
    done = imaging.image(imaged, *options)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 or status == 1
    assert message in done.stderr.partition("\nerror: ")[2] or message in done.stderr[:200]


@root
def test_hunk_of_a_patch(imaged: Path) -> None:
    """The user sees which one does not fit."""
    (imaged / "files/etc").mkdir()
    (imaged / "files/etc/passwd.makeimg.patch").write_text(PATCH)
    assert "\n-nobody\n+somebody" in imaging.image(imaged, "--cache", "out").stderr


NAMES = [b" a b ", b"new\nline", b"-rf", b"--help", b"\xff\xfe", b"'\"$(id)`", b"*", "ü".encode()]


@root
def test_names_of_files(imaged: Path) -> None:
    """Whatever a file may be called: as a file, a link, a template, a patch; and its directory."""
    for name in map(os.fsdecode, NAMES):
        below = imaged / f"files/etc/-d {name}"
        below.mkdir(parents=True)
        (below / name).write_text("nobody\n")
        (below / f"{name}.makeimg.patch").write_text(PATCH)
        (below / f"{name}.t.makeimg.template").write_text("text")
        (below / f"{name}.link").symlink_to(name)
    done = imaging.image(imaged, "--cache", "out", "--format", "dir")
    assert done.returncode == 0, done.stderr
    for name in map(os.fsdecode, NAMES):
        made = imaged / f"mx/etc/-d {name}"
        assert {path.name for path in made.iterdir()} == {name, f"{name}.link", f"{name}.t"}
        assert (made / f"{name}.link").read_text() == "somebody\n"


@root
def test_without_root(tmp_path: Path) -> None:
    """A file that its user cannot read; a user that has no subordinate ids."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "x").touch(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(Failure, match=f"^{name}/x: cannot be read$"):
                definition.check(Definition([Path(name)]))
            with pytest.raises(
                Failure, match="/etc/subuid has no ids for nobody: no build without"
            ):
                isolation.subordinates()
        finally:
            os.seteuid(0)
