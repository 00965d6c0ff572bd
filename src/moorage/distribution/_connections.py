"""Connections to registries: limits of our own on the headers of answers, and which addresses are connected to.

aiohttp's limits are 8190 bytes a header and 128 headers; signed locations and challenges of registries are longer. It
has no limit on all headers together, and no public hook for one, so its protocol class is derived from.
"""

import functools
import socket
import ssl
from asyncio import Transport
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import ClientConnectorError, ClientSession, DummyCookieJar
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawResponseMessage
from aiohttp.resolver import ThreadedResolver
from aiohttp.streams import StreamReader

from moorage._lib.abortable import AbortableTCPConnector
from moorage._version import __version__

__all__ = ("HEADERS_BYTES", "HEADER_BYTES", "HandshakeError", "exceeded_limit", "open_session")

HEADER_BYTES = 64 << 10
"""Of one header of an answer, its name and value each, and of the status line."""

HEADERS_BYTES = 256 << 10
"""Of all headers of an answer together, those of interim answers included."""


class HeadersTooLarge(HttpProcessingError):
    """An answer has more bytes of headers than ``HEADERS_BYTES``."""

    message = "too many bytes of headers"


class AnswerProtocol(ResponseHandler):
    """One connection. Its limits hold for every answer on it, also for a proxy's answer to CONNECT."""

    _header_bytes = 0
    _is_in_headers = False

    def set_response_params(self, **how: Any) -> None:
        """Called by aiohttp before each request."""
        self._header_bytes, self._is_in_headers = 0, True
        limits = {"max_line_size": HEADER_BYTES, "max_field_size": HEADER_BYTES, "max_headers": HEADERS_BYTES}
        super().set_response_params(**{**how, **limits})

    def data_received(self, data: bytes) -> None:
        """Count what comes before the body; a parser that is fed less than it needs says nothing of it."""
        self._header_bytes += len(data) if self._is_in_headers else 0
        super().data_received(data)
        if self._is_in_headers and self._header_bytes > HEADERS_BYTES:
            self._refuse()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a parsed head. Only here it is known where the headers end in what came."""
        head = data[0]
        self._is_in_headers = head.code < 200
        if sum(len(name) + len(value) + 4 for name, value in head.raw_headers) > HEADERS_BYTES:
            self._refuse()
        else:
            super().feed_data(data, size)

    def _refuse(self) -> None:
        self._is_in_headers = False
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HeadersTooLarge())


class HandshakeError(Exception):
    """An address answered, and TLS with it failed: why, as aiohttp says it."""

    def __init__(self, failure: ClientConnectorError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Connector(AbortableTCPConnector):
    """Keeps the first failed handshake. aiohttp goes on to the next address of the name then, which may refuse the
    connection (``::1`` of localhost), and that a server without TLS answered on another one would not be seen."""

    async def _wrap_create_connection(self, *arguments: Any, **how: Any) -> tuple[Transport, ResponseHandler]:
        try:
            return await super()._wrap_create_connection(*arguments, **how)
        except ClientConnectorError as error:
            if isinstance(error.os_error, ssl.SSLError | ConnectionResetError | BrokenPipeError):
                raise HandshakeError(error) from error
            raise


class PinnedResolver(AbstractResolver):
    """Resolves as the system does, but for names that were trusted because of their addresses: those stay."""

    def __init__(self, pinned: Mapping[str, Sequence[str]]) -> None:
        self._pinned = pinned
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses to connect to, in the order in which they are tried. Raises: OSError."""
        addresses = self._pinned.get(host.lower().removesuffix("."))
        if addresses is None:
            return await self._system.resolve(host, port, family)
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for address, kind in zip(addresses, families, strict=True)
            if family in (kind, socket.AF_UNSPEC)
        ]

    async def close(self) -> None:
        """Nothing is open."""


def open_session(pinned: Mapping[str, Sequence[str]]) -> ClientSession:
    """A session to be closed by the caller: no cookies, no ``.netrc``, nothing decoded: sizes are those on the wire."""
    connector = Connector(limit=0, resolver=PinnedResolver(pinned))
    make: Callable[..., ResponseHandler] = AnswerProtocol
    connector._factory = functools.partial(make, loop=connector._loop)
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": f"moorage/{__version__}", "Accept-Encoding": "identity"},
    )


def exceeded_limit(error: BaseException, peer: str) -> str | None:
    """Which limit on headers a peer has exceeded, where an error of aiohttp is about that; None for another error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LineTooLong):
            return f"{peer} sends an answer with a header of more than {HEADER_BYTES} bytes ({HEADER_BYTES >> 10} KiB)"
        if isinstance(cause, HeadersTooLarge):
            return f"{peer} sends an answer with more than {HEADERS_BYTES} bytes of headers ({HEADERS_BYTES >> 10} KiB)"
        cause = cause.__cause__
    return None
