"""Connections to registries: limits on the headers of responses, resolved addresses, and failures below HTTP.

aiohttp's limits are 8190 bytes a header and 128 headers; signed locations and challenges of registries are longer. It
has no limit on all headers together, and no public hook for one, so its protocol class is derived from.
"""

import functools
import os
import socket
import ssl
from asyncio import Transport
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import aiohttp
from aiohttp import ClientConnectorError, ClientSession, DummyCookieJar
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawResponseMessage
from aiohttp.resolver import ThreadedResolver
from aiohttp.streams import StreamReader
from yarl import URL

from moorage._lib.abortable import AbortableTCPConnector
from moorage._lib.escapes import single_line
from moorage._version import __version__

__all__ = (
    "HEADERS_BYTES",
    "HEADER_BYTES",
    "HandshakeError",
    "TransportError",
    "TransportErrorKind",
    "exceeded_limit",
    "open_session",
    "reason_of",
    "transport_error",
)

HEADER_BYTES = 64 << 10
"""Limit of one response header (name and value each) and of the status line."""

HEADERS_BYTES = 256 << 10
"""Limit of all headers of a response together, those of interim responses included."""


class HeadersTooLarge(HttpProcessingError):
    """A response has more bytes of headers than ``HEADERS_BYTES``."""

    message = "too many bytes of headers"


