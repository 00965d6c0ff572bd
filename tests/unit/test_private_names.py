"""Private names of other packages that the code uses: each package has a cap, below which the names are as they are."""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import moorage

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/moorage"

ATTRIBUTES = {
    "_stream": "grpclib",
    "_maybe_raise": "grpclib",
    "_h2_connection": "grpclib",
    "_transport": "grpclib",
    "_factory": "aiohttp",
    "_loop": "aiohttp",
}
"""Private names of objects of other packages, and the package that defines each."""
UNDOCUMENTED = {
    "h2": {"outbound_flow_control_window", "max_outbound_frame_size", "streams", "data_to_send"},
    "grpclib": {"window_updated", "write_ready", "data_send_process", "wrapper"},
}
"""Names without an underscore that no documentation promises."""
STEADY = ("click", "h2")
"""Capped by the major version only: h2 has had the names since 4.0, and without click's our override does nothing."""
STANDARD = {("os", "_exit"), ("zlib", "_Decompress")}
"""Of the standard library, which pyproject.toml bounds by requires-python."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if "_proto" not in path.parts:
            yield path, ast.parse(path.read_text())


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def own_names() -> frozenset[str]:
    """Private names that our own code defines."""
    found: set[str] = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return frozenset(each for each in found if is_private(each))


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_attributes() -> set[str]:
    """Private names that are read or written of objects of other packages."""
    found = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not is_private(node.attr) or is_self(node.value):
                continue
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in STANDARD:
                continue
            if node.attr not in own_names() or node.attr in ATTRIBUTES:
                found.add(node.attr)
    return found


def classes() -> Iterator[type]:
    for each in pkgutil.walk_packages(moorage.__path__, "moorage."):
        if "_proto" in each.name or each.name.endswith("__main__"):
            continue
        module = importlib.import_module(each.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def inherited() -> dict[str, set[str]]:
    """By package: private names of its classes that our classes override or use."""
    found: dict[str, set[str]] = {}
    for each in classes():
        source = ast.parse(textwrap.dedent(inspect.getsource(each)))
        used = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and is_self(node.value)}
        used |= set(vars(each))
        for base in each.__mro__[1:]:
            package = base.__module__.partition(".")[0]
            if package == "moorage" or package in sys.stdlib_module_names or package == "msgspec":
                continue
            names = {name for name in used & set(vars(base)) if is_private(name) and not name.startswith("_abc_")}
            if names:
                found.setdefault(package, set()).update(names)
    return found


def requirements() -> dict[str, Requirement]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["project"]["optional-dependencies"]
    parsed = map(Requirement, document["project"]["dependencies"] + extras["registry"] + extras["engine"])
    return {each.name: each for each in parsed}


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def packages() -> list[str]:
    return sorted({*ATTRIBUTES.values(), *UNDOCUMENTED, *inherited()})


def test_d14_every_private_name_of_another_package_is_in_the_table() -> None:
    assert foreign_attributes() == set(ATTRIBUTES)


def test_d14_the_packages_whose_private_names_are_used_are_known() -> None:
    assert packages() == ["aiohttp", "click", "grpclib", "h2"]


@pytest.mark.parametrize("package", ["aiohttp", "click", "grpclib", "h2"])
def test_d14_a_package_whose_private_names_are_used_is_capped(package: str) -> None:
    requirement = requirements()[package]
    caps = [each for each in requirement.specifier if each.operator in ("<", "~=", "==")]
    assert caps, f"{requirement} has no cap"
    for version in (metadata.version(package), pinned(package)):
        assert version in requirement.specifier, f"{package} {version} is not {requirement.specifier}"
    major, minor = (int(each) for each in metadata.version(package).split(".")[:2])
    assert f"{major + 1}.0" not in requirement.specifier
    if package not in STEADY:
        assert f"{major}.{minor + 1}" not in requirement.specifier


@pytest.mark.parametrize(
    ("package", "name"),
    sorted({(package, name) for name, package in ATTRIBUTES.items()})
    + sorted((package, name) for package, names in UNDOCUMENTED.items() for name in names),
)
def test_d14_the_installed_package_has_the_name(package: str, name: str) -> None:
    folder = Path(str(importlib.import_module(package).__file__)).parent
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in folder.rglob("*.py"))
    assert any(re.search(rf"\.{name}\b", path.read_text()) for path in SOURCE.rglob("*.py")), "and it is used"
