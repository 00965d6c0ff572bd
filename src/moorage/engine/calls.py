"""A call to a plugin over its socket, with a bound: one that never answers harms nobody but its caller."""

import errno

import anyio

from moorage import errors
from moorage.engine.values import Answer
from moorage.host.sockets import PluginSocket

__all__ = ("call",)

_MOST_BYTES = 16 * 1024 * 1024
_HEADER_BYTES = 64 * 1024  # of one header; aiohttp's own limit is 8190, which was not chosen for plugins
_CONNECT_AGAIN = 0.02  # seconds
_ACCEPT = "application/vnd.docker.plugins.v1.2+json"


async def call(
    socket: PluginSocket, method: str, body: bytes, within: float, *, most_bytes: int = _MOST_BYTES
) -> Answer:
    """What the plugin at this socket answers to ``POST /<method>``.

    Raises: Unavailable where it does not answer in time or breaks off; MoorageError for an answer of more than
    ``most_bytes``, which is the plugin's fault.
    Source: moby pkg/plugins/client.go; the host name is the one that Docker sends.
    """
    import aiohttp

    try:
        with anyio.fail_after(within), socket.open() as path:
            while True:
                try:
                    return await _post(path, method, body, most_bytes)
                except aiohttp.ClientConnectorError as error:
                    if error.errno != errno.EAGAIN:  # its queue is full just now; nothing was sent
                        raise
                await anyio.sleep(_CONNECT_AGAIN)
    except errors.Unavailable as error:
        raise errors.Unavailable(f"cannot call {method}: {error}") from error
    except TimeoutError as error:
        raise errors.Unavailable(f"cannot call {method}: no answer within {within:g} s") from error
    except aiohttp.ClientConnectorError as error:  # its text names our path to the socket, which helps nobody
        raise errors.Unavailable(f"cannot call {method}: cannot connect to {socket.path}: {error.strerror}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:  # the last for headers that aiohttp cannot use
        raise errors.Unavailable(f"cannot call {method}: {error}") from error


async def _post(path: str, method: str, body: bytes, most_bytes: int) -> Answer:
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
                headers={"Accept": _ACCEPT},
                allow_redirects=False,  # a plugin has one socket, so a redirect is an answer like any other
            ) as response,
        ):
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > most_bytes:
                    raise errors.MoorageError(
                        f"cannot call {method}: the plugin's answer has more than {most_bytes} bytes"
                    )
            return Answer(response.status, bytes(answer), _media_type(response.headers.get("Content-Type", "")))
    finally:
        connector.abort()


def _media_type(text: str) -> str:
    """A media type that can be passed on in a header; empty where the plugin's cannot be."""
    return text if text.isascii() and text.isprintable() else ""
