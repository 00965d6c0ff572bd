"""A package's stream: what is bounded, and what is checked to its last byte."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moorage import errors
from moorage.packages.create import repack_package
from moorage.packages.tar import HEADER_LIMIT

pytestmark = pytest.mark.quick

CONFIG = b"{}"
BIG = bytes(range(256)) * 4096


def package(*entries: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A package with a file of a megabyte, and these entries without contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, data in (("config.json", CONFIG), ("rootfs/big", BIG)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for entry in entries:
            archive.addfile(entry)
    return stream.getvalue()


def taken(data: bytes, piece: int = 7000) -> tuple[bytes, dict[str, bytes]]:
    """The config, and the files of the layer, of a stream that comes in pieces."""
    made: list[bytes] = []
    pieces = iter([data[at : at + piece] for at in range(0, len(data), piece)])
    config = repack_package(lambda: next(pieces, b""), made.append)
    with tarfile.open(fileobj=io.BytesIO(b"".join(made))) as layer:
        return config, {each.name: layer.extractfile(each).read() for each in layer if each.isreg()}  # type: ignore[union-attr]


def with_attribute(size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("rootfs/small")
    entry.pax_headers = {"SCHILY.xattr.user.x": "x" * size}
    return entry


def with_name(size: int) -> tarfile.TarInfo:
    return tarfile.TarInfo("rootfs/" + "n" * size)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:])]
)
@pytest.mark.parametrize("piece", [1000, 10**7])
def test_d02_a_stream_is_taken_gzipped_or_not_in_any_pieces(pack: Callable[[bytes], bytes], piece: int) -> None:
    assert taken(pack(package()), piece) == (CONFIG, {"big": BIG})


def test_d02_an_attribute_of_tarfile_since_python_3_13_4_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tarfile.TarFile.__init__

    def as_in_3_13_4(self: tarfile.TarFile, *arguments: Any, **more: Any) -> None:
        self.stream = False  # type: ignore[attr-defined]
        made(self, *arguments, **more)

    monkeypatch.setattr(tarfile.TarFile, "__init__", as_in_3_13_4)
    assert taken(package()) == (CONFIG, {"big": BIG})


@pytest.mark.parametrize("at", [-1, -4, -5, -8], ids=["length", "its first", "checksum", "its first"])
def test_d02_a_gzipped_stream_is_checked_to_its_last_byte(at: int) -> None:
    data = bytearray(gzip.compress(package()))
    data[at] ^= 1
    with pytest.raises(errors.Invalid, match="it is no whole tar stream: Error -3 while decompressing"):
        taken(bytes(data))


@pytest.mark.parametrize("missing", [1, 8, 9, 500])
def test_d02_a_gzipped_stream_that_breaks_off_is_refused(missing: int) -> None:
    with pytest.raises(errors.Invalid, match="it is no whole tar stream: it breaks off within gzipped data"):
        taken(gzip.compress(package())[:-missing])


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("make", [with_attribute, with_name])
def test_d02_what_stands_before_an_entry_is_bounded(make: Callable[[int], tarfile.TarInfo], format: int) -> None:
    assert taken(package(make(60_000), format=format))[0] == CONFIG
    if make is with_name or format == tarfile.PAX_FORMAT:
        with pytest.raises(errors.Invalid, match=rf"a header of \d+ bytes; at most {HEADER_LIMIT} are read"):
            taken(package(make(HEADER_LIMIT + 1), format=format))


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_d02_gzip_members_may_end_anywhere_in_a_piece(piece: int) -> None:
    small = io.BytesIO()
    with tarfile.open(fileobj=small, mode="w") as archive:
        for name, text in (("config.json", CONFIG), ("rootfs/a", b"a" * 700)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    data = small.getvalue()
    members = [gzip.compress(data[at : at + 613]) for at in range(0, len(data), 613)]
    assert taken(b"".join(members) + b"\0" * 100, piece) == (CONFIG, {"a": b"a" * 700})


def peak_of(pieces: Iterator[bytes]) -> int:
    """The most memory in use while a stream is read that is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(errors.Invalid, match="cannot read the package"):
            repack_package(lambda: next(pieces, b""), lambda data: None)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def header(kind: bytes, data: bytes, name: str = "x") -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, len(data)
    return made.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text) + len(str(len(text)))
    return str(len(text) + len(str(length))).encode() + text


def global_records() -> Iterator[bytes]:
    """Global PAX records that are all different, with an entry between any two."""
    for number in range(64):
        yield header(tarfile.XGLTYPE, record(f"k{number}", "v" * 1_000_000)) + header(tarfile.REGTYPE, b"")


def sparse_map() -> Iterator[bytes]:
    """The map of a sparse file, as PAX 1.0 has it before the contents, that does not end."""
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "9")
    made = tarfile.TarInfo("rootfs/s")
    made.size = 1 << 40
    yield header(tarfile.XHDTYPE, records) + made.tobuf(tarfile.GNU_FORMAT) + b"9999999999\n" + b"1\n" * 250 + b"1"
    for _ in range(64):
        yield b"\n1" * (1 << 19)


def old_sparse_map() -> Iterator[bytes]:
    """The map of a sparse file in GNU's old format, whose extension headers do not end."""
    made = tarfile.TarInfo("rootfs/s")
    made.type, made.size = tarfile.GNUTYPE_SPARSE, 1
    raw = bytearray(made.tobuf(tarfile.GNU_FORMAT))
    raw[482] = 1
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
    yield bytes(raw)
    for _ in range(64):
        yield (b"00000000001\x0000000000001\x00" * 21 + b"\x01" + bytes(7)) * 2048


@pytest.mark.parametrize("pieces", [global_records, sparse_map, old_sparse_map])
def test_d02_what_a_hostile_stream_takes_of_memory_is_bounded(pieces: Callable[[], Iterator[bytes]]) -> None:
    assert peak_of(pieces()) < 40 << 20
