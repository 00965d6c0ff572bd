"""Messages of the engine and the plugin proxy: lengths, pieces, descriptors."""

import os
import socket
from collections.abc import Iterator

import pytest

from moorage.proxy.frames import MOST_BYTES, MOST_DESCRIPTORS, FrameReader, FrameWriter, read_some

pytestmark = pytest.mark.quick

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    with one, other:
        yield one, other


def receive(reader: FrameReader, connection: socket.socket) -> list[bytes]:
    """Every message that has come."""
    while True:
        try:
            reader.feed(*read_some(connection))
        except BlockingIOError:
            break
    found = []
    while (message := reader.next()) is not None:
        found.append(message)
    return found


def test_messages_come_whole_and_in_order(pair: Pair) -> None:
    reader = FrameReader()
    for message in (b"", b"one", b"x" * 1000):
        assert FrameWriter(message).send(pair[0])
    assert receive(reader, pair[1]) == [b"", b"one", b"x" * 1000]


def test_a_message_larger_than_the_buffer_is_sent_in_pieces(pair: Pair) -> None:
    reader, message = FrameReader(), os.urandom(3_000_000)
    writer = FrameWriter(message)
    found: list[bytes] = []
    while not writer.send(pair[0]):
        found += receive(reader, pair[1])
    assert found + receive(reader, pair[1]) == [message]


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("count", [1, MOST_DESCRIPTORS, MOST_DESCRIPTORS + 1, 2 * MOST_DESCRIPTORS + 7])
def test_p18_descriptors_arrive_in_order_however_many(pair: Pair, count: int) -> None:
    reader = FrameReader()
    ends: list[tuple[int, int]] = []
    try:
        ends += (os.pipe() for _ in range(count))
        assert FrameWriter(b"before").send(pair[0])
        assert FrameWriter(b"with descriptors", [read for read, _ in ends]).send(pair[0])
        assert receive(reader, pair[1]) == [b"before", b"with descriptors"]
        taken = reader.take(count)
        assert [os.fstat(each).st_ino for each in taken] == [os.fstat(read).st_ino for read, _ in ends]
        assert not any(os.get_inheritable(each) for each in taken)
        for each in taken:
            os.close(each)
    finally:
        for read, write in ends:
            os.close(read)
            os.close(write)


def test_descriptors_that_are_not_taken_are_closed(pair: Pair) -> None:
    reader = FrameReader()
    read, write = os.pipe()
    assert FrameWriter(b"m", [write]).send(pair[0])
    os.close(write)
    receive(reader, pair[1])
    with pytest.raises(ValueError, match="1 descriptors instead of 2"):
        reader.take(2)
    reader.close()
    assert os.read(read, 1) == b"", "no writer has the pipe open"
    os.close(read)


def test_a_length_that_no_message_has_is_refused() -> None:
    reader = FrameReader()
    reader.feed((MOST_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="a message of"):
        reader.next()


def test_a_closed_connection_has_no_bytes(pair: Pair) -> None:
    pair[0].close()
    assert read_some(pair[1]) == (b"", [])
