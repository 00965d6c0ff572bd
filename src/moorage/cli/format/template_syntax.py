"""The syntax of templates, a subset of Go's text/template: what docker's ``--format`` takes. Pure.

Source: https://pkg.go.dev/text/template. Not here: ``define``, ``template``, ``block``, methods, complex numbers.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from moorage import errors

__all__ = ("FunctionCall", "Literal", "Path", "Pipeline", "TemplateAction", "Text", "invalid", "parse")

_ACTION = re.compile(r"\{\{(-\s)?\s*((?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|(?!\}\}).)*?)\s*(\s-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{\{(?:-\s)?\s*/\*.*?\*/\s*(?:\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:\\.|[^\"\\])*\"|`[^`]*`)|(?P<number>[+-]?\d+(?:\.\d+)?)|(?P<path>\$?\w*(?:\.\w+)+|\$\w*|\.)"
    r"|(?P<word>\w+)|(?P<sign>:=|=|\||\(|\)|,))"
)
_CONSTANTS = {"true": True, "false": False, "nil": None}
_BLOCKS = ("if", "range", "with")


class Literal(NamedTuple):
    """A constant."""

    value: Any


class Path(NamedTuple):
    """A variable ("" for the present value, "$" for the whole) or a pipeline, and fields below it."""

    start: "str | Pipeline"
    fields: tuple[str, ...]


class FunctionCall(NamedTuple):
    """A function, or "" for a value alone, and its operands."""

    function: str
    operands: "tuple[Literal | Path, ...]"


class Pipeline(NamedTuple):
    """Calls, the result of each the last operand of the next; and the variables that it sets."""

    calls: tuple[FunctionCall, ...]
    variables: tuple[str, ...] = ()


class Text(NamedTuple):
    """Text that is printed as it is."""

    text: str


class TemplateAction(NamedTuple):
    """A pipeline that is printed (kind ""), or the condition of a block: if, range, with."""

    kind: str
    pipeline: Pipeline
    body: "tuple[Text | TemplateAction, ...]" = ()
    otherwise: "tuple[Text | TemplateAction, ...]" = ()


Node = Text | TemplateAction


def invalid(cause: str) -> errors.Invalid:
    """The failure of a template."""
    return errors.Invalid(f"cannot use --format: {cause}")


def parse(template: str) -> tuple[Node, ...]:
    """The nodes of a template.

    Raises:
        errors.Invalid: it is no template
    """
    pieces = list(_pieces(_COMMENT.sub("", template)))
    nodes, end = _block(pieces, 0)
    if end < len(pieces):
        raise invalid(f"{{{{{pieces[end][1]}}}}} without a block that it belongs to")
    return nodes


def _pieces(template: str) -> Iterator[tuple[bool, str]]:
    """Texts (False) and the insides of actions (True); hyphens trim the white space of neighbours."""
    at, trim = 0, False
    for found in _ACTION.finditer(template):
        text = template[at : found.start()]
        _refuse_open(text)
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if found[1] else text
        yield True, found[2]
        at, trim = found.end(), bool(found[3])
    rest = template[at:]
    _refuse_open(rest)
    yield False, rest.lstrip() if trim else rest


def _refuse_open(text: str) -> None:
    if "{{" in text:
        raise invalid(f"unclosed action: {text[text.index('{{') :][:40]}")


def _block(pieces: Sequence[tuple[bool, str]], at: int) -> tuple[tuple[Node, ...], int]:
    """Nodes until ``else`` or ``end``, and where that is."""
    nodes: list[Node] = []
    while at < len(pieces):
        is_action, text = pieces[at]
        word = text.split(None, 1)[0] if is_action and text.strip() else ""
        if not is_action:
            nodes += [Text(text)] if text else []
        elif word in ("else", "end"):
            return tuple(nodes), at
        elif word in _BLOCKS:
            node, at = _conditional(pieces, at, word, text[len(word) :])
            nodes.append(node)
        else:
            nodes.append(TemplateAction("", _pipeline(text)))
        at += 1
    return tuple(nodes), at


def _conditional(pieces: Sequence[tuple[bool, str]], at: int, kind: str, condition: str) -> tuple[TemplateAction, int]:
    """A block, and where its ``end`` is."""
    body, at = _block(pieces, at + 1)
    otherwise: tuple[Node, ...] = ()
    if at < len(pieces) and pieces[at][1].split() != ["end"]:
        words = pieces[at][1].split(None, 2)[1:]
        if words:  # {{else if ...}} is an else with an if in it, and one end
            nested, at = _conditional(pieces, at, words[0], " ".join(words[1:]))
            return TemplateAction(kind, _pipeline(condition), body, (nested,)), at
        otherwise, at = _block(pieces, at + 1)
    if at >= len(pieces):
        raise invalid(f"{{{{{kind}{condition}}}}} has no {{{{end}}}}")
    return TemplateAction(kind, _pipeline(condition), body, otherwise), at


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise invalid(f"unexpected {text[at:].strip()[:20]!r} in {{{{{text}}}}}")
        kind = match.lastgroup or ""
        found.append((kind, match[kind]))
        at = match.end()
    return found


def _pipeline(text: str) -> Pipeline:
    tokens = _tokens(text)
    variables: tuple[str, ...] = ()
    signs = [token for kind, token in tokens if kind == "sign"]
    if signs and (signs[0] in (":=", "=") or signs[:2] == [",", ":="]):
        end = next(at for at, (_, token) in enumerate(tokens) if token in (":=", "="))
        variables = tuple(token for kind, token in tokens[:end] if kind == "path" and token.startswith("$"))
        tokens = tokens[end + 1 :]
    reader = _TokenReader(tokens, text)
    calls = reader.calls()
    if reader.tokens:
        raise invalid(f"unexpected {reader.tokens[0][1]!r} in {{{{{text}}}}}")
    return Pipeline(calls, variables)


class _TokenReader:
    """Takes tokens from the front."""

    def __init__(self, tokens: list[tuple[str, str]], text: str) -> None:
        self.tokens, self.text = tokens, text

    def calls(self) -> tuple[FunctionCall, ...]:
        found = [self._call()]
        while self.tokens and self.tokens[0][1] == "|" and self.tokens[0][0] == "sign":
            self.tokens.pop(0)
            found.append(self._call())
        return tuple(found)

    def _call(self) -> FunctionCall:
        function = ""
        if self.tokens and self.tokens[0][0] == "word" and self.tokens[0][1] not in _CONSTANTS:
            function = self.tokens.pop(0)[1]
        operands: list[Literal | Path] = []
        while self.tokens and (self.tokens[0][0] != "sign" or self.tokens[0][1] == "("):
            operands.append(self._operand())
        if not function and len(operands) != 1:
            problem = "a value is no function" if operands else "it is empty"
            raise invalid(f"cannot execute {{{{{self.text}}}}}: {problem}")
        return FunctionCall(function, tuple(operands))

    def _operand(self) -> Literal | Path:
        kind, token = self.tokens.pop(0)
        if kind == "text":
            return Literal(token[1:-1] if token.startswith("`") else _unquote(token))
        if kind == "number":
            return Literal(float(token) if "." in token else int(token))
        if kind == "word":
            return Literal(_CONSTANTS[token]) if token in _CONSTANTS else Path(Pipeline((FunctionCall(token, ()),)), ())
        if kind == "path":
            start, *fields = token.split(".")
            return Path(start, tuple(each for each in fields if each))
        inner = Pipeline(self.calls())
        if not self.tokens or self.tokens.pop(0)[1] != ")":
            raise invalid(f"unclosed parenthesis in {{{{{self.text}}}}}")
        fields = []
        if self.tokens and self.tokens[0][0] == "path" and self.tokens[0][1].startswith("."):
            fields = self.tokens.pop(0)[1].split(".")[1:]
        return Path(inner, tuple(fields))


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def _unquote(token: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), token[1:-1])
