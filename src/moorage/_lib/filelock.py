"""A lock between processes that the kernel lets go of when its holder dies."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

__all__ = ("hold_lock", "try_lock")

_RETRY = 0.01  # seconds; polling keeps the wait cancellable, which a blocking flock in a thread is not


def try_lock(path: Path) -> int | None:
    """Take the lock on this file and return its descriptor, to be closed by whoever takes it; None where it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@asynccontextmanager
async def hold_lock(path: Path) -> AsyncIterator[None]:
    """Hold the lock on this file, waited for without bound, until the block ends."""
    while (descriptor := try_lock(path)) is None:  # noqa: ASYNC110 - another process holds it: no event of ours tells
        await anyio.sleep(_RETRY)
    try:
        yield
    finally:
        os.close(descriptor)
