"""The reader of tar streams: what tarfile writes comes out whole, however it is cut into chunks; damage is reported."""

import gzip
import io
import itertools
import tarfile
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moorage import errors
from moorage.packages.tar import read_entries

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
FILES = st.dictionaries(
    st.text("abc/ü", min_size=1, max_size=150).filter(lambda name: "//" not in name and name.strip("/") == name),
    st.binary(max_size=3000),
    max_size=4,
)


def pack(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def unpack(data: bytes, cut: int = 1000) -> dict[str, bytes]:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(data), cut):
            yield data[start : start + cut]

    async def read() -> dict[str, bytes]:
        return {entry.name: await entry.read(1 << 20) async for entry in read_entries(body())}

    return anyio.run(read)


@given(FILES, st.sampled_from(FORMATS[1:]), st.integers(1, 5000), st.booleans())
def test_d09_what_was_packed_comes_out(files: dict[str, bytes], form: int, cut: int, is_gzip: bool) -> None:
    raw = pack(files, form)
    assert unpack(gzip.compress(raw) if is_gzip else raw, cut) == files


@pytest.mark.parametrize("form", FORMATS)
def test_d09_unused_entries_are_skipped(form: int) -> None:
    async def names() -> list[str]:
        async def body() -> AsyncIterator[bytes]:
            yield pack({"a": b"1" * 5000, "b": b"2"}, form)

        return [entry.name async for entry in read_entries(body())]

    assert anyio.run(names) == ["a", "b"]


def test_d09_bytes_after_the_gzip_are_skipped_and_not_stored() -> None:
    async def read() -> int:
        async def body() -> AsyncIterator[bytes]:
            yield gzip.compress(pack({"a": b"1"}))
            for _ in range(64):
                yield bytes(1 << 20)

        tracemalloc.start()
        try:
            assert [entry.name async for entry in read_entries(body())] == ["a"]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert anyio.run(read) < 16 << 20


@given(st.integers(0, 4000))
def test_d09_an_archive_that_is_cut_off_anywhere_is_reported(at: int) -> None:
    whole = pack({"a": b"1" * 1000, "b": b"2" * 1000}, tarfile.GNU_FORMAT)
    end = whole.index(bytes(1024), 2000)  # the end mark, after the last file
    with pytest.raises(errors.Invalid, match=r"cannot read the archive: it (ends|is no tar)"):
        unpack(whole[: min(at, end)])


@given(st.binary(max_size=2000), st.integers(1, 1000))
@example(b"\x1f", 1000)  # half of the magic number of gzip, and no more
@example(b"\x1f\x8b", 1)
def test_d09_anything_is_read_or_refused(data: bytes, cut: int) -> None:
    with suppress(errors.Invalid):  # and nothing else
        unpack(data, cut)


@pytest.mark.parametrize("extra", [b"5 x=\n", b"99 size=1\n", b"x", b"0 a=b\n", b"11 size=-1\n", b"11 size=1x\n"])
def test_d09_damaged_fields_of_a_header_are_reported(extra: bytes) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(extra)
    raw = head.tobuf() + extra + bytes(-len(extra) % 512) + pack({"a": b"1"})
    if extra == b"5 x=\n":  # a field of no interest
        assert unpack(raw) == {"a": b"1"}
        return
    with pytest.raises(errors.Invalid, match="cannot read the archive"):
        unpack(raw)


def test_d09_a_size_below_zero_is_reported() -> None:
    head = tarfile.TarInfo("x")
    head.size = -1
    with pytest.raises(errors.Invalid, match="'x' has -1 bytes"):
        unpack(head.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@given(FILES, st.integers(1, 3000), st.lists(st.integers(0, 20_000), max_size=3))
def test_d09_an_archive_of_several_gzip_members_is_read(files: dict[str, bytes], cut: int, ends: list[int]) -> None:
    raw = pack(files)
    bounds = [0, *sorted(ends), len(raw)]
    packed = b"".join(gzip.compress(raw[start:end]) for start, end in itertools.pairwise(bounds))
    assert unpack(packed, cut) == files


def test_d09_a_body_that_fails_fails_as_it_did() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield pack({"a": b"1" * 5000})[:2000]
        raise ConnectionResetError("the sender is gone")

    async def read() -> None:
        async for entry in read_entries(body()):
            await entry.read(10_000)

    with pytest.raises(ConnectionResetError, match="the sender is gone"):
        anyio.run(read)


@pytest.mark.parametrize("at", [0, 600, 5000], ids=["before a header", "in contents", "between entries"])
def test_d09_a_cancelled_reader_of_a_silent_body_ends(at: int) -> None:
    async def read() -> bool:
        is_waiting = anyio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield pack({"a": b"1" * 4000, "b": b"2"})[:at]
            is_waiting.set()
            await anyio.sleep_forever()

        async def consume() -> None:
            async for entry in read_entries(body()):
                async for _ in entry.chunks():
                    pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await is_waiting.wait()
            tasks.cancel_scope.cancel()
        return tasks.cancel_scope.cancel_called

    assert anyio.run(read)
