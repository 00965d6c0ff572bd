"""The stream of events."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from moorage.containerd import types
from moorage.containerd._proto import empty_pb2, moorage_events_pb2
from moorage.containerd.calls import event_messages
from moorage.containerd.calls.base import ServiceCalls

__all__ = ("EventCalls",)

_EVENTS = "/containerd.services.events.v1.Events/"


class EventCalls(ServiceCalls):
    """Publishing and reading events."""

    async def publish(self, topic: str, event: types.OtherEvent | None = None) -> None:
        """Publish an event in the namespace; without ``event`` it has no content. Raises: Invalid for a topic."""
        request = moorage_events_pb2.PublishRequest(topic=topic)
        if event is None:
            request.event.Pack(empty_pb2.Empty())
        else:
            request.event.type_url, request.event.value = event.type_url, event.payload
        await self._call(_EVENTS + "Publish", request, empty_pb2.Empty)

    @asynccontextmanager
    async def raw_events(self, *filters: str) -> AsyncIterator[AsyncIterator[types.Envelope]]:
        """The stream of events that match any filter. ``moorage.containerd.subscribe`` returns when it has started."""
        request = moorage_events_pb2.SubscribeRequest(filters=filters)
        async with self._connection.stream(
            _EVENTS + "Subscribe",
            request,
            moorage_events_pb2.Envelope,
            namespace=self._namespace,
            within=self._timeouts.rpc,
            is_endless=True,
        ) as messages:
            yield (event_messages.envelope(message) async for message in messages)
