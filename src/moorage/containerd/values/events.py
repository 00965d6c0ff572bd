"""What containerd reports by its events: one value for each kind, with the fields that it has in every version."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypeAlias

from msgspec import Struct, field

__all__ = (
    "ContainerCreated",
    "ContainerDeleted",
    "ContainerUpdated",
    "ContentCreated",
    "ContentDeleted",
    "Envelope",
    "Event",
    "ImageCreated",
    "ImageDeleted",
    "ImageUpdated",
    "NamespaceCreated",
    "NamespaceDeleted",
    "NamespaceUpdated",
    "OtherEvent",
    "SandboxCreated",
    "SandboxExited",
    "SandboxStarted",
    "SnapshotCommitted",
    "SnapshotPrepared",
    "SnapshotRemoved",
    "TaskCheckpointed",
    "TaskCreated",
    "TaskDeleted",
    "TaskExecAdded",
    "TaskExecStarted",
    "TaskExit",
    "TaskOOM",
    "TaskPaused",
    "TaskResumed",
    "TaskStarted",
)


class TaskCreated(Struct, frozen=True):
    """A task was created; its first process does not run yet."""

    container_id: str
    pid: int
    bundle: str
    """containerd's directory of the task."""


class TaskStarted(Struct, frozen=True):
    """The first process of a container runs."""

    container_id: str
    pid: int


class TaskExit(Struct, frozen=True):
    """A process of a container exited: the first one when ``process_id`` is the container's id, else an added one."""

    container_id: str
    process_id: str
    pid: int
    code: int
    exited_at: datetime | None = None


class TaskDeleted(Struct, frozen=True):
    """A task was deleted in containerd."""

    container_id: str
    pid: int
    code: int


class TaskOOM(Struct, frozen=True):
    """A process of the container was OOM-killed; not always its first process."""

    container_id: str


class TaskExecAdded(Struct, frozen=True):
    """A process was added to a task; it does not run yet."""

    container_id: str
    exec_id: str


class TaskExecStarted(Struct, frozen=True):
    """An added process runs."""

    container_id: str
    exec_id: str
    pid: int


class TaskPaused(Struct, frozen=True):
    """The processes of a task are frozen."""

    container_id: str


class TaskResumed(Struct, frozen=True):
    """The processes of a task continue."""

    container_id: str


class TaskCheckpointed(Struct, frozen=True):
    """A task was checkpointed."""

    container_id: str
    checkpoint: str


class ContainerCreated(Struct, frozen=True):
    """A record was written."""

    id: str
    image: str


class ContainerUpdated(Struct, frozen=True):
    """A record was changed."""

    id: str
    image: str
    labels: Mapping[str, str]
    snapshot_key: str


class ContainerDeleted(Struct, frozen=True):
    """A record was removed."""

    id: str


class ContentCreated(Struct, frozen=True):
    """A blob was stored; reported by containerd 2.0 and newer."""

    digest: str
    size_bytes: int


class ContentDeleted(Struct, frozen=True):
    """A blob was removed."""

    digest: str


class ImageCreated(Struct, frozen=True):
    """The record of an image was written."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class ImageUpdated(Struct, frozen=True):
    """The record of an image was changed."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class ImageDeleted(Struct, frozen=True):
    """The record of an image was removed."""

    name: str


class NamespaceCreated(Struct, frozen=True):
    """A namespace was made."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceUpdated(Struct, frozen=True):
    """The labels of a namespace were changed."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceDeleted(Struct, frozen=True):
    """A namespace was removed."""

    name: str


class SnapshotPrepared(Struct, frozen=True):
    """A writable snapshot, or a view, was made."""

    key: str
    parent: str
    snapshotter: str = ""
    """Empty from containerd 1.6, which does not report it."""


class SnapshotCommitted(Struct, frozen=True):
    """A writable snapshot became the layer ``name``."""

    key: str
    name: str
    snapshotter: str = ""


class SnapshotRemoved(Struct, frozen=True):
    """A snapshot was removed."""

    key: str
    snapshotter: str = ""


class SandboxCreated(Struct, frozen=True):
    """A sandbox was made; reported by containerd 2.0 and newer, as all of sandboxes."""

    sandbox_id: str


class SandboxStarted(Struct, frozen=True):
    """A sandbox runs."""

    sandbox_id: str


class SandboxExited(Struct, frozen=True):
    """A sandbox exited."""

    sandbox_id: str
    code: int
    exited_at: datetime | None = None


class OtherEvent(Struct, frozen=True):
    """An event that this client does not know, unchanged: ``payload`` is a message of the type ``type_url``."""

    type_url: str
    payload: bytes = b""


Event: TypeAlias = (
    TaskCreated
    | TaskStarted
    | TaskExit
    | TaskDeleted
    | TaskOOM
    | TaskExecAdded
    | TaskExecStarted
    | TaskPaused
    | TaskResumed
    | TaskCheckpointed
    | ContainerCreated
    | ContainerUpdated
    | ContainerDeleted
    | ContentCreated
    | ContentDeleted
    | ImageCreated
    | ImageUpdated
    | ImageDeleted
    | NamespaceCreated
    | NamespaceUpdated
    | NamespaceDeleted
    | SnapshotPrepared
    | SnapshotCommitted
    | SnapshotRemoved
    | SandboxCreated
    | SandboxStarted
    | SandboxExited
    | OtherEvent
)


class Envelope(Struct, frozen=True):
    """An event with the namespace, topic and time of its publication."""

    namespace: str
    topic: str
    published_at: datetime | None
    event: Event
