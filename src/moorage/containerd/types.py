"""What goes into the client and comes out of it: frozen values. No protobuf message leaves this package.

Instants are aware UTC datetimes, sizes are bytes, process ids are those that containerd sees.
"""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

from msgspec import Struct, field

from moorage import errors
from moorage.containerd.values.events import ContainerCreated as ContainerCreated
from moorage.containerd.values.events import ContainerDeleted as ContainerDeleted
from moorage.containerd.values.events import ContainerUpdated as ContainerUpdated
from moorage.containerd.values.events import ContentCreated as ContentCreated
from moorage.containerd.values.events import ContentDeleted as ContentDeleted
from moorage.containerd.values.events import Envelope as Envelope
from moorage.containerd.values.events import Event as Event
from moorage.containerd.values.events import ImageCreated as ImageCreated
from moorage.containerd.values.events import ImageDeleted as ImageDeleted
from moorage.containerd.values.events import ImageUpdated as ImageUpdated
from moorage.containerd.values.events import NamespaceCreated as NamespaceCreated
from moorage.containerd.values.events import NamespaceDeleted as NamespaceDeleted
from moorage.containerd.values.events import NamespaceUpdated as NamespaceUpdated
from moorage.containerd.values.events import OtherEvent as OtherEvent
from moorage.containerd.values.events import SandboxCreated as SandboxCreated
from moorage.containerd.values.events import SandboxExited as SandboxExited
from moorage.containerd.values.events import SandboxStarted as SandboxStarted
from moorage.containerd.values.events import SnapshotCommitted as SnapshotCommitted
from moorage.containerd.values.events import SnapshotPrepared as SnapshotPrepared
from moorage.containerd.values.events import SnapshotRemoved as SnapshotRemoved
from moorage.containerd.values.events import TaskCheckpointed as TaskCheckpointed
from moorage.containerd.values.events import TaskCreated as TaskCreated
from moorage.containerd.values.events import TaskDeleted as TaskDeleted
from moorage.containerd.values.events import TaskExecAdded as TaskExecAdded
from moorage.containerd.values.events import TaskExecStarted as TaskExecStarted
from moorage.containerd.values.events import TaskExit as TaskExit
from moorage.containerd.values.events import TaskOOM as TaskOOM
from moorage.containerd.values.events import TaskPaused as TaskPaused
from moorage.containerd.values.events import TaskResumed as TaskResumed
from moorage.containerd.values.events import TaskStarted as TaskStarted
from moorage.containerd.values.metrics import BlockOperations as BlockOperations
from moorage.containerd.values.metrics import DeviceIO as DeviceIO
from moorage.containerd.values.metrics import MemoryCounter as MemoryCounter
from moorage.containerd.values.metrics import MetricsV1 as MetricsV1
from moorage.containerd.values.metrics import MetricsV2 as MetricsV2
from moorage.containerd.values.metrics import OtherMetrics as OtherMetrics
from moorage.containerd.values.metrics import TaskMetrics as TaskMetrics
from moorage.oci.descriptor import Descriptor as Descriptor

__all__ = (
    "AlreadyExists",
    "BlockOperations",
    "CallObserver",
    "CheckpointOptions",
    "Container",
    "ContainerCreated",
    "ContainerDeleted",
    "ContainerUpdated",
    "ContainerdPlugin",
    "Content",
    "ContentCreated",
    "ContentDeleted",
    "Descriptor",
    "DeviceIO",
    "Envelope",
    "Event",
    "Image",
    "ImageCreated",
    "ImageDeleted",
    "ImageUpdated",
    "Ingest",
    "LeaseResource",
    "MemoryCounter",
    "MetricsV1",
    "MetricsV2",
    "Mount",
    "NamespaceCreated",
    "NamespaceDeleted",
    "NamespaceUpdated",
    "OtherEvent",
    "OtherMetrics",
    "Process",
    "ProcessExit",
    "RuntimeOptions",
    "SandboxCreated",
    "SandboxExited",
    "SandboxStarted",
    "ServerIdentity",
    "Snapshot",
    "SnapshotCommitted",
    "SnapshotKind",
    "SnapshotPrepared",
    "SnapshotRemoved",
    "Spec",
    "Status",
    "TaskCheckpointed",
    "TaskCreated",
    "TaskDeleted",
    "TaskExecAdded",
    "TaskExecStarted",
    "TaskExit",
    "TaskMetrics",
    "TaskOOM",
    "TaskPaused",
    "TaskResumed",
    "TaskStarted",
    "Usage",
    "Version",
)

