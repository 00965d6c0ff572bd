"""What every handler gets, and what streaming ones need: a client that may disconnect, an engine that may stop."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion11
from msgspec import Struct, field

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.api.backend import Backend
from moorage.api.http.connection import ClientConnection
from moorage.api.http.errors import RequestTooSlow, refusal
from moorage.api.http.query import boolean, json_body, read_object, seconds
from moorage.api.schema.base import to_document
from moorage.engine.changes.values import ChangeTerms
from moorage.registry.credentials import Credentials, decode_registry_auth
from moorage.timeouts import DEFAULT

__all__ = ("BODY_BYTES", "Request", "json_answer", "json_line", "registry_credentials")

BODY_BYTES = 4 * 1024 * 1024
"""Longest body that is read as a whole."""

_BODY_SECONDS = DEFAULT.request_body
_STALL = DEFAULT.request_stall  # seconds that a body may stand still which is a stream
_SLOWEST = 256  # bytes/s of such a body, on average after the first ``_STALL``
_CHUNK = 256 * 1024
_POLL = 0.2  # seconds between two checks whether a client is connected that is not read from (aiohttp has no call)


Result = TypeVar("Result")
Value = TypeVar("Value", bound=Struct)


class Request(Struct, frozen=True):
    """One request, routed."""

    http: web.BaseRequest
    backend: Backend
    values: Mapping[str, str]
    """Values of the fields of the route's template."""
    closing: anyio.Event
    """Happens when the server ends; streams end then."""
    version: tuple[int, int]
    """Of the API, as the path has it; the newest where it has none."""
    started: list[web.StreamResponse] = field(default_factory=list)
    """The answer that it streams: after its first byte no other one can be given."""

    @property
    def name(self) -> str:
        """The plugin that is meant."""
        return self.values["name"]

    @property
    def _connection(self) -> ClientConnection:
        connection = self.http.protocol
        assert isinstance(connection, ClientConnection)
        return connection

    def query(self, key: str) -> str:
        """A value of the query string, empty where it is absent."""
        return self.http.query.get(key, "")

    def change_terms(self) -> ChangeTerms:
        """How a plugin may be changed: ``restart``, ``force`` and ``wait`` of the query. Raises: Invalid."""
        restart, force = boolean(self.query("restart")), boolean(self.query("force"))
        return ChangeTerms(restart, force, seconds(self.query("wait"), "wait"))

    async def answer_expectation(self) -> web.Response | None:
        """Send 100 Continue to a client that waits for it. An answer for any other expectation."""
        expected = self.http.headers.get("Expect", "")
        if not expected or self.http.version < HttpVersion11:
            return None
        if expected.lower() != "100-continue":
            return refusal(417, f"cannot meet the expectation {expected[:100]!r}: only 100-continue is known")
        await self.http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.http.writer.output_size = 0  # this was no part of the answer
        return None

    async def body(self) -> bytes:
        """The whole body. Raises: Invalid for one over 4 MiB, or that does not come within 30 s."""
        taken = bytearray()
        with anyio.move_on_after(_BODY_SECONDS):
            while chunk := await self._read_owed():
                taken += chunk
                if len(taken) > BODY_BYTES:
                    raise errors.Invalid(f"cannot read the request: its body has more than {BODY_BYTES} bytes")
            return bytes(taken)
        raise RequestTooSlow(f"cannot read the request: its body did not come within {_BODY_SECONDS:g} s")

    async def read_exactly(self, count: int) -> bytes:
        """The next bytes of the body; what comes after them is for ``chunks``. Raises: Invalid, Unavailable."""
        connection = self._connection
        with anyio.move_on_after(_BODY_SECONDS):
            connection.reading_since = anyio.current_time()
            try:
                return await self.http.content.readexactly(count)
            except asyncio.IncompleteReadError as error:
                raise errors.Invalid(
                    f"cannot read the request: its body ends after {len(error.partial)} of {count} bytes"
                ) from error
            except OSError as error:
                raise errors.Unavailable(f"cannot read the request: the client broke off: {error}") from error
            except (HttpProcessingError, web.RequestPayloadError) as error:
                raise errors.Invalid(f"cannot read the request: its body is damaged: {error}") from error
            finally:
                connection.reading_since = None
        raise RequestTooSlow(f"cannot read the request: its body did not come within {_BODY_SECONDS:g} s")

    async def json(self) -> Any:
        """The body as JSON, None where there is none. Raises: Invalid."""
        has_body = self.http.body_exists
        return json_body(await self.body(), self.http.headers.get("Content-Type"), has_body=has_body)

    async def read(self, kind: type[Value]) -> Value:
        """The body as an object of the API; an absent one has no fields.

        Raises:
            errors.Invalid: the body is no JSON object, or a field is unknown or of a wrong type
        """
        return read_object(await self.json(), kind)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises: Unavailable where the client breaks off, Invalid for no HTTP."""
        while chunk := await self._read():
            yield chunk

    async def upload(self) -> AsyncIterator[bytes]:
        """As ``chunks``, of a client that has all of it. Raises: also Invalid where it comes too slowly."""
        started_at, taken = anyio.current_time(), 0
        while True:
            chunk = None
            with anyio.move_on_after(_STALL):
                chunk = await self._read_owed()
            if chunk is None:
                raise RequestTooSlow(f"cannot read the request: nothing of its body came for {_STALL:g} s")
            if not chunk:
                return
            yield chunk
            taken += len(chunk)
            seconds = anyio.current_time() - started_at
            if seconds > _STALL and taken < _SLOWEST * (seconds - _STALL):
                raise RequestTooSlow(f"cannot read the request: its body comes with less than {_SLOWEST} bytes/s")

    async def _read_owed(self) -> bytes:
        """As ``_read``; a client that keeps us waiting for it loses its connection first, where there is no room."""
        connection = self._connection
        connection.reading_since = anyio.current_time()
        try:
            return await self._read()
        finally:
            connection.reading_since = None

    async def _read(self) -> bytes:
        try:
            return await self.http.content.read(_CHUNK)
        except OSError as error:
            raise errors.Unavailable(f"cannot read the request: the client broke off: {error}") from error
        except HttpProcessingError as error:
            raise errors.Invalid(f"cannot read the request: {error.message}") from error
        except web.RequestPayloadError as error:
            raise errors.Invalid(f"cannot read the request: its body is damaged: {error}") from error

    async def while_connected(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Run ``work`` and return its result; it is cancelled when the client disconnects.

        Raises:
            Unavailable: The client disconnected.
            Exception: Whatever ``work`` raises.
        """
        with anyio.CancelScope() as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, scope, anyio.Event())
                return await work()
        raise errors.Unavailable("the client disconnected; the request was undone")

    @asynccontextmanager
    async def stream(
        self, content_type: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[web.StreamResponse]:
        """An answer in pieces; the block is cancelled when the client disconnects, or the server stops.

        Open first what the pieces come from: a failure inside the block can only break the answer off.
        """
        response = web.StreamResponse(headers={"Content-Type": content_type, **(headers or {})})
        if self.http.version >= HttpVersion11:
            response.enable_chunked_encoding()
        else:  # it ends with the connection: older versions know no chunks
            response.force_close()
        self.started.append(response)
        try:
            await response.prepare(self.http)
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, tasks.cancel_scope, self.closing)
                yield response
        except ConnectionResetError:
            pass  # the client disconnected

    async def _watch(self, scope: anyio.CancelScope, end: anyio.Event) -> None:
        while self.http.transport is not None and not self.http.transport.is_closing():
            with anyio.move_on_after(_POLL):
                await end.wait()
                break
        scope.cancel()


def json_answer(value: object, status: int = 200) -> web.Response:
    """An answer of one JSON document, made of an object of the API, or a list of them."""
    body = json.dumps(to_document(value), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})


def json_line(value: object) -> bytes:
    """A line of a stream, made of an object of the API."""
    return json.dumps(to_document(value)).encode() + b"\n"


def registry_credentials(request: Request) -> Credentials:
    """The credentials of the header X-Registry-Auth, empty without one.

    Raises:
        Invalid: The header is no base64 of JSON.
    """
    return decode_registry_auth(request.http.headers.get("X-Registry-Auth", ""))
