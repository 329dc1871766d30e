"""host.toml: what may stand there, and what is said of everything else."""

from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, Failure
from anemos.workstation import hosts, places
from anemos.workstation.hosts import Host, Timeouts, VmSettings
from tests.tree import HOST_KEY

MINIMAL = f'address = "mx.example.org"\nhost_key = "{HOST_KEY}"\n'
WHERE = "hosts/mx/host.toml"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "HOSTS", tmp_path / "hosts")
    (tmp_path / "hosts/mx").mkdir(parents=True)
    (tmp_path / "hosts/stock").mkdir()  # an IMGBUILD alone
    (tmp_path / "hosts/mx/host.toml").write_text(MINIMAL)
    (tmp_path / "hosts/.file").touch()
    return tmp_path / "hosts"


def load(directory: Path, text: str | bytes) -> Host:
    file = directory / "mx/host.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return hosts.load("mx")


def test_defaults(directory: Path) -> None:
    assert load(directory, MINIMAL) == Host(
        "mx",
        directory / "mx",
        address="mx.example.org",
        host_key=HOST_KEY,
        port=22,
        identity="",
        build_on="auto",
        ports=[22],
        timeouts=Timeouts(down=180, initramfs=300, install=3600, up=600),
        vm=VmSettings(),
    )


def test_everything(directory: Path) -> None:
    found = load(
        directory,
        MINIMAL
        + """
        port = 2222
        identity = "~/.ssh/mx"
        build_on = "initramfs"
        ports = []
        [timeouts]
        down = 1
        initramfs = 2
        install = 3
        up = 4
        """,
    )

    assert (found.port, found.build_on, found.ports) == (2222, "initramfs", [])
    assert found.timeouts == Timeouts(1, 2, 3, 4)
    assert found.identity_file == Path.home() / ".ssh/mx"


def test_who_logs_in(directory: Path) -> None:
    for text, users in {
        "": ("root", "root"),
        'user = "debian"\n': ("debian", "debian"),
        'user = "debian"\n[after]\nuser = "root"\n': ("debian", "root"),
        '[after]\nuser = "alice"\n': ("root", "alice"),
    }.items():
        found = load(directory, MINIMAL + text)
        assert (found.user, found.new_user) == users
        assert hosts.new_user("mx") == users[1]
    for name in ("", "-oProxyCommand=x", "a b", "a@b", "ä", "1", "x\\n"):
        with pytest.raises(Failure, match=r"user is .*: not the name of a user"):
            load(directory, MINIMAL + f'user = "{name}"\n')


def test_way_to_the_server(directory: Path) -> None:
    for text in ("bastion", "me@192.0.2.1:2222, jump.example.org", "me@[2001:db8::1]:22"):
        assert load(directory, MINIMAL + f'proxy_jump = "{text}"\n').proxy_jump == text
    for text in ("-oProxyCommand=x", "a b", "a;b", "me@", "a,,b", "a,", "$(x)", "[x"):
        with pytest.raises(Failure, match=r"proxy_jump is .*: write USER@HOST:PORT"):
            load(directory, MINIMAL + f'proxy_jump = "{text}"\n')
    assert hosts.jumps("a, me@b:22") == ("a", "me@b:22")


def test_port_must_listen_afterwards(directory: Path) -> None:
    after = load(directory, MINIMAL + "[after]\nport = 2222\n")
    assert (after.port, after.new_place, after.ports) == (22, (after.address, 2222), [2222])
    with pytest.raises(Failure, match=r"after\.port is 0"):
        load(directory, MINIMAL + "[after]\nport = 0\n")
    assert load(directory, MINIMAL).ports == [22]
    assert load(directory, MINIMAL + "port = 2222\n").ports == [2222]
    assert load(directory, MINIMAL + "port = 2222\nports = [443]\n").ports == [443]


def test_no_identity(directory: Path) -> None:
    assert load(directory, MINIMAL).identity_file is None


