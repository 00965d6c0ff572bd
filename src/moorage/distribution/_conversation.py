"""Requests to one server about one repository: the URL decided once, who asks, trying again, and what answers mean."""

import email.utils
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlencode

import aiohttp
import anyio
from msgspec import Struct, field
from yarl import URL

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.distribution import _http
from moorage.distribution._http import Body, Fault, Gate, Transport, Why
from moorage.distribution.auth import Authorizer, Credentials, Scope, TokenReply, TokenRequest, parse_challenges
from moorage.distribution.hosts import Endpoint, Hosts
from moorage.timeouts import Timeouts

__all__ = ("TRIES", "Ask", "Conversation", "Passing", "Patience", "retry_after")

log = logging.getLogger(__name__)

TRIES = 5
"""How often a request is sent, or a blob is begun or resumed without having come on, before it has failed."""

_PASSING = (429, 500, 502, 503, 504)
_TOKEN_BYTES = 1 << 20
_ANSWERS = 5  # headers that are shown to one server for one request

_KINDS: dict[int, type[errors.MoorageError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Denied,
    404: errors.NotFound,
    405: errors.Unsupported,
    409: errors.Conflict,
    413: errors.Invalid,
    416: errors.Invalid,
    429: errors.Unavailable,
}


class Ask(Struct, frozen=True):
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
    is_addressed: bool = False
    """Whether the bytes that come are known by their digest."""


class Passing(Exception):
    """A failure that may be over soon: what it is otherwise, and the pause in seconds that the server asked for."""

    def __init__(self, failure: errors.MoorageError, pause: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.pause = pause


class Patience:
    """How often one thing is tried again, and after which pauses."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self.refill()

    def refill(self) -> None:
        """Begin anew, because something was gained."""
        self._left = TRIES - 1
        self._pauses: Iterator[float] = pauses(self._timeouts.registry_retry_first, self._timeouts.registry_retry_limit)

    async def after(self, passing: Passing) -> None:
        """Return when the next try is due. Raises: the failure, where there is to be none."""
        limit = self._timeouts.registry_retry_after
        if passing.pause > limit:
            kind = type(passing.failure)
            why = f"(it asks to wait {passing.pause:.0f} s, over {limit:g} s)"
            raise kind(f"{passing.failure} {why}") from passing.__cause__
        if not self._left:
            raise passing.failure from passing.__cause__
        self._left -= 1
        pause = max(next(self._pauses), passing.pause)
        log.info("%s; trying again in %.1f s", passing, pause)
        await anyio.sleep(pause)


class Conversation:
    """With one endpoint, about one repository, for the length of one operation."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        transport: Transport,
        hosts: Hosts,
        credentials: Credentials,
        timeouts: Timeouts,
    ) -> None:
        self.endpoint = endpoint
        self._path = path
        self._transport = transport
        self._hosts = hosts
        self._timeouts = timeouts
        self._authorizer = Authorizer(endpoint.name, credentials, self._fetch_token)
        self._base: URL | None = endpoint.urls[0] if len(endpoint.urls) == 1 else None
        self._deciding = anyio.Lock()
        self._has_answered = False

    async def ask(self, ask: Ask) -> aiohttp.ClientResponse:
        """An answer with a status that is expected; whoever gets it closes it. Tried again with patience.

        Raises: by kind of the status, or Unavailable, in the words of ``ask.what`` and of the registry.
        """
        patience = Patience(self._timeouts)
        while True:
            try:
                return await self.attempt(ask)
            except Passing as passing:
                await patience.after(passing)

    async def attempt(
        self, ask: Ask, stream: Body | None = None, answer_within: float | None = None
    ) -> aiohttp.ClientResponse:
        """As ``ask``, once. A ``stream`` is a body that cannot be sent twice. Raises: also Passing."""
        try:
            response = await self._authorised(ask, stream, answer_within)
        except Fault as fault:
            raise self._faulted(ask, fault) from fault
        except Passing as passing:  # of the token server
            raise Passing(errors.Unavailable(f"cannot {ask.what}: {passing}"), passing.pause) from passing
        except errors.MoorageError as error:
            raise type(error)(f"cannot {ask.what}: {error}") from error
        self._has_answered = True
        if response.status in ask.expected:
            return response
        try:
            raise await self._failed(ask, response)
        finally:
            response.close()

    def location(self, response: aiohttp.ClientResponse, what: str) -> URL:
        """The URL at which the registry wants an upload to go on. Raises: Unavailable where that is no place."""
        try:
            url = response.url.join(URL(response.headers["Location"], encoded=True)).with_user(None)
        except (KeyError, ValueError) as error:
            raise errors.Unavailable(f"cannot {what}: {self.endpoint.name} names no place to upload to") from error
        if url.scheme not in ("https", response.url.scheme) or not url.host:
            place = f"{url.scheme}://{url.host}"
            raise errors.Unavailable(f"cannot {what}: {self.endpoint.name} wants the upload at {place}, in plain text")
        return url

    def broken(self, ask: Ask, fault: Fault) -> Passing:
        """What a fault in the middle of a body is."""
        return Passing(errors.Unavailable(f"cannot {ask.what}: {fault}"))

    # the way of one request

    async def _authorised(self, ask: Ask, stream: Body | None, answer_within: float | None) -> aiohttp.ClientResponse:
        base = await self._decide()
        url = ask.url if isinstance(ask.url, URL) else URL(f"{base}/v2/{self._path}/{ask.url}").with_query(ask.query)
        shown = self._authorizer.known(ask.scopes)
        shows = 0
        while True:
            gate = Gate(base, shown, may_leave_tls=ask.is_addressed)
            body = ask.body if stream is None else stream
            response = await self._transport.send(
                ask.method, url, gate, headers=ask.headers, body=body, answer_within=answer_within
            )
            shows += 1
            if response.status != 401 or response.url.origin() != base.origin() or shows == _ANSWERS:
                return response
            with _closing_on_failure(response):
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                answer = await self._authorizer.answer(challenges, ask.scopes, shown)
            if answer is None:
                return response
            response.close()
            if stream is not None:  # the token has ended meanwhile; the next try has the new one
                raise Fault(f"{base.host} asked for a new token in the middle", Why.BROKEN)
            shown = answer

    async def _decide(self) -> URL:
        """The URL that is used from now on. Raises: Fault."""
        if self._base is None:
            async with self._deciding:
                if self._base is None:
                    self._base = await self._probe()
        return self._base

    async def _probe(self) -> URL:
        """https, unless nobody speaks TLS there. Where no port is written the two are different ports, so that one
        without TLS may also be one where nobody listens."""
        secure, plain = self.endpoint.urls
        try:
            response = await self._transport.send("GET", URL(f"{secure}/v2/"), Gate(secure))
        except Fault as fault:
            if fault.why is Why.NO_TLS or (fault.why is Why.NO_CONNECTION and secure.port != plain.port):
                log.info("%s is spoken to in plain http: %s", self.endpoint.name, fault)
                return plain
            if fault.why is Why.REFUSED:
                return secure
            raise
        response.close()
        return secure

    async def _fetch_token(self, request: TokenRequest) -> TokenReply:
        """The answer of a token server that credentials may be sent to. Raises: Unauthorized, Fault, Passing."""
        url, base = request.url, await self._decide()
        is_safe = url.scheme == "https" or (
            url.scheme == "http" and base.scheme == "http" and await self._hosts.may_be_plain(url)
        )
        if not is_safe or not url.host or url.user:
            raise errors.Unauthorized(
                f"{self.endpoint.name} wants its token fetched at {url.scheme}://{url.host}, where it would be read by"
                " others; it must be https"
            )
        form = urlencode(request.form).encode() if request.form is not None else None
        response = await self._transport.send(
            "GET" if form is None else "POST",
            url,
            Gate(url, request.authorization, asked_by=base),
            headers={"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {},
            body=form,
        )
        try:
            if response.status != 200:
                return await self._refused_token(response)
            body = await _http.read_bounded(response, _TOKEN_BYTES, self._timeouts.registry_stall)
        finally:
            response.close()
        if body is None:
            raise errors.Unavailable(f"the token server of {self.endpoint.name} answers with over {_TOKEN_BYTES} bytes")
        return TokenReply(200, body)

    async def _refused_token(self, response: aiohttp.ClientResponse) -> TokenReply:
        words = await _http.words_of(response, self._timeouts.registry_stall)
        if response.status in _PASSING:
            text = f"the token server of {self.endpoint.name} answers {_http.status_text(response.status)}"
            raise Passing(errors.Unavailable(text + (f": {words}" if words else "")), _retry_after(response))
        return TokenReply(response.status, b"", words)

    # what answers mean

    def _faulted(self, ask: Ask, fault: Fault) -> Exception:
        failure = errors.Unavailable(f"cannot {ask.what}: {fault}")
        is_passing = fault.why is Why.BROKEN or (fault.why in (Why.NO_CONNECTION, Why.NO_TLS) and self._has_answered)
        return Passing(failure) if is_passing else failure

    async def _failed(self, ask: Ask, response: aiohttp.ClientResponse) -> Exception:
        status = response.status
        words = await _http.words_of(response, self._timeouts.registry_stall)
        who = self.endpoint.name
        if response.url.host != (self._base or response.url).host:
            who = f"{response.url.host}, to which {who} redirects,"
        text = f"cannot {ask.what}: {who} answers {_http.status_text(status)}" + (f": {words}" if words else "")
        if status == 401:
            text += " (no credentials were given)" if self._authorizer.is_anonymous else " (with the credentials given)"
        if status in _PASSING:
            return Passing(errors.Unavailable(text), _retry_after(response))
        kind = _KINDS.get(status, errors.Unavailable if status >= 500 else errors.MoorageError)
        return kind(text)


@contextmanager
def _closing_on_failure(response: aiohttp.ClientResponse) -> Iterator[None]:
    try:
        yield
    except BaseException:
        response.close()
        raise


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """The pause in seconds that an answer asks for, as a number or as a date; 0 where it asks for none."""
    return retry_after(response.headers.get("Retry-After", ""), now=time.time())


def retry_after(value: str, *, now: float) -> float:
    """The seconds of a ``Retry-After`` header: a whole number, or a date, compared with ``now``; 0 for anything else.

    Source: RFC 9110, section 10.2.3.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
