"""Measures the structure of the source: files and lines of each room, lengths of functions, import circles.

``python scripts/_structure.py [DIRECTORY]`` prints one table; the directory is that of a checkout. Nothing but the
standard library is needed.
"""

import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

KERNEL = re.compile(r"""["'f]/proc[/"'{]|["']/sys/fs/cgroup|^\s*import ctypes""", re.MULTILINE)
MEDIA_TYPE = re.compile(r"application/vnd\.(?:oci|docker|dev\.cosignproject|dev\.sigstore)[\w.+-]+")


def modules(source: Path) -> dict[str, Path]:
    """The modules of the package by name, generated ones left out."""
    found = {}
    for path in sorted((source / "moorage").rglob("*.py")):
        if "_proto" not in path.parts:
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def functions(tree: ast.AST) -> Iterator[int]:
    """The lines of each function, its docstring not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield (node.end_lineno or 0) - node.lineno + 1 - docstring


def imports(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """The modules of Moorage that a module imports at import time: imports inside functions do not count."""
    found = set()
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected, more than one)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, edges: dict[str, set[str]], into: list[str]) -> None:
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            name, rest = stack[-1]
            following = next((each for each in rest if each not in seen), None)
            if following is None:
                into.append(name)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges[following]))))

    for name in graph:
        if name not in seen:
            visit(name, graph, order)
    reverse: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            reverse[target].add(name)
    seen.clear()
    groups = []
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            visit(name, reverse, group)
            groups.append(group)
    return [sorted(group) for group in groups if len(group) > 1]


def main(root: Path) -> None:
    """Print the table for a checkout."""
    source = root / "src"
    known = modules(source)
    rooms: dict[str, list[int]] = defaultdict(list)
    lengths: list[int] = []
    graph: dict[str, set[str]] = {}
    media_types: dict[str, set[str]] = defaultdict(set)
    kernel: list[str] = []
    for name, path in known.items():
        text = path.read_text()
        tree = ast.parse(text)
        lengths += functions(tree)
        graph[name] = imports(tree, known) - {name}
        room = path.parent.relative_to(source / "moorage").as_posix()
        if path.name != "__init__.py":
            rooms["(top)" if room == "." else room].append(len(text.splitlines()))
        if KERNEL.search(text):
            kernel.append(path.relative_to(source / "moorage").as_posix())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and MEDIA_TYPE.fullmatch(node.value):
                media_types[node.value].add(name)
    print(f"{'room':24}{'files':>6}{'lines':>7}{'longest':>9}")
    for room, sizes in sorted(rooms.items()):
        print(f"{room:24}{len(sizes):6}{sum(sizes):7}{max(sizes):9}")
    lengths.sort()
    print(f"functions: {len(lengths)}, median {statistics.median(lengths):g}, ", end="")
    print(f"90th percentile {lengths[len(lengths) * 9 // 10]}, longest {lengths[-1]}")
    print(f"import circles: {circles(graph) or 'none'}")
    outside = [path for path in kernel if not path.startswith("host/")]
    print(f"files that read /proc or /sys/fs/cgroup or use ctypes: {len(kernel)}, outside host/: {outside or 'none'}")
    many = {name: sorted(files) for name, files in sorted(media_types.items()) if len(files) > 1}
    print(f"media types: {len(media_types)}, defined in more than one file: {len(many)} {many or ''}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
