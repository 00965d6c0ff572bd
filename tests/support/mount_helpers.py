"""The directory in which the tests put helpers of mount(8), used by one test at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ("HELPERS", "helpers_alone")

HELPERS = Path("/sbin/fs.d")
"""Where mount(8) looks for helpers, too, and no package has any."""


@contextmanager
def helpers_alone() -> Iterator[None]:
    """The directory exists, and no other process of the tests changes it until the block ends."""
    with Path("/run/lock/moorage-test-helpers").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        is_new = not HELPERS.exists()
        HELPERS.mkdir(exist_ok=True)
        try:
            yield
        finally:
            if is_new:
                HELPERS.rmdir()
