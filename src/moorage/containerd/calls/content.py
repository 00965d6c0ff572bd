"""Content: blobs by digest, and the uploads that become blobs."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from moorage import errors
from moorage.containerd import types
from moorage.containerd._content_writer import ChunksFrom, ContentWriter
from moorage.containerd._proto import empty_pb2, field_mask_pb2, moorage_content_pb2
from moorage.containerd.calls import wire
from moorage.containerd.calls.leases import LeaseCalls

if TYPE_CHECKING:
    from moorage.containerd._rpc import Duplex

__all__ = ("ContentCalls",)

_CONTENT = "/containerd.services.content.v1.Content/"


class ContentCalls(LeaseCalls):
    """Blobs, by digest."""

    async def get_content(self, digest: str) -> types.Content:
        """A blob. Raises: NotFound."""
        request = moorage_content_pb2.InfoRequest(digest=digest)
        reply = await self._call(_CONTENT + "Info", request, moorage_content_pb2.InfoResponse)
        return wire.content(reply.info)

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
        return [wire.content(info) for reply in replies for info in reply.info]

    async def set_content_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels, retain others. The ``gc.ref`` labels of a manifest reference its config and layers."""
        request = moorage_content_pb2.UpdateRequest(
            info=moorage_content_pb2.Info(digest=digest, labels=labels),
            update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._call(_CONTENT + "Update", request, moorage_content_pb2.UpdateResponse)

    @asynccontextmanager
    async def read_content(
        self, digest: str, *, offset: int = 0, size_bytes: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a blob, in pieces of at most 1 MiB: from ``offset`` on, ``size_bytes`` of them (0: the rest).

        Raises: NotFound, and Invalid for an offset beyond its last byte; from the iterator.
        """
        async with self._connection.stream(
            _CONTENT + "Read",
            moorage_content_pb2.ReadContentRequest(digest=digest, offset=offset, size=size_bytes),
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
        return wire.ingest(reply.status)

    async def list_ingests(self) -> list[types.Ingest]:
        """Every unfinished upload of the namespace, of every client."""
        request = moorage_content_pb2.ListStatusesRequest()
        reply = await self._call(_CONTENT + "ListStatuses", request, moorage_content_pb2.ListStatusesResponse)
        return [wire.ingest(status) for status in reply.statuses]

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
