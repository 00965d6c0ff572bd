"""Templates of ``--format``: Go's, over JSON documents, with docker's functions. Pure.

Source: docker/cli templates/templates.go at v28 for the functions. A field that a document does not have is an error
that lists those that it has; letter case does not matter where that is unambiguous (docker's ``ls`` has ``.ID``, its
``inspect`` has ``.Id``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from moorage._lib.escapes import escape
from moorage.cli.format.template_syntax import (
    FunctionCall,
    Literal,
    Path,
    Pipeline,
    TemplateAction,
    Text,
    invalid,
    parse,
)

__all__ = ("Template", "to_text")


class Shown(str):
    """Text that is printed as it is: what was taken from documents in it is escaped."""

    __slots__ = ()


class Template:
    """A template that is parsed once and executed on any number of documents."""

    def __init__(self, text: str) -> None:
        r"""``\t`` and ``\n`` in it are a tab and a line feed, as docker has it, because shells pass them on.

        Raises:
            errors.Invalid: it is no template
        """
        self._nodes = parse(text.replace(r"\t", "\t").replace(r"\n", "\n"))
        _check_functions(self._nodes)

    def execute(self, document: Any) -> str:
        """The text for a document; control characters that come from it are escaped.

        Raises:
            errors.Invalid: the document has no such field, or a function cannot use the value
        """
        return "".join(_walk(self._nodes, document, {"$": document}))


def _check_functions(nodes: Sequence[Text | TemplateAction]) -> None:
    """Raises: Invalid for a function that does not exist, whatever the documents are."""
    for node in nodes:
        if isinstance(node, TemplateAction):
            _check_pipeline(node.pipeline)
            _check_functions(node.body)
            _check_functions(node.otherwise)


def _check_pipeline(pipeline: Pipeline) -> None:
    for call in pipeline.calls:
        if call.function and call.function not in _FUNCTIONS:
            close = get_close_matches(call.function, _FUNCTIONS, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(_FUNCTIONS))}"
            raise invalid(f"function {call.function!r} is not defined{hint}")
        for each in call.operands:
            if isinstance(each, Path) and isinstance(each.start, Pipeline):
                _check_pipeline(each.start)


def _walk(nodes: Sequence[Text | TemplateAction], dot: Any, variables: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if isinstance(node, Text):
            found.append(node.text)
            continue
        value = _evaluate(node.pipeline, dot, variables)
        if node.kind == "range":
            found += _range(node, value, dot, variables)
            continue
        for name in node.pipeline.variables:
            variables[name] = value
        if node.kind:
            inner = value if node.kind == "with" and value else dot
            found += _walk(node.body if value else node.otherwise, inner, variables)
        elif not node.pipeline.variables:
            found.append(value if isinstance(value, Shown) else escape(to_text(value)))
    return found


def _range(node: TemplateAction, value: Any, dot: Any, variables: dict[str, Any]) -> list[str]:
    if isinstance(value, Mapping):
        pairs: list[tuple[Any, Any]] = sorted(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        pairs = [(number, number) for number in range(value)]
    elif value is None:
        pairs = []
    else:
        raise invalid(f"range can't iterate over {to_text(value)}")
    if not pairs:
        return _walk(node.otherwise, dot, variables)
    found: list[str] = []
    for key, each in pairs:
        names = node.pipeline.variables
        scope = {**variables, **dict(zip(names, (key, each) if len(names) > 1 else (each,), strict=False))}
        found += _walk(node.body, each, scope)
    return found


def _evaluate(pipeline: Pipeline, dot: Any, variables: Mapping[str, Any]) -> Any:
    passed: tuple[Any, ...] = ()
    for call in pipeline.calls:
        passed = (_call(call, dot, variables, passed),)
    return passed[0]


def _call(call: FunctionCall, dot: Any, variables: Mapping[str, Any], passed: tuple[Any, ...]) -> Any:
    operands = (*(_operand(each, dot, variables) for each in call.operands), *passed)
    if not call.function:
        if len(operands) > 1:
            raise invalid(f"cannot pass a value on to {to_text(operands[0])}, which is no function")
        return operands[0]
    try:
        return _FUNCTIONS[call.function](*operands)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        shown = ", ".join(to_text(each)[:30] for each in operands)
        raise invalid(f"cannot call {call.function} with {shown or 'nothing'}") from error


def _operand(operand: Literal | Path, dot: Any, variables: Mapping[str, Any]) -> Any:
    if isinstance(operand, Literal):
        return operand.value
    if isinstance(operand.start, Pipeline):
        value = _evaluate(operand.start, dot, variables)
    elif operand.start:
        if operand.start not in variables:
            raise invalid(f"undefined variable {operand.start}")
        value = variables[operand.start]
    else:
        value = dot
    for name in operand.fields:
        value = _field(value, name)
    return value


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise invalid(f"can't evaluate field {name} in {to_text(value)[:40] or 'an empty text'}")
    if name in value:
        return value[name]
    alike = [key for key in value if key.lower() == name.lower()]
    if len(alike) == 1:
        return value[alike[0]]
    if not all(key[:1].isupper() for key in value) or not value:
        return ""  # a map, as of attributes: what it does not have is empty, as in Go
    close = get_close_matches(name, list(value), 1)
    hint = f"did you mean .{close[0]}?" if close else f"there are {', '.join(f'.{key}' for key in value)}"
    raise invalid(f"there is no field .{name}; {hint}")


def to_text(value: Any) -> str:
    """A value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if value % 1 else str(int(value))
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{to_text(each)}' for key, each in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(to_text, value))}]"
    return str(value)


def _print(*values: Any) -> Shown:
    return Shown("".join(escape(to_text(each)) for each in values))


def _println(*values: Any) -> Shown:
    return Shown(" ".join(escape(to_text(each)) for each in values) + "\n")


def _printf(pattern: str, *values: Any) -> Shown:
    texts = (each if isinstance(each, int | float) and not isinstance(each, bool) else to_text(each) for each in values)
    shown = tuple(escape(each) if isinstance(each, str) else each for each in texts)
    return Shown(pattern.replace("%v", "%s").replace("%q", '"%s"') % shown)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


def _equal(first: Any, *others: Any) -> bool:
    return any(first == each for each in others)


def _and(*values: Any) -> Any:
    return next((each for each in values if not each), values[-1])


def _or(*values: Any) -> Any:
    return next((each for each in values if each), values[-1])


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "and": _and,
    "eq": _equal,
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "index": _index,
    "join": lambda values, separator: separator.join(map(to_text, values)),
    "json": lambda value: Shown(json.dumps(value).replace("\x7f", "\\u007f")),
    "le": lambda a, b: a <= b,
    "len": len,
    "lower": lambda text: text.lower(),
    "lt": lambda a, b: a < b,
    "ne": lambda a, b: a != b,
    "not": lambda value: not value,
    "or": _or,
    "pad": _pad,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "slice": lambda value, *ends: value[slice(*ends)] if len(ends) > 1 else value[ends[0] if ends else 0 :],
    "split": lambda text, separator: text.split(separator),
    "title": lambda text: text.title(),
    "truncate": lambda text, length: text[:length],
    "upper": lambda text: text.upper(),
}
