"""A session with one server about one repository: its URL, authentication, retries, and what responses mean."""

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import anyio
from msgspec import Struct, field
from msgspec.structs import replace
from yarl import URL

from moorage import errors
from moorage.oci.limits import MANIFEST_BYTES
from moorage.registry._authorization import Authorizer, Scope, parse_challenges
from moorage.registry._body import MINIMUM_RATE, TimeBudget, error_text, read_bounded
from moorage.registry._connections import TransportError, TransportErrorKind
from moorage.registry._retry import (
    TRANSIENT_STATUSES,
    TRIES,
    RetryBudget,
    TransientError,
    error_kind,
    retry_after_of,
    status_text,
)
from moorage.registry._token_server import TokenServer
from moorage.registry._transport import Body, RequestPolicy, Transport, is_redirect
from moorage.registry.credentials import Credentials
from moorage.registry.hosts import Endpoint, Hosts
from moorage.registry.origin import Origin, resolve_location
from moorage.timeouts import RegistryTimeouts

__all__ = (
    "RegistryRequest",
    "RegistrySession",
    "StreamRedirected",
    "check_range",
    "first_result",
    "read_document",
    "request_range",
)

log = logging.getLogger(__name__)

_AUTHORIZATIONS = 5  # headers that are shown to one server for one request


class RegistryRequest(Struct, frozen=True):
    """One request, however often it is sent."""

    method: str
    url: str | URL
    """Below ``/v2/<repository>/``, or a URL from the registry (an upload)."""
    action: str
    """For "cannot <action>: ...": "read the manifest of localhost:5000/a:1"."""
    scopes: frozenset[Scope]
    expected: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class StreamRedirected(Exception):
    """A request with a streamed body was redirected: send it to ``url`` with a new stream."""

    def __init__(self, url: URL) -> None:
        super().__init__(f"redirected to {url.origin()}")
        self.url = url


