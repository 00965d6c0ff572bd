"""Archives as the command line reads and sends them: files in pieces, and an image beside a config.json."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from moorage import errors

__all__ = ("config_entry", "image_tar", "open_file", "pieces_of")

_PIECE = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE


def open_file(path: Path) -> BinaryIO:
    """A file to read. Raises: NotFound, Invalid."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read {path}: {error.strerror}") from error


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, in pieces."""
    while piece := file.read(_PIECE):
        yield piece


def config_entry(config: bytes) -> bytes:
    """The beginning of an archive that has a config.json, which may end with it."""
    return _head("config.json", len(config)) + config + bytes(-len(config) % _BLOCK)


def image_tar(config: bytes, path: Path) -> Iterator[bytes]:
    """A config.json, and after it an OCI layout: a directory, or an archive as it is (in plain tar, or gzip).

    Raises: NotFound, Invalid.
    """
    if path.is_dir():
        yield config_entry(config)
        yield from _directory(path)
        return
    with open_file(path) as file:
        begin = file.read(2)
        file.seek(0)
        if begin == b"\x1f\x8b":
            import gzip

            yield config_entry(config)
            with gzip.GzipFile(fileobj=file) as plain:
                try:
                    while piece := plain.read(_PIECE):
                        yield piece
                except (OSError, EOFError) as error:
                    raise errors.Invalid(f"cannot read {path}: {error}") from error
            return
        yield config_entry(config)
        yield from pieces_of(file)


def _directory(path: Path) -> Iterator[bytes]:
    """The files of a layout. Others that lie about are left out."""
    blobs = path / "blobs" / "sha256"
    files = [path / "index.json", *(sorted(blobs.iterdir()) if blobs.is_dir() else ())]
    for each in files:
        with open_file(each) as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(0)
            yield _head(str(each.relative_to(path)), size)
            sent = 0
            for piece in pieces_of(file):
                sent += len(piece)
                yield piece
            if sent != size:
                raise errors.Invalid(f"cannot read {each}: it changed while it was read")
            yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _head(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)
