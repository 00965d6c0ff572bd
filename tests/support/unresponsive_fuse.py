"""File systems of FUSE that do not answer: without a server that reads the requests, or without a server.

They are mounted by mount(2): mount(8) of Debian 13 accesses what it has mounted, and would wait for the server.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def hanging_file_system(target: Path) -> Iterator[None]:
    """Mounted at a directory until the block ends: an access waits that long, or until killed."""
    server = _mount(target)
    try:
        yield
    finally:
        _libc.umount2(os.fsencode(target), _MNT_DETACH)
        os.close(server)  # aborts the connection: all waiters get ENOTCONN


def mount_dead_file_system(target: Path) -> None:
    """Mount one whose server is gone: an access fails with ENOTCONN."""
    os.close(_mount(target))


def _mount(target: Path) -> int:
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    if _libc.mount(b"dead", os.fsencode(target), b"fuse", 0, options.encode()) != 0:
        os.close(server)
        raise OSError(ctypes.get_errno(), "cannot mount a FUSE file system", str(target))
    return server
