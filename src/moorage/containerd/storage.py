"""containerd's storage: content, images, snapshots, unpacking, leases. One method for each call, no policy.

The next collection removes whatever has no reference: work under a lease (``under``) until an image record references
the result. Collections run by themselves, or now by ``collect``.

Source: containerd's API (``api/services/{content,images,snapshots,diff,leases}/v1`` of containerd 1.6).
"""

from __future__ import annotations  # messages are named in them, and are made when they are first used

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from moorage import errors
from moorage.containerd import _wire, types
from moorage.containerd._content_writer import ChunksFrom, ContentWriter
from moorage.containerd._proto import (
    empty_pb2,
    field_mask_pb2,
    moorage_content_pb2,
    moorage_diff_pb2,
    moorage_images_pb2,
    moorage_leases_pb2,
    moorage_snapshots_pb2,
)
from moorage.containerd.integrity import Verification
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from moorage.containerd._rpc import Duplex, GrpcConnection, Reply

__all__ = ("Storage",)

_CONTENT = "/containerd.services.content.v1.Content/"
_DIFF = "/containerd.services.diff.v1.Diff/"
_IMAGES = "/containerd.services.images.v1.Images/"
_LEASES = "/containerd.services.leases.v1.Leases/"
_SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots/"

_EXPIRE_LABEL = "containerd.io/gc.expire"


