"""One blob into the content store: ask what is there, send the rest, commit.

Answers are read behind the requests, not one by one: twice as fast. The offset is sent with every request, because a
zero, or none, empties the ingest.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import anyio

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage.containerd._proto.moorage_content_pb2 import (
    COMMIT,
    STAT,
    WRITE,
    WriteAction,
    WriteContentRequest,
    WriteContentResponse,
)
from moorage.containerd._rpc import Duplex

__all__ = ("BeforeCommit", "ChunksFrom", "Upload")

ChunksFrom = Callable[[int], AsyncIterator[bytes]]
"""The bytes of a blob from an offset on, in chunks of best 256 KiB to 1 MiB."""

BeforeCommit = Callable[[str, int], Awaitable[Mapping[str, str]]]
"""Called with digest and size of bytes that were sent without an expected digest; returns further labels."""


class Upload:
    """The write of one blob. ``digest`` is what was asked for, or else that of the bytes that were sent."""

    def __init__(
        self,
        stream: Duplex[WriteContentRequest, WriteContentResponse],
        ref: str,
        digest: str,
        size_bytes: int,
        labels: Mapping[str, str],
        commit_within: float,
        before_commit: BeforeCommit,
    ) -> None:
        """``commit_within``: seconds in which containerd has it on the disk after the last byte."""
        self.digest = digest
        self.is_sent = False
        """Bytes were sent, so that containerd has hashed all of it."""
        self.existed = False
        """containerd said that it has the blob, and has not compared it with what was sent."""
        self._before_commit = before_commit
        self._stream = stream
        self._ref = ref
        self._expected = digest
        self._size_bytes = size_bytes
        self._labels = labels
        self._commit_within = commit_within
        self._is_committing = False
        self._unanswered = 0
        self._more = anyio.Event()
        self._committed = anyio.Event()
        self._failure: errors.MoorageError | None = None

    async def run(self, chunks_from: ChunksFrom) -> str:
        """Write everything; the digest. Raises: AlreadyExists, Conflict for other bytes than expected, Unavailable."""
        await self._send(STAT, 0)
        begun = await self._next_answer()
        # Without an expected digest only what is sent here can be hashed, so what an earlier try left is sent again.
        offset = begun.offset if self._expected else 0
        async with background_tasks() as tasks:
            with anyio.CancelScope() as sending:
                tasks.start_soon(self._read_answers, sending)
                if not self._has_all(offset):
                    offset = await self._send_all(chunks_from, offset)
                labels = self._labels
                if not self._expected:
                    labels = {**await self._before_commit(self.digest, offset), **labels}
                self._is_committing = True
                await self._send(COMMIT, offset, labels=labels, is_last=True)
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
            await self._send(WRITE, offset, data=chunk)
            offset += len(chunk)
            self.is_sent = True
        if not self._expected:
            self.digest = f"sha256:{hashed.hexdigest()}"
        return offset

    async def _send(
        self,
        action: WriteAction,
        offset: int,
        *,
        data: bytes = b"",
        labels: Mapping[str, str] | None = None,
        is_last: bool = False,
    ) -> None:
        request = WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._size_bytes,
            expected=self.digest if action == COMMIT else self._expected,
            offset=offset,
            data=data,
            labels=labels or {},
        )
        await self._stream.send(request, is_last=is_last)
        self._unanswered += 1
        self._more.set()

    async def _next_answer(self) -> WriteContentResponse:
        """One answer to each request. The time in which nothing is asked, because no bytes come, is nobody's fault."""
        while not self._unanswered:
            self._more = anyio.Event()
            await self._more.wait()
        answer = await self._stream.receive(self._commit_within if self._is_committing else None)
        self._unanswered -= 1
        return answer

    async def _read_answers(self, sending: anyio.CancelScope) -> None:
        try:
            while (await self._next_answer()).action != COMMIT:
                pass
            self._committed.set()
        except errors.MoorageError as error:
            self._failure = error
            sending.cancel()
