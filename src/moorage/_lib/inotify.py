"""Waiting for changes in a directory, whoever makes them."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

__all__ = ("DirectoryWatch", "watching")

_LOOK_AGAIN = 0.2  # seconds; for a directory that is not there yet, or that the kernel has no watch left for

# Source: inotify(7), linux/inotify.h.
_MODIFY, _MOVED_TO, _CREATE, _IGNORED = 0x2, 0x80, 0x100, 0x8000
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """The changes in one directory, which need not be there yet."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._is_set = self._set()

    async def wait(self, within: float) -> None:
        """Return when something may have been written, made or renamed since the last return; in ``within`` seconds
        at the latest. Returns without cause too, and now and then where nothing can be watched.
        """
        if not self._is_set:
            await anyio.sleep(min(within, _LOOK_AGAIN))
            self._is_set = self._set()
            return
        with anyio.move_on_after(within):
            await anyio.wait_readable(self._descriptor)
            self._is_set = not self._read()

    def _set(self) -> bool:
        change = _MODIFY | _MOVED_TO | _CREATE
        return self._descriptor >= 0 and _libc.inotify_add_watch(self._descriptor, os.fsencode(self._path), change) >= 0

    def _read(self) -> bool:
        """Take what was told; whether the directory was removed."""
        try:
            told = os.read(self._descriptor, 64 * 1024)
        except BlockingIOError:
            return False
        place = 0
        while place < len(told):
            _, mask, _, name_bytes = _EVENT.unpack_from(told, place)
            if mask & _IGNORED:
                return True
            place += _EVENT.size + name_bytes
        return False


@contextmanager
def watching(path: Path) -> Iterator[DirectoryWatch]:
    """Watch a directory for the length of the block."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield DirectoryWatch(path, descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
