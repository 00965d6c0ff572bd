"""The write of one blob into containerd's content store, which trusts a blob by digest and size only.

An upload queries what is stored, sends the rest and commits. Answers are read concurrently with the requests, not one
by one: twice as fast. The offset is sent with every request, because a zero, or none, empties the ingest.

A damaged blob is replaced: the bytes are sent without the digest that containerd would answer with "already exists",
and the damaged blob is deleted only when all bytes are stored and correct. Its labels and what they refer to stay.
"""

from __future__ import annotations  # messages are named in them, and are made when they are first used

import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.task_groups import background_tasks
from moorage.containerd._proto import moorage_content_pb2
from moorage.containerd.integrity import DamagedContent, Verification
from moorage.containerd.types import AlreadyExists
from moorage.timeouts import ClientTimeouts

if TYPE_CHECKING:
    from moorage.containerd._rpc import Duplex
    from moorage.containerd.calls.content import ContentCalls

    Streams = Callable[
        [],
        AbstractAsyncContextManager[
            Duplex[moorage_content_pb2.WriteContentRequest, moorage_content_pb2.WriteContentResponse]
        ],
    ]

__all__ = (
    "BeforeCommit",
    "ChunksFrom",
    "ContentWriter",
    "RefLocked",
    "Upload",
)

log = logging.getLogger(__name__)

ChunksFrom = Callable[[int], AsyncIterator[bytes]]
"""The bytes of a blob from an offset on, in chunks of best 256 KiB to 1 MiB."""

BeforeCommit = Callable[[str, int], Awaitable[Mapping[str, str]]]
"""Called with digest and size of bytes that were sent without an expected digest; returns further labels."""


class RefLocked(errors.Busy):
    """Another write has the lock of the ref, or had it a moment ago."""


class Upload:
    """The write of one blob. ``digest`` is the expected one, or else that of the bytes that were sent."""

    def __init__(
        self,
        stream: Duplex[moorage_content_pb2.WriteContentRequest, moorage_content_pb2.WriteContentResponse],
        ref: str,
        digest: str,
        size_bytes: int,
        labels: Mapping[str, str],
        commit_within: float,
        before_commit: BeforeCommit,
    ) -> None:
        """``commit_within``: seconds that containerd has to write it to the disk after the last byte."""
        self.digest = digest
        self.is_sent = False
        """Bytes were sent, so that containerd has hashed all of it."""
        self.already_exists = False
        """containerd answered that it has the blob, and has not compared it with what was sent."""
        self._before_commit = before_commit
        self._stream = stream
        self._ref = ref
        self._expected = digest
        self._size_bytes = size_bytes
        self._labels = labels
        self._commit_within = commit_within
        self._is_committing = False
        self._unanswered = 0
        self._sent = anyio.Event()
        self._committed = anyio.Event()
        self._failure: errors.MoorageError | None = None

    async def run(self, chunks_from: ChunksFrom) -> str:
        """Write everything; the digest.

        Raises:
            AlreadyExists: containerd has the blob
            RefLocked: nothing was taken from ``chunks_from``
            errors.Conflict: the bytes are not the expected ones
            errors.Unavailable: containerd does not answer
        """
        await self._send(moorage_content_pb2.STAT, 0)
        try:
            status = await self._next_answer()
        except errors.Busy as error:
            raise RefLocked(str(error)) from error
        # Without an expected digest only what is sent here can be hashed: the bytes of an earlier try are sent again.
        offset = status.offset if self._expected else 0
        async with background_tasks() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(self._read_answers, scope)
                if not self._has_all(offset):
                    offset = await self._send_all(chunks_from, offset)
                labels = self._labels
                if not self._expected:
                    labels = {**await self._before_commit(self.digest, offset), **labels}
                self._is_committing = True
                await self._send(moorage_content_pb2.COMMIT, offset, labels=labels, is_last=True)
                await self._committed.wait()
        if self._failure is not None:
            raise self._failure
        return self.digest

    def _has_all(self, offset: int) -> bool:
        """Whether containerd has every byte: of an earlier try, or of another namespace."""
        return bool(self._expected) and 0 < self._size_bytes == offset

    async def _send_all(self, chunks_from: ChunksFrom, offset: int) -> int:
        hashed = hashlib.sha256()
        async for chunk in chunks_from(offset):
            if not self._expected:
                hashed.update(chunk)
            await self._send(moorage_content_pb2.WRITE, offset, data=chunk)
            offset += len(chunk)
            self.is_sent = True
        if not self._expected:
            self.digest = f"sha256:{hashed.hexdigest()}"
        return offset

    async def _send(
        self,
        action: moorage_content_pb2.WriteAction,
        offset: int,
        *,
        data: bytes = b"",
        labels: Mapping[str, str] | None = None,
        is_last: bool = False,
    ) -> None:
        request = moorage_content_pb2.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._size_bytes,
            expected=self.digest if action == moorage_content_pb2.COMMIT else self._expected,
            offset=offset,
            data=data,
            labels=labels or {},
        )
        await self._stream.send(request, is_last=is_last)
        self._unanswered += 1
        self._sent.set()

    async def _next_answer(self) -> moorage_content_pb2.WriteContentResponse:
        """One answer to each request. The time without a request, because no bytes arrive, is not limited."""
        while not self._unanswered:
            self._sent = anyio.Event()
            await self._sent.wait()
        answer = await self._stream.receive(self._commit_within if self._is_committing else None)
        self._unanswered -= 1
        return answer

    async def _read_answers(self, scope: anyio.CancelScope) -> None:
        try:
            while (await self._next_answer()).action != moorage_content_pb2.COMMIT:
                pass
            self._committed.set()
        except errors.MoorageError as error:
            self._failure = error
            scope.cancel()


