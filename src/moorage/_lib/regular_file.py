"""Reading a file that may turn out to be something else: opening a named pipe would wait for a writer."""

import errno
import os
import stat
from pathlib import Path

__all__ = ("read_regular",)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """At most so many bytes of a file (blocking). Never waits. Raises: OSError, also where it is no regular file."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        return file.read(most_bytes)
