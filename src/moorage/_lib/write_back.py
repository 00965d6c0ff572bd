"""What somebody writes goes to the disk while it is written, so that a sync after it finds little left to do.

Source: syncfs(2), for which Python has no binding.
"""

import ctypes
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from moorage._lib.groups import background_tasks

__all__ = ("WriteBack",)

log = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds from one sync to the next: with 0.1 it costs containerd as much as it saves at the end

_libc = ctypes.CDLL(None, use_errno=True)


class WriteBack:
    """Syncs early what is written in several steps, each of which may be shorter than the pause between two syncs.

    It promises nothing: what must be on the disk is synced afterwards all the same.
    """

    def __init__(self) -> None:
        self._due_at = 0.0  # monotonic
        self._is_syncing = False

    @asynccontextmanager
    async def of(self, directory: str) -> AsyncIterator[None]:
        """Sync the file system of a directory whenever that is due, until the block ends, which waits for no sync.

        Where the directory cannot be seen from here, nothing is done.
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
                # left alone where the block ends: nothing depends on when it ends
                await anyio.to_thread.run_sync(lambda: self._run(directory), abandon_on_cancel=True)
            except OSError as error:
                log.debug("%s is not written back early: %s", directory, error)
                return

    def _run(self, directory: str) -> None:
        self._is_syncing = True
        try:
            _sync(directory)
        finally:
            self._due_at = time.monotonic() + _PAUSE
            self._is_syncing = False


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)
