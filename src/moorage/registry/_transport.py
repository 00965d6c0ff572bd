"""HTTP with a registry, one attempt at a time: redirects, time limits, and credentials for their own origin only.

Not here: authentication (``_authorization``), retries (``_session``), what is requested (``registry``).
"""

from collections.abc import AsyncIterator, Mapping
from types import TracebackType

import aiohttp
import anyio
from msgspec import Struct
from yarl import URL

from moorage._lib.abortable import AbortableTCPConnector
from moorage._lib.values import repr_without
from moorage.registry._body import MINIMUM_RATE
from moorage.registry._connections import (
    HandshakeError,
    TransportError,
    TransportErrorKind,
    open_session,
    transport_error,
)
from moorage.registry.hosts import Hosts
from moorage.registry.origin import Origin, resolve_location
from moorage.timeouts import RegistryTimeouts

__all__ = ("REDIRECTS", "Body", "RequestPolicy", "Transport", "is_redirect")

REDIRECTS = 10
"""How many redirects of one request are followed; the limit of Go's client, and so of Docker."""

_READ_METHODS = ("GET", "HEAD")
_REDIRECTED = (301, 302, 303, 307, 308)
_REDIRECTED_WITH_BODY = (307, 308)  # the others request a GET instead, which would do something else

Body = bytes | AsyncIterator[bytes]


class RequestPolicy(Struct, frozen=True):
    """Where a request may be redirected to, and what only its own server receives."""

    home: URL
    """The server that the authorization is for; no other origin receives it."""
    authorization: str | None = None
    referrer: URL | None = None
    """The registry, if ``home`` is a server that it refers to."""
    is_body_secret: bool = False
    """Whether the body contains credentials, so that it is not sent to another origin either."""

    __repr__ = repr_without("authorization")


class Transport:
    """HTTP requests over one pool of connections, used as an async context manager."""

    def __init__(self, hosts: Hosts, timeouts: RegistryTimeouts) -> None:
        self._hosts = hosts
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "Transport":
        self._session = open_session(self._hosts.pinned)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        connector = self._session.connector
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            await self._session.close()
        if isinstance(connector, AbortableTCPConnector):
            connector.abort()  # a peer that does not read must not keep a connection open

    async def send(
        self,
        method: str,
        url: URL,
        policy: RequestPolicy,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        answer_within: float | None = None,
    ) -> aiohttp.ClientResponse:
        """The response, its body not yet read; the caller closes it.

        Redirects are followed, with method and body for 307 and 308. A streamed body cannot be sent twice: the caller
        gets the redirect as the response, see ``redirected``.

        Raises: TransportError for a failure below HTTP.
        Raises: Invalid for certificates or a proxy that cannot be used.
        """
        for _ in range(REDIRECTS + 1):
            response = await self._send_one(method, url, policy, headers or {}, body, answer_within)
            if not is_redirect(method, response.status) or not isinstance(body, bytes | None):
                return response
            response.close()
            url = await self.redirected(response, policy)
        raise TransportError(f"{policy.home.host} redirects more than {REDIRECTS} times", TransportErrorKind.REFUSED)

    async def redirected(self, response: aiohttp.ClientResponse, policy: RequestPolicy) -> URL:
        """The target of a redirect.

        Raises: TransportError for a redirect from https to http, and for plain http elsewhere.
        """
        source, refused = response.url, TransportErrorKind.REFUSED
        try:
            url = resolve_location(source, response.headers["Location"])
        except (KeyError, ValueError) as error:
            raise TransportError(f"{source.host} redirects to nowhere", refused) from error
        if policy.is_body_secret and Origin.of(url) != Origin.of(policy.home):
            raise TransportError(
                f"{source.host} redirects to {url.origin()}, which is another server and gets no credentials", refused
            )
        if url.scheme == "https":
            return url
        if source.scheme == "https":
            raise TransportError(
                f"{source.host} redirects to {url.origin()}; a redirect from https to http is never followed", refused
            )
        if not await self._hosts.is_insecure(url, referrer=policy.referrer or policy.home):
            raise TransportError(
                f"{source.host} redirects to {url.origin()}, which is not https (plain http is only for loopback and"
                " hosts that are marked insecure)",
                refused,
            )
        return url

    async def _send_one(
        self,
        method: str,
        url: URL,
        policy: RequestPolicy,
        headers: Mapping[str, str],
        body: Body | None,
        answer_within: float | None,
    ) -> aiohttp.ClientResponse:
        headers = dict(headers)
        if policy.authorization and Origin.of(url) == Origin.of(policy.home):
            headers["Authorization"] = policy.authorization
        limits = aiohttp.ClientTimeout(
            total=None,
            connect=self._timeouts.registry_connect,
            sock_read=answer_within or self._timeouts.registry_stall,
        )
        context = await self._hosts.context(url, referrer=policy.referrer or policy.home)
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
        except HandshakeError as error:
            raise transport_error(error.failure, url, proxy) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise transport_error(error, url, proxy) from error

    def _until_answer(self, body: Body | None) -> float | None:
        """Seconds until all headers of a response have arrived: aiohttp's own timeout restarts with each byte of them.

        None for a stream, which is bounded by its sender.
        """
        if body is not None and not isinstance(body, bytes):
            return None
        sending = len(body or b"") / MINIMUM_RATE
        return self._timeouts.registry_connect + self._timeouts.registry_stall + sending


def is_redirect(method: str, status: int) -> bool:
    """Whether a response with this status redirects a request of this method."""
    return status in (_REDIRECTED if method in _READ_METHODS else _REDIRECTED_WITH_BODY)