def test_vm(directory: Path) -> None:
    assert load(directory, '[vm]\nstock = "stock"\n').vm == VmSettings("stock", 1024, [])
    found = load(directory, '[vm]\nstock = "x"\nmemory = 512\nforward = [443, 80]\n')
    assert found.vm == VmSettings("x", 512, [443, 80])
    assert load(directory, '[vm]\nstock = "stock"\n').timeouts == Timeouts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Not TOML.
        ("address = \n", f"{WHERE}: Invalid value (at line 1, column 11)"),
        (MINIMAL + "a = 1\na = 2\n", f"{WHERE}: Cannot overwrite a value (at line 4, column 6)"),
        (MINIMAL + "[vm\n", "(at line 3, column 4)"),
        (b"address = '\xff'\n", f"{WHERE}: 'utf-8' codec can't decode byte 0xff in position 11"),
        # Incomplete.
        ("", f"{WHERE}: no address, no host_key"),
        ('address = "mx"\n', f"{WHERE}: no host_key"),
        (f'host_key = "{HOST_KEY}"\n', f"{WHERE}: no address"),
        (f'address = ""\nhost_key = "{HOST_KEY}"\n', f"{WHERE}: no address"),
        ("[vm]\n", f"{WHERE}: no address"),
        (MINIMAL + '[vm]\nstock = "s"\n', f"{WHERE}: address and vm.stock"),
        (MINIMAL + '[vm]\naddress = "x"\n', f"{WHERE}: vm: Expected 4 octets in 'x'"),
        (MINIMAL + '[vm]\naddress = "192.0.2.1/32"\n', "vm: 192.0.2.1/32: a local VM's network"),
        (MINIMAL + '[vm]\naddress = "192.0.2.1/24"\n', "vm: 10.0.2.2 is no gateway in"),
        # Unknown names: fields of Host that are not host.toml's, too.
        (MINIMAL + "colour = 1\n", f"{WHERE}: unknown name 'colour'"),
        (MINIMAL + 'name = "x"\n', f"{WHERE}: unknown name 'name'"),
        (MINIMAL + 'directory = "/"\n', f"{WHERE}: unknown name 'directory'"),
        (MINIMAL + "[TIMEOUTS]\n", f"{WHERE}: unknown name 'TIMEOUTS'"),
        (MINIMAL + "[timeouts]\nreboot = 1\n", f"{WHERE}: unknown name 'timeouts.reboot'"),
        ('[vm]\nstock = "s"\ncpu = 1\n', f"{WHERE}: unknown name 'vm.cpu'"),
        # Wrong types.
        (MINIMAL + "timeouts = 5\n", f"{WHERE}: timeouts is 5: should be a table"),
        (MINIMAL + "vm = true\n", f"{WHERE}: vm is True: should be a table"),
        (MINIMAL + "[[vm]]\nstock = 's'\n", "should be a table"),
        (MINIMAL + "identity = 1\n", f"{WHERE}: identity is 1: should be a valid string"),
        (MINIMAL + 'port = "22"\n', f"{WHERE}: port is '22': should be a valid integer"),
        (MINIMAL + "port = true\n", f"{WHERE}: port is True: should be a valid integer"),
        (MINIMAL + "port = 22.0\n", f"{WHERE}: port is 22.0: should be a valid integer"),
        (MINIMAL + "ports = 22\n", f"{WHERE}: ports is 22: should be a valid list"),
        (
            MINIMAL + "ports = [22, '443']\n",
            f"{WHERE}: ports.1 is '443': should be a valid integer",
        ),
        (MINIMAL + "ports = [true]\n", f"{WHERE}: ports.0 is True: should be a valid integer"),
        (
            MINIMAL + "[timeouts]\nup = false\n",
            f"{WHERE}: timeouts.up is False: should be a valid integer",
        ),
        (
            MINIMAL + "[timeouts]\nup = inf\n",
            f"{WHERE}: timeouts.up is inf: should be a valid integer",
        ),
        ("[vm]\nstock = 1\n", f"{WHERE}: vm.stock is 1: should be a valid string"),
        (
            '[vm]\nstock = "s"\nfirmware = "efi"\n',
            f"{WHERE}: vm.firmware is 'efi': should be 'bios', 'uefi' or 'secure-boot'",
        ),
        (
            '[vm]\nstock = "s"\nmemory = "1G"\n',
            f"{WHERE}: vm.memory is '1G': should be a valid integer",
        ),
        # Numbers that mean nothing.
        (MINIMAL + "port = 0\n", f"{WHERE}: port is 0: should be greater than 0"),
        (
            MINIMAL + "port = 65536\n",
            f"{WHERE}: port is 65536: should be less than or equal to 65535",
        ),
        (MINIMAL + "ports = [-1]\n", f"{WHERE}: ports.0 is -1: should be greater than 0"),
        (
            MINIMAL + "ports = [22, 99999]\n",
            f"{WHERE}: ports.1 is 99999: should be less than or equal to 65535",
        ),
        (
            MINIMAL + "[timeouts]\ndown = 0\n",
            f"{WHERE}: timeouts.down is 0: should be greater than 0",
        ),
        (
            '[vm]\nstock = "s"\nforward = [70000]\n',
            f"{WHERE}: vm.forward.0 is 70000: should be less",
        ),
        # Words that mean nothing.
        (
            MINIMAL + 'build_on = "cloud"\n',
            f"{WHERE}: build_on is 'cloud': should be 'auto', 'workstation', 'server'",
        ),
    ],
)
def test_errors(directory: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(Failure) as caught:
        load(directory, text)

    assert message in caught.value.message
    assert caught.value.message.startswith(WHERE)
    assert caught.value.status == BAD_INPUT


def test_all_that_is_wrong_at_once(directory: Path) -> None:
    text = """
    address = "root@mx"
    host_key = "garbage"
    port = "22"
    colour = 1
    build_on = "cloud"
    vm = 5
    [timeouts]
    up = 0
    """
    with pytest.raises(Failure) as caught:
        load(directory, text)

    message = caught.value.message
    assert message.startswith(f"{WHERE}: 7 entries are wrong\n")
    for word in ("'root@mx'", "'garbage'", "port is '22'", "'colour' (known:", "'cloud'"):
        assert word in message
    assert "  - timeouts.up is 0" in message
    assert "  - vm is 5: should be a table" in message


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("root@mx.example.org", 'write address = "mx.example.org" and user = "root"'),
        ("admin@192.0.2.1:22", 'address = "192.0.2.1" and port = 22 and user = "admin"'),
        ("mx.example.org:2222", 'write address = "mx.example.org" and port = 2222'),
        ("[2001:db8::1]", 'write address = "2001:db8::1"'),
        ("[2001:db8::1]:2222", 'address = "2001:db8::1" and port = 2222'),
        ("ssh://root@mx:22/", 'write address = "mx" and port = 22 and user = "root"'),
        ("mx.example.org/", 'write address = "mx.example.org"'),
        ("mx example", "ssh_config names an entry"),
        ("192.0.2.1/24", "an IP address or a DNS name"),
        ("a" * 64, "an IP address or a DNS name"),
        ("mx..example", "an IP address or a DNS name"),
        ("-oProxyCommand=x", "an IP address or a DNS name"),
        ("mx\\n", "an IP address or a DNS name"),
        ("mx\\u0000", "an IP address or a DNS name"),
    ],
)
def test_more_than_an_address(directory: Path, address: str, hint: str) -> None:
    with pytest.raises(Failure, match=f"{WHERE}: address is ") as caught:
        load(directory, f'address = "{address}"\nhost_key = "{HOST_KEY}"\n')

    assert hint in caught.value.message