class RegistrySession:
    """Requests to one endpoint about one repository ("" for none), during one operation."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        transport: Transport,
        hosts: Hosts,
        credentials: Credentials,
        timeouts: RegistryTimeouts,
        *,
        is_login: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._path = path
        self._transport = transport
        self._hosts = hosts
        self._timeouts = timeouts
        tokens = TokenServer(endpoint.name, transport, hosts, timeouts, self._choose_url)
        self.authorizer = Authorizer(endpoint.name, credentials, tokens.fetch, is_login=is_login)
        self._base: URL | None = endpoint.urls[0] if len(endpoint.urls) == 1 else None
        self._choosing = anyio.Lock()
        self._has_answered = False

    async def send(self, request: RegistryRequest, tries: int = TRIES) -> aiohttp.ClientResponse:
        """A response with an expected status; the caller closes it. Retried if that may help.

        Raises: by the kind of the status, or Unavailable, with ``request.action`` and the registry's message.
        """
        budget = RetryBudget(self._timeouts, tries)
        while True:
            try:
                return await self.attempt(request)
            except TransientError as transient:
                await budget.after(transient)

    async def attempt(
        self, request: RegistryRequest, stream: Body | None = None, answer_within: float | None = None
    ) -> aiohttp.ClientResponse:
        """As ``send``, without retries. A ``stream`` is a body that cannot be sent twice.

        Raises: what ``send`` raises.
        Raises: TransientError if a retry may help.
        Raises: StreamRedirected for a redirect of a streamed body.
        """
        try:
            response = await self._bounded(request, stream, answer_within)
        except TransportError as error:
            raise self.failure(request, error) from error
        except TransientError as error:  # of the token server
            raise TransientError(errors.Unavailable(f"cannot {request.action}: {error}"), error.pause) from error
        except errors.MoorageError as error:
            raise type(error)(f"cannot {request.action}: {error}") from error
        self._has_answered = True
        if response.status in request.expected:
            return response
        try:
            raise await self._refusal(request, response)
        finally:
            response.close()

    async def upload_location(self, response: aiohttp.ClientResponse, what: str) -> URL:
        """The URL of the next request of an upload. Raises: Unavailable for a URL that cannot be used."""
        try:
            url = resolve_location(response.url, response.headers["Location"])
        except (KeyError, ValueError) as error:
            raise errors.Unavailable(f"cannot {what}: {self.endpoint.name} names no location to upload to") from error
        if url.scheme == "https":
            return url
        if response.url.scheme == "https" or not await self._hosts.is_insecure(url, referrer=self._base):
            location = url.origin()
            raise errors.Unavailable(
                f"cannot {what}: {self.endpoint.name} wants the upload at {location}, in plain text"
            )
        return url

    def failure(self, request: RegistryRequest, error: TransportError) -> Exception:
        """The error for a failure below HTTP: a TransientError if a retry may help."""
        failure = errors.Unavailable(f"cannot {request.action}: {error}")
        kinds = TransportErrorKind
        was_reachable = error.kind in (kinds.NO_CONNECTION, kinds.NO_TLS) and self._has_answered
        return TransientError(failure) if error.kind is kinds.BROKEN or was_reachable else failure

    # one request

    async def _bounded(
        self, request: RegistryRequest, stream: Body | None, answer_within: float | None
    ) -> aiohttp.ClientResponse:
        """The response; redirects and authentication are bounded with it. A stream is bounded by its sender."""
        if stream is not None:
            return await self._authorized(request, stream, answer_within)
        within = self._timeouts.registry_answer + len(request.body or b"") / MINIMUM_RATE
        try:
            with anyio.fail_after(within):
                return await self._authorized(request, request.body, answer_within)
        except TimeoutError as error:
            text = f"{self.endpoint.name} does not answer within {within:.0f} s, redirects and log-in included"
            raise TransportError(text, TransportErrorKind.REFUSED) from error

    async def _authorized(
        self, request: RegistryRequest, body: Body | None, answer_within: float | None
    ) -> aiohttp.ClientResponse:
        base = await self._choose_url()
        path = f"{self._path}/" if self._path else ""
        url = request.url if isinstance(request.url, URL) else URL(f"{base}/v2/{path}{request.url}")
        url = url if isinstance(request.url, URL) else url.with_query(request.query)
        shown = self.authorizer.known(request.scopes)
        for tries_left in reversed(range(_AUTHORIZATIONS)):
            policy = RequestPolicy(base, shown)
            response = await self._transport.send(
                request.method, url, policy, headers=request.headers, body=body, answer_within=answer_within
            )
            with _closing_on_failure(response):
                if not isinstance(body, bytes | None) and is_redirect(request.method, response.status):
                    raise StreamRedirected(await self._transport.redirected(response, policy))
                if response.status != 401 or Origin.of(response.url) != Origin.of(base) or not tries_left:
                    return response
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                answer = await self.authorizer.answer(challenges, request.scopes, shown)
                if answer is None:
                    return response
                if not isinstance(body, bytes | None):  # the token has expired meanwhile; a retry has a new one
                    raise TransportError(
                        f"{base.host} wants a new token in the middle of the request", TransportErrorKind.BROKEN
                    )
            shown = answer
            response.close()
        raise AssertionError("the last try returns")

    async def _choose_url(self) -> URL:
        """The base URL, chosen by the first request. Raises: TransportError."""
        if self._base is None:
            async with self._choosing:
                if self._base is None:
                    self._base = await self._probe()
        return self._base

    async def _probe(self) -> URL:
        """https, unless the server does not speak TLS. Without an explicit port, http uses another port, so nothing
        listening on the port of https also means http."""
        secure, plain = self.endpoint.urls
        kinds = TransportErrorKind
        try:
            response = await self._transport.send("GET", URL(f"{secure}/v2/"), RequestPolicy(secure))
        except TransportError as error:
            if error.kind is kinds.NO_TLS or (error.kind is kinds.NO_CONNECTION and secure.port != plain.port):
                log.info("%s is spoken to in plain http: %s", self.endpoint.name, error)
                return plain
            if error.kind in (kinds.REFUSED, kinds.BROKEN):  # TLS works; other paths than /v2/ may work
                return secure
            raise
        response.close()
        return secure

    # responses

    async def _refusal(self, request: RegistryRequest, response: aiohttp.ClientResponse) -> Exception:
        status = response.status
        message = await error_text(response, self._timeouts)
        server = self.endpoint.name
        if response.url.host != (self._base or response.url).host:
            server = f"{response.url.host}, to which {server} redirects,"
        text = f"cannot {request.action}: {server} answers {status_text(status)}" + (f": {message}" if message else "")
        if status in (401, 403):
            text += self._login_hint(status)
        failure = error_kind(status)(text)
        return TransientError(failure, retry_after_of(response)) if status in TRANSIENT_STATUSES else failure

    def _login_hint(self, status: int) -> str:
        """Whether credentials were sent, and the scope of the token if there was one."""
        requested = " ".join(self.authorizer.requested)
        granted = f"a token for the scope {requested}" if requested else ""
        if self.authorizer.is_anonymous:
            credentials = self.authorizer.anonymous_reason
        elif status == 401 or granted:
            credentials = "with the credentials given"
        else:
            return ""
        return f" ({credentials}{f'; its token server granted {granted}' if granted else ''})"


@contextmanager
def _closing_on_failure(response: aiohttp.ClientResponse) -> Iterator[None]:
    try:
        yield
    except BaseException:
        response.close()
        raise


def request_range(request: RegistryRequest, offset: int) -> RegistryRequest:
    """The request for the bytes from ``offset`` on."""
    return replace(request, headers={"Range": f"bytes={offset}-"}) if offset else request


def check_range(request: RegistryRequest, response: aiohttp.ClientResponse, at: int, size_bytes: int) -> int:
    """The number of bytes to skip in a body, after a check of its headers against the request.

    Raises: InvalidResponse if they announce another size.
    """
    length = response.content_length
    if response.status == 200:
        begin, end = 0, length
    else:
        shape = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if shape is None or int(shape[1]) > at:
            raise errors.InvalidResponse(
                f"cannot {request.action}: bytes from {at} on were requested for, and others come"
            )
        begin = int(shape[1])
        end = int(shape[3]) if shape[3] != "*" else None
    if end is not None and end != size_bytes:
        raise errors.InvalidResponse(f"cannot {request.action}: it has {end} bytes where {size_bytes} were promised")
    return at - begin


log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def first_result(
    sessions: Sequence[RegistrySession], call: Callable[[RegistrySession], Awaitable[Result]]
) -> Result | None:
    """The first result; None if a server answers that it has none and no other one has it.

    Raises: the first other failure if no server has answered.
    """
    failure, is_missing = None, False
    for session in sessions:
        try:
            return await call(session)
        except (errors.NotFound, errors.Unsupported):
            is_missing = True
        except errors.MoorageError as error:
            log.info("%s", error)
            failure = failure or error
    if failure is not None and not is_missing:
        raise failure
    return None


async def read_document(session: RegistrySession, request: RegistryRequest, timeouts: RegistryTimeouts) -> bytes:
    """The whole response. Raises: InvalidResponse for more than ``MANIFEST_BYTES`` bytes; what the session raises."""
    response = await session.send(request)
    try:
        data = await read_bounded(response, MANIFEST_BYTES, timeouts.registry_stall, TimeBudget(timeouts))
    except TransportError as error:
        raise errors.Unavailable(f"cannot {request.action}: {error}") from error
    finally:
        response.close()
    if data is None:
        raise errors.InvalidResponse(f"cannot {request.action}: it has more than {MANIFEST_BYTES} bytes")
    return data
