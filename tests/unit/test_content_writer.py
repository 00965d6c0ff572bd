"""One blob on its way into the content store, against a stream that answers like containerd's."""

from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import pytest

from moorage.containerd._content_writer import Upload
from moorage.containerd._proto import moorage_content_pb2

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

COMMIT_WITHIN = 77.0


class Stream:
    """Answers each request; a wait without a request would raise that containerd does not answer."""

    def __init__(self) -> None:
        self._requests: deque[moorage_content_pb2.WriteContentRequest] = deque()
        self.bounds: list[tuple[int, float | None]] = []

    async def send(self, message: moorage_content_pb2.WriteContentRequest, *, is_last: bool = False) -> None:
        await anyio.lowlevel.checkpoint()
        self._requests.append(message)

    async def receive(self, within: float | None = None) -> moorage_content_pb2.WriteContentResponse:
        assert self._requests, "an answer is waited for, and there was no question"
        request = self._requests.popleft()
        self.bounds.append((request.action, within))
        await anyio.lowlevel.checkpoint()
        return moorage_content_pb2.WriteContentResponse(action=request.action)


async def nothing_there(digest: str, size_bytes: int) -> Mapping[str, str]:
    return {}


async def test_a_source_that_pauses_is_not_taken_for_a_containerd_that_does_not_answer() -> None:
    async def chunks(offset: int) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"
            await anyio.wait_all_tasks_blocked()

    stream: Any = Stream()
    await Upload(stream, "ref", "", 0, {}, COMMIT_WITHIN, nothing_there).run(chunks)
    assert stream.bounds[-1] == (moorage_content_pb2.COMMIT, COMMIT_WITHIN), (
        "a large blob needs its time to be on the disk"
    )
    assert [within for _, within in stream.bounds[:-1]] == [None] * 4
