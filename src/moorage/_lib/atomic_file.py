"""A file that is either the old one or the new one, also after a power cut."""

import os
from pathlib import Path

__all__ = ("sync_directory", "write_atomically")


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file, complete and on the disk when this returns (blocking). On failure the old one stays.

    One writer at a time: the name of the half-made file is fixed, so that what a killed writer left is replaced.
    """
    half = path.with_name(f".{path.name}.new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk (blocking)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
