"""One HTTP connection: limits on what a request begins with, and errors that are JSON also where no handler runs."""

import asyncio
from collections.abc import Mapping
from typing import Any

import anyio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from moorage.api.http.errors import error_body, log_failure, log_refusal, refusal

__all__ = (
    "HEADERS",
    "HEADER_BYTES",
    "HEAD_BYTES",
    "REQUEST_LINE_BYTES",
    "ClientConnection",
    "Server",
    "raw_refusal",
)

REQUEST_LINE_BYTES = 128 * 1024
"""Longest URL of a request, with its query."""

HEADER_BYTES = 64 * 1024
"""Longest header of a request, its name included. A registry's token travels in one."""

HEAD_BYTES = 256 * 1024
"""Longest URL and headers together."""

HEADERS = 128
"""Most headers of a request."""

_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class ClientConnection(RequestHandler):
    """A client's connection, from accept to close; requests come one after another."""

    def __init__(self, manager: web.Server, headers: Mapping[str, str], **options: Any) -> None:
        """``headers`` are for answers that no handler makes."""
        super().__init__(
            manager,
            max_line_size=REQUEST_LINE_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=HEADERS,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes it, and its annotation does not say so
            **options,
        )
        self._headers = headers
        self._body: StreamReader | None = None
        self._head_bytes = 0
        self._is_refused = False
        self.idle_since = asyncio.get_running_loop().time()
        """When it began to wait for a request; only of use while it is idle."""
        self.reading_since: float | None = None
        """When it began to wait for more of a body that is read completely; None where it does not wait."""
        self.head_since: float | None = None
        """When the first byte of a request came whose headers are not complete; None where there is none."""
        self.busy_since: float | None = None
        """When the request began that is being answered; None where there is none."""

    @property
    def waits_since(self) -> float | None:
        """Since when the client owes it something: a request, or more of its body; None while we owe an answer."""
        return self.idle_since if self.is_idle else self.reading_since

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.busy_since is None and not self._request_in_progress

    def data_received(self, data: bytes) -> None:
        """Take bytes. Headers that are longer in all than the limit are refused."""
        if self._is_refused:
            return
        is_head = self.is_idle and (self._body is None or self._body.is_eof())
        requests = self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._head_bytes, self.head_since = 0, None
            self.busy_since = asyncio.get_running_loop().time()
            self._body = self._messages[-1][1] if self._messages else None
        elif is_head and data:
            self._head_bytes += len(data)
            self.head_since = self.head_since or asyncio.get_running_loop().time()
            if self._head_bytes > HEAD_BYTES:
                self.refuse(431, f"cannot read the request: URL and headers have more than {HEAD_BYTES} bytes together")

    def refuse(self, status: int, message: str) -> None:
        """Answer what is no complete request, and close the connection."""
        log_refusal(status, message)
        self._is_refused = True
        if self.transport is not None:
            self.transport.write(raw_refusal(status, message, self._headers))
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; one of aiohttp's own becomes JSON."""
        if isinstance(resp, web.HTTPException):
            resp = refusal(resp.status, resp.reason)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            now = asyncio.get_running_loop().time()
            self.idle_since, self.busy_since = now, now if self._messages else None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or beyond a limit of it. Raises: ConnectionError where one was begun."""
        if isinstance(exc, HttpProcessingError):
            status, text = _explain(exc)
            log_refusal(status, text)
        else:
            text = log_failure(exc if isinstance(exc, Exception) else RuntimeError(message), "answering a request")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun, so there can be no other one")
        answer = refusal(status, text)
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes connections, for aiohttp, and adds headers to every answer."""

    def __init__(self, handler: Any, headers: Mapping[str, str], **options: Any) -> None:
        super().__init__(handler, **options)
        self._headers = headers
        self.live: set[ClientConnection] = set()
        """Connections that have a descriptor."""
        self._closed = anyio.Event()

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, self._headers, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count it."""
        super().connection_made(handler, transport)
        assert isinstance(handler, ClientConnection)
        self.live.add(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it no longer."""
        super().connection_lost(handler, exc)
        assert isinstance(handler, ClientConnection)
        self.live.discard(handler)
        self._closed.set()

    async def wait_for_close(self, within: float) -> None:
        """Return when a connection was closed, in so many seconds at the latest."""
        self._closed = anyio.Event()
        with anyio.move_on_after(within):
            await self._closed.wait()

    def _make_request(
        self, message: RawRequestMessage, payload: StreamReader, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        made = _HttpRequest(message, payload, protocol, writer, task, self._loop)
        made.answer_headers = self._headers
        return made


class _HttpRequest(web.BaseRequest):
    answer_headers: Mapping[str, str] = {}

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.update(self.answer_headers)


def raw_refusal(status: int, message: str, headers: Mapping[str, str]) -> bytes:
    """An error as the bytes of a whole answer, for where there is no request."""
    body = error_body(message)
    fields = {
        **headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _explain(error: HttpProcessingError) -> tuple[int, str]:
    """Status and text for what aiohttp could not parse. What was sent is not shown: it may be a credential."""
    if isinstance(error, LineTooLong):
        if error.args[1] == REQUEST_LINE_BYTES:
            return 414, f"cannot read the request: its URL has more than {REQUEST_LINE_BYTES} bytes"
        return 431, f"cannot read the request: a header has more than {HEADER_BYTES} bytes"
    if error.message == "Too many headers received":
        return 431, f"cannot read the request: it has more than {HEADERS} headers"
    if isinstance(error, InvalidHeader):
        return 400, "cannot read the request: a header is invalid"
    reason = error.message.partition("\n")[0].rstrip(":. ")
    return 400, f"cannot read the request: it is not valid HTTP: {reason}"