Spec: TypeAlias = Mapping[str, Any]
"""An OCI runtime spec as JSON has it. Any: the format is the runtime's, and its users build it as plain data."""


CallObserver: TypeAlias = Callable[[str, float, errors.MoorageError | None], None]
"""Called after a call: its method ("Tasks.Start"), its duration in seconds, its failure or None."""


class AlreadyExists(errors.Conflict):
    """The object exists already (HTTP 409). Content is named by its digest: it is then as good as written."""


class Status(Enum):
    """The state of a task or of a process in it."""

    UNKNOWN = "unknown"
    """The shim did not answer. The process may run or not: it is not an exit."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"


class Content(Struct, frozen=True):
    """A blob in the content store."""

    digest: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Ingest(Struct, frozen=True):
    """An unfinished upload of a blob, which can be continued."""

    ref: str
    offset_bytes: int
    total_bytes: int
    expected: str = ""


class Image(Struct, frozen=True):
    """A name for content. Its labels can reference more: ``containerd.io/gc.ref.snapshot.<snapshotter>`` a snapshot."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)


class SnapshotKind(Enum):
    """The kind of a snapshot."""

    UNKNOWN = "unknown"
    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class Snapshot(Struct, frozen=True):
    """A layer (committed) or a writable file system on top of layers (active)."""

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str] = field(default_factory=dict)


class Usage(Struct, frozen=True):
    """The disk usage of a snapshot, without its parents."""

    size_bytes: int
    inodes: int


class RuntimeOptions(Struct, frozen=True):
    """The shim of a container and its options for the runtime. The options are those of the runc shim."""

    name: str = "io.containerd.runc.v2"
    root: str = ""
    """Directory of the runtime's own state (``<root>/<namespace>/<id>``); empty is the shim's default."""

    binary_name: str = ""
    """The runtime's command, by name or absolute path; empty is ``runc``. ``command`` is the name in any case."""

    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    """Owner of the pipes between shim and process, so that a process that is not root can reopen ``/dev/stdout``."""

    @property
    def command(self) -> str:
        """The name of the runtime's command, without directories: ``runc``, ``crun``."""
        return posixpath.basename(self.binary_name or "runc")


class Mount(Struct, frozen=True):
    """One mount(2) that is made for a container before its runtime starts, to get its root from a snapshot."""

    type: str
    source: str
    options: Sequence[str] = ()
    target: str = ""


class Container(Struct, frozen=True):
    """A record in containerd's database. It has no process; that is a task."""

    id: str
    spec: Spec
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime_name: str = ""
    runtime: RuntimeOptions = RuntimeOptions()
    """With which its tasks are created; the default where the record has none, or another shim's."""
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    extensions: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """By name: the type URL and the bytes of a message of other programs."""


class Process(Struct, frozen=True):
    """A task, or a process that was added to one, as containerd sees it now."""

    container_id: str
    id: str
    pid: int
    status: Status
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    exited_at: datetime | None = None


class ProcessExit(Struct, frozen=True):
    """The exit of a process. A code of 128 + n means that signal n killed it."""

    code: int
    exited_at: datetime | None
    pid: int = 0


class Version(Struct, frozen=True):
    """Version and revision of containerd."""

    version: str
    revision: str


class ContainerdPlugin(Struct, frozen=True):
    """One plugin of containerd itself; ``error`` is empty if it was loaded."""

    type: str
    id: str
    exports: Mapping[str, str]
    error: str = ""


class ServerIdentity(Struct, frozen=True):
    """The identity of a containerd."""

    uuid: str
    """Of its data directory."""
    pid: int = 0
    """0 from containerd 1.6, which does not report it."""


class LeaseResource(Struct, frozen=True):
    """One object that a lease references."""

    id: str
    kind: str
    """``content``, or ``snapshots/`` and the snapshotter."""


class CheckpointOptions(Struct, frozen=True):
    """How a task is checkpointed."""

    exit: bool = False
    """Stop the task after it."""
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