# ------------------------------------------------------------------------------------------------------------ writer


_CONTENT_REFERENCE = "containerd.io/gc.ref.content."
_DIFF_ID = "containerd.io/uncompressed"
"""Label with what a layer unpacks to, which may have been found by unpacking the damaged one."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25  # seconds between two tries to lock a ref


class ContentWriter:
    """Writes one blob under one ref; to be used once."""

    def __init__(
        self, storage: ContentCalls, verification: Verification, streams: Streams, ref: str, timeouts: ClientTimeouts
    ) -> None:
        """``timeouts`` bounds the wait for the lock of the ref, and for the disk after the last byte."""
        self._storage = storage
        self._verification = verification
        self._streams = streams
        self._ref = ref
        self._timeouts = timeouts
        self._digest = ""
        self._size_bytes = 0
        self._labels: Mapping[str, str] = {}

    async def write(self, chunks_from: ChunksFrom, digest: str, size_bytes: int, labels: Mapping[str, str]) -> str:
        """Write the blob if it is missing or damaged; its digest. See ``Storage.write_content``."""
        self._digest, self._size_bytes, self._labels = digest, size_bytes, labels
        if not digest:
            return (await self._send(chunks_from, "")).digest
        upload = await self._send(chunks_from, digest)
        if upload.is_sent and not upload.already_exists:
            await self._verification.mark_verified(digest)
            return digest
        try:
            await self._storage.verify_content(digest)
        except DamagedContent as error:
            if upload.is_sent:  # another process wrote it meanwhile, and the bytes are used up
                raise
            log.warning("%s; it is written again", error)
        else:
            return digest
        await self._send(chunks_from, "")
        await self._check_replaced()
        return digest

    async def _send(self, chunks_from: ChunksFrom, expected: str) -> Upload:
        """One upload, begun again while the ref is locked: of a write that has ended it is, too, for a moment.

        containerd 1.6 and 1.7 wait for the lock themselves, for half a second or so; 2.x answers at once.

        Raises:
            errors.Invalid: the bytes are not the expected ones; they are deleted
            errors.Unavailable: containerd does not answer
            RefLocked: another write of this ref is under way
        """
        deadline = anyio.current_time() + self._timeouts.content_lock
        again = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                return await self._send_once(chunks_from, expected)
            except RefLocked:
                if anyio.current_time() > deadline:
                    raise
            await anyio.sleep(next(again))

    async def _send_once(self, chunks_from: ChunksFrom, expected: str) -> Upload:
        async with self._streams() as stream:
            upload = Upload(
                stream,
                self._ref,
                expected,
                self._size_bytes,
                self._labels,
                self._timeouts.transfer,
                self._delete_damaged_blob,
            )
            try:
                await upload.run(chunks_from)
            except AlreadyExists:
                upload.already_exists = True
                return upload
            except errors.Conflict as error:
                mismatch = errors.Invalid(f"cannot store {self._digest or self._ref}: {error}")
                mismatch.__cause__ = error
            else:
                return upload
        # only now, with this side closed, may the ref be deleted
        await self._storage.abort_ingest(self._ref)
        raise mismatch

    async def _delete_damaged_blob(self, digest: str, size_bytes: int) -> Mapping[str, str]:
        """Delete a damaged blob that this one replaces; the labels that it had.

        Raises: Conflict for other bytes than expected.
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
        await self._storage.collect()  # removes the file; before, containerd would take it for the new blob
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
