"""One HTTP call to a plugin over its socket, bounded in time and size."""

import errno
from collections.abc import Mapping

import anyio
from msgspec import Struct

from moorage import errors
from moorage.host.sockets import PluginSocket

__all__ = ("PluginResponse", "call")

_MOST_BYTES = 16 * 1024 * 1024
_HEADER_BYTES = 64 * 1024  # of one header; aiohttp's own limit is 8190, which was not chosen for plugins
_RETRY_CONNECT = 0.02  # seconds
_NO_HEADERS: Mapping[str, str] = {}
_ACCEPT = "application/vnd.docker.plugins.v1.2+json"


class PluginResponse(Struct, frozen=True):
    """The response of a plugin to a call."""

    status: int
    body: bytes
    content_type: str
    """Empty where the plugin sent none that can be passed on in a header."""


async def call(
    socket: PluginSocket,
    method: str,
    body: bytes,
    within: float,
    *,
    plugin: str = "",
    most_bytes: int = _MOST_BYTES,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> PluginResponse:
    """The response of the plugin at this socket to ``POST /<method>``, within this many seconds.

    ``plugin`` is its name, for error texts; ``headers`` are sent beside the usual ones.

    Raises: Unavailable where it does not answer in time, or closes the connection before.
    Raises: InvalidResponse for an answer of more than ``most_bytes``.
    Source: moby pkg/plugins/client.go; the host name is the one that Docker sends.
    """
    import aiohttp

    called = f"{method} of plugin {plugin}" if plugin else method
    try:
        with anyio.fail_after(within), socket.open() as path:
            while True:
                try:
                    return await _post(path, method, body, most_bytes, called, headers)
                except aiohttp.ClientConnectorError as error:
                    if error.errno != errno.EAGAIN:  # its queue is full just now; nothing was sent
                        raise
                await anyio.sleep(_RETRY_CONNECT)
    except errors.Unavailable as error:
        raise errors.Unavailable(f"cannot call {called}: {error}") from error
    except TimeoutError as error:
        raise errors.Unavailable(f"cannot call {called}: no answer within {within:g} s") from error
    except aiohttp.ClientConnectorError as error:  # its text names the path through /proc, which says nothing
        raise errors.Unavailable(f"cannot call {called}: cannot connect to {socket.path}: {error.strerror}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError for headers that aiohttp cannot use
        raise errors.Unavailable(f"cannot call {called}: {error}") from error


async def _post(
    path: str, method: str, body: bytes, most_bytes: int, called: str, headers: Mapping[str, str]
) -> PluginResponse:
    import aiohttp

    from moorage._lib.abortable import AbortableUnixConnector

    connector = AbortableUnixConnector(path=path)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, max_line_size=_HEADER_BYTES, max_field_size=_HEADER_BYTES
            ) as session,
            session.post(
                f"http://plugin.moby.localhost/{method}",
                data=body,
                headers={"Accept": _ACCEPT, **headers},
                allow_redirects=False,  # a plugin has one socket, so a redirect is an answer like any other
            ) as response,
        ):
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > most_bytes:
                    raise errors.InvalidResponse(
                        f"cannot call {called}: the plugin's answer has more than {most_bytes} bytes"
                    )
            return PluginResponse(response.status, bytes(answer), _media_type(response.headers.get("Content-Type", "")))
    finally:
        connector.abort()


def _media_type(text: str) -> str:
    """The media type, if it can be passed on in a header; else empty."""
    return text if text.isascii() and text.isprintable() else ""
