"""Which executor has a namespace: a lease of containerd names its process, as long as that runs.

Two executors in one namespace would take each other's containers for leftovers.
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
from moorage.timeouts import Timeouts

__all__ = ("LeaseStore", "own_namespace")

log = logging.getLogger(__name__)

_LEASE = "moorage.executor"
_BOOT, _PID, _STARTED, _TOKEN = "moorage.boot", "moorage.pid", "moorage.started", "moorage.token"
_TRIES = 3  # another executor may replace the lease of a killed one at the same moment


class LeaseStore(Protocol):
    """The leases of one namespace of a containerd."""

    async def create_lease(self, id: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create a lease. Raises: errors.Conflict if it exists."""

    async def list_leases(self) -> dict[str, dict[str, str]]:
        """Every lease with its labels."""

    async def delete_lease(self, id: str) -> None:
        """Delete a lease. Raises: errors.NotFound."""


@asynccontextmanager
async def own_namespace(leases: LeaseStore, namespace: str, timeouts: Timeouts) -> AsyncIterator[None]:
    """The namespace belongs to this executor until the block ends, or its process exits in whatever way.

    Raises:
        errors.Conflict: another executor has it; the text names its process
    """
    labels = {_BOOT: boot_id(), _PID: str(os.getpid()), _STARTED: _start_of(os.getpid()), _TOKEN: secrets.token_hex(8)}
    for _ in range(_TRIES):
        try:
            await leases.create_lease(_LEASE, labels=labels)
            break
        except errors.Conflict:
            owner = (await leases.list_leases()).get(_LEASE)
            if owner is not None and _is_running(owner):
                raise errors.Conflict(
                    f"cannot use the namespace {namespace}: process {owner[_PID]} has an executor in it"
                ) from None
            await _delete(leases)
    else:
        raise errors.Conflict(f"cannot use the namespace {namespace}: other executors begin in it at the same time")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeouts.cleanup):
            try:
                await _delete(leases)
            except errors.MoorageError as error:
                log.info("cannot delete the lease %s, the next executor does: %s", _LEASE, error)


async def _delete(leases: LeaseStore) -> None:
    try:
        await leases.delete_lease(_LEASE)
    except errors.NotFound:
        pass


def _is_running(owner: Mapping[str, str]) -> bool:
    pid = owner.get(_PID, "")
    return owner.get(_BOOT) == boot_id() and pid.isdecimal() and _start_of(int(pid)) == owner.get(_STARTED) != ""


def _start_of(pid: int) -> str:
    """When a process was started, so that another one with its pid is not taken for it; empty if there is none."""
    found = process_stat(pid)
    return str(found.start_ticks) if found is not None and not found.has_exited else ""