@pytest.mark.parametrize(
    "address",
    ["mx", "mx.example.org.", "2001:db8::1", "fe80::1%eth0", "192.0.2.1", "bücher.example", "a_b"],
)
def test_addresses(directory: Path, address: str) -> None:
    found = load(directory, f'address = "{address}"\nhost_key = "{HOST_KEY}"\n')

    assert found.address == address


@pytest.mark.parametrize(
    "key",
    ["garbage", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 Ä", "ssh-rsa" + HOST_KEY[11:]]
    + [f"mx {HOST_KEY}", f"{HOST_KEY[:30]}", "SHA256:x y"],
)
def test_host_key_that_is_none(directory: Path, key: str) -> None:
    with pytest.raises(Failure, match=f"{WHERE}: host_key is '.*not a public key") as caught:
        load(directory, f'address = "mx"\nhost_key = "{key}"\n')

    assert "./inv adopt" in caught.value.message
    assert load(directory, MINIMAL.replace(HOST_KEY, f"{HOST_KEY} root@mx")).host_key


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "[timeouts]\nx = 1\n",
            "'timeouts.x' (known: down, initramfs, install, up, hold, trial, hooks)",
        ),
        ("[vm]\nmemroy = 1\n", "'vm.memroy' (did you mean memory?)"),
        ("host_keys = 1\n", "'host_keys' (did you mean host_key?)"),
        ("hostkey = 1\n", "'hostkey' (did you mean host_key?)"),
    ],
)
def test_unknown_name_leads_to_the_known_ones(directory: Path, text: str, hint: str) -> None:
    with pytest.raises(Failure) as caught:
        load(directory, MINIMAL + text)

    assert hint in caught.value.message