class ResponseProtocol(ResponseHandler):
    """One connection. Its limits apply to every response on it, also to a proxy's response to CONNECT."""

    _header_bytes = 0
    _is_in_headers = False

    def set_response_params(self, **how: Any) -> None:
        """Called by aiohttp before each request."""
        self._header_bytes, self._is_in_headers = 0, True
        limits = {"max_line_size": HEADER_BYTES, "max_field_size": HEADER_BYTES, "max_headers": HEADERS_BYTES}
        super().set_response_params(**{**how, **limits})

    def data_received(self, data: bytes) -> None:
        """Count the bytes before the body; the parser does not report an incomplete head."""
        self._header_bytes += len(data) if self._is_in_headers else 0
        super().data_received(data)
        if self._is_in_headers and self._header_bytes > HEADERS_BYTES:
            self._refuse()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a parsed head. Only here is it known where the headers end in the data."""
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
    """A connection was accepted, and the TLS handshake failed: ``failure`` is aiohttp's error."""

    def __init__(self, failure: ClientConnectorError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Connector(AbortableTCPConnector):
    """Reports the first failed handshake. aiohttp would continue with the next address of the name, which may refuse
    the connection (``::1`` of localhost) and so hide that a server without TLS answered on the first one."""

    async def _wrap_create_connection(self, *arguments: Any, **how: Any) -> tuple[Transport, ResponseHandler]:
        try:
            return await super()._wrap_create_connection(*arguments, **how)
        except ClientConnectorError as error:
            if isinstance(error.os_error, ssl.SSLError | ConnectionResetError | BrokenPipeError):
                raise HandshakeError(error) from error
            raise


class PinnedResolver(AbstractResolver):
    """Resolves as the system does, except names that were trusted because of their addresses: these are pinned."""

    def __init__(self, pinned: Mapping[str, Sequence[str]]) -> None:
        self._pinned = pinned
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses to connect to, in the order in which they are tried. Raises: OSError for an unknown name."""
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
    """A session without cookies, ``.netrc`` and decoding, so that sizes are those on the wire. The caller closes it."""
    connector = Connector(limit=0, resolver=PinnedResolver(pinned))
    make: Callable[..., ResponseHandler] = ResponseProtocol
    connector._factory = functools.partial(make, loop=connector._loop)
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": f"moorage/{__version__}", "Accept-Encoding": "identity"},
    )


def exceeded_limit(error: BaseException, peer: str) -> str | None:
    """The exceeded limit on headers as text, if an error of aiohttp is about one; None otherwise."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LineTooLong):
            return f"{peer} sends an answer with a header of more than {HEADER_BYTES} bytes ({HEADER_BYTES >> 10} KiB)"
        if isinstance(cause, HeadersTooLarge):
            return f"{peer} sends an answer with more than {HEADERS_BYTES} bytes of headers ({HEADERS_BYTES >> 10} KiB)"
        cause = cause.__cause__
    return None


class TransportErrorKind(Enum):
    """What a failure below HTTP means for the caller."""

    NO_CONNECTION = auto()  # unknown name, or nothing listens
    NO_TLS = auto()  # something listens and does not speak TLS, or does not respond
    UNTRUSTED = auto()  # its certificate cannot be verified
    BROKEN = auto()  # cut, silent or slow after that
    REFUSED = auto()  # by this client, so that a retry does not help: a redirect, a limit, a timeout


class TransportError(Exception):
    """One attempt failed below HTTP; the text is the cause in "cannot ...: <cause>"."""

    def __init__(self, text: str, kind: TransportErrorKind) -> None:
        super().__init__(text)
        self.kind = kind


def transport_error(error: Exception, url: URL, proxy: URL | None) -> TransportError:
    """The transport error for an exception of aiohttp or of the system."""
    kinds = TransportErrorKind
    peer = _peer(url) + (f" (through the proxy {_peer(proxy)})" if proxy else "")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return TransportError(f"the certificate of {peer} cannot be trusted: {reason_of(error)}", kinds.UNTRUSTED)
    if (tls := _tls_error(error)) is not None:
        if "ALERT" in str(getattr(tls, "reason", "")):  # with TLS 1.3 also instead of the first response
            return TransportError(f"{peer} refuses TLS with us: {reason_of(tls)}", kinds.UNTRUSTED)
        return TransportError(f"{peer} does not speak TLS: {reason_of(tls)}", kinds.NO_TLS)
    if (limit := exceeded_limit(error, peer)) is not None:
        return TransportError(limit, kinds.REFUSED)
    return _connection_error(error, peer, is_tls=url.scheme == "https")


def _peer(url: URL) -> str:
    return f"{url.host_subcomponent}:{url.port}"  # an IPv6 address in brackets: ::1:1 would be another one


def _connection_error(error: Exception, peer: str, *, is_tls: bool) -> TransportError:
    kinds = TransportErrorKind
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return TransportError(f"{peer} cannot be reached in time", kinds.NO_TLS if is_tls else kinds.NO_CONNECTION)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return TransportError(f"{peer} cannot be reached: the proxy answers {error.status}", kinds.NO_TLS)
    if isinstance(error, aiohttp.ClientConnectorError):
        is_cut = is_tls and isinstance(error.os_error, ConnectionResetError | BrokenPipeError)
        kind = kinds.NO_TLS if is_cut else kinds.NO_CONNECTION
        return TransportError(f"{peer} cannot be reached: {reason_of(error)}", kind)
    if isinstance(error, TimeoutError):
        return TransportError(f"{peer} does not answer in time", kinds.BROKEN)
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return TransportError(f"the connection to {peer} broke: {reason_of(error)}", kinds.BROKEN)
    return TransportError(f"{peer} does not answer as HTTP does: {reason_of(error)}", kinds.BROKEN)


def reason_of(error: Exception) -> str:
    """The cause, without the addresses and flags that aiohttp and ssl add."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    reason = str(cause.reason or "").replace("_", " ").lower() if isinstance(cause, ssl.SSLError) else ""
    number = cause.errno if isinstance(cause, OSError) and not reason else None
    system = os.strerror(number).lower() if number is not None and number > 0 else getattr(cause, "strerror", None)
    text = getattr(cause, "verify_message", None) or reason or system or str(cause)
    return single_line(str(text)) or type(cause).__name__


def _tls_error(error: Exception) -> ssl.SSLError | None:
    """The TLS error, wherever aiohttp has put it; also an empty one, of a peer that ends the handshake."""
    candidates = (getattr(error, "os_error", None), error.__cause__, error)
    return next((each for each in candidates if isinstance(each, ssl.SSLError)), None)
