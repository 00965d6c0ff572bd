"""Which process has the executors of a namespace: each of them has a lease of containerd, which names its process.

Executors of two processes in one namespace would take each other's containers for leftovers. Those of one process may
share it: an id that runs is refused to the others (E24), and the program decides what it restores where.
"""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from moorage import errors
from moorage.host.proc import boot_id, process_stat
from moorage.timeouts import ExecutorTimeouts

__all__ = ("ENGINE_LEASE", "ENGINE_ROOT", "LeaseStore", "own_namespace", "refuse_executors")

log = logging.getLogger(__name__)

ENGINE_LEASE, ENGINE_ROOT = "moorage.owner", "moorage.root"
"""The lease of an engine that has the namespace, whether it runs or not; its label for the engine's data directory."""
_PREFIX = "moorage.executor."
_BOOT, _PID, _STARTED = "moorage.boot", "moorage.pid", "moorage.started"


class LeaseStore(Protocol):
    """The leases of one namespace of a containerd."""

    async def create_lease(self, id: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create a lease. Raises: errors.Conflict if it exists."""

    async def list_leases(self) -> dict[str, dict[str, str]]:
        """Every lease with its labels."""

    async def delete_lease(self, id: str) -> None:
        """Delete a lease. Raises: errors.NotFound."""


@asynccontextmanager
async def own_namespace(leases: LeaseStore, namespace: str, timeouts: ExecutorTimeouts) -> AsyncIterator[None]:
    """The namespace belongs to this process until the block ends, or it exits in whatever way.

    Two processes that begin at the same moment may both be refused; never are both admitted.

    Raises:
        errors.Conflict: an executor of another process has it, or an engine; the text names the process or the engine
    """
    lease = f"{_PREFIX}{secrets.token_hex(8)}"
    own = {_BOOT: boot_id(), _PID: str(os.getpid()), _STARTED: _start_of(os.getpid())}
    try:
        await leases.create_lease(lease, labels=own)
        await _refuse_others(leases, namespace, own)
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeouts.cleanup):
            try:
                await _delete(leases, lease)
            except errors.MoorageError as error:
                log.info("cannot delete the lease %s, the next executor does: %s", lease, error)


async def _refuse_others(leases: LeaseStore, namespace: str, own: Mapping[str, str]) -> None:
    """Raise Conflict if an engine or another process that runs has a lease; delete those of exited processes."""
    found = await leases.list_leases()
    if (engine := found.get(ENGINE_LEASE)) is not None:
        raise errors.Conflict(
            f"cannot use the namespace {namespace}: it belongs to the engine on {engine.get(ENGINE_ROOT, '')}, "
            "whether that runs or not; give another one"
        )
    for id, owner in found.items():
        if not id.startswith(_PREFIX) or all(owner.get(key) == value for key, value in own.items()):
            continue
        if _is_running(owner):
            raise errors.Conflict(f"cannot use the namespace {namespace}: process {owner[_PID]} has an executor in it")
        await _delete(leases, id)


async def refuse_executors(leases: LeaseStore, namespace: str) -> None:
    """Raises: Conflict where a process that runs has an executor in the namespace, for an engine that begins."""
    for id, owner in (await leases.list_leases()).items():
        if id.startswith(_PREFIX) and _is_running(owner):
            raise errors.Conflict(
                f"cannot use namespace {namespace}: process {owner[_PID]} has an executor in it; "
                "give another one with --namespace, or use --containerd private"
            )


async def _delete(leases: LeaseStore, id: str) -> None:
    try:
        await leases.delete_lease(id)
    except errors.NotFound:
        pass


def _is_running(owner: Mapping[str, str]) -> bool:
    pid = owner.get(_PID, "")
    return owner.get(_BOOT) == boot_id() and pid.isdecimal() and _start_of(int(pid)) == owner.get(_STARTED) != ""


def _start_of(pid: int) -> str:
    """When a process was started, so that another one with its pid is not taken for it; empty if there is none."""
    found = process_stat(pid)
    return str(found.start_ticks) if found is not None and not found.has_exited else ""
