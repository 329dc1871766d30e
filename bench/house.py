"""How the code looks from afar: .venv/bin/python -m bench.house [COMMIT ...]

A table of figures with a column for each commit, and then, for the last one, which room imports
from which: a folder of anemos/, or of anemos/workstation/. All is read from the syntax trees.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath
from statistics import median, quantiles

Files = dict[str, str]  # path -> text
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEEPER = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def files(commit: str, top: str) -> Files:
    """The Python files of COMMIT below TOP."""
    argv = ["git", "ls-tree", "-r", "--name-only", commit, top]
    names = subprocess.check_output(argv, text=True).splitlines()
    show = ["git", "show"]
    return {
        name: subprocess.check_output([*show, f"{commit}:{name}"], text=True)
        for name in names
        if name.endswith(".py")
    }


def figures(product: Files, tests: Files) -> Iterator[tuple[str, str]]:
    trees = [ast.parse(text) for text in product.values()]
    lines = [len(text.splitlines()) for text in product.values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, DEFINITIONS)]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    unknown = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    arrows = imports(product)
    yield "lines / modules", f"{sum(lines)} / {len(lines)}"
    yield "median / largest module", f"{median(lines):.0f} / {max(lines)}"
    p90 = quantiles(lengths, n=10)[-1]
    yield "function median / p90 / max", f"{median(lengths):.0f} / {p90:.0f} / {lengths[-1]}"
    yield "deepest nesting", f"{max(depth(node) for node in functions)}"
    typed = sum(node.returns is not None for node in functions) / len(functions)
    yield "typed returns", f"{typed:.0%}"
    yield "`Any` per 1,000 lines", f"{1000 * unknown / sum(lines):.1f}"
    yield "rooms / arrows", f"{len(arrows)} / {sum(map(len, arrows.values()))}"
    yield "circle", circle(arrows)
    length = sum(len(text.splitlines()) for text in tests.values())
    yield "test lines / product lines", f"{length / sum(lines):.2f}"


def depth(node: ast.AST, level: int = 0) -> int:
    """How deep the statements in NODE are nested. An elif is no level."""
    found = [level]
    for child in ast.iter_child_nodes(node):
        chained = isinstance(node, ast.If) and [child] == node.orelse and isinstance(child, ast.If)
        found.append(depth(child, level + (isinstance(child, DEEPER) and not chained)))
    return max(found)


def imports(product: Files) -> dict[str, set[str]]:
    """Room -> the other rooms that its modules import from."""
    paths = {module(path): path for path in product}
    found: dict[str, set[str]] = {room(path): set() for path in product}
    for path, text in product.items():
        for target in targets(ast.parse(text), paths):
            if (other := room(target)) != room(path):
                found[room(path)].add(other)
    return found


def targets(tree: ast.Module, paths: dict[str, str]) -> Iterator[str]:
    """Paths of the modules that TREE imports. PATHS: of all modules, by name."""
    for node in ast.walk(tree):
        wanted: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            wanted = [each.name for each in node.names]
        yield from (paths[each] for each in wanted if each in paths)


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(path: str) -> str:
    """The room of the module at PATH; "" for those that lie in anemos/ itself."""
    inside = PurePosixPath(path).relative_to("anemos").parent.parts
    return "/".join(inside if inside[:1] == ("workstation",) else inside[:1])


def circle(arrows: dict[str, set[str]]) -> str:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return " > ".join(error.args[1])
    return "none"


def main(commits: list[str]) -> None:
    measured = [dict(figures(files(each, "anemos"), files(each, "tests"))) for each in commits]
    print("| |", " | ".join(commits), "|")
    print("|---" * (len(commits) + 1) + "|")
    for name in measured[0]:
        print(f"| {name} |", " | ".join(each[name] for each in measured), "|")
    print()
    for name, others in sorted(imports(files(commits[-1], "anemos")).items()):
        print(f"{name or '(floor)'}: {', '.join(sorted(each or '(floor)' for each in others))}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["HEAD"])
