"""Seconds to read 100 MB of tar: a package into a layer, an archive, and a gzipped archive. Median of five each.

Run it as ``.venv/bin/python bench/tar.py``; nothing is stored, so it shows what parsing takes (ADR 0036).
"""

import gzip
import io
import random
import statistics
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator

import anyio

from moorage.packages.create import repack_package
from moorage.packages.tar import read_entries

MEGABYTE = 1 << 20
CHUNK = 64 * 1024
ROUNDS = 5


def pack(files: dict[str, bytes]) -> bytes:
    """A tar of these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def create(data: bytes) -> None:
    """Make a layer of a package."""
    pieces = chunks(data)
    repack_package(lambda: next(pieces, b""), lambda _: None)


def chunks(data: bytes) -> Iterator[bytes]:
    """The data as they come."""
    return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))


async def load(data: bytes) -> None:
    """Read every entry of an archive."""

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks(data):
            yield chunk

    async for entry in read_entries(body()):
        async for _ in entry.chunks():
            pass


def median_of(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Measure, and print a line for each."""
    half = random.Random(1).randbytes(MEGABYTE // 2) + bytes(MEGABYTE // 2)
    package = pack({"config.json": b"{}", **{f"rootfs/{number}": half * 10 for number in range(10)}})
    archive = pack({f"blobs/sha256/{number}": half * 25 for number in range(4)})
    packed = gzip.compress(archive, 1)
    print(f"package to layer: {median_of(lambda: create(package)):.3f} s")
    print(f"archive: {median_of(lambda: anyio.run(load, archive)):.3f} s")
    print(f"gzipped archive: {median_of(lambda: anyio.run(load, packed)):.3f} s")


if __name__ == "__main__":
    main()
