"""What crosses between the machines: records as JSON, and the names of files."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from anemos.border import records, requests, stage
from anemos.border.boot import Boot
from anemos.border.deployment import Agreed, Deployment
from anemos.border.requests import Arm, Bootstrap, Build, BuildEntry, Fingerprints, Load, Request
from anemos.disks import Device, Fingerprint, Wanted
from anemos.log import FAILED, Failure
from tests.whole.test_network import ETH0, NETWORK

PRINT = Fingerprint("data", "S", 512, "d1g35t", ((0, "U", "ext4"),))
AGREED = Agreed("layout", {"system": Device("vda", "S", "", 512)})
WANTED = [Wanted("data", {"serial": "S"}, 1)]
BOOT = Boot("d", "mx", "b", "p", "", 22, {**NETWORK}, [PRINT], 1.5, agreed=AGREED)
GIVEN = json.loads(records.text(BOOT))
ASKED = [
    Fingerprints(WANTED),
    Bootstrap("p"),
    Build("/base", "p", "", 1.5, late=True),
    BuildEntry("/base", "p", "", 1.5, True, "/boot/grub", Deployment("d", "mx", WANTED, AGREED)),
    Arm("grub", "/boot/grub", "vda1", 0),
    Load(60, late=False),
]


def test_read_as_written() -> None:
    assert records.parse(Boot, records.text(BOOT)) == BOOT


@pytest.mark.parametrize("request_", ASKED, ids=lambda each: type(each).__name__)
def test_request(request_: Request) -> None:
    assert requests.read(requests.text(request_)) == request_


def test_another_version() -> None:
    """It may say more, and need not say what has a usual value."""
    given = {key: value for key, value in GIVEN.items() if key not in ("time", "late")}

    found = records.parse(Boot, json.dumps(given | {"colour": 1}))

    assert (found.time, found.late, found.host) == (0.0, False, "mx")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"ssh_port": "22"}, "ssh_port makes no sense"),
        ({"ssh_port": True}, "ssh_port makes no sense"),
        ({"host": "a\0"}, "host makes no sense"),
        ({"host": "\udcff"}, "host makes no sense"),
        ({"time": float("inf")}, "time makes no sense"),
        ({"agreed": []}, "agreed is no object"),
        ({"agreed": {"erase": {"system": {"name": "vda"}}}}, "erase has no serial, size, wwn"),
        ({"kept": [asdict(PRINT) | {"filesystems": [[0, "U"]]}]}, "kept makes no sense"),
        ({"network": NETWORK | {"operator": "ipx"}}, "operator makes no sense"),
        (
            {"network": NETWORK | {"interfaces": [ETH0 | {"mtu": "1"}]}},
            "interfaces has no id, options, parent, protocol",
        ),
    ],
)
def test_what_makes_no_sense(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(Failure, match=f"^boot.json: {why}$") as caught:
        records.load(Boot, json.dumps(GIVEN | changed), "boot.json")
    assert caught.value.status == FAILED


@pytest.mark.parametrize(
    ("text", "why"), [("", "no JSON"), ("{", "no JSON"), ("[]", "no object"), ("{}", "has no base")]
)
def test_no_record(text: str, why: str) -> None:
    with pytest.raises(Failure, match=why):
        records.load(Boot, text, "boot.json")


def test_scripts_know_the_names() -> None:
    """The shell's are those of the module, and a base image's."""
    top = Path(requests.__file__).parents[1]
    known = {each.name for each in vars(stage).values() if isinstance(each, Path)}
    for file in [*top.glob("server/*.sh"), top / "initramfs/init"]:
        said = re.findall(
            r"(?<!\w)(?:/run/anemos|/anemos|\$HERE|\$here)/([a-z][a-z.-]*)", file.read_text()
        )
        assert {name for name in said if not name.startswith("base-")} <= known, file
