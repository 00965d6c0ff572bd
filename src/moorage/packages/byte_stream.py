"""Byte streams that are read forward only, gzipped or not: any number of members, each verified. Blocking."""

import tarfile
import zlib
from collections.abc import Callable
from typing import TypeAlias

__all__ = ("HEADERS_LIMIT", "ByteStream", "DamagedGzip", "GzipReader", "GzipWriter", "NextChunk")

NextChunk: TypeAlias = Callable[[], bytes]
"""Returns the next bytes of a stream; ``b""`` after the last ones."""

_GZIP_MAGIC = b"\x1f\x8b"

HEADERS_LIMIT = 2 << 20
"""Bytes of all that precedes one entry, its sparse map included, and of all global PAX records of a stream."""

_WBITS = 31  # gzip's header and trailer
_PIECE_BYTES = 256 * 1024


class DamagedGzip(Exception):
    """Gzipped data that cannot be decompressed, or have another checksum or length than they state."""


class GzipReader:
    """The contents of a gzipped stream. Whatever follows the last member, such as padding, is ignored, as gzip does."""

    def __init__(self, begin: bytes, next_chunk: NextChunk) -> None:
        """``begin`` are the first bytes of the stream, ``next_chunk`` returns those after them."""
        self._waiting = begin
        self._next_chunk = next_chunk
        self._inflate = zlib.decompressobj(wbits=_WBITS)
        self._has_output = False
        """Whether more output may come without more input."""
        self._is_finished = False

    def next_chunk(self) -> bytes:
        """The next bytes; ``b""`` at the end.

        Raises:
            DamagedGzip: the data are damaged
            EOFError: the stream ends within them
        """
        while not self._is_finished:
            if self._inflate.eof:
                self._begin_member()
                continue
            data = self._waiting
            if not data and not self._has_output:
                data = self._next_chunk()
                if not data:
                    raise EOFError("it breaks off within gzipped data")
            try:
                made = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise DamagedGzip(str(error)) from error
            self._waiting = self._inflate.unconsumed_tail
            self._has_output = len(made) == _PIECE_BYTES
            if made:
                return made
        return b""

    def _begin_member(self) -> None:
        rest = self._inflate.unused_data
        while len(rest) < len(_GZIP_MAGIC) and (chunk := self._next_chunk()):
            rest += chunk
        self._is_finished = not rest.startswith(_GZIP_MAGIC)
        self._waiting = b"" if self._is_finished else rest
        self._inflate = zlib.decompressobj(wbits=_WBITS)
        self._has_output = False


class GzipWriter:
    """A file object for tarfile that compresses. The same bytes always give the same: no time, no name."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        """``put`` is given the compressed bytes, in pieces."""
        self._put = put
        self._compress = zlib.compressobj(1, wbits=_WBITS)
        self._made = bytearray()
        self._position = 0

    def tell(self) -> int:
        """The number of bytes written so far, before compression."""
        return self._position

    def write(self, data: bytes) -> int:
        """Compress bytes; how many there were."""
        self._position += len(data)
        self._made += self._compress.compress(data)
        if len(self._made) >= _PIECE_BYTES:
            self._flush()
        return len(data)

    def close(self) -> None:
        """Write the end of the member."""
        self._made += self._compress.flush()
        self._flush()

    def _flush(self) -> None:
        self._put(bytes(self._made))
        self._made.clear()


class ByteStream:
    """A file object for tarfile that only reads forward, gzipped or not, and bounds what precedes an entry."""

    def __init__(self, next_chunk: NextChunk) -> None:
        self._next_chunk = next_chunk
        self._raw_chunk = next_chunk
        self._buffer = b""
        self._start = 0
        self._position = 0
        self.headers_left = HEADERS_LIMIT
        """Bytes that may still be read before the next entry; None within the contents of one."""
        self.is_limited = True
        begin = self.read(len(_GZIP_MAGIC))
        self._buffer, self._start, self._position = begin + self._buffer[self._start :], 0, 0
        self.is_gzip = begin == _GZIP_MAGIC
        if self.is_gzip:
            self._next_chunk = GzipReader(self._buffer, next_chunk).next_chunk
            self._buffer = b""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end.

        Raises:
            EOFError: the stream ends within gzipped data
            DamagedGzip: the gzipped data are damaged
            tarfile.ReadError: too many bytes precede an entry
        """
        if self.is_limited:
            self.headers_left -= size
            if self.headers_left < 0:
                raise tarfile.ReadError(f"over {HEADERS_LIMIT} bytes of headers before one entry")
        end = self._start + size
        if end <= len(self._buffer):
            data = self._buffer[self._start : end]
            self._start = end
        else:
            data = self._read_on(size)
        self._position += len(data)
        return data

    def _read_on(self, size: int) -> bytes:
        """The rest of the buffer, and chunks after it."""
        parts = [self._buffer[self._start :]]
        missing = size - len(parts[0])
        self._buffer, self._start = b"", 0
        while missing and (chunk := self._next_chunk()):
            if len(chunk) > missing:
                self._buffer, self._start = chunk, missing
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        """As ``read``, and the bytes can be read again."""
        data = self.read(size)
        self._buffer, self._start = data + self._buffer[self._start :], 0
        self._position -= len(data)
        self.headers_left += size
        return data

    def tell(self) -> int:
        """The number of bytes read so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip bytes up to a position.

        Raises:
            EOFError: the stream ends before it
        """
        missing = position - self._position
        if missing < 0:
            raise tarfile.StreamError("a stream cannot be read backwards")
        while missing > 0:
            if self._start == len(self._buffer):
                self._buffer, self._start = self._next_chunk(), 0
                if not self._buffer:
                    raise EOFError("it breaks off within an entry")
            count = min(missing, len(self._buffer) - self._start)
            self._start += count
            self._position += count
            missing -= count

    def drain(self, *, raw: bool = False) -> None:
        """Read to the end, where the checksum of gzipped data is; with ``raw`` also what follows gzipped data."""
        self._buffer, self._start = b"", 0
        while self._next_chunk():
            pass
        while raw and self._raw_chunk():
            pass
