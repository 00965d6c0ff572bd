"""Waiting for changes in a directory, by any process."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

__all__ = ("DirectoryWatch", "watch_directory")

_POLL = 0.2  # seconds; for a directory that does not exist yet, or if the kernel has no watch left

# Source: inotify(7), linux/inotify.h.
_MODIFY, _MOVED_TO, _CREATE, _IGNORED = 0x2, 0x80, 0x100, 0x8000
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """The changes in one directory, which need not exist yet."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._is_set = self._set()

    async def wait(self, within: float) -> None:
        """Return when a file may have been written, created or renamed since the last return; after ``within`` seconds
        at the latest. Returns without a change, too, and periodically if the directory cannot be watched.
        """
        if not self._is_set:
            await anyio.sleep(min(within, _POLL))
            self._is_set = self._set()
            return
        with anyio.move_on_after(within):
            await anyio.wait_readable(self._descriptor)
            self._is_set = not self._read()

    def _set(self) -> bool:
        change = _MODIFY | _MOVED_TO | _CREATE
        return self._descriptor >= 0 and _libc.inotify_add_watch(self._descriptor, os.fsencode(self._path), change) >= 0

    def _read(self) -> bool:
        """Read the events; whether the directory was removed."""
        try:
            events = os.read(self._descriptor, 64 * 1024)
        except BlockingIOError:
            return False
        offset = 0
        while offset < len(events):
            _, mask, _, name_bytes = _EVENT.unpack_from(events, offset)
            if mask & _IGNORED:
                return True
            offset += _EVENT.size + name_bytes
        return False


@contextmanager
def watch_directory(path: Path) -> Iterator[DirectoryWatch]:
    """Watch a directory for the length of the block."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield DirectoryWatch(path, descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
