"""HTTP with a registry, one attempt at a time: redirects, time limits, the least rate, and faults by what they mean.

What is not here: who asks (``auth``), trying again (``_conversation``), what is asked (``registry``).
"""

import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from enum import Enum, auto
from http import HTTPStatus
from types import TracebackType

import aiohttp
import anyio
import msgspec
from msgspec import Struct
from yarl import URL

from moorage._lib.values import repr_without
from moorage._version import __version__
from moorage.distribution.hosts import Hosts
from moorage.timeouts import Timeouts

__all__ = (
    "MINIMUM_RATE",
    "Body",
    "Fault",
    "Gate",
    "Meter",
    "Transport",
    "Why",
    "read_bounded",
    "status_text",
    "words_of",
)

MINIMUM_RATE = 1024
"""Bytes per second, over each ``Timeouts.registry_stall`` of waiting. A peer that is slower counts as one that is gone:
a modem is faster, and who sends a byte a second would otherwise hold an operation for good. Only the time that we wait
counts, so a slow disk on our side is no fault of the peer."""

_WORDS_BYTES = 64 * 1024
_WORDS_CHARACTERS = 500
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)


class Why(Enum):
    """What a fault means for who asked."""

    NO_CONNECTION = auto()  # no such name, nobody listens
    NO_TLS = auto()  # somebody listens and does not speak TLS, or says nothing at all
    UNTRUSTED = auto()  # its certificate is not good
    BROKEN = auto()  # cut, silent or slow after that
    REFUSED = auto()  # by us: a redirect that is not followed


class Fault(Exception):
    """One attempt failed below HTTP; the text says why, in the words for "cannot ...: <why>"."""

    def __init__(self, text: str, why: Why) -> None:
        super().__init__(text)
        self.why = why


Body = bytes | AsyncIterator[bytes]


class Gate(Struct, frozen=True):
    """Where a request may go besides its own server, and what goes along only to that one."""

    home: URL
    """The server that the authorization is for; no other gets it."""
    authorization: str | None = None
    asked_by: URL | None = None
    """The registry, where ``home`` is one that it refers to."""
    may_leave_tls: bool = False
    """Whether a redirect may lead from https to http on a host that allows it: only for bytes with a known digest."""

    __repr__ = repr_without("authorization")


