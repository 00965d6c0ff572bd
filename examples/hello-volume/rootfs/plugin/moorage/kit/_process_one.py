"""The first thing that the kit does: as process 1 of a container, exit on SIGTERM from the first moment on.

The kernel ignores a signal of process 1 that it has no handler for, so a stop that arrives before ``serve`` would last
until SIGKILL, ten seconds later. In any other process this module does nothing.
"""

import os
import signal
from types import FrameType

__all__ = ("install",)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(0 if number == signal.SIGTERM else 128 + number)


def install() -> None:
    """Exit on SIGTERM and SIGINT until ``serve`` handles them, if this is process 1."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _exit)
        signal.signal(signal.SIGINT, _exit)


install()
