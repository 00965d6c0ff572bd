"""What somebody writes goes to the disk while it is written, so that a sync after it finds little left to do.

Source: syncfs(2), for which Python has no binding.
"""

import ctypes
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from moorage._lib.groups import background_tasks

__all__ = ("written_back",)

log = logging.getLogger(__name__)

_PAUSE = 0.2  # seconds: with 0.1 it costs containerd as much time as it takes away from the end

_libc = ctypes.CDLL(None, use_errno=True)


@asynccontextmanager
async def written_back(directory: str) -> AsyncIterator[None]:
    """Sync the file system of a directory again and again until the block ends. It promises nothing: what must be on
    the disk is synced afterwards all the same. Where the directory cannot be seen from here, nothing is done.
    """
    async with background_tasks() as tasks:
        tasks.start_soon(_write_back, directory)
        yield


async def _write_back(directory: str) -> None:
    while True:
        await anyio.sleep(_PAUSE)
        try:
            # left alone where the block ends: nothing depends on when it ends
            await anyio.to_thread.run_sync(lambda: _sync(directory), abandon_on_cancel=True)
        except OSError as error:
            log.debug("%s is not written back early: %s", directory, error)
            return


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)
