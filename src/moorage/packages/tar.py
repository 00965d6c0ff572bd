"""Tar streams, read once by the standard library's tarfile, gzipped or not: packages, and archives of OCI layouts.

Everything here but ``read_entries`` blocks: it runs in a worker thread, which waits for the event loop where the stream
has nothing yet. Only a piece of a stream is in memory at a time: what tarfile reads whole, all that precedes an entry,
is bounded.
"""

import posixpath
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import anyio.from_thread
import anyio.to_thread
from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import escape
from moorage._lib.values import repr_without
from moorage.packages.byte_stream import HEADERS_LIMIT, ByteStream, DamagedGzip, NextChunk

__all__ = (
    "FORMAT",
    "HEADER_LIMIT",
    "PIECE_BYTES",
    "REGULAR_TYPES",
    "TAR_DAMAGE",
    "ArchiveReader",
    "Entry",
    "OtherEntry",
    "TarReader",
    "read_entries",
)

Result = TypeVar("Result")

HEADER_LIMIT = 1024 * 1024
"""Bytes of one header that precedes an entry: a long name, or PAX records with extended attributes. Each is read whole;
the kernel takes names of 4 KiB and 64 KiB of attributes."""

HEADER_COUNT = 16
"""Headers that precede one entry: a name, a link's target, PAX records, each once, is what tars have."""

PIECE_BYTES = 1 << 20
"""Bytes of one read of contents: larger ones cost less for each byte, in a thread and in containerd."""

_LENGTH_DIGITS = 9  # of a PAX record
_SIZE_DIGITS = 18
REGULAR_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_BEFORE_ENTRIES = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
FORMAT: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
"""Names are bytes, whatever the locale says."""

TAR_DAMAGE = (tarfile.TarError, DamagedGzip, EOFError, UnicodeError, ValueError, OSError, ArithmeticError)
"""Whatever tarfile raises for bytes that are not a tar stream."""


class OtherEntry(errors.Invalid):
    """A link or a device in an archive, which has only files and directories."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cannot read the archive: {name!r} is neither a file nor a directory")
        self.name = name


class _Header(tarfile.TarInfo):
    """A header whose damage is reported: tarfile takes a damaged one after the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        return cls._checked(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **more: bool) -> "_Header":
        """What tarfile itself calls in Pythons of 2026, also of Debian 12; before, it was ``frombuf``."""
        return cls._checked(super()._frombuf, buf, encoding, errors, **more)  # type: ignore[misc]

    @staticmethod
    def _checked(make: Callable[..., "_Header"], *arguments: object, **more: bool) -> "_Header":
        try:
            header = make(*arguments, **more)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0:
            raise tarfile.ReadError(f"{header.name!r} has {header.size} bytes")
        if header.type in _BEFORE_ENTRIES and header.size > HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {header.size} bytes; at most {HEADER_LIMIT} are read")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        assert isinstance(archive, TarReader)
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.has_end = True
            raise

    def _proc_member(self, archive: "TarReader") -> "_Header":
        """What tarfile calls for each header; it calls itself for one that precedes an entry."""
        archive.headers += self.type in _BEFORE_ENTRIES
        if archive.headers > HEADER_COUNT:
            raise tarfile.ReadError(f"over {HEADER_COUNT} headers before one entry")
        if self.type in _PAX:
            _check_pax(archive.byte_stream.peek(self.size))
        try:
            made: _Header = super()._proc_member(archive)  # type: ignore[misc]
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error  # else tarfile takes it for the end of the archive
        if self.type == tarfile.XGLTYPE:
            archive.check_global_records()
        return made


class TarReader(tarfile.TarFile):
    """A tar stream with bounded headers that remembers no entries."""

    headers = 0
    has_end = False
    """Whether the end mark, a block of zeros, has been read."""

    def __init__(self, stream: ByteStream) -> None:
        self.byte_stream = stream  # "stream" is an attribute of tarfile's own since Python 3.13.4
        super().__init__(fileobj=stream, mode="r", tarinfo=_Header, **FORMAT)  # type: ignore[arg-type]

    def next(self) -> tarfile.TarInfo | None:
        self.headers = 0
        self.byte_stream.headers_left, self.byte_stream.is_limited = HEADERS_LIMIT, True
        try:
            return super().next()
        finally:
            self.byte_stream.is_limited = False
            self.members.clear()  # type: ignore[attr-defined] # it keeps every entry otherwise, and a root may have a million

    def check_global_records(self) -> None:
        """Raises: tarfile.ReadError where global PAX records, which stay to the end, are too large together."""
        if sum(len(key) + len(value) for key, value in self.pax_headers.items()) > HEADERS_LIMIT:
            raise tarfile.ReadError(f"over {HEADERS_LIMIT} bytes of global headers")


