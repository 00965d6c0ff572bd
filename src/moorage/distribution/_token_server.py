"""Requests to token servers: where credentials may be sent, and their refusals with server, scope and status."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from moorage import errors
from moorage.distribution._body import Allowance, error_text, read_bounded
from moorage.distribution._errors import TransportError
from moorage.distribution._http import RequestPolicy, Transport
from moorage.distribution._retry import TRANSIENT_STATUSES, TransientError, pause_of
from moorage.distribution.auth import TokenReply, TokenRequest
from moorage.distribution.hosts import Hosts
from moorage.timeouts import Timeouts

__all__ = ("TokenServer",)

_TOKEN_BYTES = 1 << 20


class TokenServer:
    """Whichever server a registry names; ``base`` returns the URL of the registry."""

    def __init__(
        self, name: str, transport: Transport, hosts: Hosts, timeouts: Timeouts, base: Callable[[], Awaitable[URL]]
    ) -> None:
        self._name = name
        self._transport = transport
        self._hosts = hosts
        self._timeouts = timeouts
        self._base = base

    async def fetch(self, request: TokenRequest) -> TokenReply:
        """The answer of a token server that credentials may be sent to.

        Raises: Unauthorized where they may not; Unavailable, TransientError, TransportError naming the server.
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
        """Credentials go to TLS only, or where the registry itself is spoken to in plain http. Raises: Unauthorized."""
        is_plain_allowed = url.scheme == "http" == base.scheme and await self._hosts.is_insecure(url, referrer=base)
        if not (url.scheme == "https" or is_plain_allowed) or not url.host or url.user:
            raise errors.Unauthorized(
                f"{self._name} wants its token fetched at {url.scheme}://{url.host}, where it would be read by others;"
                " it must be https"
            )

    async def _read(self, request: TokenRequest, response: aiohttp.ClientResponse) -> TokenReply:
        if response.status != 200:
            words = await error_text(response, self._timeouts)
            reply = TokenReply(response.status, b"", words)
            if response.status in TRANSIENT_STATUSES:
                raise TransientError(request.refusal(self._name, reply), pause_of(response))
            return reply
        body = await read_bounded(response, _TOKEN_BYTES, self._timeouts.registry_stall, Allowance(self._timeouts))
        if body is None:
            raise errors.Unavailable(f"{request.server_of(self._name)} answers with over {_TOKEN_BYTES} bytes")
        return TokenReply(200, body)
