"""A package's tar stream, read once: the config taken out, the root file system written again as a layer.

Everything here blocks: it runs in a worker thread, between a source and a sink that wait for the loop.
"""

import copy
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from typing import IO

from moorage import errors

__all__ = ("CONFIG_LIMIT", "Source", "retar")

CONFIG_LIMIT = 1024 * 1024
"""Most bytes of a config.json; the largest that is known has some ten thousand."""

HEADER_LIMIT = 1024 * 1024
"""Most bytes of what stands before an entry: a long name, or PAX records with its extended attributes. Each is read
whole; the kernel takes names of 4 KiB and 64 KiB of attributes."""

MOST_HEADERS = 16
"""Headers that stand before one entry: a name, a link's target, PAX records, each once, is what tars have."""

SPARSE_LIMIT = 64 << 30
"""Most bytes of a file of which the stream has only parts: nothing else bounds what is written for it."""

_NUMBERS = {
    "uid": (0, (1 << 32) - 2),
    "gid": (0, (1 << 32) - 2),
    "mode": (0, 0o177777),
    "size": (0, 1 << 62),
    "devmajor": (0, (1 << 32) - 1),
    "devminor": (0, (1 << 32) - 1),
    "mtime": (-(1 << 40), 1 << 40),
}
"""What the kernel takes, in seconds for the time."""

