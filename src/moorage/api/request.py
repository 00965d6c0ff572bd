"""What every handler gets, and what streaming ones need: a client that may go away, an engine that may end."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion11
from msgspec import Struct, field

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage.api.backend import Backend
from moorage.api.query import json_body

__all__ = ("Request", "json_answer")

_BODY_LIMIT = 4 * 1024 * 1024
_CHUNK = 256 * 1024
_LOOK = 0.2  # seconds; how late the end of a client is noticed that is not read from (aiohttp has no call for it)


class Request(Struct, frozen=True):
    """One request, routed."""

    http: web.Request
    backend: Backend
    values: Mapping[str, str]
    """What stood at the places of the route's template."""
    closing: anyio.Event
    """Happens when the server ends; streams end then."""
    begun: list[web.StreamResponse] = field(default_factory=list)
    """The answer that it streams: after its first byte no other one can be given."""

    @property
    def name(self) -> str:
        """The plugin that is meant."""
        return self.values["name"]

    def query(self, key: str) -> str:
        """A value of the query string, empty where it is not there."""
        return self.http.query.get(key, "")

    async def body(self) -> bytes:
        """The whole body. Raises: Invalid for one over 4 MiB."""
        taken = bytearray()
        async for chunk in self.chunks():
            taken += chunk
            if len(taken) > _BODY_LIMIT:
                raise errors.Invalid(f"cannot take a body of more than {_BODY_LIMIT} bytes here")
        return bytes(taken)

    async def json(self) -> Any:
        """The body as JSON, None where there is none. Raises: Invalid."""
        has_body = self.http.body_exists
        return json_body(await self.body(), self.http.headers.get("Content-Type"), has_body=has_body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises: Unavailable where the client breaks off, Invalid for no HTTP."""
        try:
            async for chunk in self.http.content.iter_chunked(_CHUNK):
                yield chunk
        except OSError as error:
            raise errors.Unavailable(f"cannot read the request: the client broke off: {error}") from error
        except HttpProcessingError as error:
            raise errors.Invalid(f"cannot read the request: {error.message}") from error

    async def while_connected(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do it; it is cancelled when the client goes away. Raises: what it raises; Unavailable for a client gone."""
        with anyio.CancelScope() as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, scope, anyio.Event())
                await work()
        if scope.cancelled_caught:
            raise errors.Unavailable("the client went away; what it asked for is undone")

    @asynccontextmanager
    async def stream(
        self, content_type: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[web.StreamResponse]:
        """An answer in pieces; the block is cancelled when the client goes away, or the server ends.

        Open first what the pieces come from: a failure inside the block can only break the answer off.
        """
        response = web.StreamResponse(headers={"Content-Type": content_type, **(headers or {})})
        if self.http.version >= HttpVersion11:
            response.enable_chunked_encoding()
        else:  # its end is that of the connection: older versions know no chunks
            response.force_close()
        self.begun.append(response)
        try:
            await response.prepare(self.http)
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, tasks.cancel_scope, self.closing)
                yield response
        except ConnectionResetError:
            pass  # the client is gone; nobody is left to be told

    async def _watch(self, scope: anyio.CancelScope, end: anyio.Event) -> None:
        while self.http.transport is not None and not self.http.transport.is_closing():
            with anyio.move_on_after(_LOOK):
                await end.wait()
                break
        scope.cancel()


def json_answer(document: object, status: int = 200) -> web.Response:
    """An answer of one JSON document."""
    body = json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})
