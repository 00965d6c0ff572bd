"""A package's stream: what is bounded, and what is checked to its last byte."""

import gzip
import io
import tarfile
from collections.abc import Callable

import pytest

from moorage import errors
from moorage.distribution._retar import HEADER_LIMIT, Source, retar

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
    config = retar(Source(lambda: next(pieces, b"")), made.append)
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