_BLOCK = 256 * 1024
_PIECE = 10 * 1024  # as much as tarfile reads at once: a slow sender is not waited for longer than it would
_READS_AFTER_END = 100  # a whole archive needs a few
_GZIP_MAGIC = b"\x1f\x8b"
_ROOT = "rootfs"
_CONFIG = "config.json"
_XATTR = "SCHILY.xattr."
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_TYPES = (
    *_FILES,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


_BEFORE_ENTRIES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_NAMES = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
"""Names are bytes, whatever the locale says."""


class _StrictEntry(tarfile.TarInfo):
    """An entry whose damage is told: tarfile takes a damaged header after the first one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictEntry":
        return cls._strict(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **more: bool) -> "_StrictEntry":
        """What tarfile itself calls in Pythons of 2026, also of Debian 12; before, it was ``frombuf``."""
        return cls._strict(super()._frombuf, buf, encoding, errors, **more)  # type: ignore[misc]

    @staticmethod
    def _strict(make: Callable[..., "_StrictEntry"], *arguments: object, **more: bool) -> "_StrictEntry":
        try:
            entry = make(*arguments, **more)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if entry.type in _BEFORE_ENTRIES and not 0 <= entry.size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {entry.size} bytes; at most {HEADER_LIMIT} are read")
        return entry

    def _proc_member(self, archive: tarfile.TarFile) -> "_StrictEntry":
        """What tarfile calls for each header; it calls itself for one that stands before an entry."""
        before = getattr(archive, "headers_before", 0) + (self.type in _BEFORE_ENTRIES)
        if before > MOST_HEADERS:
            raise tarfile.ReadError(f"over {MOST_HEADERS} headers before one entry")
        archive.headers_before = before  # type: ignore[attr-defined]
        try:
            made: _StrictEntry = super()._proc_member(archive)  # type: ignore[misc]
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error  # else tarfile takes it for the end of the archive
        archive.headers_before = 0  # type: ignore[attr-defined]
        return made


class Source:
    """A stream to read, made of chunks that come from a function; ``b""`` is the end."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._rest = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        taken = self.peek(size)
        self._rest = self._rest[size:]
        return taken

    def peek(self, size: int) -> bytes:
        """The same, and they are still to be read."""
        while len(self._rest) < size and not self._ended:
            chunk = self._next_chunk()
            self._ended = not chunk
            self._rest += chunk
        return self._rest[:size]


class _Bounded:
    """A source that fails when it is read again and again after its end.

    tarfile skips an entry by reading as many pieces as its header says, also where none come any more: a header that
    claims 8 EiB would keep a thread busy for centuries.
    """

    def __init__(self, source: "Source | _Gunzip") -> None:
        self._source = source
        self._reads_after_end = 0

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end. Raises: EOFError, zlib.error."""
        data = self._source.read(size)
        if not data:
            self._reads_after_end += 1
            if self._reads_after_end > _READS_AFTER_END:
                raise EOFError("it breaks off within an entry")
        return data


class _Gunzip:
    """What a gzipped source holds. Checksum and length are looked at, which tarfile does not; also several in a row."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._waiting = b""
        self._inflate = zlib.decompressobj(wbits=31)
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end. Raises: zlib.error, EOFError."""
        made = bytearray()
        while len(made) < size and not self._ended:
            data = self._waiting or self._source.read(_PIECE)
            if not data and not self._inflate.eof:
                raise EOFError("it breaks off within gzipped data")
            made += self._inflate.decompress(data, size - len(made))
            self._waiting = self._inflate.unconsumed_tail
            if self._inflate.eof:
                self._begin_next()
        return bytes(made)

    def _begin_next(self) -> None:
        self._waiting = self._inflate.unused_data or self._source.read(_PIECE)
        self._ended = not self._waiting.startswith(_GZIP_MAGIC)
        self._inflate = zlib.decompressobj(wbits=31)

    def check_the_rest(self) -> None:
        """Read to the end, where the checksum is: of a tar only padding is left. Raises: zlib.error, EOFError."""
        while self.read(_BLOCK):
            pass


class _Gzip:
    """Takes what a tar writes, gives it compressed. The same bytes always give the same: no time, no name."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._compress = zlib.compressobj(1, wbits=31)
        self._made = bytearray()

    def write(self, data: bytes) -> int:
        self._made += self._compress.compress(data)
        if len(self._made) >= _BLOCK:
            self._flush()
        return len(data)

    def close(self) -> None:
        self._made += self._compress.flush()
        self._flush()

    def _flush(self) -> None:
        self._put(bytes(self._made))
        self._made.clear()


def retar(source: Source, put: Callable[[bytes], None]) -> bytes:
    """The text of config.json; what is below rootfs/ goes to ``put`` as a gzipped tar, in chunks.

    Absolute names are relative to the package, as dockerd and ``docker export`` have them.

    Raises: Invalid naming the entry, for a stream that is no package: it is no tar, breaks off, lacks one of the two,
    names a path outside, or holds what cannot be in a root file system. ``put`` has taken a part by then.
    """
    config: bytes | None = None
    has_root = False
    compressed = _Gzip(put)
    gunzip = _Gunzip(source) if source.peek(2) == _GZIP_MAGIC else None
    try:
        with (
            tarfile.open(fileobj=_Bounded(gunzip or source), mode="r|*", tarinfo=_StrictEntry, **_NAMES) as package,  # type: ignore[call-overload]
            tarfile.open(fileobj=compressed, mode="w|", bufsize=_BLOCK, **_NAMES) as layer,  # type: ignore[call-overload]
        ):
            for entry in package:
                package.members.clear()  # both keep every entry otherwise, and a root may have a million
                layer.members.clear()
                _check_numbers(entry)
                name = _inner_name(entry, entry.name)
                if name == _CONFIG:
                    if config is not None:
                        raise errors.Invalid("cannot read the package: it has two files config.json")
                    config = _read_config(package, entry)
                elif name == _ROOT or name.startswith(f"{_ROOT}/"):
                    has_root = True
                    made = _moved(entry, name)
                    layer.addfile(made, package.extractfile(entry) if made.isreg() else None)
        if gunzip is not None:
            gunzip.check_the_rest()
        compressed.close()
    except (tarfile.TarError, zlib.error, EOFError, UnicodeError, ValueError, OSError, ArithmeticError) as error:
        raise errors.Invalid(f"cannot read the package: it is no whole tar stream: {error}") from error
    if config is None:
        raise errors.Invalid("config not found")
    if not has_root:
        raise errors.Invalid("no rootfs found")
    return config


def _check_numbers(entry: tarfile.TarInfo) -> None:
    """Raises: Invalid naming the field of an entry that no file can have: PAX records may say anything."""
    for field, (least, most) in _NUMBERS.items():
        value = getattr(entry, field)
        if not least <= value <= most:  # a time that is no number is not, either
            raise errors.Invalid(f"cannot read the package: entry {entry.name!r} has {field} {value}")
    if entry.issparse() and entry.size > SPARSE_LIMIT:
        raise errors.Invalid(
            f"cannot read the package: entry {entry.name!r} is a sparse file of {entry.size} bytes; "
            f"at most {SPARSE_LIMIT} are possible"
        )
    if "\0" in entry.name or "\0" in entry.linkname:
        raise errors.Invalid(f"cannot read the package: entry {entry.name!r} has a NUL character in a name")


def _inner_name(entry: tarfile.TarInfo, name: str) -> str:
    """A name below the package's root, without ``./`` or ``/`` before it. Raises: Invalid for one that leads out."""
    if ".." in name.split("/"):
        raise errors.Invalid(f"cannot read the package: entry {entry.name!r} leads out of it by ..")
    return posixpath.normpath(name.lstrip("/") or ".")


def _read_config(package: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.type not in _FILES:
        raise errors.Invalid("cannot read the package: its config.json is not a file")
    if entry.size > CONFIG_LIMIT:
        raise errors.Invalid(f"cannot read the package: its config.json has more than {CONFIG_LIMIT} bytes")
    file: IO[bytes] | None = package.extractfile(entry)
    return file.read() if file is not None else b""


def _moved(entry: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """The entry as it stands in the layer. Raises: Invalid for what cannot be in a root file system."""
    if entry.type not in _TYPES and not entry.issparse():
        raise errors.Invalid(
            f"cannot read the package: entry {entry.name!r} is of a kind ({entry.type!r}) that no file system has"
        )
    if name == _ROOT and not entry.isdir():
        raise errors.Invalid("cannot read the package: its rootfs is not a directory")
    made = copy.copy(entry)
    made.name = name.removeprefix(_ROOT).removeprefix("/") or "."
    made.uname = made.gname = ""  # names of whoever packed it; the numbers count
    made.pax_headers = {key: value for key, value in entry.pax_headers.items() if key.startswith(_XATTR)}
    if entry.islnk():
        target = _inner_name(entry, entry.linkname)
        if not target.startswith(f"{_ROOT}/"):
            raise errors.Invalid(f"cannot read the package: entry {entry.name!r} is a link to a file outside rootfs")
        made.linkname = target.removeprefix(f"{_ROOT}/")
    elif entry.isreg():  # a sparse one becomes whole
        made.type = tarfile.REGTYPE
        made.sparse = None
    return made
