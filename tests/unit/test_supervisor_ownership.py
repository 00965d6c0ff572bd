"""Only its owners assign what belongs to a plugin. Source: docs/adr/0038-one-supervisor-per-plugin.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.engine.plugin import PluginState

pytestmark = pytest.mark.quick

ENGINE = Path(__file__).resolve().parents[2] / "src/moorage/engine"
MODULES = sorted(ENGINE.glob("*.py"))


def assignments(source: str) -> Iterator[str]:
    """What is assigned to an attribute of anything but ``self``, as source text."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = [part for each in node.targets for part in (each.elts if isinstance(each, ast.Tuple) else [each])]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self":
                yield ast.unparse(target)


ALLOWED = {"run.started_at", "run.pid", "self._context.kill_now"}
"""The runner's own run, and the one field of the context that says how the engine shuts down."""


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_module_assigns_an_attribute_of_another_object(module: Path) -> None:
    assert set(assignments(module.read_text())) <= ALLOWED


def test_every_exception_is_still_needed() -> None:
    found = {each for module in MODULES for each in assignments(module.read_text())}
    assert found == ALLOWED


def test_the_search_finds_each_way_of_assigning() -> None:
    source = "plugin.record = 1\nplugin.stops += 1\nplugin.run: int = 2\na, plugin.life = 1, 2\nself.x = 1"
    assert list(assignments(source)) == ["plugin.record", "plugin.stops", "plugin.run", "plugin.life"]


@pytest.mark.parametrize("name", ["record", "config", "state", "run", "problem", "name", "id", "is_enabled"])
def test_what_is_known_of_a_plugin_cannot_be_assigned(name: str) -> None:
    found = getattr(PluginState, name)
    assert isinstance(found, property)
    assert found.fset is None
