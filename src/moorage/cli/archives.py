"""Archives that commands read and write: files of the user, and an image beside a config.json."""

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from moorage import errors

__all__ = ("archive_file", "chunks_of", "config_entry", "image_tar", "open_file", "write_archive")

_CHUNK = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE


def write_archive(output: Path, chunks: Iterable[bytes]) -> bool:
    """Write the chunks into a file; whether it is a regular one, which is whole or as it was before.

    A device, a named pipe or ``/dev/stdout`` is written into: a new file instead of it would remove it for all
    users of the host. Of a symbolic link the file is replaced that it leads to. Raises: Invalid for what cannot be
    written; what ``chunks`` raises.
    """
    try:
        if _is_special(output):
            with output.open("wb") as file:
                file.writelines(chunks)
            return False
        _replace(Path(os.path.realpath(output)), chunks)
    except OSError as error:
        raise errors.Invalid(f"cannot write {output}: {error.strerror}") from error
    return True


def _is_special(output: Path) -> bool:
    try:
        found = output.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return True
    real = os.path.realpath(output)  # names no file where /dev/fd/N leads to one that was deleted
    return not os.path.exists(real) or not os.path.samefile(output, real)


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    half = path.with_name(f".moorage-{os.getpid()}.new")  # short, whatever the length of the name itself
    try:
        with half.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        half.rename(path)
    finally:
        half.unlink(missing_ok=True)


def open_file(path: Path) -> BinaryIO:
    """A file to read. Raises: NotFound, Invalid."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read {path}: {error.strerror}") from error


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, in chunks."""
    while chunk := file.read(_CHUNK):
        yield chunk


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
                    while chunk := plain.read(_CHUNK):
                        yield chunk
                except (OSError, EOFError) as error:
                    raise errors.Invalid(f"cannot read {path}: {error}") from error
            return
        yield config_entry(config)
        yield from chunks_of(file)


def _directory(path: Path) -> Iterator[bytes]:
    """The files of a layout. Others that lie about are left out."""
    blobs = path / "blobs" / "sha256"
    files = [path / "index.json", *(sorted(blobs.iterdir()) if blobs.is_dir() else ())]
    for each in files:
        with open_file(each) as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(0)
            yield from archive_file(str(each.relative_to(path)), chunks_of(file), size)
    yield bytes(2 * _BLOCK)


def archive_file(name: str, chunks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """A file of an archive. Raises: Invalid where the chunks have another size."""
    yield _head(name, size_bytes)
    sent = 0
    for chunk in chunks:
        sent += len(chunk)
        yield chunk
    if sent != size_bytes:
        raise errors.Invalid(f"cannot read {name}: it changed while it was read")
    yield bytes(-size_bytes % _BLOCK)


def _head(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)
