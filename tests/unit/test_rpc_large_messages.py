"""Large messages on a stream of grpclib, against a peer that is h2 itself: it checks every window and every frame."""

import contextlib
import struct
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import Connection, Stream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, WindowUpdated
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from moorage.containerd._rpc import send_large

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

STREAM, OTHER = 1, 3
FRAME = 16384
HEADERS = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "a")]


class Wire:
    """A client's end of a connection whose other end takes the bytes at once and opens its windows on request."""

    def __init__(self, *, window: int = 65535, frame: int = FRAME) -> None:
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.peer = H2Connection(H2Configuration(client_side=False, header_encoding="ascii"))
        self.received = {STREAM: b"", OTHER: b""}
        self.frames: list[int] = []
        self._owed: list[tuple[int, int]] = []
        self.client.initiate_connection()
        self.peer.initiate_connection()
        self.peer.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame})
        connection = Connection(self.client, self, config=Configuration().__for_client__())  # type: ignore[arg-type]
        self.wrapper = Wrapper()
        self.stream = Stream(connection, self.client, self, stream_id=STREAM, wrapper=self.wrapper)  # type: ignore[arg-type]
        for id in (STREAM, OTHER):
            self.client.send_headers(id, HEADERS)
        self.write(self.client.data_to_send())
        self._to_client()
        self.write(self.client.data_to_send())

    def write(self, data: bytes) -> None:
        for event in self.peer.receive_data(data):
            if isinstance(event, DataReceived):
                self.received[event.stream_id] += event.data
                self.frames.append(len(event.data))
                self._owed.append((event.stream_id, event.flow_controlled_length))

    def writelines(self, parts: list[bytes | memoryview]) -> None:
        self.write(b"".join(parts))

    def open_windows(self) -> bool:
        """Let the client send on; False where it has sent nothing since."""
        owed, self._owed = self._owed, []
        for id, count in owed:
            self.peer.acknowledge_received_data(count, id)
        self._to_client()
        return bool(owed)

    def _to_client(self) -> None:
        if any(isinstance(event, WindowUpdated) for event in self.client.receive_data(self.peer.data_to_send())):
            self.stream.window_updated.set()

    async def send(self, message: bytes) -> None:
        """Send it, with windows that open whenever they are full."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_open)
            await send_large(self.stream, message)
            tasks.cancel_scope.cancel()

    async def _keep_open(self) -> None:
        while True:
            await anyio.wait_all_tasks_blocked()
            self.open_windows()

    def windows_agree(self) -> bool:
        """Whether both ends think the same of what may still be sent."""
        return all(
            self.client.local_flow_control_window(id) == self.peer.remote_flow_control_window(id)
            for id in (STREAM, OTHER)
        )


WINDOWS = (1, 5, 100, FRAME, 65535, 1 << 20)
LENGTHS = (0, 1, FRAME - 5, FRAME - 4, 2 * FRAME, 65530, 65531, 200_001)


@pytest.mark.parametrize(("window", "length"), [(w, n) for w in WINDOWS for n in LENGTHS if n <= 3000 * w])
async def test_a_message_arrives_whole_whatever_the_windows_are(window: int, length: int) -> None:
    wire, message = Wire(window=window), bytes(number % 251 for number in range(length))
    await wire.send(message)
    assert wire.received[STREAM] == struct.pack(">BL", 0, length) + message
    assert max(wire.frames) <= FRAME
    assert wire.windows_agree()


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=3000)), max_size=12), st.integers(1000, 70000))
def test_what_h2_sends_itself_on_this_and_other_streams_fits_in_between(
    messages: list[tuple[bool, bytes]], window: int
) -> None:
    async def run() -> None:
        wire = Wire(window=window)
        for is_large, message in messages:
            if is_large:
                await wire.send(message * 20)
            else:
                wire.open_windows()
                wire.client.send_data(OTHER, message[:1000])
                wire.write(wire.client.data_to_send())
            assert wire.windows_agree() or wire.open_windows()
        large = [message * 20 for is_large, message in messages if is_large]
        assert wire.received[STREAM] == b"".join(struct.pack(">BL", 0, len(each)) + each for each in large)
        assert wire.received[OTHER] == b"".join(message[:1000] for is_large, message in messages if not is_large)

    anyio.run(run)


async def test_frames_are_as_large_as_the_peer_takes_them() -> None:
    wire = Wire(window=1 << 20, frame=4 * FRAME)
    await wire.send(bytes(3 * FRAME))
    assert wire.frames == [3 * FRAME + 5]


async def test_a_sender_waiting_for_a_window_gets_the_end_of_the_connection() -> None:
    wire = Wire(window=10)
    failures: list[Exception] = []

    async def send() -> None:
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            try:
                await send_large(wire.stream, bytes(100))
            except StreamTerminatedError as error:
                failures.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert len(wire.received[STREAM]) == 10
        wire.stream.__terminated__("lost")
    assert [str(error) for error in failures] == ["lost"]


async def test_a_cancelled_message_leaves_the_connection_as_it_should_be() -> None:
    wire = Wire(window=40_000)
    with anyio.move_on_after(0) as scope:
        await send_large(wire.stream, bytes(100_000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_large, wire.stream, bytes(100_000))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert scope.cancel_called
    assert wire.windows_agree()
    wire.client.reset_stream(STREAM)
    wire.client.send_data(OTHER, b"still there")
    wire.write(wire.client.data_to_send())
    assert wire.received[OTHER] == b"still there"


async def test_a_stream_that_the_peer_has_reset_takes_nothing_more() -> None:
    wire: Any = Wire()
    wire.peer.reset_stream(STREAM)
    wire._to_client()
    with pytest.raises(StreamClosedError):
        await send_large(wire.stream, bytes(100_000))
    assert wire.received[STREAM] == b""
