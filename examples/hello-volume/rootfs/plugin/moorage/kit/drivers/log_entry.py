"""Log entries of dockerd: length-prefixed protocol buffer messages, in FIFOs and in the answers of ReadLogs.

A frame is 4 bytes, big endian, and as many bytes of a LogEntry. Written by hand, because a protobuf library would
be larger than everything else in a plugin.
Source: moby's api/types/plugins/logdriver/entry.proto and io.go.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ("FRAME_BYTES", "EntryJoiner", "FrameDecoder", "LogEntry", "decode_entry", "encode_frame")

FRAME_BYTES = 1 << 20
"""Of one frame; dockerd splits lines at 16 KiB."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class LogEntry:
    """A line, or a part of one."""

    line: bytes
    """Without the newline."""
    source: str = "stdout"
    """stdout or stderr."""
    time_nano: int = 0
    """Since 1970, in nanoseconds."""
    is_partial: bool = False
    """Whether more of the line follows."""
    partial_id: str = ""
    """The same for all parts of a line; empty from an old dockerd."""
    partial_ordinal: int = 0
    is_last_part: bool = False
    attributes: dict[str, str] = field(default_factory=dict)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the position behind it. Raises: ValueError."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("a number is truncated")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message with their numbers. Raises: ValueError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has no number")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field is of an unknown type, {kind}")
        if at + size > len(data):
            raise ValueError("a field is truncated")
        yield number, data[at : at + size]
        at += size


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a number was expected")
    return value


def _data(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("bytes were expected")
    return value


def decode_entry(data: bytes) -> LogEntry:
    """The entry that a message has.

    Raises:
        ValueError: it is not one
    """
    values = {"source": "", "line": b"", "time_nano": 0, "is_partial": False}
    partial: dict[int, int | bytes] = {}
    attributes: dict[str, str] = {}
    for number, value in _fields(data):
        if number == 1:
            values["source"] = _data(value).decode()
        elif number == 2:
            values["time_nano"] = _number(value)
        elif number == 3:
            values["line"] = _data(value)
        elif number == 4:
            values["is_partial"] = bool(_number(value))
        elif number == 5:
            partial = dict(_fields(_data(value)))
        elif number == 6:
            pair = dict(_fields(_data(value)))
            attributes[_data(pair.get(1, b"")).decode()] = _data(pair.get(2, b"")).decode()
    return LogEntry(
        **values,  # type: ignore[arg-type]  # each has the type of its field
        partial_id=_data(partial.get(2, b"")).decode(),
        partial_ordinal=_number(partial.get(3, 0)),
        is_last_part=bool(_number(partial.get(1, 0))),
        attributes=attributes,
    )


def _encoded(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _encoded(number << 3) + _encoded(value) if value else b""
    data = value.encode() if isinstance(value, str) else value
    return _encoded(number << 3 | _BYTES) + _encoded(len(data)) + data if data else b""


def encode_frame(entry: LogEntry) -> bytes:
    """The frame of an entry."""
    message = (
        _field(1, entry.source)
        + _field(2, entry.time_nano)
        + _field(3, entry.line)
        + _field(4, int(entry.is_partial))
        + _field(
            5,
            _field(1, int(entry.is_last_part)) + _field(2, entry.partial_id) + _field(3, entry.partial_ordinal),
        )
        + b"".join(_field(6, _field(1, key) + _field(2, value)) for key, value in entry.attributes.items())
    )
    return len(message).to_bytes(4, "big") + message


class FrameDecoder:
    """Finds the entries in a stream of frames.

    The first bytes may be the rest of a frame whose beginning a killed plugin has read; then everything up to the next
    whole frame is skipped.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped_bytes = 0
        """Which belonged to no frame."""

    @property
    def is_between_frames(self) -> bool:
        """Whether all bytes so far were whole frames."""
        return not self._buffer

    def feed(self, data: bytes) -> Iterator[LogEntry]:
        """The entries that are whole now."""
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= 4:
                size = int.from_bytes(self._buffer[at : at + 4], "big")
                if size <= FRAME_BYTES and len(self._buffer) - at < 4 + size:
                    if self._may_begin(at):
                        return
                elif size <= FRAME_BYTES:
                    entry = _plausible(bytes(self._buffer[at + 4 : at + 4 + size]))
                    if entry is not None:
                        at += 4 + size
                        yield entry
                        continue
                at += 1
                self.skipped_bytes += 1
        finally:
            del self._buffer[:at]

    def _may_begin(self, at: int) -> bool:
        """Whether the truncated frame at this position can be one: an entry begins with its source or its time."""
        return len(self._buffer) - at == 4 or self._buffer[at + 4] in (0x0A, 0x10, 0x1A)


def _plausible(message: bytes) -> LogEntry | None:
    try:
        entry = decode_entry(message)
    except ValueError:
        return None
    return entry if entry.source in ("stdout", "stderr") else None


class EntryJoiner:
    """Joins the parts of long lines."""

    def __init__(self, line_bytes: int = 1 << 20) -> None:
        """``line_bytes``: a longer line is returned in pieces of about this size."""
        self._limit = line_bytes
        self._parts: dict[tuple[str, str], list[LogEntry]] = {}

    def join(self, entry: LogEntry) -> LogEntry | None:
        """The whole line, if this entry completes one. It has the time of its first part."""
        key = entry.source, entry.partial_id
        parts = self._parts.get(key, [])
        if not parts and not entry.is_partial:
            return entry
        parts = [*parts, entry]
        is_whole = entry.is_last_part if entry.partial_id else not entry.is_partial
        if not is_whole and sum(len(each.line) for each in parts) < self._limit:
            self._parts[key] = parts
            return None
        self._parts.pop(key, None)
        line = b"".join(each.line for each in parts)
        return LogEntry(line, entry.source, parts[0].time_nano, attributes=parts[0].attributes)

    def flush(self) -> Iterator[LogEntry]:
        """Lines whose last part never arrived, at the end of a stream."""
        for (source, _), parts in self._parts.items():
            yield LogEntry(b"".join(each.line for each in parts), source, parts[0].time_nano)
        self._parts.clear()
