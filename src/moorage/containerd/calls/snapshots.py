"""Snapshots: layers, and writable file systems on top of them."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moorage.containerd import types
from moorage.containerd._proto import empty_pb2, field_mask_pb2, moorage_diff_pb2, moorage_snapshots_pb2
from moorage.containerd.calls import wire
from moorage.containerd.calls.storage_base import StorageCalls

if TYPE_CHECKING:
    from moorage.containerd._rpc import Reply

__all__ = ("SnapshotCalls",)

_DIFF = "/containerd.services.diff.v1.Diff/"
_SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots/"


class SnapshotCalls(StorageCalls):
    """Snapshots, and unpacking layers into them."""

    async def prepare_snapshot(self, snapshotter: str, key: str, parent: str = "") -> list[types.Mount]:
        """Create a writable snapshot on top of a committed one; its mounts.

        Raises:
            errors.Conflict: the key exists
            errors.NotFound: no such parent
        """
        request = moorage_snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=self._marks
        )
        reply = await self._call(_SNAPSHOTS + "Prepare", request, moorage_snapshots_pb2.MountsResponse)
        return [wire.mount_value(mount) for mount in reply.mounts]

    async def view_snapshot(self, snapshotter: str, key: str, parent: str = "") -> list[types.Mount]:
        """Create a read-only snapshot of a committed one; its mounts. Remove it as a writable one.

        Raises:
            errors.Conflict: the key exists
            errors.NotFound: no such parent
        """
        request = moorage_snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=self._marks
        )
        reply = await self._call(_SNAPSHOTS + "View", request, moorage_snapshots_pb2.MountsResponse)
        return [wire.mount_value(mount) for mount in reply.mounts]

    async def set_snapshot_labels(self, snapshotter: str, key: str, labels: Mapping[str, str]) -> None:
        """Set these labels, retain others. Raises: NotFound."""
        request = moorage_snapshots_pb2.UpdateSnapshotRequest(
            snapshotter=snapshotter,
            info=moorage_snapshots_pb2.Info(name=key, labels=labels),
            update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{each}" for each in labels]),
        )
        await self._call(_SNAPSHOTS + "Update", request, moorage_snapshots_pb2.UpdateSnapshotResponse)

    async def snapshot_mounts(self, snapshotter: str, key: str) -> list[types.Mount]:
        """The mounts of a writable snapshot. Two users at once would damage it. Raises: NotFound."""
        reply = await self._snapshot("Mounts", snapshotter, key, moorage_snapshots_pb2.MountsResponse)
        return [wire.mount_value(mount) for mount in reply.mounts]

    async def commit_snapshot(self, snapshotter: str, name: str, key: str) -> None:
        """Turn a writable snapshot into a layer.

        Raises:
            errors.NotFound: no such key
            errors.Conflict: the name exists; the key stays
        """
        request = moorage_snapshots_pb2.CommitSnapshotRequest(
            snapshotter=snapshotter, name=name, key=key, labels=self._marks
        )
        await self._slow_call(_SNAPSHOTS + "Commit", request, empty_pb2.Empty)

    async def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot, also one that a running task uses.

        Raises:
            errors.NotFound: no such snapshot
            errors.Conflict: it has children
        """
        await self._snapshot("Remove", snapshotter, key, empty_pb2.Empty)

    async def get_snapshot(self, snapshotter: str, key: str) -> types.Snapshot:
        """A snapshot. Raises: NotFound."""
        reply = await self._snapshot("Stat", snapshotter, key, moorage_snapshots_pb2.StatSnapshotResponse)
        return wire.snapshot(reply.info)

    async def snapshot_usage(self, snapshotter: str, key: str) -> types.Usage:
        """The disk usage of a snapshot. Raises: NotFound."""
        reply = await self._snapshot("Usage", snapshotter, key, moorage_snapshots_pb2.UsageResponse)
        return types.Usage(reply.size, reply.inodes)

    async def list_snapshots(self, snapshotter: str) -> list[types.Snapshot]:
        """Every snapshot of the namespace."""
        request = moorage_snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
        replies = await self._all(_SNAPSHOTS + "List", request, moorage_snapshots_pb2.ListSnapshotsResponse)
        return [wire.snapshot(info) for reply in replies for info in reply.info]

    async def apply(self, layer: types.Descriptor, mounts: Sequence[types.Mount]) -> types.Descriptor:
        """Unpack a layer into a writable snapshot; what was unpacked (its digest is the diff id).

        gzip, zstd and plain tar are recognized by their bytes. After a failure the snapshot must be removed.

        Raises:
            errors.MoorageError: an unknown media type, or the bytes are not a layer; containerd's text
        """
        request = moorage_diff_pb2.ApplyRequest(
            diff=wire.descriptor_message(layer), mounts=[wire.mount(mount) for mount in mounts]
        )
        reply = await self._slow_call(_DIFF + "Apply", request, moorage_diff_pb2.ApplyResponse)
        return wire.descriptor(reply.applied)

    async def _snapshot(self, verb: str, snapshotter: str, key: str, reply: type[Reply]) -> Reply:
        request = moorage_snapshots_pb2.SnapshotKey(snapshotter=snapshotter, key=key)
        return await self._slow_call(_SNAPSHOTS + verb, request, reply)
