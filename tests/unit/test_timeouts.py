"""Every bound on waiting is in timeouts.py: no other module gives a number to what waits, and each room has its own."""

import ast
import copy
import dataclasses
import importlib
import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage import timeouts as module
from moorage.timeouts import Timeouts

pytestmark = pytest.mark.quick

SOURCE = Path(__file__).parents[2] / "src/moorage"

WAITING = {"fail_after", "move_on_after", "settimeout", "wait_for", "select"}
"""Calls whose argument is a number of seconds after which they give up."""
KEYWORDS = {"timeout", "within", "patience", "timeout_seconds"}
BOUND_NAMES = ("TIMEOUT", "WITHIN", "PATIENCE", "RESPONSE", "STALL", "GRACE", "DEADLINE", "UNDO", "MEASURE", "CREATION")
ALLOWED = {
    ("cli/cmd_create.py", "0.05"): "a poll of a queue, again and again until the upload is over",
    ("api/request.py", "_POLL"): "a period between two checks, not a bound",
    ("ui/watcher.py", "_POLL"): "the same",
    ("ui/watcher.py", "_IDLE_POLL"): "the same",
    ("ui/server.py", "_BEAT"): "a period between two signs of life",
    ("logs/keeper.py", "_CHECK_INTERVAL"): "the same",
    ("containerd/shims/exits.py", "_RESPONSE"): "a kind of message",
    ("proxy/core/plugin.py", "_EXIT_GRACE"): "a decision of the proxy's core, beside its limits of calls (ADR 47)",
    ("proxy/workers.py", "_IDLE"): "how long a thread without work stays; no caller waits for it",
    ("proxy/core/replays.py", "_MOST_UNDOS"): "a number of attempts",
    ("_lib/stop_signals.py", "_URGENT_WITHIN"): "a window in which signals are counted; nothing waits for it",
}


def is_number(node: ast.AST | None) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and not isinstance(node.value, bool) and node.value != 0
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    return isinstance(node, ast.UnaryOp) and is_number(node.operand)


def constants(tree: ast.Module) -> set[str]:
    """Names of the module that stand for a number, also where several are assigned at once."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = [(node.target, node.value)]
        else:
            continue
        for target, value in pairs:
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for name, number in zip(target.elts, value.elts, strict=True) if several else [(target, value)]:  # type: ignore[attr-defined]
                if isinstance(name, ast.Name) and is_number(number):
                    found.add(name.id)
    return found


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def bounds(source: str) -> Iterator[str]:
    """What gives a bound in this source: a number, or the name of a constant that is one."""
    tree = ast.parse(source)
    known = constants(tree)
    yield from (each for each in known if any(word in each for word in BOUND_NAMES))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        arguments = list(node.args) if called(node) in WAITING else []
        arguments += [each.value for each in node.keywords if each.arg in KEYWORDS]
        for argument in arguments:
            if is_number(argument):
                yield ast.unparse(argument)
            yield from (each.id for each in ast.walk(argument) if isinstance(each, ast.Name) and each.id in known)


def test_d14_bounds_on_waiting_are_in_timeouts_alone() -> None:
    found = {
        (str(path.relative_to(SOURCE)), bound)
        for path in SOURCE.rglob("*.py")
        if "_proto" not in path.parts and path.name != "timeouts.py"
        for bound in bounds(path.read_text())
    }
    assert found <= set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("_X = 5.0\nwith fail_after(_X): pass", ["_X"]),
        ("_X, _Y = 5.0, 'a'\nwith anyio.move_on_after(_X * 2): pass", ["_X"]),
        ("_X: float = 5\nrun(command, timeout=_X)", ["_X"]),
        ("_WITHIN = 1.0", ["_WITHIN"]),
        ("client.settimeout(3)", ["3"]),
        ("wait(within=2 * 60)", ["2 * 60"]),
        ("_X = DEFAULT.rpc\nwith fail_after(_X): pass", []),
        ("_PAUSE = 0.5\nsleep(_PAUSE)", []),
        ("select(0)", []),
    ],
)
def test_d14_a_bound_is_found_in_each_form(source: str, found: list[str]) -> None:
    assert sorted(set(bounds(source))) == found


# a class for each room

SHARED = {each.name for each in dataclasses.fields(module.SharedTimeouts)}
ROOMS: dict[str, type] = {name: getattr(module, name) for name in module.__all__ if name != "DEFAULT"}
ALL = {each.name for each in dataclasses.fields(Timeouts)}
TAKEN = {
    "moorage": "EmbeddedTimeouts",
    "moorage.containerd": "SupervisorTimeouts",  # which are a ClientTimeouts
    "moorage.containerd.sync_client": "ClientTimeouts",
    "moorage.engine": "Timeouts",  # the engine has every room
    "moorage.executor": "ExecutorTimeouts",
    "moorage.executor.ownership": "ExecutorTimeouts",
    "moorage.logs": "KeeperTimeouts",
    "moorage.packages": "PackageTimeouts",
    "moorage.registry": "RegistryTimeouts",
}
"""What a package's exported names may see at most; a room that is not here shares the bounds of no other."""


