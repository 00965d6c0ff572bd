"""Tasks: the processes of containers."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Mapping, Sequence

from moorage import errors
from moorage.containerd import types
from moorage.containerd._proto import empty_pb2, moorage_tasks_pb2
from moorage.containerd.calls import metric_messages, wire
from moorage.containerd.calls.base import ServiceCalls
from moorage.containerd.identifiers import check_identifier

__all__ = ("TaskCalls",)

_TASKS = "/containerd.services.tasks.v1.Tasks/"


class TaskCalls(ServiceCalls):
    """Tasks, and the processes that are added to them."""

    async def create_task(
        self,
        id: str,
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
        rootfs: Sequence[types.Mount] = (),
        runtime: types.RuntimeOptions | None = None,
        checkpoint: types.Descriptor | None = None,
    ) -> int:
        """Prepare the process of a record, stopped before its first instruction; its pid.

        The standard streams are paths of FIFOs (both read ends must be open already, or containerd waits 30 s for
        them and fails), URIs that the shim understands, or empty for none. A ``terminal`` has no ``stderr``, and the
        spec of the record says so too. The process of a ``checkpoint`` continues where it was checkpointed.

        Raises:
            errors.Conflict: the id has a task
            errors.MoorageError: the runtime refuses the spec; its text
        """
        request = moorage_tasks_pb2.CreateTaskRequest(
            container_id=id,
            rootfs=[wire.mount(mount) for mount in rootfs],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            checkpoint=wire.descriptor_message(checkpoint) if checkpoint else None,
            options=wire.runtime_options(runtime) if runtime else None,
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
        return wire.process(reply.process)

    async def list_tasks(self) -> list[types.Process]:
        """Every task of the namespace, with 2 s more for each shim that is silent, whose task may be left out."""
        request = moorage_tasks_pb2.ListTasksRequest()
        reply = await self._run(_TASKS + "List", request, moorage_tasks_pb2.ListTasksResponse)
        return [wire.process(task) for task in reply.tasks]

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
            _TASKS + "Wait", request, moorage_tasks_pb2.WaitResponse, namespace=self._namespace, within=within
        )
        return types.ProcessExit(reply.exit_status, wire.instant(reply.exited_at))

    async def delete_task(self, id: str) -> types.ProcessExit:
        """Remove an exited or never started task with its shim; its exit.

        Output that has not passed the shim by then is lost.

        Raises:
            errors.MoorageError: it runs
            errors.NotFound: no such task; a half-created one was removed all the same
        """
        request = moorage_tasks_pb2.DeleteTaskRequest(container_id=id)
        reply = await self._run(_TASKS + "Delete", request, moorage_tasks_pb2.DeleteResponse)
        return types.ProcessExit(reply.exit_status, wire.instant(reply.exited_at), reply.pid)

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
            spec=wire.json_any(wire.PROCESS_TYPE, process),
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
        return types.ProcessExit(reply.exit_status, wire.instant(reply.exited_at), reply.pid)

    async def resize_terminal(self, id: str, exec_id: str = "", *, rows: int, columns: int) -> None:
        """Set the size of the terminal of the task, or of a process that was added to it.

        Raises:
            errors.NotFound: it has exited
        """
        request = moorage_tasks_pb2.ResizePtyRequest(container_id=id, exec_id=exec_id, width=columns, height=rows)
        await self._call(_TASKS + "ResizePty", request, empty_pb2.Empty)

    async def close_input(self, id: str, exec_id: str = "") -> None:
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
            container_id=id, resources=wire.json_any(wire.RESOURCES_TYPE, resources)
        )
        await self._run(_TASKS + "Update", request, empty_pb2.Empty)

    async def pids(self, id: str) -> list[int]:
        """The processes of the task, as containerd's own pid namespace numbers them."""
        request = moorage_tasks_pb2.ListPidsRequest(container_id=id)
        reply = await self._call(_TASKS + "ListPids", request, moorage_tasks_pb2.ListPidsResponse)
        return [process.pid for process in reply.processes]

    async def metrics(self, id: str) -> types.TaskMetrics:
        """What the task uses now, as its control groups count it. Raises: NotFound."""
        request = moorage_tasks_pb2.MetricsRequest(filters=[f"id=={id}"])
        reply = await self._call(_TASKS + "Metrics", request, moorage_tasks_pb2.MetricsResponse)
        found = [metric for metric in reply.metrics if metric.id == id]
        if not found:
            raise errors.NotFound(f"cannot read the metrics of task {id}: there is no such task")
        return metric_messages.metrics(found[0])

    async def checkpoint(self, id: str, options: types.CheckpointOptions | None = None) -> list[types.Descriptor]:
        """Store the state of a running task as content, for ``create_task``; needs criu.

        Raises:
            errors.NotFound: no such task
            errors.MoorageError: the runtime cannot do this; its text
        """
        request = moorage_tasks_pb2.CheckpointTaskRequest(
            container_id=id, options=wire.checkpoint_options(options or types.CheckpointOptions())
        )
        reply = await self._slow_call(_TASKS + "Checkpoint", request, moorage_tasks_pb2.CheckpointTaskResponse)
        return [wire.descriptor(each) for each in reply.descriptors]

    async def oom_kills(self, id: str) -> int:
        """The number of OOM-killed processes of the task. Known until the task is deleted."""
        request = moorage_tasks_pb2.MetricsRequest(filters=[f"id=={id}"])
        reply = await self._call(_TASKS + "Metrics", request, moorage_tasks_pb2.MetricsResponse)
        return sum(metric_messages.oom_kills(metric) for metric in reply.metrics if metric.id == id)
