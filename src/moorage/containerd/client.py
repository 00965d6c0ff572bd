"""One method for each of containerd's calls that we use, with values in and out and no policy between.

``connect`` is the way in. Every method raises by kind (``moorage.errors``): NotFound, Conflict (exists, or in the wrong
state), Invalid, Unsupported, Unavailable (cannot be reached, did not answer in time), and MoorageError where containerd
gives a text but no kind, as it does for most failures of a runtime.

Source: containerd's API (``api/services/*/v1`` of containerd 1.6), field numbers unchanged up to 2.x.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from moorage import errors
from moorage.containerd import _wire, types
from moorage.containerd._proto import (
    moorage_containers_pb2,
    moorage_events_pb2,
    moorage_introspection_pb2,
    moorage_namespaces_pb2,
    moorage_tasks_pb2,
    moorage_version_pb2,
)
from moorage.containerd._rpc import Connection, Heard, Reply
from moorage.containerd._verification import Verification
from moorage.containerd.storage import Storage
from moorage.timeouts import DEFAULT, Timeouts

_CONTAINERS = "/containerd.services.containers.v1.Containers/"
_EVENTS = "/containerd.services.events.v1.Events/"
_INTROSPECTION = "/containerd.services.introspection.v1.Introspection/"
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces/"
_TASKS = "/containerd.services.tasks.v1.Tasks/"
_VERSION = "/containerd.services.version.v1.Version/"

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_IDENTIFIER_LIMIT = 76


def check_identifier(text: str, what: str = "id") -> str:
    """The text itself, where containerd takes it for a container or a namespace.

    Raises: Invalid with the rule (1 to 76 of letters, digits and single ``.``, ``_`` or ``-`` between them).
    Source: containerd ``identifiers.Validate``.
    """
    if len(text) > _IDENTIFIER_LIMIT or not _IDENTIFIER.fullmatch(text):
        raise errors.Invalid(
            f"cannot use {text!r} as {what}: it must have 1 to {_IDENTIFIER_LIMIT} letters and digits, "
            "with single '.', '_' or '-' between them"
        )
    return text


class Client:
    """The calls of one containerd, in one namespace. Made by ``connect``."""

    def __init__(self, connection: Connection, namespace: str, timeouts: Timeouts = DEFAULT) -> None:
        self.namespace = check_identifier(namespace, "namespace")
        self._connection = connection
        self._timeouts = timeouts
        self._verification = Verification(self._find_content)

    @property
    def address(self) -> str:
        """Path of containerd's socket."""
        return self._connection.address

    @property
    def storage(self) -> Storage:
        """Content, images, snapshots and leases of the same namespace."""
        return Storage(self._connection, self.namespace, self._timeouts, self._verification)

    async def _find_content(self) -> str:
        """Where containerd has its content store; empty where it does not say."""
        found = await self.plugins("type==io.containerd.content.v1")
        return next((root for each in found if (root := each.exports.get("root"))), "")

    async def version(self) -> types.Version:
        """Which containerd answers; also the cheapest way to learn that one does."""
        reply = await self._call(_VERSION + "Version", Empty(), moorage_version_pb2.VersionResponse)
        return types.Version(reply.version, reply.revision)

    async def plugins(self, *filters: str) -> list[types.Plugin]:
        """The parts of containerd that match any of the filters, all without one."""
        request = moorage_introspection_pb2.PluginsRequest(filters=filters)
        reply = await self._call(_INTROSPECTION + "Plugins", request, moorage_introspection_pb2.PluginsResponse)
        return [
            types.Plugin(plugin.type, plugin.id, dict(plugin.exports), plugin.init_err.message)
            for plugin in reply.plugins
        ]

    async def namespaces(self) -> dict[str, dict[str, str]]:
        """Every namespace of this containerd with its labels."""
        request = moorage_namespaces_pb2.ListNamespacesRequest()
        reply = await self._call(_NAMESPACES + "List", request, moorage_namespaces_pb2.ListNamespacesResponse)
        return {namespace.name: dict(namespace.labels) for namespace in reply.namespaces}

    async def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Make a namespace. Objects make theirs on first use; this is for the labels."""
        namespace = moorage_namespaces_pb2.Namespace(name=check_identifier(name, "namespace"), labels=labels or {})
        request = moorage_namespaces_pb2.CreateNamespaceRequest(namespace=namespace)
        await self._call(_NAMESPACES + "Create", request, moorage_namespaces_pb2.CreateNamespaceResponse)

    async def delete_namespace(self, name: str) -> None:
        """Remove an empty namespace. Raises: Conflict while it holds anything."""
        await self._call(_NAMESPACES + "Delete", moorage_namespaces_pb2.DeleteNamespaceRequest(name=name), Empty)

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
        """Write a record. Raises: Conflict where the id has one, Invalid for an id or spec that cannot be written."""
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
        """The record of this id. Raises: NotFound."""
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

        Raises: NotFound.
        """
        await self._call(_CONTAINERS + "Delete", moorage_containers_pb2.DeleteContainerRequest(id=id), Empty)

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

        Raises: Conflict where the id has a task; MoorageError with the runtime's text where it refuses the spec.
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
        """The task of this id, or a process that was added to it.

        Raises: NotFound where it has none (which does not prove that no process runs: a task without a record, or
        one whose creation was cut off, is not found either).
        """
        request = moorage_tasks_pb2.GetRequest(container_id=id, exec_id=exec_id)
        reply = await self._call(_TASKS + "Get", request, moorage_tasks_pb2.GetResponse)
        return _wire.process(reply.process)

    async def list_tasks(self) -> list[types.Process]:
        """Every task of the namespace. Takes 2 s more for each shim that does not answer."""
        request = moorage_tasks_pb2.ListTasksRequest()
        reply = await self._run(_TASKS + "List", request, moorage_tasks_pb2.ListTasksResponse)
        return [_wire.process(task) for task in reply.tasks]

    async def kill(self, id: str, signal: int, *, exec_id: str = "", all_processes: bool = False) -> None:
        """Send a signal to the task's first process, to an added one, or to all.

        Raises: NotFound for one that ended.
        """
        request = moorage_tasks_pb2.KillRequest(container_id=id, exec_id=exec_id, signal=signal, all=all_processes)
        await self._run(_TASKS + "Kill", request, Empty)

    async def wait(self, id: str, exec_id: str = "", *, within: float) -> types.ProcessExit:
        """The end of the task, waited for at most ``within`` seconds.

        Raises: Unavailable when the time is over, and also when containerd or the shim went away meanwhile: that is
        no exit, ask ``get_task``.
        """
        request = moorage_tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)
        reply = await self._connection.unary(
            _TASKS + "Wait", request, moorage_tasks_pb2.WaitResponse, namespace=self.namespace, within=within
        )
        return types.ProcessExit(reply.exit_status, _wire.instant(reply.exited_at))

    async def delete_task(self, id: str) -> types.ProcessExit:
        """Remove an ended or never started task with its shim; how it ended.

        Output that has not passed the shim by then is thrown away. Raises: MoorageError for one that runs; NotFound,
        in which case a half-made task, if there was one, has been cleared all the same.
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
        await self._run(_TASKS + "Exec", request, Empty)

    async def start_process(self, id: str, exec_id: str) -> int:
        """Start an added process; its pid."""
        request = moorage_tasks_pb2.StartRequest(container_id=id, exec_id=exec_id)
        return (await self._run(_TASKS + "Start", request, moorage_tasks_pb2.StartResponse)).pid

    async def delete_process(self, id: str, exec_id: str) -> types.ProcessExit:
        """Remove an added process that ended; how it ended."""
        request = moorage_tasks_pb2.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        reply = await self._run(_TASKS + "DeleteProcess", request, moorage_tasks_pb2.DeleteResponse)
        return types.ProcessExit(reply.exit_status, _wire.instant(reply.exited_at), reply.pid)

    async def resize_terminal(self, id: str, exec_id: str, *, rows: int, columns: int) -> None:
        """Tell the size of the terminal of a process. Raises: NotFound for a process that has ended."""
        request = moorage_tasks_pb2.ResizePtyRequest(container_id=id, exec_id=exec_id, width=columns, height=rows)
        await self._call(_TASKS + "ResizePty", request, Empty)

    async def close_input(self, id: str, exec_id: str) -> None:
        """Let go of the standard input on containerd's side, so that the process sees its end when we close ours."""
        request = moorage_tasks_pb2.CloseIORequest(container_id=id, exec_id=exec_id, stdin=True)
        await self._call(_TASKS + "CloseIO", request, Empty)

    async def pause(self, id: str) -> None:
        """Freeze every process of the task."""
        await self._run(_TASKS + "Pause", moorage_tasks_pb2.PauseTaskRequest(container_id=id), Empty)

    async def resume(self, id: str) -> None:
        """Let a frozen task go on."""
        await self._run(_TASKS + "Resume", moorage_tasks_pb2.ResumeTaskRequest(container_id=id), Empty)

    async def update_task(self, id: str, resources: Mapping[str, object]) -> None:
        """Change limits of a running task: ``linux.resources`` of an OCI spec, of which only what is given changes.

        Raises: NotFound; MoorageError with the runtime's text where the kernel refuses a limit.
        """
        request = moorage_tasks_pb2.UpdateTaskRequest(
            container_id=id, resources=_wire.json_any(_wire.RESOURCES_TYPE, resources)
        )
        await self._run(_TASKS + "Update", request, Empty)

    async def pids(self, id: str) -> list[int]:
        """The processes of the task, as containerd's own pid namespace numbers them."""
        request = moorage_tasks_pb2.ListPidsRequest(container_id=id)
        reply = await self._call(_TASKS + "ListPids", request, moorage_tasks_pb2.ListPidsResponse)
        return [process.pid for process in reply.processes]

    async def oom_kills(self, id: str) -> int:
        """How many processes of the task the kernel killed for want of memory. Known until the task is deleted."""
        request = moorage_tasks_pb2.MetricsRequest(filters=[f"id=={id}"])
        reply = await self._call(_TASKS + "Metrics", request, moorage_tasks_pb2.MetricsResponse)
        return sum(_wire.oom_kills(metric) for metric in reply.metrics if metric.id == id)

    # events

    async def publish(self, topic: str) -> None:
        """Put an empty event of our own into the stream."""
        request = moorage_events_pb2.PublishRequest(topic=topic)
        request.event.Pack(Empty())
        await self._call(_EVENTS + "Publish", request, Empty)

    @asynccontextmanager
    async def raw_events(self, *filters: str) -> AsyncIterator[AsyncIterator[types.Envelope]]:
        """The stream of events that match any filter. ``moorage.containerd.subscribe`` says when it has begun."""
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
        """A call that only touches containerd's database or asks a shim for its state."""
        return await self._connection.unary(method, request, reply, namespace=self.namespace, within=self._timeouts.rpc)

    async def _run(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call for which containerd runs a shim or a runtime."""
        return await self._connection.unary(
            method, request, reply, namespace=self.namespace, within=self._timeouts.task_rpc
        )


@asynccontextmanager
async def connect(
    address: str, namespace: str, timeouts: Timeouts = DEFAULT, heard: Heard | None = None
) -> AsyncIterator[Client]:
    """A client of the containerd that listens on the unix socket ``address``, until the block ends.

    Nothing is sent yet: a containerd that is not there shows at the first call, and one that comes back is found again
    by the next one. ``heard`` is told of every call with one answer: its method ("Tasks.Start"), the seconds it took,
    and how it failed, None where it did not; of one that is cancelled it is not told.
    """
    connection = Connection(address.removeprefix("unix://"), heard)
    try:
        yield Client(connection, namespace, timeouts)
    finally:
        connection.close()
