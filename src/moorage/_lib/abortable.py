"""Connectors of aiohttp whose connections can be aborted, for peers that do not read.

aiohttp closes a connection gracefully: it stays open until the peer has read what was written. A peer that never reads
would keep a descriptor and the whole body in memory until it exits.
"""

import asyncio
from typing import Any

import aiohttp

__all__ = ("AbortableTCPConnector", "AbortableUnixConnector")


class _Abortable(aiohttp.BaseConnector):
    """Stores the transports that it created."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._made: list[asyncio.Transport] = []

    async def _create_connection(self, *arguments: Any, **options: Any) -> Any:
        # The only hook that aiohttp has for this: connectors make every connection here.
        protocol = await super()._create_connection(*arguments, **options)
        self._made = [each for each in self._made if not _is_closed(each)]
        if protocol.transport is not None:
            self._made.append(protocol.transport)
        return protocol

    def abort(self) -> None:
        """Abort every connection, and discard what was not sent. May be repeated."""
        for transport in self._made:
            transport.abort()
        self._made.clear()


def _is_closed(transport: asyncio.Transport) -> bool:
    """Whether it is closed and has nothing left to send."""
    return transport.is_closing() and transport.get_write_buffer_size() == 0


class AbortableUnixConnector(_Abortable, aiohttp.UnixConnector):
    """For a unix socket."""


class AbortableTCPConnector(_Abortable, aiohttp.TCPConnector):
    """For TCP, with TLS or without."""
