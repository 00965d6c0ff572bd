"""The write of one blob into containerd's content store, in which a blob is trusted by digest and size only.

A damaged blob is replaced: the bytes are sent without the digest that containerd would answer with "already exists",
and the damaged one is deleted only when all of them are there and right. Its labels and what they refer to stay.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from moorage import errors
from moorage.containerd._proto.moorage_content_pb2 import WriteContentRequest, WriteContentResponse
from moorage.containerd._rpc import AlreadyExists, Duplex
from moorage.containerd._upload import ChunksFrom, Upload
from moorage.containerd._verification import Verification
from moorage.containerd.damage import DamagedContent

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("ContentWriter",)

log = logging.getLogger(__name__)

_CONTENT_REFERENCE = "containerd.io/gc.ref.content."
_DIFF_ID = "containerd.io/uncompressed"
"""Label with what a layer unpacks to, which may have been found by unpacking the damaged one."""

Streams = Callable[[], AbstractAsyncContextManager[Duplex[WriteContentRequest, WriteContentResponse]]]


class ContentWriter:
    """Writes one blob under one ref; to be used once."""

    def __init__(
        self, storage: "Storage", verification: Verification, streams: Streams, ref: str, commit_within: float
    ) -> None:
        """``commit_within``: seconds in which containerd has the blob on the disk after the last byte."""
        self._storage = storage
        self._verification = verification
        self._streams = streams
        self._ref = ref
        self._commit_within = commit_within
        self._digest = ""
        self._size_bytes = 0
        self._labels: Mapping[str, str] = {}

    async def write(self, chunks_from: ChunksFrom, digest: str, size_bytes: int, labels: Mapping[str, str]) -> str:
        """Write it if it is not there or damaged; its digest. See ``Storage.write_content``."""
        self._digest, self._size_bytes, self._labels = digest, size_bytes, labels
        if not digest:
            return (await self._send(chunks_from, "")).digest
        upload = await self._send(chunks_from, digest)
        if upload.is_sent and not upload.existed:
            await self._verification.note(digest)
            return digest
        try:
            await self._storage.verify_content(digest)
        except DamagedContent as error:
            if upload.is_sent:  # somebody else wrote it meanwhile, and the bytes are used up
                raise
            log.warning("%s; it is written again", error)
        else:
            return digest
        await self._send(chunks_from, "")
        await self._check_replaced()
        return digest

    async def _send(self, chunks_from: ChunksFrom, expected: str) -> Upload:
        """One upload. Raises: Invalid, and what was sent is deleted; Unavailable."""
        async with self._streams() as stream:
            upload = Upload(
                stream, self._ref, expected, self._size_bytes, self._labels, self._commit_within, self._make_room
            )
            try:
                await upload.run(chunks_from)
            except AlreadyExists:
                upload.existed = True
                return upload
            except errors.Conflict as error:
                mismatch = errors.Invalid(f"cannot store {self._digest or self._ref}: {error}")
                mismatch.__cause__ = error
            else:
                return upload
        # only now, with our end closed, is the ref free to be deleted
        await self._storage.abort_ingest(self._ref)
        raise mismatch

    async def _make_room(self, digest: str, size_bytes: int) -> Mapping[str, str]:
        """Delete a damaged blob in whose place this one comes; the labels that it had.

        Raises: Conflict for bytes that are not those that were expected.
        """
        if self._digest and digest != self._digest:
            raise errors.Conflict(f"unexpected commit digest {digest}, expected {self._digest}")
        if self._size_bytes and size_bytes != self._size_bytes:
            raise errors.Conflict(f"unexpected commit size {size_bytes}, expected {self._size_bytes}")
        try:
            await self._storage.verify_content(digest)
        except errors.NotFound:
            return {}
        except DamagedContent:
            return await self._delete(digest)
        return {}

    async def _delete(self, digest: str) -> Mapping[str, str]:
        labels = (await self._storage.get_content(digest)).labels
        for key, referred in labels.items():
            if key.startswith(_CONTENT_REFERENCE):
                await self._storage.add_content_to_lease(referred)
        await self._storage.delete_content(digest)
        await self._storage.collect()  # the file goes only now; before, containerd would take it for the new blob
        return {key: value for key, value in labels.items() if key != _DIFF_ID}

    async def _check_replaced(self) -> None:
        try:
            await self._storage.verify_content(self._digest)
        except DamagedContent as error:
            text = (
                f"{error.damage}; it cannot be replaced because another namespace of this containerd refers to it: "
                f"delete it there as well (ctr --namespace NAME content rm {self._digest})"
            )
            raise DamagedContent(self._digest, text) from error
