"""What targets need around them: a directory and an event loop of this process."""

import asyncio
import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

__all__ = ("DIRECTORY", "loop", "scratch")

DIRECTORY = "MOORAGE_FUZZ_DIRECTORY"
"""The variable that names a directory whose owner removes it: libFuzzer ends processes without a chance to."""


@cache
def scratch() -> Path:
    """A directory of this process, on a file system in memory where there is one; removed when it exits."""
    if directory := os.environ.get(DIRECTORY):
        return Path(directory)
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process; closed when it exits."""
    made = asyncio.new_event_loop()
    atexit.register(made.close)
    return made
