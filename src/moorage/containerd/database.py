"""Whether the databases of a containerd on the disk are intact, found by reading their files.

containerd has two bolt databases: records, content and leases in one, the snapshots of overlayfs in the other. On a
damaged one it serves without most of its services, exits with a trace of Go's runtime, or waits without limit; none of
these names the file. The pages of a database are read here as bolt reads them. A file that is being written stays
consistent for its reader, because bolt copies a page before it changes it; a file that seems damaged is read once more.
Reading files blocks.

Source: the file format of bbolt (``page.go``, ``db.go``, ``bucket.go`` of go.etcd.io/bbolt 1.3).
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from moorage import errors

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = (
    "DamagedDatabase",
    "check_database",
    "check_databases",
    "check_services",
    "databases",
    "find_damage_in_log",
    "recovery_advice",
)

_MAGIC = 0xED0CDAED
_PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow
_META = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root, sequence, freelist, high water, txid
_CHECKSUM = struct.Struct("<Q")
_BRANCH = struct.Struct("<IIQ")  # position, key size, page
_LEAF = struct.Struct("<IIII")  # flags, position, key size, value size
_BUCKET = struct.Struct("<QQ")  # root page (0: inline), sequence
_BRANCH_FLAG, _LEAF_FLAG, _META_FLAG, _FREELIST_FLAG = 0x01, 0x02, 0x04, 0x10
_NO_FREELIST = 0xFFFFFFFFFFFFFFFF
_SIZE_LIMIT = 1 << 30  # bytes; a larger one is not read
_TRIES = 3
_LOG_LIMIT = 10 << 20  # bytes
_BOLT = "go.etcd.io/bbolt"
_FATAL = ("panic: ", "fatal error: ", "unexpected fault address", "runtime error: ")


class DamagedDatabase(errors.Unavailable):
    """A database of containerd that it cannot work with."""

    def __init__(self, path: Path, damage: str) -> None:
        super().__init__(f"containerd's database {path} is damaged: {damage}")
        self.path = path
        self.damage = damage
        """What is wrong with it, as text."""


def databases(root: Path) -> tuple[Path, Path]:
    """The paths of the databases of a containerd with this root directory, whether they exist or not."""
    return (
        root / "io.containerd.metadata.v1.bolt" / "meta.db",
        root / "io.containerd.snapshotter.v1.overlayfs" / "metadata.db",
    )


def recovery_advice(root: Path) -> str:
    """The next step of a user with a damaged database of a containerd with this root directory."""
    return (
        f"run moorage down, rename {root}, start the engine again, and install, load or create each plugin again: "
        "they keep their ids, settings and data"
    )


def check_databases(root: Path) -> None:
    """Return if the databases of a containerd are intact, or it has neither databases nor data that belong to them.

    Raises:
        DamagedDatabase: one is damaged; the text has the next step
    """
    metadata, snapshots = databases(root)
    contents = {
        metadata: root / "io.containerd.content.v1.content" / "blobs" / "sha256",
        snapshots: snapshots.parent / "snapshots",
    }
    for path, directory in contents.items():
        try:
            check_database(path)
            _check_not_lost(path, directory)
        except DamagedDatabase as error:
            raise DamagedDatabase(path, f"{error.damage}; {recovery_advice(root)}") from error


def _check_not_lost(path: Path, directory: Path) -> None:
    """Raises: DamagedDatabase for a missing or empty one with data that belong to it, which containerd would delete."""
    size = path.stat().st_size if path.exists() else None
    if not size and directory.is_dir() and any(directory.iterdir()):
        lost = "it is missing" if size is None else "it is empty"
        raise DamagedDatabase(path, f"{lost}, and {directory} is not")


def check_database(path: Path) -> None:
    """Return if a database is intact, empty, or missing.

    Raises:
        DamagedDatabase: it is damaged, or cannot be opened for writing
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            _check(path)
        except DamagedDatabase:
            if not tries_left:
                raise
        else:
            return


async def check_services(client: "Client", root: Path) -> None:
    """Return if a containerd that serves has all services that need a database: it may serve with a damaged one.

    Raises:
        DamagedDatabase: a service is missing; the text has the next step
        errors.Unavailable: containerd does not answer
    """
    for part in await client.plugins():
        is_metadata = part.type == "io.containerd.metadata.v1"
        is_snapshots = (part.type, part.id) == ("io.containerd.snapshotter.v1", "overlayfs")
        if part.error and (is_metadata or (is_snapshots and "database" in part.error)):
            raise DamagedDatabase(databases(root)[is_snapshots], f"{part.error}; {recovery_advice(root)}")


