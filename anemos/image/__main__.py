"""Builds an image: python3 -m anemos.image [OPTION]... [DIR]...

Run where an IMGBUILD lies. The DIRs are the input directories, ./files without any.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from anemos import log
from anemos.image import build, comparison, isolation
from anemos.log import Failure, die
from anemos.run import no_core_dumps
from anemos.system import imgbuild
from anemos.system.definition import Definition


def directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return path


def values(text: str) -> dict[str, str]:
    """The values in the JSON file called TEXT."""
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: not an object with strings as values")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("anemos.image", description=__doc__)
    parser.add_argument("inputs", metavar="DIR", nargs="*", type=directory)
    parser.add_argument(
        "--directory", type=directory, default=Path(), help="where the IMGBUILD lies"
    )
    parser.add_argument("--format", default="", help="instead of the IMGBUILD's: 'raw 8G gpt'")
    parser.add_argument("--arch", default="", help="what `arch` is before the IMGBUILD sets it")
    parser.add_argument("--output", type=directory, default=Path(), help="directory for the image")
    cache = "directory for package layers (default: output)"
    parser.add_argument("--cache", type=directory, help=cache)
    parser.add_argument("--max-age", type=float, default=build.DAY_S, help="of a layer, in seconds")
    parser.add_argument("--mirror", default="", help="of Debian, when the IMGBUILD names none")
    parser.add_argument("--layer", action="store_true", help="make the package layer alone")
    trial = "apply the definition, in memory, and throw it away; print the package layer"
    parser.add_argument("--try", dest="trying", action="store_true", help=trial)
    again = "build the image a second time, package layer and all, and compare"
    parser.add_argument("--check", action="store_true", help=again)
    pairs = "JSON object with the values for templates"
    parser.add_argument("--values", type=values, default={}, help=pairs)
    parser.add_argument("--secrets", type=directory, help="tree of revealed secret files")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    no_core_dumps()
    isolation.enter("anemos.image", sys.argv[1:])
    spec = imgbuild.load(given.directory, given.format, arch=given.arch)
    if spec.target == "debian":
        spec = replace(spec, mirror=spec.mirror or given.mirror)
    if given.check and spec.format == "custom":
        die("--check: only cleanup() knows what a custom image is")
    cache = given.cache or given.output
    if given.layer:
        print(build.layer(spec, cache=cache, max_age_s=given.max_age))
        return
    default = [d for d in [given.directory / "files"] if d.is_dir()]
    definition = Definition(given.inputs or default, given.values, given.secrets)
    if given.trying:
        print(build.attempt(spec, definition, cache=cache, max_age_s=given.max_age))
        return
    files = build.build(spec, definition, given.output, cache=cache, max_age_s=given.max_age)
    print(*files, sep="\n")
    if given.check:
        comparison.check(spec, definition, given.output)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        log.to_stderr(f"error: {isolation.ended or failure}")
        raise
    except OSError as error:  # a full disk, say
        log.to_stderr(f"error: {error.filename or 'error'}: {error.strerror}")
        sys.exit(log.FAILED)
