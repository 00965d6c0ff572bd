"""Writing file systems to their disks. Everything but ``WriteBack`` blocks for as long as the disks take."""

import ctypes
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from moorage._lib.task_groups import background_tasks

__all__ = ("WriteBack", "sync_file_system", "sync_file_systems")

log = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds from one sync to the next: with 0.1 it costs containerd as much as it saves at the end

_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(directory: str) -> None:
    """Return when the whole file system of a directory is on its disk. No other file system is touched.

    Unlike sync(2), which waits for every mounted one, also for a server that does not answer.

    Raises: OSError naming the directory.
    Source: syncfs(2), for which Python has no binding.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    finally:
        os.close(descriptor)


def sync_file_systems(directories: Iterable[str]) -> None:
    """As ``sync_file_system`` for each of them, once where several are on one file system. Raises: OSError."""
    by_device = {os.stat(directory).st_dev: directory for directory in directories}
    for directory in by_device.values():
        sync_file_system(directory)


class WriteBack:
    """Syncs early what is written in several steps, so that the sync after them has little left to do.

    A step may be shorter than the pause between two syncs. There is no guarantee: what must be on the disk is synced
    afterwards all the same.
    """

    def __init__(self) -> None:
        self._due_at = 0.0  # monotonic
        self._is_syncing = False

    @asynccontextmanager
    async def of(self, directory: str) -> AsyncIterator[None]:
        """Sync the file system of a directory periodically until the block ends, which waits for no sync.

        Nothing is done for a directory that is not visible to this process.
        """
        async with background_tasks() as tasks:
            tasks.start_soon(self._write_back, directory)
            yield

    async def _write_back(self, directory: str) -> None:
        while True:
            await anyio.sleep(max(self._due_at - time.monotonic(), 0.0))
            if self._is_syncing:  # still, since an earlier step
                self._due_at = time.monotonic() + _PAUSE
                continue
            try:
                # abandoned when the block ends: nothing depends on it
                await anyio.to_thread.run_sync(lambda: self._run(directory), abandon_on_cancel=True)
            except OSError as error:
                log.debug("%s is not written back early: %s", directory, error)
                return

    def _run(self, directory: str) -> None:
        self._is_syncing = True
        try:
            sync_file_system(directory)
        finally:
            self._due_at = time.monotonic() + _PAUSE
            self._is_syncing = False
