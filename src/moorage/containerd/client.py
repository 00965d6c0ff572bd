"""One method for each of containerd's calls that we use, with values in and out and no policy between.

``connect`` makes a client. Every method raises by kind (``moorage.errors``): NotFound, Conflict (exists, or in another
state), Invalid, Unsupported, Unavailable (cannot be reached, did not answer in time), and MoorageError if containerd
returns a text but no kind, as it does for most failures of a runtime.

Source: containerd's API (``api/services/*/v1`` of containerd 1.6), field numbers unchanged up to 2.x.
"""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd import _proto, _wire, types
from moorage.containerd._proto import (
    empty_pb2,
    moorage_containers_pb2,
    moorage_events_pb2,
    moorage_introspection_pb2,
    moorage_namespaces_pb2,
    moorage_tasks_pb2,
    moorage_version_pb2,
)
from moorage.containerd.identifiers import check_identifier
from moorage.containerd.integrity import Verification
from moorage.containerd.storage import Storage
from moorage.timeouts import DEFAULT, Timeouts

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from moorage.containerd._rpc import GrpcConnection, Reply

_CONTAINERS = "/containerd.services.containers.v1.Containers/"
_EVENTS = "/containerd.services.events.v1.Events/"
_INTROSPECTION = "/containerd.services.introspection.v1.Introspection/"
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces/"
_TASKS = "/containerd.services.tasks.v1.Tasks/"
_VERSION = "/containerd.services.version.v1.Version/"


