"""The OpenAPI document of the API, made from the route table."""

import re
from collections.abc import Sequence
from typing import Any

from moorage._version import __version__
from moorage.api.wire import API_VERSION

__all__ = ("make_document",)

_TYPES = {"json": "application/json", "tar": "application/x-tar", "any": "application/octet-stream"}
_INTEGERS = {"timeout", "tail", "rows", "columns"}
_FLAGS = {"force", "follow", "attached", "restart", "tty"}


def make_document(routes: Sequence[Any]) -> dict[str, Any]:
    """The document: every route with its places, its query, its body and its answers."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Moorage",
            "version": __version__,
            "description": "The Docker Engine API for plugins, with additions below /moorage/v1. Every path may begin "
            f"with a version, /v{API_VERSION[0]}.{API_VERSION[1]} at most.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["message"],
                    "properties": {"message": {"type": "string"}},
                }
            }
        },
    }


def _operation(route: Any) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    places = re.findall(r"{(\w+)}", route.template)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}_{route.method.lower()}",
        "parameters": [
            *({"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in places),
            *({"name": each, "in": "query", "schema": _schema(each)} for each in route.query),
        ],
        "responses": {
            str(route.answers): {"description": "done"},
            "default": {"description": "why not", **error},
        },
    }
    if route.body:
        schema = {} if route.body == "json" else {"type": "string", "format": "binary"}
        operation["requestBody"] = {"content": {_TYPES[route.body]: {"schema": schema}}}
    return operation


def _schema(name: str) -> dict[str, Any]:
    if name in _INTEGERS:
        return {"type": "integer"}
    return {"type": "boolean"} if name in _FLAGS else {"type": "string"}
