"""A file system that never answers: FUSE without a server that reads its requests."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_DETACH = 2


@contextmanager
def hanging_file_system(target: Path) -> Iterator[None]:
    """Mounted at a directory until the block ends: an access waits that long, or until killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"hanging", os.fsencode(target), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "cannot mount a FUSE file system", str(target))
        try:
            yield
        finally:
            libc.umount2(os.fsencode(target), _MNT_DETACH)
    finally:
        os.close(server)  # aborts the connection: all waiters get ENOTCONN