class Client:
    """The calls of one containerd, in one namespace. Made by ``connect``.

    ``connection`` is shared with its storage and closed by ``connect``; ``namespace`` is containerd's; ``timeouts``
    bound the calls.
    """

    def __init__(self, connection: GrpcConnection, namespace: str, timeouts: Timeouts = DEFAULT) -> None:
        self.namespace = check_identifier(namespace, "namespace")
        self._connection = connection
        self._timeouts = timeouts
        self._verification = Verification(self._find_content)
        self.last_version = ""
        """What the last call of ``version`` returned; empty before the first."""

    @property
    def address(self) -> str:
        """Path of containerd's socket."""
        return self._connection.address

    @property
    def storage(self) -> Storage:
        """Content, images, snapshots and leases of the same namespace."""
        return Storage(self._connection, self.namespace, self._timeouts, self._verification)

    async def _find_content(self) -> str:
        """The directory of containerd's content store; empty if containerd does not report it."""
        found = await self.plugins("type==io.containerd.content.v1")
        return next((root for each in found if (root := each.exports.get("root"))), "")

    async def version(self) -> types.Version:
        """Version and revision of containerd; also the cheapest check that it answers."""
        reply = await self._call(_VERSION + "Version", empty_pb2.Empty(), moorage_version_pb2.VersionResponse)
        self.last_version = reply.version
        return types.Version(reply.version, reply.revision)

    async def plugins(self, *filters: str) -> list[types.ContainerdPlugin]:
        """The plugins of containerd that match any of the filters, all without one."""
        request = moorage_introspection_pb2.PluginsRequest(filters=filters)
        reply = await self._call(_INTROSPECTION + "Plugins", request, moorage_introspection_pb2.PluginsResponse)
        return [
            types.ContainerdPlugin(plugin.type, plugin.id, dict(plugin.exports), plugin.init_err.message)
            for plugin in reply.plugins
        ]

    async def namespaces(self) -> dict[str, dict[str, str]]:
        """Every namespace of this containerd with its labels."""
        request = moorage_namespaces_pb2.ListNamespacesRequest()
        reply = await self._call(_NAMESPACES + "List", request, moorage_namespaces_pb2.ListNamespacesResponse)
        return {namespace.name: dict(namespace.labels) for namespace in reply.namespaces}

    async def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Make a namespace. Objects create their namespace on first use; this is for the labels."""
        namespace = moorage_namespaces_pb2.Namespace(name=check_identifier(name, "namespace"), labels=labels or {})
        request = moorage_namespaces_pb2.CreateNamespaceRequest(namespace=namespace)
        await self._call(_NAMESPACES + "Create", request, moorage_namespaces_pb2.CreateNamespaceResponse)

    async def delete_namespace(self, name: str) -> None:
        """Remove an empty namespace.

        Raises:
            errors.NotFound: no such namespace
            errors.Conflict: it contains something
        """
        await self._call(
            _NAMESPACES + "Delete", moorage_namespaces_pb2.DeleteNamespaceRequest(name=name), empty_pb2.Empty
        )

    # containers: the records

    async def create_container(
        self,
        id: str,
        spec: types.Spec,
        runtime: types.RuntimeOptions,
        *,
        labels: Mapping[str, str] | None = None,
        snapshotter: str = "",
        snapshot_key: str = "",
    ) -> None:
        """Write a record.

        Raises:
            errors.Conflict: the id has a record
            errors.Invalid: the id or the spec cannot be written
        """
        record = moorage_containers_pb2.Container(
            id=check_identifier(id, "container id"),
            labels=labels or {},
            runtime=moorage_containers_pb2.Container.Runtime(name=runtime.name, options=_wire.runtime_options(runtime)),
            spec=_wire.json_any(_wire.SPEC_TYPE, spec),
            snapshotter=snapshotter,
            snapshot_key=snapshot_key,
        )
        request = moorage_containers_pb2.CreateContainerRequest(container=record)
        await self._call(_CONTAINERS + "Create", request, moorage_containers_pb2.CreateContainerResponse)

    async def get_container(self, id: str) -> types.Container:
        """The record of this id.

        Raises:
            errors.NotFound: no such record
        """
        request = moorage_containers_pb2.GetContainerRequest(id=id)
        reply = await self._call(_CONTAINERS + "Get", request, moorage_containers_pb2.GetContainerResponse)
        return _wire.container(reply.container)

    async def list_containers(self, *filters: str) -> list[types.Container]:
        """The records that match any of the filters, all without one."""
        request = moorage_containers_pb2.ListContainersRequest(filters=filters)
        reply = await self._call(_CONTAINERS + "List", request, moorage_containers_pb2.ListContainersResponse)
        return [_wire.container(record) for record in reply.containers]

    async def delete_container(self, id: str) -> None:
        """Remove the record. containerd does so even while its task runs, which makes the task unreachable.

        Raises:
            errors.NotFound: no such record
        """
        await self._call(_CONTAINERS + "Delete", moorage_containers_pb2.DeleteContainerRequest(id=id), empty_pb2.Empty)

    # tasks: what runs

    async def create_task(
        self,
        id: str,
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        rootfs: Sequence[types.Mount] = (),
        runtime: types.RuntimeOptions | None = None,
    ) -> int:
        """Prepare the process of a record, stopped before its first instruction; its pid.

        The standard streams are paths of FIFOs (both read ends must be open already, or containerd waits 30 s for
        them and fails), URIs that the shim understands, or empty for none.

        Raises:
            errors.Conflict: the id has a task
            errors.MoorageError: the runtime refuses the spec; its text
        """
        request = moorage_tasks_pb2.CreateTaskRequest(
            container_id=id,
            rootfs=[_wire.mount(mount) for mount in rootfs],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            options=_wire.runtime_options(runtime) if runtime else None,
        )
        reply = await self._run(_TASKS + "Create", request, moorage_tasks_pb2.CreateTaskResponse)
        return reply.pid

    async def start_task(self, id: str) -> int:
        """Let the prepared process run; its pid."""
        request = moorage_tasks_pb2.StartRequest(container_id=id)
        return (await self._run(_TASKS + "Start", request, moorage_tasks_pb2.StartResponse)).pid

    async def get_task(self, id: str, exec_id: str = "") -> types.Process:
        """The task of this id, or a process that was added to it; of unknown status if its shim does not answer.

        Raises:
            errors.NotFound: it has none; a process may run all the same: a task without a record, or one whose
                creation was cut off, is not found either
        """
        request = moorage_tasks_pb2.GetRequest(container_id=id, exec_id=exec_id)
        try:
            reply = await self._call(_TASKS + "Get", request, moorage_tasks_pb2.GetResponse)
        except errors.Busy:  # containerd 1.6 answers without a status
            return types.Process(id, exec_id or id, 0, types.Status.UNKNOWN)
        return _wire.process(reply.process)

    async def list_tasks(self) -> list[types.Process]:
        """Every task of the namespace, with 2 s more for each shim that is silent, whose task may be left out."""
        request = moorage_tasks_pb2.ListTasksRequest()
        reply = await self._run(_TASKS + "List", request, moorage_tasks_pb2.ListTasksResponse)
        return [_wire.process(task) for task in reply.tasks]

    async def kill(self, id: str, signal: int, *, exec_id: str = "", all_processes: bool = False) -> None:
        """Send a signal to the task's first process, to an added one, or to all.

        Raises:
            errors.NotFound: it has exited
        """
        request = moorage_tasks_pb2.KillRequest(container_id=id, exec_id=exec_id, signal=signal, all=all_processes)
        await self._run(_TASKS + "Kill", request, empty_pb2.Empty)

    async def wait(self, id: str, exec_id: str = "", *, within: float) -> types.ProcessExit:
        """The exit of the task, waited for at most ``within`` seconds.

        Raises:
            errors.NotFound: no such task
            errors.Unavailable: the time is over, or containerd or the shim exits meanwhile; that is no exit of the
                task, call ``get_task``
        """
        request = moorage_tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)
        reply = await self._connection.unary(
            _TASKS + "Wait", request, moorage_tasks_pb2.WaitResponse, namespace=self.namespace, within=within
        )
        return types.ProcessExit(reply.exit_status, _wire.instant(reply.exited_at))

    async def delete_task(self, id: str) -> types.ProcessExit:
        """Remove an exited or never started task with its shim; its exit.

        Output that has not passed the shim by then is lost.

        Raises:
            errors.MoorageError: it runs
            errors.NotFound: no such task; a half-created one was removed all the same
        """
        request = moorage_tasks_pb2.DeleteTaskRequest(container_id=id)
        reply = await self._run(_TASKS + "Delete", request, moorage_tasks_pb2.DeleteResponse)
        return types.ProcessExit(reply.exit_status, _wire.instant(reply.exited_at), reply.pid)

    async def exec_process(
        self,
        id: str,
        exec_id: str,
        process: Mapping[str, object],
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> None:
        """Add a process (an OCI process object) to a running task; ``start_process`` starts it.

        The streams are paths of FIFOs; a terminal has no ``stderr``, and its process object says so too.
        """
        request = moorage_tasks_pb2.ExecProcessRequest(
            container_id=id,
            exec_id=check_identifier(exec_id, "process id"),
            spec=_wire.json_any(_wire.PROCESS_TYPE, process),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
        )
        await self._run(_TASKS + "Exec", request, empty_pb2.Empty)

    async def start_process(self, id: str, exec_id: str) -> int:
        """Start an added process; its pid."""
        request = moorage_tasks_pb2.StartRequest(container_id=id, exec_id=exec_id)
        return (await self._run(_TASKS + "Start", request, moorage_tasks_pb2.StartResponse)).pid

    async def delete_process(self, id: str, exec_id: str) -> types.ProcessExit:
        """Remove an added process that has exited; its exit."""
        request = moorage_tasks_pb2.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        reply = await self._run(_TASKS + "DeleteProcess", request, moorage_tasks_pb2.DeleteResponse)
        return types.ProcessExit(reply.exit_status, _wire.instant(reply.exited_at), reply.pid)

    async def resize_terminal(self, id: str, exec_id: str, *, rows: int, columns: int) -> None:
        """Set the size of the terminal of a process.

        Raises:
            errors.NotFound: it has exited
        """
        request = moorage_tasks_pb2.ResizePtyRequest(container_id=id, exec_id=exec_id, width=columns, height=rows)
        await self._call(_TASKS + "ResizePty", request, empty_pb2.Empty)

    async def close_input(self, id: str, exec_id: str) -> None:
        """Close the standard input on containerd's side, so that the process reads EOF once the FIFO is closed."""
        request = moorage_tasks_pb2.CloseIORequest(container_id=id, exec_id=exec_id, stdin=True)
        await self._call(_TASKS + "CloseIO", request, empty_pb2.Empty)

    async def pause(self, id: str) -> None:
        """Freeze every process of the task."""
        await self._run(_TASKS + "Pause", moorage_tasks_pb2.PauseTaskRequest(container_id=id), empty_pb2.Empty)

    async def resume(self, id: str) -> None:
        """Let a frozen task continue."""
        await self._run(_TASKS + "Resume", moorage_tasks_pb2.ResumeTaskRequest(container_id=id), empty_pb2.Empty)

    async def update_task(self, id: str, resources: Mapping[str, object]) -> None:
        """Change limits of a running task: ``linux.resources`` of an OCI spec, of which only what is given changes.

        Raises:
            errors.NotFound: no such task
            errors.MoorageError: the kernel refuses a limit; the runtime's text
        """
        request = moorage_tasks_pb2.UpdateTaskRequest(
            container_id=id, resources=_wire.json_any(_wire.RESOURCES_TYPE, resources)
        )
        await self._run(_TASKS + "Update", request, empty_pb2.Empty)

    async def pids(self, id: str) -> list[int]:
        """The processes of the task, as containerd's own pid namespace numbers them."""
        request = moorage_tasks_pb2.ListPidsRequest(container_id=id)
        reply = await self._call(_TASKS + "ListPids", request, moorage_tasks_pb2.ListPidsResponse)
        return [process.pid for process in reply.processes]

    async def oom_kills(self, id: str) -> int:
        """The number of OOM-killed processes of the task. Known until the task is deleted."""
        request = moorage_tasks_pb2.MetricsRequest(filters=[f"id=={id}"])
        reply = await self._call(_TASKS + "Metrics", request, moorage_tasks_pb2.MetricsResponse)
        return sum(_wire.oom_kills(metric) for metric in reply.metrics if metric.id == id)

    # events

    async def publish(self, topic: str) -> None:
        """Publish an event without content."""
        request = moorage_events_pb2.PublishRequest(topic=topic)
        request.event.Pack(empty_pb2.Empty())
        await self._call(_EVENTS + "Publish", request, empty_pb2.Empty)

    @asynccontextmanager
    async def raw_events(self, *filters: str) -> AsyncIterator[AsyncIterator[types.Envelope]]:
        """The stream of events that match any filter. ``moorage.containerd.subscribe`` returns when it has started."""
        request = moorage_events_pb2.SubscribeRequest(filters=filters)
        async with self._connection.stream(
            _EVENTS + "Subscribe",
            request,
            moorage_events_pb2.Envelope,
            namespace=self.namespace,
            within=self._timeouts.rpc,
            is_endless=True,
        ) as messages:
            yield (_wire.envelope(message) async for message in messages)

    async def _call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call that only uses containerd's database or queries the state of a shim."""
        return await self._connection.unary(method, request, reply, namespace=self.namespace, within=self._timeouts.rpc)

    async def _run(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call for which containerd runs a shim or a runtime."""
        return await self._connection.unary(
            method, request, reply, namespace=self.namespace, within=self._timeouts.task_rpc
        )


@asynccontextmanager
async def connect(
    address: str, namespace: str, timeouts: Timeouts = DEFAULT, observer: types.CallObserver | None = None
) -> AsyncIterator[Client]:
    """A client of the containerd that listens on the unix socket ``address``, until the block ends.

    Nothing is sent yet: the first call fails if containerd is unavailable, and a call after that connects again.
    ``observer`` is called after every call with one answer, with its method ("Tasks.Start"), its duration in seconds,
    and its failure or None; it is not called after a call that was cancelled.
    """
    connection_type = await run_blocking(_load_grpc)
    connection = connection_type(address.removeprefix("unix://"), observer)
    try:
        yield Client(connection, namespace, timeouts)
    finally:
        connection.close()


def _load_grpc() -> type[GrpcConnection]:
    """Import gRPC and load containerd's messages, which takes as long as the rest of the client: once, in a thread."""
    from moorage.containerd._rpc import GrpcConnection

    _proto.load()
    return GrpcConnection
