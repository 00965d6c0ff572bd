"""One row of the route table, and how it is matched and described."""

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aiohttp import web
from msgspec import Struct

from moorage.api.schema.base import MIN_API_VERSION

if TYPE_CHECKING:
    from moorage.api.request import Request

__all__ = ("Route", "get", "post")

Handler = Callable[["Request"], Awaitable[web.StreamResponse]]


class Route(Struct, frozen=True, dict=True):
    """One row."""

    method: str
    template: str
    handler: Handler
    summary: str
    answers: int = 200
    """The status of success."""
    query: tuple[str, ...] = ()
    least: tuple[int, int] = MIN_API_VERSION
    """The first version of the API that has it."""
    takes: Any = None
    """The type of the JSON body, ``tar`` or ``any`` for other bodies, None for no body."""
    returns: Any = None
    """The type of the JSON answer; None for none."""
    streams: Any = None
    """The type of each line of a streamed answer; None where nothing is streamed."""
    media_types: tuple[str, ...] = ()
    """Content types of an answer that is streamed, or is no JSON."""

    @property
    def operation(self) -> str:
        """The id of the operation in the OpenAPI document, of method and path: no rename of a module changes it."""
        return "_".join([self.method.lower(), *re.findall(r"[A-Za-z0-9_]+", self.template)])

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What paths of this row look like."""
        fields = {"{name}": r"(?P<name>[\s\S]+)", "{token}": "(?P<token>[^/]+)"}
        text = re.escape(self.template).replace(r"\{", "{").replace(r"\}", "}")
        for field, pattern in fields.items():
            text = text.replace(field, pattern)
        return re.compile(text)


def get(template: str, handler: Handler, summary: str, **options: Any) -> Route:
    """A row of GET; ``options`` are further fields."""
    return Route("GET", template, handler, summary, **options)


def post(template: str, handler: Handler, summary: str, **options: Any) -> Route:
    """A row of POST; ``options`` are further fields."""
    return Route("POST", template, handler, summary, **options)