class ArchiveReader:
    """The files and directories of an archive, one after another, and their contents. Blocking.

    Names are relative to the archive, and unprintable characters in them are escaped. Links and devices are refused.
    """

    def __init__(self, next_chunk: NextChunk) -> None:
        """``next_chunk`` returns the archive as it comes, ``b""`` after the last chunk. Nothing is read yet."""
        self._next_chunk = next_chunk
        self._stream: ByteStream | None = None
        self._archive: TarReader | None = None
        self._file: IO[bytes] | None = None
        self._name = ""
        """Of the entry that is read; empty between entries."""
        self.left_bytes = 0
        """Of the contents of the entry that is read."""

    def next(self) -> tuple[str, int, bool] | None:
        """Name, size in bytes and whether it is a file of the next entry; None at the end of the archive.

        Raises:
            errors.Invalid: it is not a tar, is truncated or damaged, or has a name that leads out of it
            OtherEntry: it has a link or a device
        """
        with self._reporting_damage():
            if self._archive is None:
                self._stream = ByteStream(self._next_chunk)
                self._archive = TarReader(self._stream)
            entry = self._archive.next()
            if entry is not None:
                return self._begin(entry)
            assert self._stream is not None
            if not self._archive.has_end:
                raise errors.Invalid("cannot read the archive: it ends before the end mark")
            self._name = ""
            self._stream.drain(raw=True)  # the sender must not be cut off
            return None

    def _begin(self, entry: tarfile.TarInfo) -> tuple[str, int, bool]:
        if ".." in entry.name.split("/"):
            raise errors.Invalid(f"cannot read the archive: the entry {entry.name!r} leads out of it")
        plain = posixpath.normpath(entry.name.lstrip("/") or ".")  # what is absolute is relative to the archive
        if entry.issparse() or entry.type not in (*REGULAR_TYPES, tarfile.DIRTYPE):
            raise OtherEntry(plain)
        assert self._archive is not None
        is_file = entry.isfile()
        self._file = self._archive.extractfile(entry) if is_file else None
        self._name, self.left_bytes = escape(plain), entry.size if is_file else 0
        return self._name, self.left_bytes, is_file

    def read(self) -> bytes:
        """The next piece of the entry's contents; ``b""`` after the last one.

        Raises:
            errors.Invalid: the archive is truncated or damaged
        """
        with self._reporting_damage():
            if not self.left_bytes or self._file is None:
                return b""
            piece = self._file.read(min(self.left_bytes, PIECE_BYTES))
            if not piece:
                raise EOFError
            self.left_bytes -= len(piece)
            return piece

    @contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        except DamagedGzip as error:
            raise errors.Invalid(f"cannot read the archive: its gzip is damaged: {error}") from error
        except TAR_DAMAGE as error:
            text = str(error)
            if isinstance(error, EOFError) or text in ("unexpected end of data", "truncated header"):
                raise errors.Invalid(
                    f"cannot read the archive: it ends in the middle of {self._name or 'a header'}"
                ) from error
            if text == "empty file":
                raise errors.Invalid("cannot read the archive: it ends before the end mark") from error
            raise errors.Invalid(f"cannot read the archive: it is no tar, or it is damaged: {error}") from error


class _BodyFailure(Exception):
    """The body failed, not the archive."""


class _ArchiveThread:
    """Runs an archive's reader in a worker thread, and gets the body for it from the event loop."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self.reader = ArchiveReader(lambda: anyio.from_thread.run(self._receive))
        self._body = body
        self._failure: Exception | None = None
        self._is_finished = False

    async def _receive(self) -> bytes:
        while not self._is_finished:
            try:
                if chunk := await anext(self._body):
                    return chunk
            except StopAsyncIteration:
                self._is_finished = True
            except Exception as error:
                self._failure = error
                raise _BodyFailure from error
        return b""

    async def run(self, function: Callable[[], Result]) -> Result:
        """The function's result. Cancelled, it ends when the thread does, whose wait for the body is cancelled too.

        Raises: what the function and the body raise.
        """
        try:
            return await anyio.to_thread.run_sync(function)
        except _BodyFailure:
            if self._failure is not None:
                raise self._failure from None
            raise


class Entry(Struct):
    """A file or a directory of an archive; its contents can be read until the next entry is requested.

    ``name`` is relative to the archive, and unprintable characters in it are escaped. ``size_bytes`` is the size of its
    contents, ``is_file`` is False for a directory.
    """

    name: str
    size_bytes: int
    is_file: bool
    _thread: _ArchiveThread

    __repr__ = repr_without("_thread")

    @property
    def left_bytes(self) -> int:
        """Of the contents: as many have not been read."""
        return self._thread.reader.left_bytes

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its contents.

        Raises:
            errors.Invalid: the archive is truncated or damaged
        """
        while chunk := await self._thread.run(self._thread.reader.read):
            yield chunk

    async def read(self, limit: int) -> bytes:
        """All its contents.

        Raises:
            errors.Invalid: it has more than ``limit`` bytes, or the archive is truncated or damaged
        """
        if self.size_bytes > limit:
            raise errors.Invalid(f"cannot read the archive: {self.name} has {self.size_bytes} bytes, {limit} at most")
        return b"".join([each async for each in self.chunks()])


async def read_entries(body: AsyncIterator[bytes]) -> AsyncGenerator[Entry, None]:
    """Every file and directory of an archive, one after another; the body is read completely.

    Raises:
        errors.Invalid: naming the entry: it is not a tar, or is truncated or damaged, or has a name that leads out of
            it, a link or a device
    """
    thread = _ArchiveThread(body)
    while (found := await thread.run(thread.reader.next)) is not None:
        yield Entry(*found, thread)


def _check_pax(raw: bytes) -> None:
    """Check that PAX records are whole and that sizes in them are numbers, as dockerd does.

    tarfile takes others for something, or refuses them, depending on its version.
    """
    while raw:
        length, space, rest = raw.partition(b" ")
        is_number = length.isdigit() and len(length) <= _LENGTH_DIGITS  # Python refuses to read thousands of digits
        if not space or not is_number or not len(length) + 1 < int(length) <= len(raw):
            raise tarfile.ReadError("a pax header in it is damaged")
        key, _, value = rest[: int(length) - len(length) - 1].removesuffix(b"\n").partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) <= _SIZE_DIGITS):
            raise tarfile.ReadError("a size in it is not a number")
        raw = raw[int(length) :]
