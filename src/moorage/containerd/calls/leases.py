"""Leases: what references objects while they are made."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import anyio

from moorage import errors
from moorage.containerd import types
from moorage.containerd._proto import empty_pb2, moorage_leases_pb2
from moorage.containerd.calls.storage_base import StorageCalls

__all__ = ("LeaseCalls",)

_LEASES = "/containerd.services.leases.v1.Leases/"
_EXPIRE_LABEL = "containerd.io/gc.expire"


class LeaseCalls(StorageCalls):
    """Leases, and what they reference."""

    async def create_lease(
        self, id: str, *, expires_at: datetime | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        """Create a lease, which is ignored after ``expires_at``.

        Raises:
            errors.Conflict: it exists
        """
        end = {_EXPIRE_LABEL: expires_at.isoformat()} if expires_at else {}
        request = moorage_leases_pb2.CreateRequest(id=id, labels={**self._marks, **(labels or {}), **end})
        await self._call(_LEASES + "Create", request, moorage_leases_pb2.CreateResponse)

    async def list_leases(self) -> dict[str, dict[str, str]]:
        """Every lease of the namespace with its labels."""
        request = moorage_leases_pb2.ListRequest()
        reply = await self._call(_LEASES + "List", request, moorage_leases_pb2.ListResponse)
        return {lease.id: dict(lease.labels) for lease in reply.leases}

    async def delete_lease(self, id: str, *, collect: bool = False) -> None:
        """Delete a lease; with ``collect`` return after the collection that follows. Raises: NotFound."""
        request = moorage_leases_pb2.DeleteRequest(id=id, sync=collect)
        await self._slow_call(_LEASES + "Delete", request, empty_pb2.Empty)

    async def add_snapshot_to_lease(self, id: str, snapshotter: str, key: str) -> None:
        """Let a lease reference a snapshot, existing or not: containerd 1.6 does not do so for an existing one."""
        await self._add_to_lease(id, f"snapshots/{snapshotter}", key)

    async def list_lease_resources(self, id: str) -> list[types.LeaseResource]:
        """What a lease references. Raises: NotFound."""
        request = moorage_leases_pb2.ListResourcesRequest(id=id)
        reply = await self._call(_LEASES + "ListResources", request, moorage_leases_pb2.ListResourcesResponse)
        return [types.LeaseResource(each.id, each.type) for each in reply.resources]

    async def remove_from_lease(self, id: str, resource: types.LeaseResource) -> None:
        """Let a lease reference an object no longer. Raises: NotFound for the lease."""
        message = moorage_leases_pb2.Resource(id=resource.id, type=resource.kind)
        request = moorage_leases_pb2.DeleteResourceRequest(id=id, resource=message)
        await self._call(_LEASES + "DeleteResource", request, empty_pb2.Empty)

    async def _add_to_lease(self, id: str, kind: str, key: str) -> None:
        resource = moorage_leases_pb2.Resource(id=key, type=kind)
        request = moorage_leases_pb2.AddResourceRequest(id=id, resource=resource)
        await self._call(_LEASES + "AddResource", request, empty_pb2.Empty)

    async def collect(self) -> None:
        """Remove now what has no reference: the deletion of an empty lease waits for a collection."""
        plain = self.under("")
        id = f"moorage-collect-{secrets.token_hex(4)}"  # unique: a second deletion would not wait for a collection
        try:
            await plain.create_lease(id)
            await plain.delete_lease(id, collect=True)
        except errors.NotFound:
            pass  # another engine deleted it
        except BaseException:  # also where containerd has created it, and the call was cancelled
            with anyio.move_on_after(self._timeouts.cleanup, shield=True), suppress(errors.MoorageError):
                await plain.delete_lease(id)
            raise
