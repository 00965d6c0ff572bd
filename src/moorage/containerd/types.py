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
from moorage.oci.descriptor import Descriptor as Descriptor

__all__ = (
    "AlreadyExists",
    "CallObserver",
    "Container",
    "ContainerdPlugin",
    "Content",
    "Descriptor",
    "Envelope",
    "Event",
    "Image",
    "Ingest",
    "Mount",
    "OtherEvent",
    "Process",
    "ProcessExit",
    "RuntimeOptions",
    "Snapshot",
    "SnapshotKind",
    "Spec",
    "Status",
    "TaskDeleted",
    "TaskExit",
    "TaskOOM",
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


class OtherEvent(Struct, frozen=True):
    """An event that this client does not decode."""

    type_url: str
    container_id: str = ""


Event: TypeAlias = TaskStarted | TaskExit | TaskDeleted | TaskOOM | OtherEvent


class Envelope(Struct, frozen=True):
    """An event with the namespace, topic and time of its publication."""

    namespace: str
    topic: str
    published_at: datetime | None
    event: Event


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
