"""Requests to token servers: where credentials may be sent, and their refusals with server, scope and status."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from moorage import errors
from moorage.registry._authorization import TokenReply, TokenRequest
from moorage.registry._body import TimeBudget, error_text, read_bounded
from moorage.registry._connections import TransportError
from moorage.registry._retry import TRANSIENT_STATUSES, TransientError, retry_after_of
from moorage.registry._transport import RequestPolicy, Transport
from moorage.registry.hosts import Hosts
from moorage.timeouts import RegistryTimeouts

__all__ = ("TokenServer",)

_TOKEN_BYTES = 1 << 20


class TokenServer:
    """Sends token requests to the server that a registry names; ``base`` returns the URL of the registry."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        hosts: Hosts,
        timeouts: RegistryTimeouts,
        base: Callable[[], Awaitable[URL]],
    ) -> None:
        self._name = name
        self._transport = transport
        self._hosts = hosts
        self._timeouts = timeouts
        self._base = base

    async def fetch(self, request: TokenRequest) -> TokenReply:
        """The response of a token server that credentials may be sent to.

        Raises: Unauthorized if credentials may not be sent there.
        Raises: Unavailable, TransientError or TransportError, naming the server.
        """
        base = await self._base()
        await self._check(request.url, base)
        form = urlencode(request.form).encode() if request.form is not None else None
        try:
            response = await self._transport.send(
                "GET" if form is None else "POST",
                request.url,
                RequestPolicy(request.url, request.authorization, referrer=base, is_body_secret=form is not None),
                headers={"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {},
                body=form,
            )
            try:
                return await self._read(request, response)
            finally:
                response.close()
        except TransportError as error:
            raise TransportError(f"no token from {request.server_of(self._name)}: {error}", error.kind) from error

    async def _check(self, url: URL, base: URL) -> None:
        """Allow TLS, or plain http if the registry itself is used over plain http. Raises: Unauthorized otherwise."""
        is_plain_allowed = url.scheme == "http" == base.scheme and await self._hosts.is_insecure(url, referrer=base)
        if not (url.scheme == "https" or is_plain_allowed) or not url.host or url.user:
            raise errors.Unauthorized(
                f"{self._name} wants its token fetched at {url.scheme}://{url.host}, where it would be read by others;"
                " it must be https"
            )

    async def _read(self, request: TokenRequest, response: aiohttp.ClientResponse) -> TokenReply:
        if response.status != 200:
            message = await error_text(response, self._timeouts)
            reply = TokenReply(response.status, b"", message)
            if response.status in TRANSIENT_STATUSES:
                raise TransientError(request.refusal(self._name, reply), retry_after_of(response))
            return reply
        body = await read_bounded(response, _TOKEN_BYTES, self._timeouts.registry_stall, TimeBudget(self._timeouts))
        if body is None:
            raise errors.Unavailable(f"{request.server_of(self._name)} answers with over {_TOKEN_BYTES} bytes")
        return TokenReply(200, body)