def find_damage_in_log(root: Path, log: Path, start: int) -> DamagedDatabase | None:
    """The damage that a containerd that exited at its start has logged from ``start`` on; None for another reason."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            written = file.read(_LOG_LIMIT).decode(errors="replace")
    except OSError:
        return None
    if _BOLT not in written:  # a trace of Go's runtime through the library of its databases
        return None
    failure = next((line for line in written.splitlines() if line.startswith(_FATAL)), "it exited at once")
    path = databases(root)["snapshots/storage" in written]
    return DamagedDatabase(path, f"containerd exited at its start: {failure}; {recovery_advice(root)}")


def _check(path: Path) -> None:
    try:
        with path.open("r+b") as file:  # containerd opens it for writing
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= _SIZE_LIMIT:  # bolt makes a new one of an empty file
                return
            data = file.read()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DamagedDatabase(path, f"it cannot be opened for writing: {error.strerror}") from error
    try:
        _Reader(data).check()
    except (_DamageError, struct.error) as error:
        raise DamagedDatabase(path, str(error)) from error


class _DamageError(Exception):
    """The damage, as text."""


class _Meta(Struct, frozen=True):
    page_size: int
    root: int
    freelist: int
    high_water: int
    txid: int


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._meta = self._find_meta()
        self._seen: set[int] = set()

    def _find_meta(self) -> _Meta:
        """The newer valid one of the two pages at the beginning."""
        found = [meta for offset in self._meta_offsets() if (meta := self._read_meta(offset)) is not None]
        if not found:
            raise _DamageError("its header is damaged")
        return max(found, key=lambda meta: meta.txid)

    def _meta_offsets(self) -> tuple[int, ...]:
        return (0, *(1 << shift for shift in range(10, 17)))  # the second page, whatever a page's size

    def _read_meta(self, offset: int) -> _Meta | None:
        start = offset + _PAGE.size
        raw = self._data[start : start + _META.size + _CHECKSUM.size]
        if len(raw) < _META.size + _CHECKSUM.size:
            return None
        magic, version, page_size, _, root, _, freelist, high_water, txid = _META.unpack_from(raw)
        (checksum,) = _CHECKSUM.unpack_from(raw, _META.size)
        if magic != _MAGIC or version != 2 or checksum != _fnv(raw[: _META.size]) or offset not in (0, page_size):
            return None
        return _Meta(page_size, root, freelist, high_water, txid)

    def check(self) -> None:
        """Read every page that is in use. Raises: _DamageError."""
        meta = self._meta
        if meta.high_water * meta.page_size > len(self._data):
            pages = meta.high_water * meta.page_size
            raise _DamageError(f"it has {len(self._data)} bytes instead of {pages}")
        if meta.freelist != _NO_FREELIST and self._page(meta.freelist)[0] != _FREELIST_FLAG:
            raise _DamageError(f"page {meta.freelist} is not the list of free pages")
        pending = [meta.root]
        while pending:
            pending += self._child_pages(pending.pop())

    def _page(self, number: int) -> tuple[int, int, int, int]:
        """Flags, count, begin and end of a page. Raises: _DamageError."""
        meta = self._meta
        if not 2 <= number < meta.high_water or number in self._seen:
            raise _DamageError(f"page {number} is referred to and cannot exist")
        self._seen.add(number)
        start = number * meta.page_size
        itself, flags, count, overflow = _PAGE.unpack_from(self._data, start)
        end = start + (overflow + 1) * meta.page_size
        if itself != number or end > len(self._data):
            raise _DamageError(f"page {number} is no page")
        return flags, count, start, end

    def _child_pages(self, number: int) -> Iterator[int]:
        """The pages that a page refers to."""
        flags, count, start, end = self._page(number)
        if flags == _BRANCH_FLAG:
            return iter([page for _, page in self._branch(number, count, start, end)])
        if flags == _LEAF_FLAG:
            return iter(list(self._buckets(f"page {number}", count, start, end)))
        raise _DamageError(f"page {number} is of an unknown kind")

    def _branch(self, number: int, count: int, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        before = b""
        for at in range(start + _PAGE.size, start + _PAGE.size + count * _BRANCH.size, _BRANCH.size):
            position, key_size, page = _BRANCH.unpack_from(self._data, at)
            key = self._slice(f"page {number}", at + position, key_size, end)
            if at != start + _PAGE.size and key <= before:
                raise _DamageError(f"page {number} is not in order")
            before = key
            yield key, page

    def _buckets(self, what: str, count: int, start: int, end: int) -> Iterator[int]:
        """The root pages of buckets in a leaf."""
        before: bytes | None = None
        for at in range(start + _PAGE.size, start + _PAGE.size + count * _LEAF.size, _LEAF.size):
            flags, position, key_size, value_size = _LEAF.unpack_from(self._data, at)
            key = self._slice(what, at + position, key_size, end)
            value_at = at + position + key_size
            self._slice(what, value_at, value_size, end)
            if flags not in (0, 1) or (before is not None and key <= before):
                raise _DamageError(f"{what} is not in order")
            before = key
            if flags == 1:
                root, _ = _BUCKET.unpack_from(self._data, value_at)
                if root:
                    yield root
                else:
                    yield from self._inline(what, value_at + _BUCKET.size, value_at + value_size)

    def _inline(self, what: str, start: int, end: int) -> Iterator[int]:
        """The root pages of buckets in an inline bucket, which is stored in the leaf of another."""
        _, flags, count, _ = _PAGE.unpack_from(self._data, start)
        if flags != _LEAF_FLAG:
            raise _DamageError(f"{what} has a bucket that is none")
        return self._buckets(what, count, start, end)

    def _slice(self, what: str, start: int, size: int, end: int) -> bytes:
        if start + size > end:
            raise _DamageError(f"{what} refers to bytes beyond it")
        return self._data[start : start + size]


def _fnv(data: bytes) -> int:
    """FNV-1a of 64 bits."""
    meta = 0xCBF29CE484222325
    for byte in data:
        meta = (meta ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return meta
