"""Docs say what is true: examples load, commands parse, pages made from the code are its own."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from invoke.parser import Parser

from anemos.run import run
from anemos.system import imgbuild
from anemos.system.imgbuild import FUNCTIONS, VARIABLES
from anemos.workstation.cli.command import PURPOSES
from anemos.workstation.cli.program import Inv
from docs import reference
from tasks import ns
from tests import reach
from tests.imaging import describe, image
from tests.whole import test_faults

pytestmark = pytest.mark.real("run")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/imgbuild.md").read_text()
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", TEXT + (ROOT / "README.md").read_text(), re.M | re.S)
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


RECOVERY = (ROOT / "docs/recovery.md").read_text()
CELLS = "".join(re.findall(r"^\| (.*?) \|", RECOVERY, re.M))
EXPLAINED = [each.split("...") for each in re.findall(r"`([^`]+)`", CELLS)]
SAID = {name: fault.says for name, fault in test_faults.BEFORE.items() if name != "lockup"} | {
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


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
CODE = re.compile(r"^```\w*\n.*?^```$|`[^`]+`", re.M | re.S)
# A task and its flags, in a message or a comment.
CALL = re.compile(r"\./inv ([a-z][\w.-]*\w)((?: --[a-z-]+(?: [{\w.}]+)?)*)")
CONTEXTS = {str(each.name): each for each in ns.to_contexts()}


def commands(text: str) -> Iterator[list[str]]:
    """The words behind each ./inv that TEXT has in a code block or between backticks."""
    spans = [each if "```" in each else each.replace("\n", " ") for each in CODE.findall(text)]
    for found in re.findall(r"\./inv +(\w[^|&;<>#`\n]*)", "\n".join(spans)):
        yield shlex.split(re.sub(r"[][]|\.\.\.", "", found))


def test_commands_are_found() -> None:
    text = "`./inv plan [--host H]`\n```\nls x; ./inv test <x && ./inv check # all\n```\n"
    assert list(commands(text)) == [["plan", "--host", "H"], ["test"], ["check"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_docs_parse(page: Path) -> None:
    """A word in capitals stands for something else; the rest is what inv understands."""
    for words in commands(page.read_text()):
        if words[0].islower():
            Parser(contexts=CONTEXTS.values()).parse_argv(words)


def test_commands_in_messages_are_tasks() -> None:
    for file in [*ROOT.glob("anemos/**/*.py"), *ROOT.glob("anemos/**/*.sh")]:
        for name, flags in CALL.findall(file.read_text()):
            assert set(re.findall(r"--[a-z-]+", flags)) <= set(CONTEXTS[name].flags), file


@pytest.mark.parametrize("name", reference.PAGES)
def test_page_is_what_the_code_says(name: str) -> None:
    made = reference.PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == made, ".venv/bin/python -m docs.reference"


def test_every_task_has_a_purpose() -> None:
    assert set(" ".join(PURPOSES.values()).split()) == set(CONTEXTS) - {"check"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """NEWS begins with it."""
    Inv(name="inv", binary="inv").print_version()
    version = capsys.readouterr().out.split()[1]
    newest = next(re.finditer(r"^## (\S+)", (ROOT / "NEWS.md").read_text(), re.M))
    assert newest[1] == version


# English that a reader has to decode: say except, what, has no.
DECODED = re.compile(r"\b(but for|whatever|(has|have|had)\s+not\s+got)\b", re.I)


def test_plain_english() -> None:
    said = {page: page.read_text() for page in PAGES}
    for file in [ROOT / "tasks.py", *ROOT.glob("anemos/**/*.py")]:
        found = ast.walk(ast.parse(file.read_text()))
        said[file] = "\n".join(str(each.value) for each in found if isinstance(each, ast.Constant))
    assert {
        page: DECODED.findall(text) for page, text in said.items() if DECODED.search(text)
    } == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / file if file else page
        heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else ()
        slugs = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in heads]
        assert target.is_file() and (not anchor or anchor in slugs), f"{file}#{anchor}"


def test_reach_is_what_the_tests_say() -> None:
    assert (ROOT / "docs/reach.md").read_text() == reach.page(reach.proofs())