def names(room: str) -> set[str]:
    return {each.name for each in dataclasses.fields(ROOMS[room])}


def public() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """The exported functions and classes that take time limits, each with its package."""
    packages = [path.parent for path in sorted(SOURCE.rglob("__init__.py")) if "_proto" not in path.parts]
    found = [".".join(path.relative_to(SOURCE.parent).parts) for path in packages]
    for package in [*found, "moorage.containerd.sync_client", "moorage.executor.ownership"]:
        exports = importlib.import_module(package)
        for name in getattr(exports, "__all__", ()):
            value = getattr(exports, name)
            if callable(value) and "timeouts" in parameters(value):
                yield package, name, value


def parameters(value: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(value).parameters)
    except (TypeError, ValueError):  # a type of C has none
        return {}


PUBLIC = list(public())


def test_i21_the_public_names_that_take_time_limits_are_found() -> None:
    assert {name for _, name, _ in PUBLIC} >= {
        "Client",
        "connect",
        "supervise",
        "Registry",
        "Executor",
        "open_executor",
    }
    assert {package for package, _, _ in PUBLIC} <= set(TAKEN)


@pytest.mark.parametrize(("package", "name", "value"), PUBLIC, ids=[f"{package}.{name}" for package, name, _ in PUBLIC])
def test_i21_a_public_constructor_shows_the_bounds_of_its_own_room(
    package: str, name: str, value: Callable[..., Any]
) -> None:
    parameter = parameters(value)["timeouts"]
    taken = parameter.annotation if isinstance(parameter.annotation, str) else parameter.annotation.__name__
    assert names(taken) <= names(TAKEN[package])
    assert parameter.default in (inspect.Parameter.empty, module.DEFAULT)
    assert len(str(parameter)) < 80
    shown = set(re.findall(r"\b([a-z_]+)(?:: float)? ?= ?\d", pydoc.plain(pydoc.render_doc(value)))) & ALL
    assert shown <= names(taken), name


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"Timeouts"}))
def test_i21_help_of_a_room_shows_its_bounds_and_no_other(room: str) -> None:
    text = pydoc.plain(pydoc.render_doc(ROOMS[room]))
    assert set(re.findall(r"^ \|  ([a-z_]+) = ", text, re.MULTILINE)) & ALL == names(room)
    assert len(f"{room}{inspect.signature(ROOMS[room])}") < 80


def test_i21_a_bound_has_one_room() -> None:
    own = [name for room in ROOMS.values() for name in vars(room).get("__annotations__", ())]
    assert len(own) == len(set(own))
    assert set(own) == ALL


def test_i21_the_old_name_has_every_bound_and_is_accepted_in_every_room() -> None:
    given = Timeouts(rpc=3.0, registry_stall=4.0)
    assert all(isinstance(given, room) for room in ROOMS.values())
    changed = dataclasses.replace(given, ready=5.0)
    assert (changed.rpc, changed.registry_stall, changed.ready, changed.stop) == (3.0, 4.0, 5.0, Timeouts().stop)
    assert repr(changed) == "Timeouts(registry_stall=4.0, rpc=3.0, ready=5.0)"
    assert copy.copy(changed) == changed != given
    assert len({changed, given, copy.copy(given)}) == 2


def test_i21_a_bound_of_another_room_is_refused_and_none_can_be_changed() -> None:
    assert repr(module.ClientTimeouts(rpc=3.0)) == "ClientTimeouts(rpc=3.0)"
    with pytest.raises(TypeError, match="ClientTimeouts has no bound registry_stall"):
        module.ClientTimeouts(registry_stall=3.0)  # type: ignore[call-arg]  # what mypy says, too
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.DEFAULT.rpc = 3.0  # type: ignore[misc]  # the same
    assert module.ClientTimeouts() != module.DEFAULT