class Transport:
    """One session, for the length of a block. No cookies, no ``.netrc``, nothing decoded: sizes are on the wire."""

    def __init__(self, hosts: Hosts, timeouts: Timeouts) -> None:
        self._hosts = hosts
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "Transport":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": f"moorage/{__version__}", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            await self._session.close()

    async def send(
        self,
        method: str,
        url: URL,
        gate: Gate,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        answer_within: float | None = None,
    ) -> aiohttp.ClientResponse:
        """The answer, its body not yet read; whoever gets it closes it. Redirects are followed for GET and HEAD.

        Raises: Fault; Invalid for certificates or a proxy that cannot be used.
        """
        for _ in range(_REDIRECTS + 1):
            response = await self._send_one(method, url, gate, headers or {}, body, answer_within)
            if method not in ("GET", "HEAD") or response.status not in _REDIRECTED:
                return response
            response.close()
            url = await self._redirected(response, gate)
        raise Fault(f"{gate.home.host} redirects more than {_REDIRECTS} times", Why.REFUSED)

    async def _redirected(self, response: aiohttp.ClientResponse, gate: Gate) -> URL:
        try:
            url = response.url.join(URL(response.headers["Location"], encoded=True)).with_user(None)
        except (KeyError, ValueError) as error:
            raise Fault(f"{response.url.host} redirects to nowhere", Why.REFUSED) from error
        if url.scheme == "https" and url.host:
            return url
        is_downgrade = response.url.scheme == "https" and not gate.may_leave_tls
        if url.scheme != "http" or not url.host or is_downgrade or not await self._hosts.may_be_plain(url):
            raise Fault(
                f"{response.url.host} redirects to {url.scheme}://{url.host}, which is not https (a host that may be"
                " spoken to in plain http must be marked insecure)",
                Why.REFUSED,
            )
        return url

    async def _send_one(
        self,
        method: str,
        url: URL,
        gate: Gate,
        headers: Mapping[str, str],
        body: Body | None,
        answer_within: float | None,
    ) -> aiohttp.ClientResponse:
        headers = dict(headers)
        if gate.authorization and url.origin() == gate.home.origin():
            headers["Authorization"] = gate.authorization
        limits = aiohttp.ClientTimeout(
            total=None,
            connect=self._timeouts.registry_connect,
            sock_read=answer_within or self._timeouts.registry_stall,
        )
        context = await self._hosts.context(url, asked_by=gate.asked_by or gate.home)
        proxy = self._hosts.proxy(url)
        try:
            with anyio.fail_after(self._until_answer(body)):
                return await self._session.request(
                    method,
                    url,
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    ssl=context,
                    proxy=proxy,
                    timeout=limits,
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise _fault(error, url, proxy) from error

    def _until_answer(self, body: Body | None) -> float | None:
        """Seconds until all headers of an answer are there: aiohttp's own limit begins anew with each byte of them.

        None for a stream, which is watched by whoever feeds it.
        """
        if body is not None and not isinstance(body, bytes):
            return None
        sending = len(body or b"") / MINIMUM_RATE
        return self._timeouts.registry_connect + self._timeouts.registry_stall + sending


def _fault(error: Exception, url: URL, proxy: URL | None) -> Fault:
    who = f"{url.host}:{url.port}" + (f" (through the proxy {proxy.host}:{proxy.port})" if proxy else "")
    is_tls = url.scheme == "https"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return Fault(f"the certificate of {who} cannot be trusted: {_reason(error)}", Why.UNTRUSTED)
    if (tls := _tls_error(error)) is not None:
        if "ALERT" in str(getattr(tls, "reason", "")):  # with TLS 1.3 also in place of the first answer
            return Fault(f"{who} refuses TLS with us: {_reason(tls)}", Why.UNTRUSTED)
        return Fault(f"{who} does not speak TLS: {_reason(tls)}", Why.NO_TLS)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Fault(f"{who} cannot be reached in time", Why.NO_TLS if is_tls else Why.NO_CONNECTION)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Fault(f"{who} cannot be reached: the proxy answers {error.status}", Why.NO_TLS)
    if isinstance(error, aiohttp.ClientConnectorError):
        is_cut = is_tls and isinstance(error.os_error, ConnectionResetError | BrokenPipeError)
        return Fault(f"{who} cannot be reached: {_reason(error)}", Why.NO_TLS if is_cut else Why.NO_CONNECTION)
    if isinstance(error, TimeoutError):
        return Fault(f"{who} does not answer in time", Why.BROKEN)
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return Fault(f"the connection to {who} broke: {_reason(error)}", Why.BROKEN)
    return Fault(f"{who} does not answer as HTTP does: {_reason(error)}", Why.BROKEN)


def _reason(error: Exception) -> str:
    """Why, without the addresses and flags that aiohttp and ssl add."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    reason = str(cause.reason or "").replace("_", " ").lower() if isinstance(cause, ssl.SSLError) else ""
    number = cause.errno if isinstance(cause, OSError) and not reason else None
    system = os.strerror(number).lower() if number is not None and number > 0 else getattr(cause, "strerror", None)
    text = getattr(cause, "verify_message", None) or reason or system or str(cause)
    return clean(str(text)) or type(cause).__name__


def _tls_error(error: Exception) -> ssl.SSLError | None:
    """What TLS says, wherever aiohttp has put it; also where it says nothing: a peer that ends the handshake."""
    places = (getattr(error, "os_error", None), error.__cause__, error)
    return next((each for each in places if isinstance(each, ssl.SSLError)), None)


class Meter:
    """Takes a body piece by piece and ends it where it comes slower than ``MINIMUM_RATE``."""

    def __init__(self, response: aiohttp.ClientResponse, window: float) -> None:
        self._response = response
        self._window = window
        self._waited = 0.0
        self._came = 0

    async def piece(self) -> bytes:
        """The next bytes, as many as there are; none at the end. Raises: Fault."""
        host = self._response.url.host
        while True:
            began = time.monotonic()
            data: bytes | None = None
            try:
                with anyio.move_on_after(self._window - self._waited):
                    data = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise Fault(f"the connection to {host} broke: {_reason(error)}", Why.BROKEN) from error
            self._waited += time.monotonic() - began
            self._came += len(data or b"")
            if self._waited >= self._window:
                if self._came < MINIMUM_RATE * self._window and data != b"":
                    raise Fault(f"{host} sends less than {MINIMUM_RATE} bytes a second", Why.BROKEN)
                self._waited, self._came = 0.0, 0
            if data is not None:
                return data


async def read_bounded(response: aiohttp.ClientResponse, limit: int, window: float) -> bytes | None:
    """The whole body, None where it has more than ``limit`` bytes. Raises: Fault."""
    if response.content_length is not None and response.content_length > limit:
        return None
    meter, data = Meter(response, window), bytearray()
    while piece := await meter.piece():
        data += piece
        if len(data) > limit:
            return None
    return bytes(data)


def status_text(status: int) -> str:
    """``404 (not found)``."""
    try:
        return f"{status} ({HTTPStatus(status).phrase.lower()})"
    except ValueError:
        return str(status)


async def words_of(response: aiohttp.ClientResponse, window: float) -> str:
    """What a registry or token server says in the body of its refusal, as one line; nothing where it says nothing."""
    try:
        body = await read_bounded(response, _WORDS_BYTES, window)
        document = msgspec.json.decode(body or b"")
    except (Fault, ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    listed = document.get("errors")
    entries = listed if isinstance(listed, list) else [document]
    texts = [text for entry in entries if isinstance(entry, dict) and (text := _words(entry))]
    return clean("; ".join(dict.fromkeys(texts)))


def _words(entry: dict[str, object]) -> str:
    names = ("message", "error_description", "details", "error", "code")
    found = (value for name in names if isinstance(value := entry.get(name), str) and value)
    return next(found, "")


def clean(text: str) -> str:
    """A stranger's text on one line, of bounded length, without control characters."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _WORDS_CHARACTERS else line[:_WORDS_CHARACTERS] + "..."
