"""Secrets that the server fetches: a real shell, a real HTTP server that wants a token."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.system import fetch, imgbuild
from tests import lab

pytestmark = pytest.mark.real("run")

KEY = "etc/ssl/private/mx.key"
SECRET = b"-----BEGIN\n\0\xff"
TOKEN = "5f1d"  # noqa: S105


class Vault(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        allowed = self.headers["X-Token"] == TOKEN
        self.send_response(200 if allowed else 403)
        self.end_headers()
        self.wfile.write(SECRET if allowed else b"no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Vault) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# As docs/secrets.md says it.
FETCH = """
    mkdir -p etc/ssl/private
    python3 - >etc/ssl/private/mx.key <<'END'
import sys, urllib.request
token = open("etc/vault-token").read().strip()
request = urllib.request.Request("ADDRESS/mx.key", headers={"X-Token": token})
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=30).read())
END
"""


def host(directory: Path, body: str, names: str = KEY) -> imgbuild.Imgbuild:
    text = f"target=debian\nserver_secrets='{names}'\nfetch_secrets() {{\n{body}\n}}\n"
    (directory / "host").mkdir()
    (directory / "host/IMGBUILD").write_text(text)
    return imgbuild.load(directory / "host")


WRITE = f"mkdir -p etc/ssl/private; echo x >{KEY}"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "secrets/etc").mkdir(parents=True)
    (tmp_path / "secrets/etc/vault-token").write_text(f"{TOKEN}\n")
    return tmp_path / "secrets"


def test_fetch(tmp_path: Path, secrets: Path, address: str) -> None:
    fetch.fetch(host(tmp_path, FETCH.replace("ADDRESS", address)), secrets)

    assert (secrets / KEY).read_bytes() == SECRET
    assert (secrets / KEY).stat().st_mode & 0o777 == 0o600


def test_wrong_token(
    tmp_path: Path, secrets: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (secrets / "etc/vault-token").write_text("wrong")

    with pytest.raises(
        Failure, match=r"(?s)^fetch_secrets\(\): exit status 1: .*HTTP Error 403"
    ) as no:
        fetch.fetch(host(tmp_path, FETCH.replace("ADDRESS", address)), secrets)

    assert no.value.status == FAILED
    assert "wrong" not in str(no.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (":", f"fetch_secrets() wrote no {KEY}"),
        ("mkdir -p etc/ssl/private; : >etc/ssl/private/mx.key", f"wrote {KEY}, which is empty"),
        ("mkdir -p etc/ssl/private; ln -s /x etc/ssl/private/mx.key", f"wrote {KEY}, which is"),
        (f"{WRITE}; echo >leftover", "wrote a file that server_secrets does not list: leftover"),
        ("echo SECRET; echo why >&2; false; true", "fetch_secrets(): exit status 1: why"),
        ("sleep 30 & wait", "fetch_secrets(): no end after 0.5 s"),
    ],
)
def test_refused(
    tmp_path: Path, secrets: Path, body: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in body:
        monkeypatch.setattr(fetch, "DEADLINE_S", 0.5)

    with pytest.raises(Failure) as failure:
        fetch.fetch(host(tmp_path, body), secrets)

    assert message in failure.value.message
    assert failure.value.status == FAILED
    assert "SECRET" not in failure.value.message
    assert not (secrets / KEY).exists()  # half of it would count as there


def test_throwaway_secrets_are_not_fetched(tmp_path: Path, secrets: Path) -> None:
    """Nor is anything else that is there already."""
    (secrets / KEY).parent.mkdir(parents=True)
    (secrets / KEY).write_text("throw-away")
    fetch.fetch(host(tmp_path, "exit 1"), secrets)
    assert (secrets / KEY).read_text() == "throw-away"


def test_host_whose_only_secrets_are_fetched(tmp_path: Path) -> None:
    fetch.fetch(host(tmp_path, WRITE), tmp_path / "none")
    assert (tmp_path / "none" / KEY).read_text() == "x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server_secrets=etc/x", "server_secrets and fetch_secrets() need each other"),
        ("fetch_secrets() { :; }", "server_secrets and fetch_secrets() need each other"),
        ("server_secrets=/etc/x", "server_secrets: '/etc/x' is no path on the target"),
        ("server_secrets=../x", "server_secrets: '../x' is no path on the target"),
        ("server_secrets=PASSWORD", "server_secrets: 'PASSWORD' is no path on the target"),
    ],
)
def test_bad_declaration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "IMGBUILD").write_text(f"target=debian\n{text}\n")
    with pytest.raises(Failure) as failure:
        imgbuild.load(tmp_path)
    assert failure.value.message == f"{tmp_path}/IMGBUILD: {message}"
    assert failure.value.status == BAD_INPUT


# In the initramfs, before the point of no return.

LAYOUT = "disk system serial=SYSTEM\npart root fs=ext4 mount=/"


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.real("run", "ssh")
@pytest.mark.all
@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_in_the_initramfs(address: str, token: str) -> None:
    """It has the secret when it waits for the operator; without it, the old system comes back."""
    body = FETCH.replace("ADDRESS", address.replace("127.0.0.1", "10.0.2.2"))
    text = f"target=debian\nlayout='{LAYOUT}'\nserver_secrets={KEY}\n"
    with lab.opened() as room:
        disk = room.drive("system", serial="SYSTEM")
        secrets = {"etc/vault-token": token}
        payload = room.payload(text + f"fetch_secrets() {{\n{body}\n}}\n", secrets=secrets)
        before = lab.sha256(disk)
        guest = room.boot(room.parts("", payload=payload, stay=False), [disk])
        if token == TOKEN:
            guest.await_line("To be erased")
            guest.await_ssh()
            there = guest.sh(
                f"cd /run/anemos/unpacked/secrets; stat -c %a {KEY}; base64 -w 0 {KEY}"
            )
            assert there.split() == ["600", b64encode(SECRET).decode()]
            guest.sh("echo enough >/run/anemos/abort")
        guest.await_end()

        said = guest.serial()
        assert ("Fetched 1 secrets" in said) == (token == TOKEN)
        assert ("HTTP Error 403" in said) == (token != TOKEN)
        assert TOKEN not in said
        assert lab.sha256(disk) == before
