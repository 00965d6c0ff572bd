"""Messages of events to values. Pure: no I/O, no policy."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import Struct

from moorage.containerd._proto import (
    any_pb2,
    moorage_events_pb2,
    moorage_object_events_pb2,
    moorage_task_events_pb2,
)
from moorage.containerd.calls.wire import instant
from moorage.containerd.values import events

__all__ = ("envelope",)

_PACKAGE = "containerd.events."
_KINDS: dict[str, type[Struct]] = {
    "TaskCreate": events.TaskCreated,
    "TaskStart": events.TaskStarted,
    "TaskExit": events.TaskExit,
    "TaskDelete": events.TaskDeleted,
    "TaskOOM": events.TaskOOM,
    "TaskExecAdded": events.TaskExecAdded,
    "TaskExecStarted": events.TaskExecStarted,
    "TaskPaused": events.TaskPaused,
    "TaskResumed": events.TaskResumed,
    "TaskCheckpointed": events.TaskCheckpointed,
    "ContainerCreate": events.ContainerCreated,
    "ContainerUpdate": events.ContainerUpdated,
    "ContainerDelete": events.ContainerDeleted,
    "ContentCreate": events.ContentCreated,
    "ContentDelete": events.ContentDeleted,
    "ImageCreate": events.ImageCreated,
    "ImageUpdate": events.ImageUpdated,
    "ImageDelete": events.ImageDeleted,
    "NamespaceCreate": events.NamespaceCreated,
    "NamespaceUpdate": events.NamespaceUpdated,
    "NamespaceDelete": events.NamespaceDeleted,
    "SnapshotPrepare": events.SnapshotPrepared,
    "SnapshotCommit": events.SnapshotCommitted,
    "SnapshotRemove": events.SnapshotRemoved,
    "SandboxCreate": events.SandboxCreated,
    "SandboxStart": events.SandboxStarted,
    "SandboxExit": events.SandboxExited,
}
"""The value of each message of containerd's package of events."""
_FIELDS = {"process_id": "id", "code": "exit_status", "size_bytes": "size"}
"""Fields of values whose name in the message is another one."""


def envelope(message: moorage_events_pb2.Envelope) -> events.Envelope:
    """An event with its frame; a type that is not known, or cannot be read, becomes OtherEvent."""
    return events.Envelope(
        namespace=message.namespace,
        topic=message.topic,
        published_at=instant(message.timestamp),
        event=_event(message.event),
    )


def _event(message: any_pb2.Any) -> Any:
    name = message.type_url.rpartition("/")[2]
    kind = _KINDS.get(name.removeprefix(_PACKAGE)) if name.startswith(_PACKAGE) else None
    if kind is None:
        return events.OtherEvent(name, message.value)
    short = name.removeprefix(_PACKAGE)
    module: Any = moorage_task_events_pb2 if short.startswith("Task") else moorage_object_events_pb2
    try:
        found = getattr(module, short).FromString(message.value)
    except DecodeError:
        return events.OtherEvent(name, message.value)
    return kind(**{field: _value(getattr(found, _FIELDS.get(field, field))) for field in kind.__struct_fields__})


def _value(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    return dict(value) if isinstance(value, Mapping) else instant(value)
