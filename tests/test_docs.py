"""The examples in docs/imgbuild.md are IMGBUILDs: all of them are loaded, the cheap ones built."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from anemos.image import imgbuild
from anemos.image.imgbuild import FUNCTIONS, VARIABLES
from anemos.run import run
from tests import test_faults
from tests.imaging import describe, image

pytestmark = pytest.mark.real("run")

TEXT = (Path(__file__).parents[1] / "docs/imgbuild.md").read_text()
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CHEAP = [each for each in EXAMPLES if re.search(r"^(provision|setup|cleanup)\(\)", each, re.M)]


def without_target(example: str) -> str:
    return "" if "target=" in example else "target=debian\n"


@pytest.mark.parametrize("example", EXAMPLES)
def test_loads(tmp_path: Path, example: str) -> None:
    (tmp_path / "IMGBUILD").write_text(without_target(example) + example)
    assert imgbuild.load(tmp_path)


@pytest.mark.parametrize("name", [*VARIABLES, *(f"{name}()" for name in FUNCTIONS)])
def test_complete(name: str) -> None:
    """Every variable and function is explained, and stands in an example."""
    assert f"`{name}`" in TEXT
    if name not in ("hostconf", "bootloader"):
        assert any(re.search(rf"^{re.escape(name)}[= ]", each, re.M) for each in EXAMPLES)


@pytest.mark.root
@pytest.mark.parametrize("example", CHEAP)
def test_builds(tmp_path: Path, example: str) -> None:
    host = tmp_path / "mx"
    describe(host, example, without_target(example))
    done = image(host, "--output", "out", umask=0o022)
    assert done.returncode == 0, done.stderr
    (made,) = (file for file in (host / "out").glob("mx*") if "manifest" not in file.name)
    assert done.stdout == f"out/{made.name}\n"
    if "oci-layout" in example:
        check_oci(made)


def check_oci(layout: Path) -> None:
    """As an OCI runtime reads it: by digests, from the index to the layer (image-layout.md)."""

    def blob(descriptor: dict[str, object]) -> Path:
        file = layout / "blobs" / str(descriptor["digest"]).replace(":", "/")
        data = file.read_bytes()
        assert f"sha256:{sha256(data).hexdigest()}" == descriptor["digest"]
        assert len(data) == descriptor["size"]
        return file

    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(entry).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    (layer,) = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert "./etc/passwd" in run(["tar", "--list", "--file", blob(layer)])


RECOVERY = (Path(__file__).parents[1] / "docs/recovery.md").read_text()
CELLS = "".join(re.findall(r"^\| (.*?) \|", RECOVERY, re.M))
EXPLAINED = [each.split("...") for each in re.findall(r"`([^`]+)`", CELLS)]
FAULTS = {**test_faults.BEFORE, **test_faults.BEFORE_ALL}
SAID = {name: fault.says for name, fault in FAULTS.items() if name != "lockup"} | {
    name: says for name, (_, _, says) in test_faults.AFTER.items()
}


@pytest.mark.parametrize("name", SAID)
def test_message_of_a_fault_is_explained(name: str) -> None:
    """A message of the page stands for one that differs where the page has `...`."""
    patterns = [".*".join(map(re.escape, parts)) for parts in EXPLAINED]
    said = SAID[name]
    assert any(
        re.match(pattern, said) or said in "...".join(parts)
        for pattern, parts in zip(patterns, EXPLAINED, strict=True)
    )
