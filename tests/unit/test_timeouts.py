"""Every bound on waiting is in timeouts.py: no other module gives a number of seconds to what waits."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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
