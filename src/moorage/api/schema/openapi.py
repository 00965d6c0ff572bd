"""The OpenAPI document of the API, made from the route table and the objects of the schema."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from moorage._version import __version__
from moorage.api.schema.base import API_VERSION, ErrorResponse
from moorage.api.schema.output import ExecExit, ExecRequest, ExecStarted

__all__ = ("DocumentedRoute", "make_document")

_BINARY = {"tar": "application/x-tar", "any": "application/octet-stream"}
_INTEGERS = {"timeout", "tail", "rows", "columns"}
_FLAGS = {"force", "follow", "attached", "restart", "tty"}
_FRAMES = (ExecRequest, ExecStarted, ExecExit)
"""Objects in the frames of an exec, which is no JSON as a whole."""
_REFERENCES = "#/components/schemas/{name}"


class DocumentedRoute(Protocol):
    """What the document shows of a row of the route table."""

    @property
    def method(self) -> str:
        """The method, in capitals."""

    @property
    def template(self) -> str:
        """The path, with ``{name}`` where a value goes."""

    @property
    def summary(self) -> str:
        """What a call does, as the imperative."""

    @property
    def operation(self) -> str:
        """The id of the operation, unique."""

    @property
    def query(self) -> Sequence[str]:
        """Names of its query."""

    @property
    def takes(self) -> Any:
        """The type of the JSON body, ``tar`` or ``any`` for other bodies, None for no body."""

    @property
    def answers(self) -> int:
        """The status of success."""

    @property
    def returns(self) -> Any:
        """The type of the JSON answer; None for none."""

    @property
    def streams(self) -> Any:
        """The type of each line of a streamed answer, with status 200; None where nothing is streamed."""

    @property
    def media_types(self) -> Sequence[str]:
        """Content types of the answer."""


def make_document(routes: Iterable[DocumentedRoute]) -> dict[str, Any]:
    """The document: every route with its path, query, body and answers, and the objects in them.

    A stream has no schema of its own; ``x-item-schema`` is that of each of its lines.
    """
    table = list(routes)
    requests = [each.takes for each in table if each.takes is not None and each.takes not in _BINARY]
    responses = [kind for each in table for kind in (each.returns, each.streams) if kind is not None]
    schemas = _Schemas(requests, [*responses, *_FRAMES, ErrorResponse])
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Moorage",
            "version": __version__,
            "description": "The Docker Engine API for plugins, with additions below /moorage/v1. Every path may begin "
            f"with a version, /v{API_VERSION[0]}.{API_VERSION[1]} at most.",
        },
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


class _Schemas:
    """JSON schemas of types; those of objects are references to components."""

    def __init__(self, requests: Sequence[Any], responses: Sequence[Any]) -> None:
        """``requests``, ``responses``: the types of bodies and of answers."""
        kinds = [*requests, *responses]
        made, self.components = msgspec.json.schema_components(kinds, ref_template=_REFERENCES)
        for component in self.components.values():
            _simplify_tuples(component)
        self._found = [*zip(kinds, made, strict=True)]
        of_requests = set(_objects(requests))
        for kind in _objects(responses):
            if kind not in of_requests:
                self.components[kind.__name__]["required"] = [*_always_sent(kind)]
        for kind in requests:
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                self.components[kind.__name__]["additionalProperties"] = False

    def find(self, kind: Any) -> dict[str, Any]:
        """The schema of one of the types."""
        return next(schema for known, schema in self._found if known == kind)


def _simplify_tuples(schema: Any) -> None:
    """Write tuples of one type as arrays of a fixed length, which generators of clients understand better."""
    if isinstance(schema, dict):
        types = schema.get("prefixItems")
        if types and all(each == types[0] for each in types):
            del schema["prefixItems"]
            schema["items"] = types[0]
        schema = [*schema.values()]
    for each in schema if isinstance(schema, list) else ():
        _simplify_tuples(each)


def _objects(kinds: Sequence[Any]) -> Iterator[type[msgspec.Struct]]:
    """Every type of objects in these types and in their fields."""
    open_ones, seen = [*msgspec.inspect.multi_type_info(kinds)], set()
    while open_ones:
        info = open_ones.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            yield info.cls
            open_ones += [each.type for each in info.fields]
        for name in ("item_type", "value_type"):
            if (inner := getattr(info, name, None)) is not None:
                open_ones.append(inner)
        for name in ("types", "item_types"):
            open_ones += getattr(info, name, ())


def _always_sent(kind: type[msgspec.Struct]) -> Iterator[str]:
    for each in msgspec.structs.fields(kind):
        if each.default is not msgspec.UNSET:
            yield each.encode_name


def _operation(route: DocumentedRoute, schemas: _Schemas) -> dict[str, Any]:
    in_path = re.findall(r"{(\w+)}", route.template)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.operation,
        "parameters": [
            *({"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in in_path),
            *({"name": each, "in": "query", "schema": _query_schema(each)} for each in route.query),
        ],
        "responses": _responses(route, schemas),
    }
    if route.takes in _BINARY:
        operation["requestBody"] = {
            "content": {_BINARY[route.takes]: {"schema": {"type": "string", "format": "binary"}}}
        }
    elif route.takes is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": schemas.find(route.takes)}}}
    return operation


def _responses(route: DocumentedRoute, schemas: _Schemas) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "success"}
    made: dict[str, Any] = {str(route.answers): success}
    if route.returns is not None:
        success["content"] = {"application/json": {"schema": schemas.find(route.returns)}}
    elif route.streams is None and route.media_types:
        success["content"] = {each: {} for each in route.media_types}
    if route.streams is not None:
        lines = {each: {"x-item-schema": schemas.find(route.streams)} for each in route.media_types}
        made["200"] = {"description": "success, a stream of one object a line", "content": lines}
    error = {"application/json": {"schema": schemas.find(ErrorResponse)}}
    return {**made, "default": {"description": "error", "content": error}}


def _query_schema(name: str) -> dict[str, Any]:
    if name in _INTEGERS:
        return {"type": "integer"}
    return {"type": "boolean"} if name in _FLAGS else {"type": "string"}