def test_wrong_secrets_of_a_host_that_is_not_complete(directory: Path) -> None:
    (directory / "mx/host.toml").write_text('[secrets]\nidentitty = 1\nsource = "x"\n')

    with pytest.raises(Failure, match=r"secrets.source is 'x'.*(?s:.*)'secrets.identitty' \(did"):
        hosts.secret_settings("mx")


@pytest.mark.parametrize(
    "name",
    ["nope", "../hosts/mx", "mx/", "mx/.", "./mx", "a/b", "/", ".", "..", "MX", " mx", "*", "m[x]"]
    + [".file", "mx\n", "--help", "x" * 5000],
)
def test_unknown_host(name: str) -> None:
    with pytest.raises(Failure) as caught:
        hosts.load(name)

    assert caught.value.message == f"unknown host {name!r}: no such directory in hosts/"
    assert (caught.value.hint, caught.value.status) == ("known: mx", BAD_INPUT)


def test_no_host_named() -> None:
    with pytest.raises(Failure, match=r"which host\? --host NAME") as caught:
        hosts.load("")

    assert caught.value.hint == "known: mx"


@pytest.mark.parametrize("name", ["stock", "mx"])
def test_no_host_toml(directory: Path, name: str) -> None:
    (directory / "mx/host.toml").unlink()
    (directory / "mx/host.toml").mkdir()

    with pytest.raises(Failure, match=f"hosts/{name}/host.toml is missing"):
        hosts.load(name)


def test_no_hosts_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HOSTS", tmp_path / "none")

    with pytest.raises(Failure, match="unknown host 'mx'"):
        hosts.load("mx")


def test_unreadable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", refuse)

    with pytest.raises(Failure, match=rf"{WHERE}: .*Permission denied"):
        hosts.load("mx")


def test_options_of_the_command_line(directory: Path) -> None:
    """For one run, instead of what the file says."""
    (directory / "mx/host.toml").write_text(MINIMAL + 'build_on = "server"\n')

    assert hosts.load("mx").build_on == "server"
    assert hosts.load("mx", build_on="initramfs").build_on == "initramfs"
    with pytest.raises(Failure, match="--build-on is 'here'") as caught:
        hosts.load("mx", build_on="here")
    assert caught.value.status == BAD_INPUT


def test_host_without_a_server(directory: Path) -> None:
    """It can be tried in a local VM before there is a machine to connect to."""
    (directory / "mx/host.toml").write_text("port = 2222\n")

    assert hosts.load("mx", server=False).port == 2222
    with pytest.raises(Failure, match="no address, no host_key"):
        hosts.load("mx")