class Storage:
    """The storage of one containerd, in one namespace. Made by ``Client.storage``."""

    def __init__(
        self,
        connection: GrpcConnection,
        namespace: str,
        timeouts: Timeouts,
        verification: Verification,
        *,
        lease: str = "",
        marks: Mapping[str, str] | None = None,
        ref_prefix: str = "",
    ) -> None:
        """``verification`` is shared by all users of one connection; ``marks`` are labels of all that is created, and
        the refs of all uploads start with ``ref_prefix``.
        """
        self._connection = connection
        self._namespace = namespace
        self._timeouts = timeouts
        self._verification = verification
        self._lease = lease
        self._marks = dict(marks or {})
        self._ref_prefix = ref_prefix

    def under(self, lease: str) -> Storage:
        """The same storage; this lease references what is created through it."""
        return self._copy(lease, self._marks, self._ref_prefix)

    def marked(self, marks: Mapping[str, str], ref_prefix: str) -> Storage:
        """The same storage; leases, images, snapshots and content that are created through it have these labels, and
        the refs of uploads, which have no labels, this prefix.
        """
        return self._copy(self._lease, marks, ref_prefix)

    def _copy(self, lease: str, marks: Mapping[str, str], ref_prefix: str) -> Storage:
        return Storage(
            self._connection,
            self._namespace,
            self._timeouts,
            self._verification,
            lease=lease,
            marks=marks,
            ref_prefix=ref_prefix,
        )

    def _full_ref(self, ref: str) -> str:
        return ref if ref.startswith(self._ref_prefix) else self._ref_prefix + ref

    # leases

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

    async def _add_to_lease(self, id: str, kind: str, key: str) -> None:
        resource = moorage_leases_pb2.Resource(id=key, type=kind)
        request = moorage_leases_pb2.AddResourceRequest(id=id, resource=resource)
        await self._call(_LEASES + "AddResource", request, empty_pb2.Empty)

    async def collect(self) -> None:
        """Remove now what has no reference: the deletion of an empty lease waits for a collection."""
        plain = self.under("")
        id = f"moorage-collect-{secrets.token_hex(4)}"  # unique: a second deletion would not wait for a collection
        await plain.create_lease(id)
        try:
            await plain.delete_lease(id, collect=True)
        except errors.NotFound:
            pass  # another engine deleted it

    # content

    async def get_content(self, digest: str) -> types.Content:
        """A blob. Raises: NotFound."""
        request = moorage_content_pb2.InfoRequest(digest=digest)
        reply = await self._call(_CONTENT + "Info", request, moorage_content_pb2.InfoResponse)
        return _wire.content(reply.info)

    async def verify_content(self, digest: str) -> types.Content:
        """A blob whose bytes are those of its digest: hashed at its first use since this process started.

        Raises:
            errors.NotFound: no such blob
            DamagedContent: its bytes do not match its digest, or are missing
        """
        found = await self.get_content(digest)
        await self._verification.check(digest, found.size_bytes, self.read_content)
        return found

    async def list_content(self) -> list[types.Content]:
        """Every blob of the namespace."""
        request = moorage_content_pb2.ListContentRequest()
        replies = await self._all(_CONTENT + "List", request, moorage_content_pb2.ListContentResponse)
        return [_wire.content(info) for reply in replies for info in reply.info]

    async def set_content_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels, retain others. The ``gc.ref`` labels of a manifest reference its config and layers."""
        request = moorage_content_pb2.UpdateRequest(
            info=moorage_content_pb2.Info(digest=digest, labels=labels),
            update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._call(_CONTENT + "Update", request, moorage_content_pb2.UpdateResponse)

    @asynccontextmanager
    async def read_content(self, digest: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a blob, in pieces of at most 1 MiB. Raises: NotFound, from the iterator."""
        async with self._connection.stream(
            _CONTENT + "Read",
            moorage_content_pb2.ReadContentRequest(digest=digest),
            moorage_content_pb2.ReadContentResponse,
            namespace=self._namespace,
            within=self._timeouts.rpc,
        ) as replies:
            yield (reply.data async for reply in replies)

    async def find_ingest(self, ref: str) -> types.Ingest | None:
        """The unfinished upload under this ref; None if there is none."""
        request = moorage_content_pb2.StatusRequest(ref=self._full_ref(ref))
        try:
            reply = await self._call(_CONTENT + "Status", request, moorage_content_pb2.StatusResponse)
        except errors.NotFound:
            return None
        return _wire.ingest(reply.status)

    async def list_ingests(self) -> list[types.Ingest]:
        """Every unfinished upload of the namespace, of every client."""
        request = moorage_content_pb2.ListStatusesRequest()
        reply = await self._call(_CONTENT + "ListStatuses", request, moorage_content_pb2.ListStatusesResponse)
        return [_wire.ingest(status) for status in reply.statuses]

    async def abort_ingest(self, ref: str) -> None:
        """Discard an unfinished upload, which must have no writer. Raises: NotFound."""
        await self._call(_CONTENT + "Abort", moorage_content_pb2.AbortRequest(ref=self._full_ref(ref)), empty_pb2.Empty)

    async def write_content(
        self,
        ref: str,
        chunks_from: ChunksFrom,
        *,
        digest: str = "",
        size_bytes: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Write a blob and return its digest; what an earlier try under this ref has written is not sent again.

        ``chunks_from(offset)`` is called at most once. With ``digest`` a blob that exists and is intact is not written
        at all (and its labels stay as they are); a damaged one is replaced. One writer at a time has a ref.

        Raises:
            errors.Invalid: the bytes do not match ``digest`` or ``size_bytes`` (0: not checked); they are deleted
            DamagedContent: a damaged blob cannot be replaced
            errors.Unavailable: the ref has another writer, or containerd does not answer; the bytes are retained for
                the next try
        """
        full_ref = self._full_ref(ref)
        writer = ContentWriter(self, self._verification, self._write_stream, full_ref, self._timeouts)
        return await writer.write(chunks_from, digest, size_bytes, {**self._marks, **(labels or {})})

    def _write_stream(
        self,
    ) -> AbstractAsyncContextManager[
        Duplex[moorage_content_pb2.WriteContentRequest, moorage_content_pb2.WriteContentResponse]
    ]:
        return self._connection.duplex(
            _CONTENT + "Write",
            moorage_content_pb2.WriteContentRequest,
            moorage_content_pb2.WriteContentResponse,
            namespace=self._namespace,
            within=self._timeouts.rpc,
            lease=self._lease,
        )

    async def delete_content(self, digest: str) -> None:
        """Remove a blob from this namespace; the next collection removes its file. Raises: NotFound."""
        await self._call(_CONTENT + "Delete", moorage_content_pb2.DeleteContentRequest(digest=digest), empty_pb2.Empty)

    async def add_content_to_lease(self, digest: str) -> None:
        """Add a blob to the lease of this storage, if it has one."""
        if self._lease:
            await self._add_to_lease(self._lease, "content", digest)

    # images

    async def create_image(self, image: types.Image) -> None:
        """Write a record: last, because it references everything else. Raises: Conflict."""
        marked = replace(image, labels={**self._marks, **image.labels})
        request = moorage_images_pb2.ImageMessage(image=_wire.image_message(marked))
        await self._call(_IMAGES + "Create", request, moorage_images_pb2.ImageMessage)

    async def update_image(self, image: types.Image) -> None:
        """Replace target and labels of a record in one step. Raises: NotFound."""
        request = moorage_images_pb2.UpdateImageRequest(
            image=_wire.image_message(image), update_mask=field_mask_pb2.FieldMask(paths=["target", "labels"])
        )
        await self._call(_IMAGES + "Update", request, moorage_images_pb2.ImageMessage)

    async def get_image(self, name: str) -> types.Image:
        """A record. Raises: NotFound."""
        request = moorage_images_pb2.GetImageRequest(name=name)
        return _wire.image((await self._call(_IMAGES + "Get", request, moorage_images_pb2.ImageMessage)).image)

    async def list_images(self) -> list[types.Image]:
        """Every record of the namespace."""
        request = moorage_images_pb2.ListImagesRequest()
        reply = await self._call(_IMAGES + "List", request, moorage_images_pb2.ListImagesResponse)
        return [_wire.image(image) for image in reply.images]

    async def delete_image(self, name: str, *, collect: bool = False) -> None:
        """Remove a record; with ``collect`` return after what only it referenced is removed. Raises: NotFound."""
        request = moorage_images_pb2.DeleteImageRequest(name=name, sync=collect)
        await self._slow_call(_IMAGES + "Delete", request, empty_pb2.Empty)

    # snapshots

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
        return [_wire.mount_value(mount) for mount in reply.mounts]

    async def snapshot_mounts(self, snapshotter: str, key: str) -> list[types.Mount]:
        """The mounts of a writable snapshot. Two users at once would damage it. Raises: NotFound."""
        reply = await self._snapshot("Mounts", snapshotter, key, moorage_snapshots_pb2.MountsResponse)
        return [_wire.mount_value(mount) for mount in reply.mounts]

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
        return _wire.snapshot(reply.info)

    async def snapshot_usage(self, snapshotter: str, key: str) -> types.Usage:
        """The disk usage of a snapshot. Raises: NotFound."""
        reply = await self._snapshot("Usage", snapshotter, key, moorage_snapshots_pb2.UsageResponse)
        return types.Usage(reply.size, reply.inodes)

    async def list_snapshots(self, snapshotter: str) -> list[types.Snapshot]:
        """Every snapshot of the namespace."""
        request = moorage_snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
        replies = await self._all(_SNAPSHOTS + "List", request, moorage_snapshots_pb2.ListSnapshotsResponse)
        return [_wire.snapshot(info) for reply in replies for info in reply.info]

    async def apply(self, layer: types.Descriptor, mounts: Sequence[types.Mount]) -> types.Descriptor:
        """Unpack a layer into a writable snapshot; what was unpacked (its digest is the diff id).

        gzip, zstd and plain tar are recognized by their bytes. After a failure the snapshot must be removed.

        Raises:
            errors.MoorageError: an unknown media type, or the bytes are not a layer; containerd's text
        """
        request = moorage_diff_pb2.ApplyRequest(
            diff=_wire.descriptor_message(layer), mounts=[_wire.mount(mount) for mount in mounts]
        )
        reply = await self._slow_call(_DIFF + "Apply", request, moorage_diff_pb2.ApplyResponse)
        return _wire.descriptor(reply.applied)

    async def _call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        return await self._unary(method, request, reply, self._timeouts.rpc)

    async def _slow_call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call that takes as long as the data is large."""
        return await self._unary(method, request, reply, self._timeouts.transfer)

    async def _unary(self, method: str, request: Message, reply: type[Reply], within: float) -> Reply:
        return await self._connection.unary(
            method, request, reply, namespace=self._namespace, within=within, lease=self._lease
        )

    async def _snapshot(self, verb: str, snapshotter: str, key: str, reply: type[Reply]) -> Reply:
        request = moorage_snapshots_pb2.SnapshotKey(snapshotter=snapshotter, key=key)
        return await self._slow_call(_SNAPSHOTS + verb, request, reply)

    async def _all(self, method: str, request: Message, reply: type[Reply]) -> list[Reply]:
        async with self._connection.stream(
            method, request, reply, namespace=self._namespace, within=self._timeouts.rpc
        ) as messages:
            return [message async for message in messages]
