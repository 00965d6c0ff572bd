"""Requests to one server about one repository: its URL, the log-in, trying again, and what answers mean."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
import anyio
from msgspec import Struct, field
from yarl import URL

from moorage import errors
from moorage.distribution._body import MINIMUM_RATE, error_text
from moorage.distribution._challenges import parse_challenges
from moorage.distribution._errors import TransportError, TransportErrorKind
from moorage.distribution._http import Body, RequestPolicy, Transport, is_redirect
from moorage.distribution._retry import TRANSIENT_STATUSES, TRIES, RetryBudget, TransientError, pause_of
from moorage.distribution._status import error_kind, status_text
from moorage.distribution._token_server import TokenServer
from moorage.distribution.auth import Authorizer, Credentials, Scope
from moorage.distribution.hosts import Endpoint, Hosts
from moorage.distribution.origin import Origin, resolve_location
from moorage.timeouts import Timeouts

__all__ = ("Conversation", "RegistryRequest", "StreamRedirected")

log = logging.getLogger(__name__)

_AUTHORIZATIONS = 5  # headers that are shown to one server for one request


class RegistryRequest(Struct, frozen=True):
    """One request, as often as it is sent."""

    method: str
    url: str | URL
    """Below ``/v2/<repository>/``, or a URL that the registry gave (an upload)."""
    what: str
    """For "cannot <what>: ...": "read the manifest of localhost:5000/a:1"."""
    scopes: frozenset[Scope]
    expected: tuple[int, ...] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class StreamRedirected(Exception):
    """A request whose body is a stream is to be sent elsewhere, with a new stream."""

    def __init__(self, url: URL) -> None:
        super().__init__(f"redirected to {url.origin()}")
        self.url = url


class Conversation:
    """With one endpoint, about one repository ("": about none), for the length of one operation."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        transport: Transport,
        hosts: Hosts,
        credentials: Credentials,
        timeouts: Timeouts,
        *,
        is_login: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._path = path
        self._transport = transport
        self._hosts = hosts
        self._timeouts = timeouts
        tokens = TokenServer(endpoint.name, transport, hosts, timeouts, self._decide)
        self.authorizer = Authorizer(endpoint.name, credentials, tokens.fetch, is_login=is_login)
        self._base: URL | None = endpoint.urls[0] if len(endpoint.urls) == 1 else None
        self._deciding = anyio.Lock()
        self._has_answered = False

    async def send(self, request: RegistryRequest, tries: int = TRIES) -> aiohttp.ClientResponse:
        """An answer with a status that is expected; the caller closes it. Tried again where that may help.

        Raises: by kind of the status, or Unavailable, in the words of ``request.what`` and of the registry.
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
        """As ``send``, once. A ``stream`` is a body that cannot be sent twice.

        Raises: also TransientError; StreamRedirected.
        """
        try:
            response = await self._within_bounds(request, stream, answer_within)
        except TransportError as error:
            raise self.failure(request, error) from error
        except TransientError as error:  # of the token server
            raise TransientError(errors.Unavailable(f"cannot {request.what}: {error}"), error.pause) from error
        except errors.MoorageError as error:
            raise type(error)(f"cannot {request.what}: {error}") from error
        self._has_answered = True
        if response.status in request.expected:
            return response
        try:
            raise await self._refusal(request, response)
        finally:
            response.close()

    async def upload_location(self, response: aiohttp.ClientResponse, what: str) -> URL:
        """The URL at which the registry wants an upload to go on. Raises: Unavailable for one that cannot be used."""
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
        """What a failure below HTTP is for the caller: transient, or not."""
        failure = errors.Unavailable(f"cannot {request.what}: {error}")
        kinds = TransportErrorKind
        was_reachable = error.kind in (kinds.NO_CONNECTION, kinds.NO_TLS) and self._has_answered
        return TransientError(failure) if error.kind is kinds.BROKEN or was_reachable else failure

    # the way of one request

    async def _within_bounds(
        self, request: RegistryRequest, stream: Body | None, answer_within: float | None
    ) -> aiohttp.ClientResponse:
        """The answer, all that leads to it bounded together. A stream is watched by the one that feeds it."""
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
        base = await self._decide()
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
                if not isinstance(body, bytes | None):  # the token has expired meanwhile; the next try has the new one
                    raise TransportError(f"{base.host} asked for a new token in the middle", TransportErrorKind.BROKEN)
            shown = answer
            response.close()
        raise AssertionError("the last try returns")

    async def _decide(self) -> URL:
        """The URL that is used from now on. Raises: TransportError."""
        if self._base is None:
            async with self._deciding:
                if self._base is None:
                    self._base = await self._probe()
        return self._base

    async def _probe(self) -> URL:
        """https, unless nothing speaks TLS there. Where no port is written the two are different ports, so that one
        without TLS may also be one where nothing listens."""
        secure, plain = self.endpoint.urls
        kinds = TransportErrorKind
        try:
            response = await self._transport.send("GET", URL(f"{secure}/v2/"), RequestPolicy(secure))
        except TransportError as error:
            if error.kind is kinds.NO_TLS or (error.kind is kinds.NO_CONNECTION and secure.port != plain.port):
                log.info("%s is spoken to in plain http: %s", self.endpoint.name, error)
                return plain
            if error.kind in (kinds.REFUSED, kinds.BROKEN):  # TLS stands; what is wrong with /v2/ need not be elsewhere
                return secure
            raise
        response.close()
        return secure

    # what answers mean

    async def _refusal(self, request: RegistryRequest, response: aiohttp.ClientResponse) -> Exception:
        status = response.status
        words = await error_text(response, self._timeouts)
        server = self.endpoint.name
        if response.url.host != (self._base or response.url).host:
            server = f"{response.url.host}, to which {server} redirects,"
        text = f"cannot {request.what}: {server} answers {status_text(status)}" + (f": {words}" if words else "")
        if status in (401, 403):
            text += self._login_note(status)
        failure = error_kind(status)(text)
        return TransientError(failure, pause_of(response)) if status in TRANSIENT_STATUSES else failure

    def _login_note(self, status: int) -> str:
        """Who was refused, and what the token was for, if there was one."""
        requested = " ".join(self.authorizer.requested)
        granted = f"a token for the scope {requested}" if requested else ""
        if self.authorizer.is_anonymous:
            who = self.authorizer.anonymity
        elif status == 401 or granted:
            who = "with the credentials given"
        else:
            return ""
        return f" ({who}{f'; its token server granted {granted}' if granted else ''})"


@contextmanager
def _closing_on_failure(response: aiohttp.ClientResponse) -> Iterator[None]:
    try:
        yield
    except BaseException:
        response.close()
        raise
