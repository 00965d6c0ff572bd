"""One run of a plugin: its container, and how it exited."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage.containerd.shims.processes import control_group
from moorage.engine.runtime import PLUGIN_LABEL
from moorage.engine.values import LastExit
from moorage.executor import Exit

if TYPE_CHECKING:
    from moorage.engine.runtime import ContainerRuntime

__all__ = ("PluginRun", "container_labels", "last_exit", "recorded_run")


class PluginRun:
    """One run of a plugin: one container, used once."""

    def __init__(
        self, container: str, runtime: str = "", control_group: str = "", began_at: datetime | None = None
    ) -> None:
        self.container = container
        self.control_group = control_group
        """The path of its control group in every hierarchy; empty where containerd does not report it."""
        self.runtime = runtime
        """The OCI runtime that it was created with; empty where containerd does not report it."""
        self.exit: Exit | None = None
        self.finished = anyio.Event()
        """Set when it has exited and its output is drained; the executor may still have to remove its container."""
        self.pid: int | None = None
        self.began_at = began_at
        """Of one that was a standby: when it was started, which the kernel does not know."""
        self.started_at: datetime | None = None
        """When its process began, as the kernel knows it: the same for an engine that comes later."""
        self.created_at = datetime.now(UTC)

    def end(self, exit: Exit) -> None:
        """Note the exit that the executor reports."""
        self.exit = exit
        self.finished.set()


def last_exit(run: PluginRun | None, error: str = "") -> LastExit:
    """How a run exited, as the record has it; ``error`` says why it was not ready."""
    if run is not None and run.exit is not None:
        return LastExit.of(run.exit, error)
    return LastExit(at=datetime.now(UTC), error=error)


def container_labels(runtime: "ContainerRuntime", plugin_id: str) -> dict[str, str]:
    """The labels of the container of a run."""
    return {PLUGIN_LABEL: plugin_id, **runtime.ownership.marks}


async def recorded_run(runtime: "ContainerRuntime", container: str, began: datetime | None) -> PluginRun:
    """The run of a container, with what containerd has recorded of it: runtime and control group are its own.

    An earlier version gave all runs of a plugin one control group.
    """
    try:
        record = await runtime.client.get_container(container)
    except errors.MoorageError:
        return PluginRun(container, began_at=began)
    command = record.runtime.binary_name or record.runtime.command
    return PluginRun(container, command, control_group(record.spec), began)
