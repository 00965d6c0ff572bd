"""The entries of a tar stream as they come, without a file and without a thread: for archives of a few large files.

What it takes is what archives of OCI layouts have: files and directories with plain names, in any of tar's formats,
gzipped or not. Links and devices have no business in them.
"""

import posixpath
import tarfile
import zlib
from collections.abc import AsyncIterator

from msgspec import Struct

from moorage import errors
from moorage._lib.escaping import escape
from moorage._lib.values import repr_without
from moorage.distribution._retar import MOST_HEADERS

__all__ = ("Entry", "OtherEntry", "read_entries")

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 256 * 1024
_LENGTH_DIGITS = 9  # of a pax record
_EXTRA_LIMIT = 64 * 1024  # bytes of a long name or of a set of pax fields
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_GZIP = b"\x1f\x8b"


class OtherEntry(errors.Invalid):
    """A link or a device."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cannot read the archive: {name!r} is neither a file nor a directory")
        self.name = name


class _Stream:
    """Bytes by number, of chunks that come; gzip is told by its first two."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._rest = bytearray()
        self._packed = b""
        self._unzip: zlib._Decompress | None = None
        self._has_ended = False
        self._has_begun = False

    async def _more(self) -> bool:
        """Take the next bytes in; False at the end. Raises: Invalid for damaged gzip."""
        if self._unzip is not None and self._packed:
            return self._unpack(b"")
        chunk = await self._next_chunk()
        if not self._has_begun and chunk[:1] == _GZIP[:1]:
            if len(chunk) < 2:
                chunk += await self._next_chunk()
            if chunk[:2] == _GZIP:
                self._unzip = zlib.decompressobj(wbits=31)
        self._has_begun = True
        if self._unzip is not None:
            return bool(chunk) and self._unpack(chunk)
        self._rest += chunk
        return bool(chunk)

    async def _next_chunk(self) -> bytes:
        """What comes next; nothing at the end."""
        while not self._has_ended:
            try:
                if chunk := await anext(self._body):
                    return chunk
            except StopAsyncIteration:
                self._has_ended = True
        return b""

    def _unpack(self, chunk: bytes) -> bool:
        assert self._unzip is not None
        if self._unzip.eof:
            return True  # what follows the end of the gzip is passed over; zlib would keep all of it
        try:
            self._rest += self._unzip.decompress(self._packed + chunk, _PIECE)
        except zlib.error as error:
            raise errors.Invalid(f"cannot read the archive: its gzip is damaged: {error}") from error
        self._packed = self._unzip.unconsumed_tail
        return True

    async def pieces(self, count: int, where: str) -> AsyncIterator[bytes]:
        """As many bytes. Raises: Invalid where it ends before, naming what is cut off."""
        while count:
            if not self._rest and not await self._more():
                raise errors.Invalid(f"cannot read the archive: it ends in the middle of {where}")
            taken = bytes(self._rest[: min(count, _PIECE)])
            del self._rest[: len(taken)]
            count -= len(taken)
            if taken:
                yield taken

    async def read(self, count: int, where: str) -> bytes:
        """As ``pieces``, in one."""
        return b"".join([each async for each in self.pieces(count, where)])

    async def is_at_end(self) -> bool:
        """Whether nothing comes any more."""
        while not self._rest:
            if not await self._more():
                return True
        return False

    async def drain(self) -> None:
        """Read to the end what is of no interest: whoever sends it must not be cut off."""
        while await self._more():
            self._rest.clear()


class Entry(Struct):
    """A file or a directory of an archive. Its bytes can be read until the next entry is asked for.

    ``name`` is relative to the archive, and what cannot be shown in it is escaped.
    """

    name: str
    size_bytes: int
    is_file: bool
    _stream: _Stream
    left_bytes: int = 0

    __repr__ = repr_without("_stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes. Raises: Invalid where the archive ends before them."""
        async for piece in self._stream.pieces(self.left_bytes, self.name):
            self.left_bytes -= len(piece)
            yield piece

    async def read(self, limit: int) -> bytes:
        """All of it. Raises: Invalid for more than ``limit`` bytes."""
        if self.size_bytes > limit:
            raise errors.Invalid(f"cannot read the archive: {self.name} has {self.size_bytes} bytes, {limit} at most")
        return b"".join([each async for each in self.chunks()])


async def read_entries(body: AsyncIterator[bytes]) -> AsyncIterator[Entry]:
    """Every file and directory of a tar stream, one after another.

    Raises: Invalid, naming the entry, for what is no tar, ends too early, or has names that lead elsewhere, links or
    devices.
    """
    stream = _Stream(body)
    extra: dict[str, str] = {}
    before = 0
    while header := await _next_header(stream):
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            before += 1
            if before > MOST_HEADERS:
                raise errors.Invalid(f"cannot read the archive: over {MOST_HEADERS} headers before one entry")
            fields = await _read_extra(stream, header)
            extra |= fields if header.type != tarfile.XGLTYPE else {}
            continue
        entry = _entry(header, extra, stream)
        extra, before = {}, 0
        yield entry
        async for _ in entry.chunks():
            pass  # what nobody has read
        await stream.read(-entry.size_bytes % _BLOCK, entry.name)
    await stream.drain()


async def _next_header(stream: _Stream) -> tarfile.TarInfo | None:
    """The next header; None at the end: a block of zeros, or nothing where something was before."""
    if await stream.is_at_end():
        raise errors.Invalid("cannot read the archive: it ends before its end mark")
    raw = await stream.read(_BLOCK, "a header")
    try:
        header = tarfile.TarInfo.frombuf(raw, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except tarfile.HeaderError as error:
        raise errors.Invalid(f"cannot read the archive: it is no tar, or it is damaged: {error}") from error
    if header.size < 0:
        raise errors.Invalid(f"cannot read the archive: it is damaged: {header.name!r} has {header.size} bytes")
    return header


async def _read_extra(stream: _Stream, header: tarfile.TarInfo) -> dict[str, str]:
    """What a header says of the next one: its path and size, of what it can say."""
    if header.size > _EXTRA_LIMIT:
        raise errors.Invalid(f"cannot read the archive: a name or a field in it has {header.size} bytes")
    raw = await stream.read(header.size, "a header")
    await stream.read(-header.size % _BLOCK, "a header")
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": raw.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE) and raw:
        length, space, rest = raw.partition(b" ")
        is_number = length.isdigit() and len(length) <= _LENGTH_DIGITS  # Python refuses to read thousands of digits
        if not space or not is_number or not len(length) + 1 < int(length) <= len(raw):
            raise errors.Invalid("cannot read the archive: a pax header in it is damaged")
        key, _, value = rest[: int(length) - len(length) - 1].removesuffix(b"\n").partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        raw = raw[int(length) :]
    return found


def _entry(header: tarfile.TarInfo, extra: dict[str, str], stream: _Stream) -> Entry:
    name, size = extra.get("path", header.name), header.size
    if "size" in extra:
        if not extra["size"].isdecimal() or len(extra["size"]) > 18:
            raise errors.Invalid(f"cannot read the archive: the size of {name!r} is no number")
        size = int(extra["size"])
    if ".." in name.split("/"):
        raise errors.Invalid(f"cannot read the archive: the entry {name!r} leads out of it")
    plain = posixpath.normpath(name.lstrip("/") or ".")  # what is absolute is relative to the archive
    if header.type not in (*_FILES, tarfile.DIRTYPE):
        raise OtherEntry(plain)
    is_file = header.type in _FILES and not name.endswith("/")
    size = size if is_file else 0
    return Entry(escape(plain), size, is_file, stream, size)
