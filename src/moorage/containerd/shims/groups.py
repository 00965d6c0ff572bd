"""Containers whose specs name one group share a shim: whatever may start or end that shim is done one at a time.

The socket of a shim bears the name of its group. A shim that starts and finds a socket there on which no process
listens removes it and makes its own; one that exits removes it, too. So of two that start at once after one was killed
each takes the other's socket for the dead one's, and one that exits may remove that of its successor. A shim without
its socket serves until containerd starts again, which then counts it as dead and kills all that runs in it. And a task
that is given to a shim that is about to exit is not created.

Source: containerd's runc shim, ``Start`` of its manager, ``Shutdown`` of its service, and the exit of its ``run``.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.client import Client
from moorage.containerd.shims.processes import (
    control_group,
    find_shims,
    has_pid_namespace,
    is_first_process,
    is_shim,
    shim_of,
)
from moorage.containerd.types import Spec
from moorage.host.processes import kernel_messages, names_oom_kill, send_signal, wait_for_exit

__all__ = ("GroupedShims",)

log = logging.getLogger(__name__)

_SCOPE = ".scope"
_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")  # the first one that is set counts


class _Group(Struct, eq=False):
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    tasks: dict[str, int] = field(default_factory=dict)
    """The containers with a task, each with its shim."""

    shims: set[int] = field(default_factory=set)
    """Every shim of the group that may run. One without a task is about to exit."""

    def add(self, id: str, shim: int | None) -> None:
        if shim is not None:
            self.tasks[id] = shim
            self.shims.add(shim)


class GroupedShims:
    """Knows which containers of a client share a shim, and lets one of a group after another create or delete."""

    def __init__(self, client: Client, within: float) -> None:
        """``within``: seconds that a creation waits for a shim that is about to exit."""
        self._client = client
        self._within = within
        self._groups: dict[str, _Group] = {}
        self._group_of: dict[str, _Group | None] = {}
        self._control_groups: dict[str, str] = {}
        self._pids: dict[str, int] = {}
        self._isolated: set[str] = set()

    def register(self, id: str, spec: Spec) -> None:
        """This spec is the container's, from now until ``forget``."""
        name = _group_name(spec)
        self._group_of[id] = self._groups.setdefault(name, _Group()) if name else None
        self._control_groups[id] = control_group(spec)
        (self._isolated.add if has_pid_namespace(spec) else self._isolated.discard)(id)

    def forget(self, id: str) -> None:
        """The container is deleted."""
        for known in (self._group_of, self._control_groups, self._pids):
            known.pop(id, None)
        self._isolated.discard(id)

    def ends_with_first_process(self, id: str) -> bool:
        """Whether no process of the container outlives its first one: it has a pid namespace of its own."""
        return id in self._isolated

    async def signal(self, id: str, number: int) -> bool:
        """Send a signal to the first process without the runtime, which takes 10 ms for it; whether it was sent.

        It is sent to what certainly is that process, and to none that has exited: then containerd has to be called.
        """
        pid, group = self._pids.get(id, 0), self._control_groups.get(id, "")
        if not pid or not group:
            return False
        client = self._client

        def is_intended(pid: int) -> bool:
            return is_first_process(pid, client.namespace, client.address, group)

        return await run_blocking(lambda: send_signal(pid, number, is_intended))

    async def oom_killed(self, id: str) -> bool:
        """Whether a process of the container was OOM-killed, from the counter of its control group.

        systemd removes a scope's control group as soon as its last process has exited, often within a millisecond, and
        the counter with it; then the kernel's log says whether the first process was. Raises: what the call raises.
        """
        group = self._control_groups.get(id, "")
        try:
            if await self._client.oom_kills(id) > 0:
                return True
        except errors.Unavailable:
            raise
        except errors.MoorageError:
            if not group.endswith(_SCOPE):
                raise
        pid = self._pids.get(id, 0)
        if not pid or not group.endswith(_SCOPE):
            return False
        return await run_blocking(lambda: names_oom_kill(kernel_messages(), pid, group))

    async def adopt(self, id: str, pid: int) -> None:
        """The container has a task that was created earlier, with this first process."""
        self._pids[id] = pid
        group = self._group_of.get(id)
        if group is not None:
            group.add(id, await run_blocking(lambda: shim_of(pid)))

    async def create_task(self, id: str, create: Callable[[], Awaitable[int]]) -> int:
        """Call ``create``, in turn, when no shim of the group is about to exit; the task's pid, which it returns.

        A cancellation does not interrupt the call: containerd 1.6 would leave a shim for seconds, or permanently, in a
        third of the cases. The call completes within its time limit, and the caller removes the task.
        """
        group = self._group_of.get(id)
        self._pids.pop(id, None)
        if group is None:
            pid = self._pids[id] = await _uninterrupted(create)
            return pid
        async with group.lock:
            await self._wait_for_idle_shims(group)
            pid = self._pids[id] = await _uninterrupted(lambda: self._create_in(group, id, create))
            return pid

    async def _create_in(self, group: _Group, id: str, create: Callable[[], Awaitable[int]]) -> int:
        try:
            pid = await create()
        except errors.MoorageError:
            found = await run_blocking(lambda: find_shims(self._client.namespace, id, self._client.address))
            group.shims.update(shim for shim, _ in found)
            raise
        group.add(id, await run_blocking(lambda: shim_of(pid)))
        return pid

    @asynccontextmanager
    async def deletion(self, id: str) -> AsyncIterator[None]:
        """The turn of a container whose task is deleted in this block. Raises: Unavailable if its spec is unknown."""
        if id not in self._group_of:
            try:
                self.register(id, (await self._client.get_container(id)).spec)
            except errors.NotFound:
                self._group_of[id] = None
        group = self._group_of[id]
        if group is None:
            yield
            return
        async with group.lock:
            yield
            group.tasks.pop(id, None)

    async def _wait_for_idle_shims(self, group: _Group) -> None:
        known = group.shims - set(group.tasks.values())
        idle = await run_blocking(lambda: [pid for pid in sorted(known) if is_shim(pid)])
        with anyio.move_on_after(self._within) as scope:
            for pid in idle:
                await wait_for_exit(pid)
        if scope.cancelled_caught:
            log.warning("a shim without a task does not exit: pid %s", ", ".join(map(str, idle)))
        group.shims -= known


def _group_name(spec: Spec) -> str:
    annotations: Any = spec.get("annotations") or {}
    return next((str(annotations[each]) for each in _ANNOTATIONS if each in annotations), "")


async def _uninterrupted(call: Callable[[], Awaitable[int]]) -> int:
    with anyio.CancelScope(shield=True):
        result = await call()
    return result
