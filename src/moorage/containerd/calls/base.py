"""What the calls of all services share: connection, namespace, time limits."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from moorage.containerd._rpc import GrpcConnection, Reply
    from moorage.timeouts import ClientTimeouts

__all__ = ("ServiceCalls",)


class ServiceCalls:
    """Calls in one namespace over one connection."""

    _connection: GrpcConnection
    _timeouts: ClientTimeouts
    _namespace: str
    _lease = ""
    """What references the objects that calls create; empty for none."""

    async def _call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call that only uses containerd's database or queries the state of a shim."""
        return await self._unary(method, request, reply, self._timeouts.rpc)

    async def _run(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call for which containerd runs a shim or a runtime."""
        return await self._unary(method, request, reply, self._timeouts.task_rpc)

    async def _slow_call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call that takes as long as the data is large."""
        return await self._unary(method, request, reply, self._timeouts.transfer)

    async def _unary(self, method: str, request: Message, reply: type[Reply], within: float) -> Reply:
        return await self._connection.unary(
            method, request, reply, namespace=self._namespace, within=within, lease=self._lease
        )

    async def _all(self, method: str, request: Message, reply: type[Reply]) -> list[Reply]:
        """Every answer of a call that has many."""
        async with self._connection.stream(
            method, request, reply, namespace=self._namespace, within=self._timeouts.rpc
        ) as messages:
            return [message async for message in messages]
