"""What ``scripts/docs`` runs first: a copy of the documents in the layout of the site.

The site has every page of docs/, those documents that stand elsewhere in the repository (``ELSEWHERE``), and a page for
each public package, from its ``__all__``. Its navigation is docs/index.md: each of its sections becomes one of the
sidebar. Usage: _docs.py DIR, which is replaced.
"""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FunctionType

import moorage

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

ELSEWHERE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "reporting.md"}
"""Documents outside docs/, and their names in the site; each example's README is examples/NAME.md."""

MODULES = ("moorage.containerd.types", "moorage.errors", "moorage.timeouts")
"""Public modules that are no package: values and errors that the packages' functions return and raise."""

API = "reference/python"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def public_modules() -> list[str]:
    """The names of every package with public names, and of ``MODULES``."""
    walked = pkgutil.walk_packages(moorage.__path__, "moorage.", onerror=lambda _: None)
    packages = [each.name for each in walked if each.ispkg and "._" not in each.name]
    found = {name for name in ("moorage", *packages) if getattr(importlib.import_module(name), "__all__", ())}
    return sorted({*found, *MODULES})


def pages() -> dict[Path, str]:
    """Each document of the repository, and where it is in the site."""
    found = {path: str(path.relative_to(DOCS)) for path in DOCS.rglob("*") if path.is_file() and path.suffix != ".py"}
    found |= {ROOT / name: page for name, page in ELSEWHERE.items()}
    found |= {path: f"examples/{path.parent.name}.md" for path in ROOT.glob("examples/*/README.md")}
    return found


def stage(target: Path) -> None:
    """Copy the documents, and everything that they link to, with links that lead to the copies."""
    layout = pages()
    for source, page in layout.items():
        destination = target / page
        destination.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            destination.write_text(_relinked(source, page, layout, target))
        else:
            shutil.copyfile(source, destination)


def _relinked(source: Path, page: str, layout: dict[Path, str], target: Path) -> str:
    def relink(link: re.Match[str]) -> str:
        if "//" in link[2]:
            return link[0]
        linked = Path(os.path.normpath(source.parent / link[2]))
        if linked not in layout and linked.is_file() and linked.is_relative_to(ROOT):  # a source, to download
            layout_of_file = f"files/{linked.relative_to(ROOT)}"
            copy = target / layout_of_file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(linked, copy)
        else:
            layout_of_file = layout.get(linked, link[2])
            if linked not in layout:
                return link[0]  # Sphinx reports it
        return f"{link[1]}{os.path.relpath(layout_of_file, Path(page).parent)}{link[3]}"

    return LINK.sub(relink, source.read_text())


def navigation(text: str) -> Iterator[tuple[str, list[str]]]:
    """The sections of docs/index.md with the pages that each links to."""
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        links = re.findall(r"\]\(([^)#]+)\)", section)
        yield title, list(dict.fromkeys(link for link in links if "//" not in link))


def write_navigation(target: Path) -> None:
    """Give the pages with a list of others (index, decisions, Python) a table of contents."""
    index = target / "index.md"
    text = index.read_text()
    tables = (
        f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(links) + "\n```\n"
        for title, links in navigation(text)
        if links
    )
    index.write_text(text + "\n" + "\n".join(tables))
    decisions = target / "adr/index.md"
    decisions.write_text(decisions.read_text() + "\n```{toctree}\n:glob:\n:maxdepth: 1\n\n0*\n```\n")


def write_api(target: Path) -> None:
    """A page for each public module, below the page reference/python.md."""
    names = public_modules()
    described: dict[int, str] = {}
    for name in sorted(
        names, key=lambda each: (-each.count("."), each)
    ):  # what moorage passes on is described below it
        page = target / API / f"{name}.rst"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_api_page(name, described))
    parent = target / f"{API}.md"
    entries = "\n".join(f"python/{name}" for name in names)
    parent.write_text(parent.read_text() + f"\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n")


def _api_page(name: str, described: dict[int, str]) -> str:
    """The page of a module; ``described`` has what other pages describe, by identity, and gains what this one does."""
    module = importlib.import_module(name)
    values = {each: getattr(module, each) for each in module.__all__ if not each.startswith("__")}
    objects = {each: value for each, value in values.items() if isinstance(value, type | FunctionType)}
    passed_on = {each: described[id(value)] for each, value in objects.items() if id(value) in described}
    described |= {id(value): f"{name}.{each}" for each, value in objects.items() if each not in passed_on}
    # Sphinx finds the text of a constant only in the module that defines it, and a package only exports.
    constants = sorted(values.keys() - objects.keys())
    title = f"``{name}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {name}", "   :members:", "   :undoc-members:"]
    lines += [f"   :exclude-members: {', '.join([*passed_on, *constants])}", ""]
    if passed_on:
        lines += ["Described elsewhere, and importable from here:", ""]
        lines += [f"- ``{each}``: :py:obj:`{where}`" for each, where in passed_on.items()]
    for each in constants:
        value = repr(values[each])
        lines += ["", f".. py:data:: {name}.{each}", *([f"   :value: {value}"] if len(value) < 100 else []), ""]
        lines += [f"   {text}" for text in _text_of(each, str(module.__file__)).splitlines()]
    return "\n".join(lines) + "\n"


def _text_of(constant: str, first: str) -> str:
    """The string after the assignment of a constant, in the file ``first`` or wherever in the package that is."""
    for path in [Path(first), *sorted(Path(moorage.__path__[0]).rglob("*.py"))]:
        body = ast.parse(path.read_text()).body if f"\n{constant}" in path.read_text() else []
        for node, after in pairwise(body):
            targets = [ast.unparse(node.target)] if isinstance(node, ast.AnnAssign) else []
            targets += [ast.unparse(each) for each in node.targets] if isinstance(node, ast.Assign) else []
            if constant in targets and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
    return ""


def main() -> None:
    """Replace the directory that is named on the command line."""
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    stage(target)
    write_navigation(target)
    write_api(target)


if __name__ == "__main__":
    main()
