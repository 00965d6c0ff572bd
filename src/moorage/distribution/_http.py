"""HTTP with a registry, one attempt at a time: redirects, time limits, and credentials for their own origin only.

Not here: who asks (``auth``), trying again (``_conversation``), what is requested (``registry``).
"""

from collections.abc import AsyncIterator, Mapping
from types import TracebackType

import aiohttp
import anyio
from msgspec import Struct
from yarl import URL

from moorage._lib.abortable import AbortableTCPConnector
from moorage._lib.values import repr_without
from moorage.distribution._body import MINIMUM_RATE
from moorage.distribution._connections import HandshakeError, open_session
from moorage.distribution._errors import TransportError, TransportErrorKind, transport_error
from moorage.distribution.hosts import Hosts
from moorage.distribution.origin import Origin, resolve_location
from moorage.timeouts import Timeouts

__all__ = ("REDIRECTS", "Body", "RequestPolicy", "Transport", "is_redirect")

REDIRECTS = 10
"""How many redirects of one request are followed; as many as Go's client follows, and Docker with it."""

_READ_METHODS = ("GET", "HEAD")
_REDIRECTED = (301, 302, 303, 307, 308)
_REDIRECTED_WITH_BODY = (307, 308)  # the others ask for a GET instead, which would do something else

Body = bytes | AsyncIterator[bytes]


class RequestPolicy(Struct, frozen=True):
    """Where a request may go besides its own server, and what only that one gets."""

    home: URL
    """The server that the authorization is for; no other origin gets it."""
    authorization: str | None = None
    referrer: URL | None = None
    """The registry, where ``home`` is a server that it refers to."""
    is_body_secret: bool = False
    """Whether the body has credentials, so that it goes to no other origin either."""

    __repr__ = repr_without("authorization")


class Transport:
    """One session, for the length of a block."""

    def __init__(self, hosts: Hosts, timeouts: Timeouts) -> None:
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
            connector.abort()  # a peer that does not read keeps nothing of ours

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
        """The answer, its body not yet read; the caller closes it.

        Redirects are followed, with method and body where they ask for that (307, 308). A body that is a stream cannot
        be sent twice: the caller gets the redirect as the answer, see ``redirected``.

        Raises: TransportError; Invalid for certificates or a proxy that cannot be used.
        """
        for _ in range(REDIRECTS + 1):
            response = await self._send_one(method, url, policy, headers or {}, body, answer_within)
            if not is_redirect(method, response.status) or not isinstance(body, bytes | None):
                return response
            response.close()
            url = await self.redirected(response, policy)
        raise TransportError(f"{policy.home.host} redirects more than {REDIRECTS} times", TransportErrorKind.REFUSED)

    async def redirected(self, response: aiohttp.ClientResponse, policy: RequestPolicy) -> URL:
        """Where a redirect leads. Never from https to http, whatever the host. Raises: TransportError."""
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
        """Seconds until all headers of an answer are there: aiohttp's own limit begins anew with each byte of them.

        None for a stream, which is watched by the one that feeds it.
        """
        if body is not None and not isinstance(body, bytes):
            return None
        sending = len(body or b"") / MINIMUM_RATE
        return self._timeouts.registry_connect + self._timeouts.registry_stall + sending


def is_redirect(method: str, status: int) -> bool:
    """Whether an answer with this status sends a request of this method elsewhere."""
    return status in (_REDIRECTED if method in _READ_METHODS else _REDIRECTED_WITH_BODY)
